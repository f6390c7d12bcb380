// The only file that asks which compiler is reading it.
#pragma once

#if defined(__CUDACC__)
#define FI_HD __host__ __device__ __forceinline__
#define FI_RESTRICT __restrict__
#define FI_UNROLL _Pragma("unroll")
#else
// Always inline: no out-of-line copy of a shared function can leak from one ISA's objects.
#define FI_HD __attribute__((always_inline)) inline
#define FI_RESTRICT __restrict__
#define FI_UNROLL
#endif

#if defined(__CUDA_ARCH__)
#define FI_DEVICE_CODE 1
#else
#define FI_DEVICE_CODE 0
#endif
