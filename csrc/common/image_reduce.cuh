// The CUDA half of "map every element of an image, sum one number per image".
//
// parallelism  one block per (tile of kTile elements, image); a thread owns every 256th element
// launch       256 threads, grid (tiles, batch) walked in strides of kMaxGridY images; 32 bytes
//              (float) of shared memory
// traffic      what the body reads and writes, once; plus one accumulator per tile
// reduction    lanes, warps, tiles, always in that order: same bits for every schedule
// edge cases   empty batch launches nothing; an image of one tile needs no second kernel
// measured     never run on a GPU
#pragma once

#include "common/image_reduce.h"
#include "common/reduce.cuh"

namespace flowinv {
namespace cuda {

constexpr int kThreads = 256;

template <class A, class Body>
__global__ void __launch_bounds__(kThreads)
    image_reduce_kernel(Body body, std::int64_t batch, std::int64_t n, const A* FI_RESTRICT in,
                        A* FI_RESTRICT out, A* FI_RESTRICT partials) {
  const std::int64_t first = std::int64_t(blockIdx.x) * kTile;
  for (std::int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    A sum = 0;
    for (std::int64_t i = first + threadIdx.x; i < first + kTile; i += kThreads) {
      if (i < n) sum += body(b, i);
    }
    const A total = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) {
      if (gridDim.x == 1)
        out[b] = (in ? in[b] : A(0)) + total;
      else
        partials[b * gridDim.x + blockIdx.x] = total;
    }
  }
}

// out[b] = in[b] + sum of partials[b, :], one thread per image.
template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_tiles_kernel(std::int64_t batch, std::int64_t tiles, const A* FI_RESTRICT in,
                     A* FI_RESTRICT out, const A* FI_RESTRICT partials) {
  const std::int64_t b = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (b >= batch) return;
  A sum = 0;
  for (std::int64_t tile = 0; tile < tiles; ++tile) sum += partials[b * tiles + tile];
  out[b] = (in ? in[b] : A(0)) + sum;
}

template <class Body>
__global__ void __launch_bounds__(kThreads) for_each_kernel(Body body, std::int64_t n) {
  const std::int64_t stride = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    body(i);
}

inline unsigned blocks_for(std::int64_t n) {
  const std::int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1 << 20 ? blocks : 1 << 20);
}

// partials: batch * tiles_of(n) accumulators, used when an image has more than one tile.
template <class A, class Body>
void image_reduce(const char* name, const Body& body, std::int64_t batch, std::int64_t n,
                  const A* in, A* out, A* partials, const Execution& execution) {
  const std::int64_t tiles = tiles_of(n);
  const unsigned rows = static_cast<unsigned>(batch < kMaxGridY ? batch : kMaxGridY);
  launch(name, image_reduce_kernel<A, Body>, dim3(static_cast<unsigned>(tiles), rows), kThreads,
         execution, body, batch, n, in, out, partials);
  if (tiles > 1)
    launch(name, sum_tiles_kernel<A>, dim3(blocks_for(batch)), kThreads, execution, batch, tiles,
           in, out, static_cast<const A*>(partials));
}

template <class Body>
void for_each(const char* name, const Body& body, std::int64_t n, const Execution& execution) {
  launch(name, for_each_kernel<Body>, dim3(blocks_for(n)), kThreads, execution, body, n);
}

}  // namespace cuda
}  // namespace flowinv
