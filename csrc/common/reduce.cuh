// Sums in a fixed order: lanes of a warp, warps of a block. No atomics.
#pragma once

#include "common/launch.cuh"

namespace flowinv {

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
  FI_UNROLL
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Sum over the block's kThreads threads, valid in thread 0. Every thread must call it.
template <int kThreads, class A>
__device__ __forceinline__ A block_sum(A value) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024, "whole warps");
  FI_SHARED(A, warps, kThreads / 32);
  value = warp_sum(value);
  __syncthreads();  // an earlier call's reads of `warps` are over
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  A total = 0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kThreads / 32; ++w) total += warps[w];
  }
  return total;
}

}  // namespace flowinv
