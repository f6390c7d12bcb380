// CUDA kernels of the Adam step.
//
// parallelism  one thread an element, grid-stride; then one thread an image for the best loss
// traffic      reads x, grad, m, v, writes x, m, v and, on improvement, best: 28 to 32 bytes an
//              element in float32; 3 x 64 x 64, batch 128: 50 MB, about 13 us at 4 TB/s
// measured     never run on a GPU
#include "solver/adam.h"

#include "common/image_reduce.cuh"

namespace flowinv {
namespace cuda {
namespace {

template <class T>
void adam_step(const AdamParams& p, const Execution& execution) {
  for_each("adam_step", AdamBody<T>{p}, p.batch * p.n, execution);
  for_each("adam_best_loss", BestLossBody<T>{p}, p.batch, execution);
}

}  // namespace

FI_FLOAT_OP(adam_step, AdamParams)

}  // namespace cuda
}  // namespace flowinv
