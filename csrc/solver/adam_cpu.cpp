// CPU loop of the Adam step: one pass over an image's elements.
#include "solver/adam.h"

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

template <class T>
void one_image(const AdamParams& p, std::int64_t b) {
  using A = Acc<T>;
  if (!p.template moves<A>(b)) return;
  T* x = static_cast<T*>(p.x) + b * p.n;
  T* avg = static_cast<T*>(p.exp_avg) + b * p.n;
  T* avg_sq = static_cast<T*>(p.exp_avg_sq) + b * p.n;
  const T* grad = static_cast<const T*>(p.grad) + b * p.n;
  if (p.template improves<A>(b)) {
    static_cast<A*>(p.best_loss)[b] = static_cast<const A*>(p.loss)[b];
    std::copy(x, x + p.n, static_cast<T*>(p.best) + b * p.n);
  }
  const Adam<A> adam(p);
#pragma omp simd
  for (std::int64_t i = 0; i < p.n; ++i) {
    A m = load(avg + i), v = load(avg_sq + i);
    const A moved = adam.step(load(x + i), load(grad + i), m, v);
    store(avg + i, m);
    store(avg_sq + i, v);
    store(x + i, moved);
  }
}

template <class T>
void adam_step(const AdamParams& p, const Execution& execution) {
  // Whole images: what is the same for an image is decided once, and the rest vectorises.
  for_ranges(p.batch, p.n, execution.threads, [&](std::int64_t b, std::int64_t end) {
    for (; b < end; ++b) one_image<T>(p, b);
  });
}

}  // namespace

FI_FLOAT_OP(adam_step, AdamParams)

}  // namespace FI_ISA
}  // namespace flowinv
