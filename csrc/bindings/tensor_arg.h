// What Python hands over for a tensor: (address, number of elements, dtype code); and for a place:
// (device or -1, CPU threads, CUDA stream). Checks here are for memory safety only; the shape
// contract is stated and checked, in words, by flowinv_fast.ops.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/broadcast.h"
#include "common/dtype.h"
#include "common/image_reduce.h"
#include "common/place.h"

namespace flowinv {

namespace py = pybind11;

class TensorArg {
 public:
  using Tuple = std::tuple<std::uintptr_t, std::int64_t, int>;
  TensorArg(const char* name, const Tuple& t)
      : name_(name),
        data_(reinterpret_cast<void*>(std::get<0>(t))),
        count_(std::get<1>(t)),
        dtype_(static_cast<DType>(std::get<2>(t))) {}

  DType dtype() const { return dtype_; }

  // The address, if the tensor has this type and at least this many elements.
  void* get(DType dtype, std::int64_t count) const {
    if (dtype != dtype_ || count_ < count || (count > 0 && data_ == nullptr))
      throw std::invalid_argument(std::string(name_) + ": expected " + std::to_string(count) +
                                  " elements of type " + std::to_string(static_cast<int>(dtype)) +
                                  ", got " + std::to_string(count_) + " of type " +
                                  std::to_string(static_cast<int>(dtype_)));
    return data_;
  }
  // The same, or null where nothing was handed over.
  void* get_or_null(DType dtype, std::int64_t count) const {
    return data_ == nullptr && count_ == 0 ? nullptr : get(dtype, count);
  }

 private:
  const char* name_;
  void* data_;
  std::int64_t count_;
  DType dtype_;
};

inline DType accumulate_type(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// Product of sizes; refuses negative ones and overflow.
template <class... Sizes>
std::int64_t product(Sizes... sizes) {
  std::int64_t total = 1;
  for (const std::int64_t size : {static_cast<std::int64_t>(sizes)...}) {
    if (size < 0 || __builtin_mul_overflow(total, size, &total))
      throw std::invalid_argument("sizes: negative or too large");
  }
  return total;
}

// Workspace of image_reduce: wanted on CUDA when there are images of more than one tile.
inline void* partials_of(const TensorArg& partials, DType dtype, std::int64_t batch, std::int64_t n,
                         const Place& place) {
  const bool wanted = place.device >= 0 && batch > 0 && tiles_of(n) > 1;
  return wanted ? partials.get(accumulate_type(dtype), product(batch, tiles_of(n))) : nullptr;
}

// A tensor read with strides (see common/broadcast.h), checked to stay inside.
inline Broadcast broadcast(const char* name, const TensorArg::Tuple& tensor,
                           const std::tuple<std::int64_t, std::int64_t>& strides, DType dtype,
                           std::int64_t batch, std::int64_t n) {
  const auto [batch_stride, element_stride] = strides;
  const bool empty = batch == 0 || n == 0;
  const std::int64_t reach =
      empty ? 0 : product(batch - 1, batch_stride) + product(n - 1, element_stride) + 1;
  return {TensorArg(name, tensor).get(dtype, reach), batch_stride, element_stride};
}

using PlaceTuple = std::tuple<int, int, std::uintptr_t>;

inline Place place_of(const PlaceTuple& t) {
  return {std::get<0>(t), std::get<1>(t) > 0 ? std::get<1>(t) : 1, std::get<2>(t)};
}

// Runs an operation without the interpreter lock.
template <class Params>
void run(void (*op)(const Params&, const Place&), const Params& params, const Place& place) {
  py::gil_scoped_release release;
  op(params, place);
}

}  // namespace flowinv
