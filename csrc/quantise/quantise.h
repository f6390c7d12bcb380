// Quantiser with 2^bits levels spaced evenly from low to high, ends included; ties go up.
//
//     out = low + step clamp(floor((x - low) / step + 0.5), 0, 2^bits - 1),
//     step = (high - low) / (2^bits - 1)
//
// bits 1, low -1, high 1 is the sign, sign(0) = 1. NaN stays NaN. The gradient is straight through
// and lives in Python.
#pragma once

#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/math.h"

namespace flowinv {

struct QuantiseParams {
  DType dtype;
  std::int64_t n;
  int bits;
  double low, high;
  const void* in;
  void* out;

  template <class Fields>
  void fields(Fields& f) {
    f.size("n", n);
    f.integer("bits", bits, 1, 24);
    f.number("low", low);
    f.number("high", high);
    f.tensor("x", in, {n});
    f.tensor("out", out, {n});
    dtype = f.storage();
  }
};

template <class T>
struct QuantiseBody {
  QuantiseParams p;

  FI_HD void operator()(std::int64_t i) const {
    using A = Acc<T>;
    const double last = double((std::int64_t(1) << p.bits) - 1), spacing = (p.high - p.low) / last;
    const A low = A(p.low), step = A(spacing), top = A(last);
    A index = math::floor((load(static_cast<const T*>(p.in) + i) - low) / step + A(0.5));
    index = index < A(0) ? A(0) : index;
    index = index > top ? top : index;
    store(static_cast<T*>(p.out) + i, low + index * step);
  }
};

FI_OP(quantise, QuantiseParams)

}  // namespace flowinv
