// CUDA kernels of the logit, its gradient, and dequantisation.
//
// parallelism  logit: image_reduce; gradient: one thread an element; dequantise: one thread a
//              Philox block of four elements
// traffic      logit 8 bytes an element in float32, gradient 12, dequantise 8
// numerics     log1p and softplus keep both tails exact; float32 arithmetic (double for double)
// measured     never run on a GPU
#include "preprocess/preprocess.h"

#include "common/image_reduce.cuh"

namespace flowinv {
namespace cuda {
namespace {

template <class T, bool kDecode>
void logit(const LogitParams& p, const Place& place) {
  image_reduce("logit", LogitBody<T, kDecode>(p), p.batch, p.n,
               static_cast<const Acc<T>*>(p.logdet_in), static_cast<Acc<T>*>(p.logdet_out),
               static_cast<Acc<T>*>(p.partials), place);
}

}  // namespace

void logit(const LogitParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    p.decode ? logit<T, true>(p, place) : logit<T, false>(p, place);
  });
}

void logit_backward(const LogitBackwardParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::int64_t n = p.batch * p.n;
    p.decode ? for_each("logit_backward", LogitBackwardBody<T, true>(p), n, place)
             : for_each("logit_backward", LogitBackwardBody<T, false>(p), n, place);
  });
}

void dequantise(const DequantiseParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each("dequantise", DequantiseBody<T>{p}, (p.n + 3) / 4, place);
  });
}

}  // namespace cuda
}  // namespace flowinv
