// Where an operation runs, and the choice among the copies compiled for it.
#pragma once

#include <cstdint>

namespace flowinv {

// device < 0: the CPU, with this many threads; else a CUDA device and a stream of it.
struct Place {
  int device = -1;
  int threads = 1;
  std::uintptr_t stream = 0;
};

// 0 baseline, 1 AVX2 with FMA, 2 AVX-512; the best that this machine and build have.
int cpu_isa();

}  // namespace flowinv

// clang-format off
// Declares the copies of a launcher and `name(params, place)`, which picks one.
#if defined(FLOWINV_ISA_COUNT) && FLOWINV_ISA_COUNT == 3
#define FI_OP(name, Params)                                        \
  namespace baseline { void name(const Params&, const Place&); }   \
  namespace avx2 { void name(const Params&, const Place&); }       \
  namespace avx512 { void name(const Params&, const Place&); }     \
  namespace cuda { void name(const Params&, const Place&); }       \
  inline void name(const Params& params, const Place& place) {     \
    if (place.device >= 0) return cuda::name(params, place);       \
    switch (cpu_isa()) {                                           \
      case 2: return avx512::name(params, place);                  \
      case 1: return avx2::name(params, place);                    \
      default: return baseline::name(params, place);               \
    }                                                              \
  }
#elif defined(FLOWINV_ISA_COUNT)
#define FI_OP(name, Params)                                        \
  namespace baseline { void name(const Params&, const Place&); }   \
  namespace cuda { void name(const Params&, const Place&); }       \
  inline void name(const Params& params, const Place& place) {     \
    place.device >= 0 ? cuda::name(params, place) : baseline::name(params, place); \
  }
#else  // inside a kernel file, which defines its own copy only
#define FI_OP(name, Params) \
  namespace FI_ISA { void name(const Params&, const Place&); }
#endif
// clang-format on
