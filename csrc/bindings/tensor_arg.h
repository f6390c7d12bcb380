// What Python hands over for a tensor: (address, number of elements, dtype code); and for where an
// operation runs: (device or -1, CPU threads, CUDA stream). Checks here are for memory safety only;
// the shape contract is stated and checked, in words, by flowinv_fast.ops.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/check.h"
#include "common/dtype.h"
#include "common/execution.h"

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

  // The address, if the tensor has this type and at least this many elements. Where none is needed,
  // nothing need be handed over.
  void* get(DType dtype, std::int64_t count) const {
    if (count == 0 && data_ == nullptr) return nullptr;
    if (dtype != dtype_ || count_ < count || data_ == nullptr)
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

using ExecutionTuple = std::tuple<int, int, std::uintptr_t>;

inline Execution execution_of(const ExecutionTuple& t) {
  return {std::get<0>(t), std::get<1>(t) > 0 ? std::get<1>(t) : 1, std::get<2>(t)};
}

// Runs an operation without the interpreter lock.
template <class Params>
void run(void (*op)(const Params&, const Execution&), const Params& params,
         const Execution& execution) {
  py::gil_scoped_release release;
  op(params, execution);
}

}  // namespace flowinv
