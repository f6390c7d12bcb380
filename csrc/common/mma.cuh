// Tensor-core products of one warp, D += A B with A 16x8, B 8x8 and D 16x8 in float32 sums.
//
// Fragments, with group = lane / 4 and quad = lane % 4:
//     tf32  a: A[group, quad], A[group + 8, quad], A[group, quad + 4], A[group + 8, quad + 4]
//           b: B[quad, group], B[quad + 4, group]
//     bf16  a: A[group, 2 quad and 2 quad + 1], A[group + 8, the same]; the lower half first
//           b: B[2 quad and 2 quad + 1, group]
//     d     D[group, 2 quad], D[group, 2 quad + 1], D[group + 8, 2 quad], D[group + 8, 2 quad + 1]
#pragma once

#include "common/launch.cuh"
#include "common/macros.h"

namespace flowinv {

// Rounded to 10 bits of mantissa, to nearest.
__device__ __forceinline__ std::uint32_t to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

__device__ __forceinline__ std::uint32_t to_bf16_pair(float lower, float upper) {
  std::uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(upper), "f"(lower));
  return bits;
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[2],
                                         std::uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

}  // namespace flowinv
