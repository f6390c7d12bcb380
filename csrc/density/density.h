// Log-densities of independent Gaussians, one value per image.
//
//     gaussian         sum over i of -0.5 w_i^2 - log sd_i - 0.5 log(2 pi),
//                      w_i = (y_i - fx_i - mean_i) / sd_i;  score_i = w_i / sd_i, the gradient to fx
//     standard normal  sum over i of -0.5 z_i^2 - 0.5 log(2 pi)
//
// y, fx, score: [B, N]; mean and sd broadcast.
#pragma once

#include "common/broadcast.h"
#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/math.h"

namespace flowinv {

struct GaussianParams {
  DType dtype;
  std::int64_t batch, n;
  const void* y;
  const void* fx;
  Broadcast mean, sd;
  void* score;
  void* log_prob;  // [B], accumulate type
  void* partials;  // [B, tiles], CUDA only

  template <class Fields>
  void fields(Fields& f) {
    f.size("batch", batch);
    f.size("n", n);
    f.tensor("y", y, {batch, n});
    f.tensor("fx", fx, {batch, n});
    f.broadcast("mean", mean, batch, n);
    f.broadcast("std", sd, batch, n);
    f.tensor("score", score, {batch, n});
    f.sums("log_prob", log_prob, {batch});
    f.partials("partials", partials, batch, n);
    dtype = f.storage();
  }
};

// The formula, for one element.
template <class A>
struct GaussianTerm {
  A whitened, inverse_sd;

  FI_HD GaussianTerm(A y, A fx, A mean, A inverse_sd)
      : whitened((y - fx - mean) * inverse_sd), inverse_sd(inverse_sd) {}
  FI_HD A value() const { return A(-0.5) * whitened * whitened; }
  FI_HD A score() const { return whitened * inverse_sd; }
  // What the log-density has of the standard deviation alone.
  FI_HD static A constant(A sd) { return -A(math::kHalfLog2Pi) - math::log(sd); }
};

template <class T>
struct GaussianBody {
  GaussianParams p;

  FI_HD Acc<T> operator()(std::int64_t b, std::int64_t i) const {
    using A = Acc<T>;
    const std::int64_t at = b * p.n + i;
    const A sd = p.sd.template at<T>(b, i);
    const GaussianTerm<A> term(load(static_cast<const T*>(p.y) + at),
                               load(static_cast<const T*>(p.fx) + at), p.mean.template at<T>(b, i),
                               A(1) / sd);
    store(static_cast<T*>(p.score) + at, term.score());
    return term.value() + GaussianTerm<A>::constant(sd);
  }
};

struct StandardNormalParams {
  DType dtype;
  std::int64_t batch, n;
  const void* z;
  void* log_prob;
  void* partials;

  template <class Fields>
  void fields(Fields& f) {
    f.size("batch", batch);
    f.size("n", n);
    f.tensor("z", z, {batch, n});
    f.sums("log_prob", log_prob, {batch});
    f.partials("partials", partials, batch, n);
    dtype = f.storage();
  }
};

template <class T>
struct StandardNormalBody {
  StandardNormalParams p;

  FI_HD Acc<T> operator()(std::int64_t b, std::int64_t i) const {
    const Acc<T> z = load(static_cast<const T*>(p.z) + b * p.n + i);
    return Acc<T>(-0.5) * z * z - Acc<T>(math::kHalfLog2Pi);
  }
};

FI_OP(gaussian_log_prob, GaussianParams)
FI_OP(standard_normal_log_prob, StandardNormalParams)

}  // namespace flowinv
