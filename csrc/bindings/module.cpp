// flowinv_fast._C: raw pointers in, nothing of torch inside.
// Every operation that a header announces is put on the list that the module binds.
#define FI_EACH_OP(name, Params) \
  static const bool bound_##name = add({#name, &bind<Params, &name>});

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/fields.h"

namespace flowinv {
namespace {

struct Operation {
  const char* name;
  void (*bind)(py::module_&, py::dict&, const char*);
};

std::vector<Operation>& operations() {
  static std::vector<Operation> list;
  return list;
}

bool add(const Operation& operation) {
  operations().push_back(operation);
  return true;
}

}  // namespace
}  // namespace flowinv

#include "bindings/ops.h"

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

namespace {

// The names of an enumeration, in the order of their codes.
template <std::size_t kCount>
py::dict codes(const char* const (&names)[kCount]) {
  py::dict result;
  for (std::size_t code = 0; code < kCount; ++code) result[names[code]] = code;
  return result;
}

py::dict build_info() {
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
  return info;
}

// What Python must agree with; read by flowinv_fast/_base/constants.py.
py::dict constants() {
  py::dict result;
  result["tile"] = kTile;
  result["dtypes"] = codes(kDTypeNames);
  result["masks"] = codes(kMaskNames);
  result["sigma_kinds"] = codes(kSigmaKindNames);
  result["precisions"] = codes(kPrecisionNames);
  return result;
}

}  // namespace
}  // namespace flowinv

PYBIND11_MODULE(_C, m) {
  using namespace flowinv;
  m.doc() = "Kernels of flowinv_fast. Use flowinv_fast.ops.";
  m.attr("build_info") = build_info();
  m.attr("constants") = constants();
  py::dict fields;
  for (const Operation& operation : operations()) operation.bind(m, fields, operation.name);
  m.attr("fields") = fields;
  register_frozen_flow(m);
}
