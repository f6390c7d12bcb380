// flowinv_fast._C: raw pointers in, nothing of torch inside.
#include <pybind11/pybind11.h>

#include <string>

#include "common/place.h"

namespace py = pybind11;

namespace flowinv {

int cpu_isa() {
#if FLOWINV_ISA_COUNT == 3
  static const int isa = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    return avx512 ? 2 : avx2 ? 1 : 0;
  }();
  return isa;
#else
  return 0;
#endif
}

void register_frozen_flow(py::module_&);
void register_coupling(py::module_&);
void register_layout(py::module_&);
void register_preprocess(py::module_&);
void register_density(py::module_&);
void register_noise(py::module_&);
void register_quantise(py::module_&);
void register_solver(py::module_&);

}  // namespace flowinv

PYBIND11_MODULE(_C, m) {
  using namespace flowinv;
  m.doc() = "Kernels of flowinv_fast. Use flowinv_fast.ops.";
  py::dict info;
  info["version"] = FLOWINV_VERSION;
  info["compiler"] = FLOWINV_COMPILER;
  info["cpu_kernels"] = cpu_isa() == 2 ? "AVX-512" : cpu_isa() == 1 ? "AVX2" : "baseline";
#ifdef FLOWINV_WITH_CUDA
  info["cuda"] = FLOWINV_CUDA_VERSION;
  info["cuda_architectures"] = FLOWINV_CUDA_ARCHS;
  info["cpu_only_reason"] = "";
#else
  info["cuda"] = "";
  info["cuda_architectures"] = "";
  info["cpu_only_reason"] = FLOWINV_CPU_ONLY_REASON;
#endif
  m.attr("build_info") = info;
  register_frozen_flow(m);
  register_coupling(m);
  register_layout(m);
  register_preprocess(m);
  register_density(m);
  register_noise(m);
  register_quantise(m);
  register_solver(m);
}
