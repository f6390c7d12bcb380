// One Adam step per image, with the best iterate so far, for the active images only.
//
//     best  <- x where loss < best_loss                       (then best_loss <- loss)
//     m     <- m + (1 - beta1) (g - m),  v <- v + (1 - beta2) (g^2 - v)
//     x     <- x - rates[0] m / (sqrt(v) rates[1] + eps)
//
// with rates = lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), read where x is: a CUDA graph replays a step
// with other rates. x, grad, m, v, best: [B, N]; loss, best_loss: [B] accumulate type; active: [B] bool. An image that
// is inactive, or whose loss is not finite, is left untouched.
#pragma once

#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/math.h"

namespace flowinv {

struct AdamParams {
  DType dtype;
  std::int64_t batch, n;
  void* x;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* best;
  const void* loss;
  void* best_loss;
  const bool* active;
  const double* rates;
  double beta1, beta2, eps;

  template <class Fields>
  void fields(Fields& f) {
    f.size("batch", batch);
    f.size("n", n);
    f.tensor("x", x, {batch, n});
    f.tensor("grad", grad, {batch, n});
    f.tensor("exp_avg", exp_avg, {batch, n});
    f.tensor("exp_avg_sq", exp_avg_sq, {batch, n});
    f.tensor("best", best, {batch, n});
    f.sums("loss", loss, {batch});
    f.sums("best_loss", best_loss, {batch});
    f.tensor("active", active, {batch});
    f.tensor("rates", rates, {2});
    f.number("beta1", beta1);
    f.number("beta2", beta2);
    f.number("eps", eps);
    dtype = f.storage();
  }

  // Whether a step moves an image.
  template <class A>
  FI_HD bool moves(std::int64_t b) const {
    const A value = static_cast<const A*>(loss)[b];
    return active[b] && value - value == A(0);
  }
  // Whether an image is at the best place so far.
  template <class A>
  FI_HD bool improves(std::int64_t b) const {
    return static_cast<const A*>(loss)[b] < static_cast<const A*>(best_loss)[b];
  }
};

// The formula: updates m and v, returns the new x.
template <class A>
struct Adam {
  A step_size, correction, rate1, rate2, eps;

  FI_HD explicit Adam(const AdamParams& p)
      : step_size(A(p.rates[0])),
        correction(A(p.rates[1])),
        rate1(A(1 - p.beta1)),
        rate2(A(1 - p.beta2)),
        eps(A(p.eps)) {}

  FI_HD A step(A x, A g, A& m, A& v) const {
    m += rate1 * (g - m);
    v += rate2 * (g * g - v);
    return x - step_size * m / (math::sqrt(v) * correction + eps);
  }
};

template <class T>
struct AdamBody {
  AdamParams p;

  FI_HD void operator()(std::int64_t at) const {
    using A = Acc<T>;
    const std::int64_t b = at / p.n;
    if (!p.template moves<A>(b)) return;
    T* x = static_cast<T*>(p.x) + at;
    T* avg = static_cast<T*>(p.exp_avg) + at;
    T* avg_sq = static_cast<T*>(p.exp_avg_sq) + at;
    if (p.template improves<A>(b)) static_cast<T*>(p.best)[at] = *x;
    A m = load(avg), v = load(avg_sq);
    store(x, Adam<A>(p).step(load(x), load(static_cast<const T*>(p.grad) + at), m, v));
    store(avg, m);
    store(avg_sq, v);
  }
};

// After AdamBody has used the old value.
template <class T>
struct BestLossBody {
  AdamParams p;

  FI_HD void operator()(std::int64_t b) const {
    using A = Acc<T>;
    if (p.template moves<A>(b) && p.template improves<A>(b))
      static_cast<A*>(p.best_loss)[b] = static_cast<const A*>(p.loss)[b];
  }
};

FI_OP(adam_step, AdamParams)

}  // namespace flowinv
