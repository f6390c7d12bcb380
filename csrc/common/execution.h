// Where an operation runs, and the one line by which a family announces an operation.
#pragma once

#include <cstdint>

namespace flowinv {

// device < 0: the CPU, with this many threads; else a CUDA device and a stream of it.
struct Execution {
  int device = -1;
  int threads = 1;
  std::uintptr_t stream = 0;
};

// 0 baseline, 1 AVX2 with FMA, 2 AVX-512; the best that this machine and build have.
int cpu_isa();

}  // namespace flowinv

// FI_OP(name, Params), in the header of a family, is all that an operation needs to be known: it
// declares the compiled copies of its launcher, and `name(params, execution)`, which picks one of
// them. A file of bindings/ that has something of its own to say about every operation (its binding,
// its stand-in where there is no CUDA) defines FI_EACH_OP(name, Params) before the headers.
#ifndef FI_EACH_OP
#define FI_EACH_OP(name, Params)
#endif

// clang-format off
#if defined(FLOWINV_ISA_COUNT) && FLOWINV_ISA_COUNT == 3
#define FI_OP(name, Params)                                                  \
  namespace baseline { void name(const Params&, const Execution&); }         \
  namespace avx2 { void name(const Params&, const Execution&); }             \
  namespace avx512 { void name(const Params&, const Execution&); }           \
  namespace cuda { void name(const Params&, const Execution&); }             \
  inline void name(const Params& params, const Execution& execution) {       \
    if (execution.device >= 0) return cuda::name(params, execution);         \
    switch (cpu_isa()) {                                                     \
      case 2: return avx512::name(params, execution);                        \
      case 1: return avx2::name(params, execution);                          \
      default: return baseline::name(params, execution);                     \
    }                                                                        \
  }                                                                          \
  FI_EACH_OP(name, Params)
#elif defined(FLOWINV_ISA_COUNT)
#define FI_OP(name, Params)                                                  \
  namespace baseline { void name(const Params&, const Execution&); }         \
  namespace cuda { void name(const Params&, const Execution&); }             \
  inline void name(const Params& params, const Execution& execution) {       \
    execution.device >= 0 ? cuda::name(params, execution)                    \
                          : baseline::name(params, execution);               \
  }                                                                          \
  FI_EACH_OP(name, Params)
#else  // inside a kernel file, which defines its own copy only
#define FI_OP(name, Params) \
  namespace FI_ISA { void name(const Params&, const Execution&); }
#endif
// clang-format on
