// CPU loop of the quantiser.
#include "quantise/quantise.h"

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

template <class T>
void quantise(const QuantiseParams& p, const Execution& execution) {
  for_each(QuantiseBody<T>{p}, p.n, execution.threads);
}

}  // namespace

FI_FLOAT_OP(quantise, QuantiseParams)

}  // namespace FI_ISA
}  // namespace flowinv
