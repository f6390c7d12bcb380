// CPU loops of the log-densities.
#include "density/density.h"

#include <type_traits>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {

void gaussian_log_prob(const GaussianParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    image_reduce<Acc<T>>(GaussianBody<T>{p}, p.batch, p.n, nullptr,
                         static_cast<Acc<T>*>(p.log_prob), place.threads);
  });
}

void standard_normal_log_prob(const StandardNormalParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    image_reduce<Acc<T>>(StandardNormalBody<T>{p}, p.batch, p.n, nullptr,
                         static_cast<Acc<T>*>(p.log_prob), place.threads);
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
