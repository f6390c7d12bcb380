// Largest errors of math.h's float functions against long double, in units in the last place, over
// floats of every exponent. `test_math STRIDE`: every STRIDE-th bit pattern from a random start.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>

#include "common/math.h"

namespace {

using flowinv::bits_of;
using flowinv::float_of;

// Distance in ulp of the exact value; results below the smallest normal count in its ulp.
double ulps(float got, long double want) {
  if (std::isnan(got) || std::isnan(want))
    return std::isnan(got) && std::isnan(want) ? 0 : INFINITY;
  const float nearest = static_cast<float>(want);
  if (got == nearest && std::isinf(got)) return 0;
  if (std::isinf(got) || std::isinf(nearest)) {
    const float largest = std::numeric_limits<float>::max();
    return std::fabs(got) >= largest && std::fabs(nearest) >= largest ? 1 : INFINITY;
  }
  const float size = std::max(std::fabs(nearest), std::numeric_limits<float>::min());
  const double ulp = std::ldexp(1.0, std::ilogb(size) - 23);
  return static_cast<double>(std::fabs(static_cast<long double>(got) - want)) / ulp;
}

struct Function {
  const char* name;
  float (*ours)(float);
  long double (*exact)(long double);
  double bound;
  bool flushes = false;  // a result below the smallest normal float may be zero
};

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t stride = argc > 1 ? std::atoll(argv[1]) : 4099;
  const std::uint64_t start = std::random_device{}() % stride;
  namespace math = flowinv::math;
  const Function functions[] = {
      {"exp", [](float x) { return math::exp(x); }, [](long double x) { return std::exp(x); }, 1.5},
      {"log", [](float x) { return math::log(x); }, [](long double x) { return std::log(x); }, 1},
      {"log1p", [](float x) { return math::log1p(x); }, [](long double x) { return std::log1p(x); },
       3},
      {"tanh", [](float x) { return math::tanh(x); }, [](long double x) { return std::tanh(x); },
       2},
      {"sigmoid", [](float x) { return math::sigmoid(x); },
       [](long double x) { return 1 / (1 + std::exp(-x)); }, 2.5, true},
      {"softplus", [](float x) { return math::softplus(x); },
       [](long double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); },
       3},
  };
  int failures = 0;
  for (const Function& f : functions) {
    double worst = 0;
    float at = 0;
    for (std::uint64_t bits = start; bits < std::uint64_t(1) << 32; bits += stride) {
      const float x = float_of(static_cast<std::uint32_t>(bits));
      const float got = f.ours(x);
      const long double want = f.exact(x);
      if (f.flushes && got == 0 && std::fabs(want) < std::numeric_limits<float>::min()) continue;
      const double error = ulps(got, want);
      if (error > worst) worst = error, at = x;
    }
    std::printf("%-8s %.3f ulp at %a (bound %.1f)\n", f.name, worst, at, f.bound);
    failures += !(worst <= f.bound);
  }
  double worst = 0;
  for (std::uint32_t k = 0; k < 1u << 24; k += 7) {
    const float turn = float(k) / float(1u << 24);
    float c, s;
    math::cos_sin_turn(turn, c, s);
    const long double angle = 2 * 3.14159265358979323846264L * turn;
    worst = std::fmax(worst, std::fmax(std::fabs(double(c - std::cos(angle))),
                                       std::fabs(double(s - std::sin(angle)))));
  }
  std::printf("cos, sin %.3g absolute (bound 1.5e-7)\n", worst);
  failures += !(worst <= 1.5e-7);
  return failures != 0;
}
