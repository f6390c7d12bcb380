// Gathering placed patches from images, and its adjoint.
//
//     gather   patches[b, k, i, j] = image[b, channel_k, row_k + i, column_k + j]
//     scatter  image[b, c, y, x] = sum over the patches k that cover (c, y, x), in the order of k
//
// places is [B, K, 3] int64 (channel, row, column). A patch or place outside the image is ignored:
// the binding's caller checks places, this only keeps memory safe.
#pragma once

#include "common/check.h"
#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/patch_sum.h"

namespace flowinv {

struct PatchesParams {
  DType dtype;
  bool scatter;
  PatchGrid grid;
  const void* in;
  const std::int64_t* places;
  void* out;

  template <class Fields>
  void fields(Fields& f) {
    f.flag("scatter", scatter);
    f.size("batch", grid.batch);
    f.size("count", grid.count);
    f.size("patch_height", grid.patch_height);
    f.size("patch_width", grid.patch_width);
    f.size("channels", grid.channels);
    f.size("height", grid.height);
    f.size("width", grid.width);
    const std::int64_t patches =
        product(grid.batch, grid.count, grid.patch_height, grid.patch_width);
    const std::int64_t pixels = product(grid.batch, grid.channels, grid.height, grid.width);
    f.tensor("source", in, {scatter ? patches : pixels});
    f.tensor("places", places, {grid.batch, grid.count, 3});
    f.tensor("out", out, {scatter ? pixels : patches});
    dtype = f.storage();
  }
};

template <class T>
struct GatherBody {
  PatchesParams p;

  FI_HD void operator()(std::int64_t index) const {
    const PatchGrid& g = p.grid;
    const std::int64_t j = index % g.patch_width, i = index / g.patch_width % g.patch_height;
    const std::int64_t patch = index / (g.patch_width * g.patch_height), b = patch / g.count;
    const std::int64_t* place = p.places + 3 * patch;
    const std::int64_t c = place[0], y = place[1] + i, x = place[2] + j;
    const bool inside = c >= 0 && c < g.channels && y >= 0 && y < g.height && x >= 0 && x < g.width;
    const T* image = static_cast<const T*>(p.in);
    T* out = static_cast<T*>(p.out) + index;
    if (inside)
      *out = image[((b * g.channels + c) * g.height + y) * g.width + x];
    else
      store(out, Acc<T>(0));
  }
};

FI_OP(patches, PatchesParams)

}  // namespace flowinv
