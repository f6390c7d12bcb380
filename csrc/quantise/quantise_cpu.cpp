// CPU loop of the quantiser.
#include "quantise/quantise.h"

#include <type_traits>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {

void quantise(const QuantiseParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each(QuantiseBody<T>{p}, p.n, place.threads);
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
