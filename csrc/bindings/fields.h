// One binding for every operation. A struct of parameters lists its fields once,
//
//     template <class Fields> void fields(Fields& f)
//
// each with the name by which Python knows it and, for a tensor, the sizes whose product is the
// number of elements that the kernel may touch. Two visitors read that list: FieldReader fills the
// struct from the values of a call, in the order of the list, and FieldNames tells Python that order.
//
//     f.size("n", n)                      a number of elements, not negative
//     f.integer("mask", mask, low, high)  an int or enum, both ends included
//     f.number, f.flag, f.word            double, bool, 64 bits of a random stream
//     f.tensor("x", x, {batch, n})        void*: of the storage type, that of the first tensor;
//                                         std::int64_t*, double*, bool*: of that type
//     f.optional(...)                     the same, or null where None was handed over
//     f.sums(...)                         void*: of the type in which the storage type is summed
//     f.images("x", x, stride, batch, n)  dense images, with any stride between them
//     f.broadcast("std", std, batch, n)   read with strides, see common/broadcast.h
//     f.partials("partials", p, batch, n) workspace of image_reduce
//     f.require(condition, message)       what else memory safety needs
//     f.storage()                         the storage type, once the first tensor is read
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <type_traits>
#include <vector>

#include "bindings/tensor_arg.h"
#include "common/broadcast.h"
#include "common/image_reduce.h"

namespace flowinv {

using Sizes = std::initializer_list<std::int64_t>;

class FieldReader {
 public:
  // values: one for each field, and last the execution, as the tuple of tensor_arg.h.
  FieldReader(const char* op, const py::args& values)
      : op_(op), values_(values.ptr()), count_(PyTuple_GET_SIZE(values_) - 1) {
    if (count_ < 0) wrong_count();
    PyObject* where = PyTuple_GET_ITEM(values_, count_);
    execution_ = execution_of({int(integer_of(item(where, 0, "execution"))),
                               int(integer_of(item(where, 1, "execution"))),
                               std::uintptr_t(word_of(item(where, 2, "execution")))});
  }

  const Execution& execution() const { return execution_; }
  void finish() const {
    if (next_ != count_) wrong_count();
  }

  void size(const char*, std::int64_t& field) { field = product({integer_of(take())}); }
  template <class T>
  void integer(const char* name, T& field, std::int64_t low, std::int64_t high) {
    const std::int64_t value = integer_of(take());
    if (value < low || value > high)
      throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(low) + " to " +
                                  std::to_string(high));
    field = static_cast<T>(value);
  }
  void flag(const char*, bool& field) { field = integer_of(take()) != 0; }
  void number(const char*, double& field) {
    field = PyFloat_AsDouble(take());
    if (field == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  }
  void word(const char*, std::uint64_t& field) { field = word_of(take()); }

  template <class T>
  void tensor(const char* name, T*& field, Sizes sizes) {
    const TensorArg arg = take_tensor(name);
    field = static_cast<T*>(arg.get(type_of<T>(arg), product(sizes)));
  }
  template <class T>
  void optional(const char* name, T*& field, Sizes sizes) {
    const TensorArg arg = take_tensor(name);
    field = static_cast<T*>(arg.get_or_null(type_of<T>(arg), product(sizes)));
  }
  template <class T>
  void sums(const char* name, T*& field, Sizes sizes) {
    field = take_tensor(name).get(accumulate_type(storage()), product(sizes));
  }
  void images(const char* name, const void*& field, std::int64_t& stride, std::int64_t batch,
              std::int64_t n) {
    PyObject* value = take();
    const TensorArg arg = tensor_of(name, value);
    stride = integer_of(item(value, 3, name));
    if (stride < n && batch > 1)
      throw std::invalid_argument(std::string(name) + ": expected a stride of at least an image");
    field = arg.get(type_of<void>(arg), batch == 0 ? 0 : product(batch - 1, stride) + n);
  }
  void broadcast(const char* name, Broadcast& field, std::int64_t batch, std::int64_t n) {
    PyObject* value = take();
    const TensorArg arg = tensor_of(name, value);
    field.batch_stride = integer_of(item(value, 3, name));
    field.element_stride = integer_of(item(value, 4, name));
    const bool empty = batch == 0 || n == 0;
    const std::int64_t reach =
        empty ? 0
              : product(batch - 1, field.batch_stride) + product(n - 1, field.element_stride) + 1;
    field.data = arg.get(type_of<void>(arg), reach);
  }
  // Wanted on CUDA where there are images of more than one tile.
  void partials(const char* name, void*& field, std::int64_t batch, std::int64_t n) {
    const bool wanted = execution_.device >= 0 && tiles_of(n) > 1;
    field =
        take_tensor(name).get(accumulate_type(storage()), wanted ? product(batch, tiles_of(n)) : 0);
  }

  void require(bool condition, const char* message) { check(condition, message); }
  DType storage() const {
    if (!known_) throw std::logic_error(std::string(op_) + ": no tensor tells the storage type");
    return storage_;
  }

 private:
  [[noreturn]] void wrong_count() const {
    throw py::type_error(std::string(op_) + ": expected another number of values");
  }
  static std::int64_t integer_of(PyObject* value) {
    const std::int64_t number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
  }
  static std::uint64_t word_of(PyObject* value) {
    const std::uint64_t number = PyLong_AsUnsignedLongLong(value);
    if (number == std::uint64_t(-1) && PyErr_Occurred()) throw py::error_already_set();
    return number;
  }
  static PyObject* item(PyObject* tuple, Py_ssize_t i, const char* name) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) <= i)
      throw py::type_error(std::string(name) + ": expected a longer tuple");
    return PyTuple_GET_ITEM(tuple, i);
  }

  PyObject* take() {
    if (next_ >= count_) wrong_count();
    return PyTuple_GET_ITEM(values_, next_++);
  }
  TensorArg take_tensor(const char* name) { return tensor_of(name, take()); }
  static TensorArg tensor_of(const char* name, PyObject* value) {
    return {name,
            {std::uintptr_t(word_of(item(value, 0, name))), integer_of(item(value, 1, name)),
             int(integer_of(item(value, 2, name)))}};
  }

  // The type that a field of pointers to T asks for; the first of void tells the storage type.
  template <class T>
  DType type_of(const TensorArg& arg) {
    using Plain = std::remove_const_t<T>;
    if constexpr (std::is_same_v<Plain, std::int64_t>) return DType::kInt64;
    if constexpr (std::is_same_v<Plain, double>) return DType::kFloat64;
    if constexpr (std::is_same_v<Plain, bool>) return DType::kBool;
    if (!known_) {
      check(arg.dtype() >= DType::kFloat32 && arg.dtype() <= DType::kBool, "dtype: unknown code");
      storage_ = arg.dtype();
      known_ = true;
    }
    return storage_;
  }

  const char* op_;
  PyObject* values_;
  Py_ssize_t count_, next_ = 0;
  Execution execution_;
  DType storage_ = DType::kFloat32;
  bool known_ = false;
};

// (name, kind) of each field, for flowinv_fast.ops to put its values in order.
class FieldNames {
 public:
  template <class T>
  void integer(const char* name, T&, std::int64_t, std::int64_t) {
    add(name, "value");
  }
  void size(const char* name, std::int64_t&) { add(name, "value"); }
  void number(const char* name, double&) { add(name, "value"); }
  void flag(const char* name, bool&) { add(name, "value"); }
  void word(const char* name, std::uint64_t&) { add(name, "value"); }
  template <class T>
  void tensor(const char* name, T*&, Sizes) {
    add(name, "tensor");
  }
  template <class T>
  void optional(const char* name, T*&, Sizes) {
    add(name, "tensor");
  }
  template <class T>
  void sums(const char* name, T*&, Sizes) {
    add(name, "tensor");
  }
  void images(const char* name, const void*&, std::int64_t&, std::int64_t, std::int64_t) {
    add(name, "images");
  }
  void broadcast(const char* name, Broadcast&, std::int64_t, std::int64_t) {
    add(name, "broadcast");
  }
  void partials(const char* name, void*&, std::int64_t, std::int64_t) { add(name, "partials"); }
  void require(bool, const char*) {}
  DType storage() const { return DType::kFloat32; }

  const std::vector<std::pair<const char*, const char*>>& fields() const { return fields_; }

 private:
  void add(const char* name, const char* kind) { fields_.emplace_back(name, kind); }
  std::vector<std::pair<const char*, const char*>> fields_;
};

template <class Params, class = void>
struct HasFields : std::false_type {};
template <class Params>
struct HasFields<Params, std::void_t<decltype(&Params::template fields<FieldReader>)>>
    : std::true_type {};

// Adds the operation to the module and its fields to module.fields. An operation whose parameters
// list no fields is bound by hand.
template <class Params, void (*kOp)(const Params&, const Execution&)>
void bind(py::module_& m, py::dict& fields, const char* name) {
  if constexpr (HasFields<Params>::value) {
    m.def(name, [name](const py::args& values) {
      FieldReader reader(name, values);
      Params params{};
      params.fields(reader);
      reader.finish();
      run(kOp, params, reader.execution());
    });
    FieldNames names;
    Params{}.fields(names);
    fields[name] = py::tuple(py::cast(names.fields()));
  }
}

}  // namespace flowinv
