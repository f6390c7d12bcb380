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
void logit(const LogitParams& p, const Execution& execution) {
  image_reduce("logit", LogitBody<T, kDecode>(p), p.batch, p.n,
               static_cast<const Acc<T>*>(p.logdet_in), static_cast<Acc<T>*>(p.logdet_out),
               static_cast<Acc<T>*>(p.partials), execution);
}

template <class T>
void logit(const LogitParams& p, const Execution& execution) {
  p.decode ? logit<T, true>(p, execution) : logit<T, false>(p, execution);
}

template <class T>
void logit_backward(const LogitBackwardParams& p, const Execution& execution) {
  const std::int64_t n = p.batch * p.n;
  p.decode ? for_each("logit_backward", LogitBackwardBody<T, true>(p), n, execution)
           : for_each("logit_backward", LogitBackwardBody<T, false>(p), n, execution);
}

template <class T>
void dequantise(const DequantiseParams& p, const Execution& execution) {
  for_each("dequantise", DequantiseBody<T>{p}, (p.n + 3) / 4, execution);
}

}  // namespace

FI_FLOAT_OP(logit, LogitParams)
FI_FLOAT_OP(logit_backward, LogitBackwardParams)
FI_FLOAT_OP(dequantise, DequantiseParams)

}  // namespace cuda
}  // namespace flowinv
