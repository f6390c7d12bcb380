// CPU loops of the patches.
#include "density/patches.h"

#include <type_traits>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {

void patches(const PatchesParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.scatter)
      for_each(ScatterBody<T>{p}, p.batch * p.channels * p.height * p.width, place.threads);
    else
      for_each(GatherBody<T>{p}, p.batch * p.count * p.patch_height * p.patch_width, place.threads);
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
