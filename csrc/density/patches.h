// Gathering placed patches from images, and its adjoint.
//
//     gather   patches[b, k, i, j] = image[b, channel_k, row_k + i, column_k + j]
//     scatter  image[b, c, y, x] = sum over the patches k that cover (c, y, x), in the order of k
//
// places is [B, K, 3] int64 (channel, row, column). A patch or place outside the image is ignored:
// the binding's caller checks places, this only keeps memory safe.
#pragma once

#include "common/dtype.h"
#include "common/macros.h"
#include "common/place.h"

namespace flowinv {

struct PatchesParams {
  DType dtype;
  bool scatter;
  std::int64_t batch, count, patch_height, patch_width, channels, height, width;
  const void* in;
  const std::int64_t* places;
  void* out;
};

template <class T>
struct GatherBody {
  PatchesParams p;

  FI_HD void operator()(std::int64_t index) const {
    const std::int64_t j = index % p.patch_width, i = index / p.patch_width % p.patch_height;
    const std::int64_t patch = index / (p.patch_width * p.patch_height), b = patch / p.count;
    const std::int64_t* place = p.places + 3 * patch;
    const std::int64_t c = place[0], y = place[1] + i, x = place[2] + j;
    const bool inside = c >= 0 && c < p.channels && y >= 0 && y < p.height && x >= 0 && x < p.width;
    const T* image = static_cast<const T*>(p.in);
    T* out = static_cast<T*>(p.out) + index;
    if (inside)
      *out = image[((b * p.channels + c) * p.height + y) * p.width + x];
    else
      store(out, Acc<T>(0));
  }
};

// Every pixel looks through its image's patches, so nothing is added atomically.
template <class T>
struct ScatterBody {
  PatchesParams p;

  FI_HD void operator()(std::int64_t index) const {
    const std::int64_t x = index % p.width, y = index / p.width % p.height;
    const std::int64_t c = index / (p.width * p.height) % p.channels;
    const std::int64_t b = index / (p.width * p.height * p.channels);
    const T* patches = static_cast<const T*>(p.in);
    Acc<T> sum = 0;
    for (std::int64_t k = 0; k < p.count; ++k) {
      const std::int64_t patch = b * p.count + k;
      const std::int64_t* place = p.places + 3 * patch;
      const std::int64_t i = y - place[1], j = x - place[2];
      if (place[0] == c && i >= 0 && i < p.patch_height && j >= 0 && j < p.patch_width)
        sum += load(patches + (patch * p.patch_height + i) * p.patch_width + j);
    }
    store(static_cast<T*>(p.out) + index, sum);
  }
};

FI_OP(patches, PatchesParams)

}  // namespace flowinv
