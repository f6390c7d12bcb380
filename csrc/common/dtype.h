// Storage types, and the type in which each is computed and summed.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "common/macros.h"

namespace flowinv {

enum class DType : int {
  kFloat32 = 0,
  kFloat64 = 1,
  kBFloat16 = 2,
  kFloat16 = 3,
  kInt64 = 4,
  kBool = 5
};

// As Python's torch calls them, in the order of their codes.
constexpr const char* kDTypeNames[] = {"float32", "float64", "bfloat16",
                                       "float16", "int64",   "bool"};

inline std::int64_t size_of(DType dtype) {
  constexpr std::int64_t kSizes[] = {4, 8, 2, 2, 8, 1};
  return kSizes[static_cast<int>(dtype)];
}

FI_HD std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FI_HD float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// bfloat16: the upper half of a float, rounded to nearest even.
struct BFloat16 {
  std::uint16_t bits;
};

// IEEE half precision.
struct Float16 {
  std::uint16_t bits;
};

template <class T>
struct Accumulate {
  using type = T;
};
template <>
struct Accumulate<BFloat16> {
  using type = float;
};
template <>
struct Accumulate<Float16> {
  using type = float;
};
template <class T>
using Acc = typename Accumulate<T>::type;

FI_HD float load(const float* p) { return *p; }
FI_HD double load(const double* p) { return *p; }
FI_HD float load(const BFloat16* p) { return float_of(std::uint32_t(p->bits) << 16); }
FI_HD float load(const Float16* p) {
  const std::uint32_t h = p->bits, sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  // Subnormals and normals by scaling with 2^112; infinity and NaN by their exponent.
  const float magnitude = float_of(rest << 13) * float_of(0x77800000u);
  const std::uint32_t bits = rest >= 0x7c00u ? (rest << 13) | 0x7f800000u : bits_of(magnitude);
  return float_of(bits | sign);
}

FI_HD void store(float* p, float value) { *p = value; }
FI_HD void store(double* p, double value) { *p = value; }
FI_HD void store(BFloat16* p, float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<std::uint16_t>(value != value ? 0x7fc0u : rounded);
}
FI_HD void store(Float16* p, float value) {
  const std::uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the half is subnormal: adding 0.5 makes the float unit round at 2^-24.
  const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  std::uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  p->bits = static_cast<std::uint16_t>(half | sign);
}

// The type in which numbers of a storage type are summed.
inline DType accumulate_type(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// Calls f with a null pointer of the storage type; throws for a type no kernel is built for.
template <class F>
void for_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(static_cast<float*>(nullptr));
    case DType::kFloat64: return f(static_cast<double*>(nullptr));
    case DType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16: return f(static_cast<Float16*>(nullptr));
    default: throw std::invalid_argument("dtype: expected a floating-point type");
  }
}

}  // namespace flowinv

// FI_FLOAT_OP(name, Params), in a kernel file, defines the launcher by its template over the storage
// type, `template <class T> void name(const Params&, const Execution&)`.
#define FI_FLOAT_OP(name, Params)                                     \
  void name(const Params& params, const Execution& execution) {       \
    for_float_type(params.dtype, [&](auto* type) {                    \
      name<std::remove_pointer_t<decltype(type)>>(params, execution); \
    });                                                               \
  }
