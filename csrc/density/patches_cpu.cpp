// CPU loops of the patches.
#include "density/patches.h"

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

template <class T>
void patches(const PatchesParams& p, const Execution& execution) {
  const PatchSumBody<T> sum{p.grid, p.in, nullptr, p.places, p.out};
  p.scatter ? for_each(sum, p.grid.pixels(), execution.threads)
            : for_each(GatherBody<T>{p}, p.grid.patch_elements(), execution.threads);
}

}  // namespace

FI_FLOAT_OP(patches, PatchesParams)

}  // namespace FI_ISA
}  // namespace flowinv
