// CPU loops of the logit and of dequantisation.
#include "preprocess/preprocess.h"

#include <type_traits>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

template <class T, bool kDecode>
void logit(const LogitParams& p, const Place& place) {
  image_reduce(LogitBody<T, kDecode>(p), p.batch, p.n, static_cast<const Acc<T>*>(p.logdet_in),
               static_cast<Acc<T>*>(p.logdet_out), place.threads);
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
    p.decode ? for_each(LogitBackwardBody<T, true>(p), n, place.threads)
             : for_each(LogitBackwardBody<T, false>(p), n, place.threads);
  });
}

void dequantise(const DequantiseParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each(DequantiseBody<T>{p}, (p.n + 3) / 4, place.threads);
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
