// CUDA kernels of the patches.
//
// parallelism  one thread per output element, grid-stride
// traffic      gather 8 bytes an element of the patches in float32; scatter writes every pixel and
//              reads K places (from cache) and the patches that cover it
// measured     never run on a GPU
#include "density/patches.h"

#include <type_traits>

#include "common/image_reduce.cuh"

namespace flowinv {
namespace cuda {

void patches(const PatchesParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (p.scatter)
      for_each("patches", ScatterBody<T>{p}, p.batch * p.channels * p.height * p.width, place);
    else
      for_each("patches", GatherBody<T>{p}, p.batch * p.count * p.patch_height * p.patch_width,
               place);
  });
}

}  // namespace cuda
}  // namespace flowinv
