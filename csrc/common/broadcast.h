// A tensor read at b * batch_stride + i * element_stride: a scalar (0, 0), a value per image (1, 0),
// a map shared by all images (0, 1) and a full tensor (N, 1) need no expanded copy.
#pragma once

#include "common/dtype.h"
#include "common/macros.h"

namespace flowinv {

struct Broadcast {
  const void* data;
  std::int64_t batch_stride, element_stride;

  template <class T>
  FI_HD Acc<T> at(std::int64_t b, std::int64_t i) const {
    return load(static_cast<const T*>(data) + b * batch_stride + i * element_stride);
  }

  // Elements first, first + 1, ... of image b into a dense row; loops the compiler can vectorise.
  template <class T>
  void copy(std::int64_t b, std::int64_t first, std::int64_t count, Acc<T>* row) const {
    const T* from = static_cast<const T*>(data) + b * batch_stride + first * element_stride;
    if (element_stride == 0) {
      for (std::int64_t i = 0; i < count; ++i) row[i] = load(from);
    } else if (element_stride == 1) {
      for (std::int64_t i = 0; i < count; ++i) row[i] = load(from + i);
    } else {
      for (std::int64_t i = 0; i < count; ++i) row[i] = load(from + i * element_stride);
    }
  }
};

}  // namespace flowinv
