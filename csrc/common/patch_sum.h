// The sum of the patches that lie on a pixel: images made of placed patches, without atomics.
#pragma once

#include "common/dtype.h"
#include "common/macros.h"

namespace flowinv {

// Every pixel of [batch, channels, height, width] looks through its image's `count` patches, in
// order; places is [batch, count, 3] (channel, top row, left column).
struct PatchGrid {
  std::int64_t batch, count, patch_height, patch_width, channels, height, width;

  FI_HD std::int64_t pixels() const { return batch * channels * height * width; }
  FI_HD std::int64_t patch_elements() const { return batch * count * patch_height * patch_width; }
};

// out[pixel] = sum of the patches on it. index: which patch of `patches` lies at each place, [batch,
// count]; null where each has its own.
template <class T>
struct PatchSumBody {
  PatchGrid grid;
  const void* patches;
  const std::int64_t* index;
  const std::int64_t* places;
  void* out;

  FI_HD void operator()(std::int64_t pixel) const {
    const std::int64_t x = pixel % grid.width, y = pixel / grid.width % grid.height;
    const std::int64_t c = pixel / (grid.width * grid.height) % grid.channels;
    const std::int64_t b = pixel / (grid.width * grid.height * grid.channels);
    Acc<T> sum = 0;
    for (std::int64_t k = b * grid.count; k < (b + 1) * grid.count; ++k) {
      const std::int64_t* place = places + 3 * k;
      const std::int64_t i = y - place[1], j = x - place[2];
      if (place[0] != c || i < 0 || i >= grid.patch_height || j < 0 || j >= grid.patch_width)
        continue;
      const std::int64_t patch = index ? index[k] : k;
      sum += load(static_cast<const T*>(patches) +
                  (patch * grid.patch_height + i) * grid.patch_width + j);
    }
    store(static_cast<T*>(out) + pixel, sum);
  }
};

}  // namespace flowinv
