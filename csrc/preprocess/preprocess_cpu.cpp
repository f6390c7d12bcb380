// CPU loops of the logit and of dequantisation.
#include "preprocess/preprocess.h"

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

template <class T, bool kDecode>
void logit(const LogitParams& p, const Execution& execution) {
  image_reduce(LogitBody<T, kDecode>(p), p.batch, p.n, static_cast<const Acc<T>*>(p.logdet_in),
               static_cast<Acc<T>*>(p.logdet_out), execution.threads);
}

template <class T>
void logit(const LogitParams& p, const Execution& execution) {
  p.decode ? logit<T, true>(p, execution) : logit<T, false>(p, execution);
}

template <class T>
void logit_backward(const LogitBackwardParams& p, const Execution& execution) {
  const std::int64_t n = p.batch * p.n;
  p.decode ? for_each(LogitBackwardBody<T, true>(p), n, execution.threads)
           : for_each(LogitBackwardBody<T, false>(p), n, execution.threads);
}

template <class T>
void dequantise(const DequantiseParams& p, const Execution& execution) {
  for_each(DequantiseBody<T>{p}, (p.n + 3) / 4, execution.threads);
}

}  // namespace

FI_FLOAT_OP(logit, LogitParams)
FI_FLOAT_OP(logit_backward, LogitBackwardParams)
FI_FLOAT_OP(dequantise, DequantiseParams)

}  // namespace FI_ISA
}  // namespace flowinv
