// Elementary functions for both sides.
//
// float on the CPU: branch-free polynomials that the compiler turns into vector code without
// -ffast-math. Largest errors against long double (csrc/tests/test_math.cpp holds them over
// floats of every size): exp 1.5 ulp, log 1 ulp, tanh 2 ulp, sigmoid 2.5 ulp (0 instead of a
// subnormal), softplus 3 ulp, log1p 3 ulp, sin and cos of a turn 1.5e-7 absolute. NaN stays NaN,
// infinities go to their limits.
// float on the device: the CUDA library's functions, at most 2 ulp. double: the C library on both.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"

namespace flowinv {
namespace math {

constexpr double kHalfLog2Pi = 0.918938533204672742;  // log(2 pi) / 2
constexpr double kTwoPi = 6.283185307179586476925;

FI_HD double exp(double x) { return ::exp(x); }
FI_HD double log(double x) { return ::log(x); }
FI_HD double log1p(double x) { return ::log1p(x); }
FI_HD double tanh(double x) { return ::tanh(x); }
FI_HD double sqrt(double x) { return ::sqrt(x); }
FI_HD float sqrt(float x) { return ::sqrtf(x); }
FI_HD double floor(double x) { return ::floor(x); }
FI_HD float floor(float x) { return ::floorf(x); }

#if FI_DEVICE_CODE

FI_HD float exp(float x) { return ::expf(x); }
FI_HD float log(float x) { return ::logf(x); }
FI_HD float log1p(float x) { return ::log1pf(x); }
FI_HD float tanh(float x) { return ::tanhf(x); }

#else

// 2^n for n in [-126, 127]; any other n (a NaN's) gives some float.
FI_HD float power_of_two(std::int32_t n) { return float_of(std::uint32_t(n + 127) << 23); }

FI_HD float exp(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // rounds to the nearest integer
  const float whole = shifted - 12582912.0f;
  const std::int32_t n = std::int32_t(bits_of(shifted)) - 0x4b400000;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const std::int32_t half = n >> 1;
  return p * power_of_two(half) * power_of_two(n - half);
}

FI_HD float log(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const float scaled = subnormal ? x * 8388608.0f : x;
  const std::uint32_t bits = bits_of(scaled);
  // Mantissa in [sqrt(1/2), sqrt(2)).
  const std::uint32_t shifted = bits - 0x3f3504f3u;
  const float e = float(std::int32_t(shifted) >> 23) - (subnormal ? 23.0f : 0.0f);
  const float f = float_of((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * z;
  p = p + e * -2.12194440e-4f;
  p = p - 0.5f * z;
  float result = (f + p) + e * 0.693359375f;
  result = x == 0.0f ? -INFINITY : result;
  result = x < 0.0f ? NAN : result;
  return x < INFINITY ? result : x;  // infinity and NaN
}

FI_HD float log1p(float x) {
  const float u = 1.0f + x;
  const float rest = u - 1.0f;
  const float corrected = math::log(u) * (x / (rest == 0.0f ? 1.0f : rest));
  const float result = rest == 0.0f ? x : corrected;
  return x > 1e30f ? math::log(x) : result;
}

FI_HD float tanh(float x) {
  const float a = ::fabsf(x);
  const float e = math::exp(-2.0f * a);
  const float large = (1.0f - e) / (1.0f + e);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = x + x * z * p;
  return a < 0.625f ? small : ::copysignf(large, x);
}

#endif

template <class A>
FI_HD A sigmoid(A x) {
  return A(1) / (A(1) + math::exp(-x));
}

template <class A>
FI_HD A softplus(A x) {
  const A a = x < A(0) ? -x : x;
  return (x < A(0) ? A(0) : x) + math::log1p(math::exp(-a));
}

// (cos, sin) of 2 pi turn, for turn in [0, 1).
FI_HD void cos_sin_turn(double turn, double& c, double& s) {
  c = ::cos(kTwoPi * turn);
  s = ::sin(kTwoPi * turn);
}

FI_HD void cos_sin_turn(float turn, float& c, float& s) {
#if FI_DEVICE_CODE
  ::sincospif(2.0f * turn, &s, &c);
#else
  const float quarter = (4.0f * turn + 12582912.0f) - 12582912.0f;
  const std::int32_t q = std::int32_t(quarter);
  const float r = (turn - 0.25f * quarter) * 6.28318531f;
  const float z = r * r;
  const float sine =
      ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const float cosine =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.0f;
  const float a = q & 1 ? sine : cosine, b = q & 1 ? cosine : sine;
  c = (q + 1) & 2 ? -a : a;
  s = q & 2 ? -b : b;
#endif
}

}  // namespace math
}  // namespace flowinv
