// CUDA kernels of the log-densities.
//
// parallelism  image_reduce: one block per (tile of 1,024 elements, image)
// traffic      gaussian reads y, fx, writes score: 12 bytes an element in float32, mean and sd come
//              from cache; 3 x 64 x 64, batch 128: 19 MB, about 5 us at 4 TB/s. Normal: 4 bytes
// reduction    fixed order, see image_reduce.cuh
// measured     never run on a GPU
#include "density/density.h"

#include "common/image_reduce.cuh"

namespace flowinv {
namespace cuda {
namespace {

template <class T>
void gaussian_log_prob(const GaussianParams& p, const Execution& execution) {
  image_reduce<Acc<T>>("gaussian_log_prob", GaussianBody<T>{p}, p.batch, p.n, nullptr,
                       static_cast<Acc<T>*>(p.log_prob), static_cast<Acc<T>*>(p.partials),
                       execution);
}

template <class T>
void standard_normal_log_prob(const StandardNormalParams& p, const Execution& execution) {
  image_reduce<Acc<T>>("standard_normal_log_prob", StandardNormalBody<T>{p}, p.batch, p.n, nullptr,
                       static_cast<Acc<T>*>(p.log_prob), static_cast<Acc<T>*>(p.partials),
                       execution);
}

}  // namespace

FI_FLOAT_OP(gaussian_log_prob, GaussianParams)
FI_FLOAT_OP(standard_normal_log_prob, StandardNormalParams)

}  // namespace cuda
}  // namespace flowinv
