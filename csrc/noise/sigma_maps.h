// Standard deviations of the structured noises, as functions of the pixel.
//
//     constant          level
//     sinusoidal exp    level exp(sin(2 pi row / rate)) / e
//     sinusoidal expm1  level (exp(sin(2 pi row / rate)) - 1) / (e - 1)
//     radial            level exp(-rate d^2), d from the pixel ((H - 1) / 2, (W - 1) / 2)
//
// each clamped to [floor, ceiling].
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "common/math.h"

namespace flowinv {

enum class SigmaKind : int { kConstant = 0, kSinusoidalExp = 1, kSinusoidalExpm1 = 2, kRadial = 3 };
constexpr const char* kSigmaKindNames[] = {"constant", "sinusoidal_exp", "sinusoidal_expm1",
                                           "radial"};

struct SigmaMap {
  SigmaKind kind;
  std::int64_t height, width;
  double rate, floor, ceiling;

  // Everything but level and clamp, in double: a row costs one sine, and both sides agree.
  FI_HD double shape(std::int64_t row, std::int64_t column) const {
    if (kind == SigmaKind::kConstant) return 1.0;
    if (kind == SigmaKind::kRadial) {
      const double dy = double(row - (height - 1) / 2), dx = double(column - (width - 1) / 2);
      return math::exp(-rate * (dy * dy + dx * dx));
    }
    const double wave = math::exp(::sin(math::kTwoPi / rate * double(row)));
    return kind == SigmaKind::kSinusoidalExp ? wave / 2.718281828459045235360
                                             : (wave - 1.0) / 1.718281828459045235360;
  }

  template <class A>
  FI_HD A sigma(A level, A shape) const {
    const A unclamped = level * shape;
    const A sigma = unclamped < A(floor) ? A(floor) : unclamped;
    return sigma > A(ceiling) ? A(ceiling) : sigma;
  }
};

}  // namespace flowinv
