// CUDA kernels of the patches.
//
// parallelism  one thread per output element, grid-stride
// traffic      gather 8 bytes an element of the patches in float32; scatter writes every pixel and
//              reads K places (from cache) and the patches that cover it
// measured     never run on a GPU
#include "density/patches.h"

#include "common/image_reduce.cuh"

namespace flowinv {
namespace cuda {
namespace {

template <class T>
void patches(const PatchesParams& p, const Execution& execution) {
  const PatchSumBody<T> sum{p.grid, p.in, nullptr, p.places, p.out};
  p.scatter ? for_each("patches", sum, p.grid.pixels(), execution)
            : for_each("patches", GatherBody<T>{p}, p.grid.patch_elements(), execution);
}

}  // namespace

FI_FLOAT_OP(patches, PatchesParams)

}  // namespace cuda
}  // namespace flowinv
