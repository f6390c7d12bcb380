// Random numbers and structured noise on the Philox stream (seed, offset); see common/philox.h.
//
//     random_bits       element i: lane i % 4 of block i / 4
//     gaussian_noise    mean + sd n
//     structured_noise  mean_b + sigma(b, row, column) n, sigma of sigma_maps.h, never stored
//     sigma_map         sigma itself
//     place_digits      (b, k): the four lanes of block b K + k, each mapped to 0..m-1 by
//                       (bits m) >> 32, give bank index, channel, row, column
//     digit_overlay     sum over k of the bank's digit at its place, in the order of k
// with n standard normal by Box-Muller on the lane pairs (0, 1) and (2, 3).
#pragma once

#include "common/broadcast.h"
#include "common/check.h"
#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/patch_sum.h"
#include "common/philox.h"
#include "noise/sigma_maps.h"

namespace flowinv {

struct RandomBitsParams {
  std::int64_t n;
  std::uint64_t seed, offset;
  std::int64_t* out;

  template <class Fields>
  void fields(Fields& f) {
    f.size("n", n);
    f.word("seed", seed);
    f.word("offset", offset);
    f.tensor("out", out, {n});
  }
};

struct RandomBitsBody {
  RandomBitsParams p;

  FI_HD void operator()(std::int64_t block) const {
    const PhiloxBlock bits = philox(p.seed, p.offset, std::uint64_t(block));
    FI_UNROLL
    for (int lane = 0; lane < 4; ++lane)
      if (4 * block + lane < p.n) p.out[4 * block + lane] = bits.lane[lane];
  }
};

template <class A>
FI_HD void four_normals(const PhiloxBlock& bits, A (&normal)[4]) {
  normals_of(bits.lane[0], bits.lane[1], normal[0], normal[1]);
  normals_of(bits.lane[2], bits.lane[3], normal[2], normal[3]);
}

struct GaussianNoiseParams {
  DType dtype;
  std::int64_t batch, n;  // n elements an image
  std::uint64_t seed, offset;
  Broadcast mean, sd;
  void* out;

  template <class Fields>
  void fields(Fields& f) {
    f.size("batch", batch);
    f.size("n", n);
    f.word("seed", seed);
    f.word("offset", offset);
    f.broadcast("mean", mean, batch, n);
    f.broadcast("std", sd, batch, n);
    f.tensor("out", out, {batch, n});
    dtype = f.storage();
  }
};

template <class T>
struct GaussianNoiseBody {
  GaussianNoiseParams p;

  FI_HD void operator()(std::int64_t block) const {
    using A = Acc<T>;
    A normal[4];
    four_normals(philox(p.seed, p.offset, std::uint64_t(block)), normal);
    FI_UNROLL
    for (int lane = 0; lane < 4; ++lane) {
      const std::int64_t at = 4 * block + lane;
      if (at >= p.batch * p.n) return;
      const std::int64_t b = at / p.n, i = at - b * p.n;
      store(static_cast<T*>(p.out) + at,
            p.mean.template at<T>(b, i) + p.sd.template at<T>(b, i) * normal[lane]);
    }
  }
};

struct StructuredNoiseParams {
  DType dtype;
  bool map_only;  // write sigma instead of a draw
  std::int64_t batch, channels;
  SigmaMap map;
  std::uint64_t seed, offset;
  const void* mean;  // [B]
  const void* level;  // [B]
  const double* shape;  // [H W], the map's shape; null: computed where it is needed
  void* out;  // [B, C, H, W]

  template <class Fields>
  void fields(Fields& f) {
    f.flag("map_only", map_only);
    f.size("batch", batch);
    f.size("channels", channels);
    f.size("height", map.height);
    f.size("width", map.width);
    f.integer("kind", map.kind, 0, 3);
    f.number("rate", map.rate);
    f.number("floor", map.floor);
    f.number("ceiling", map.ceiling);
    f.word("seed", seed);
    f.word("offset", offset);
    f.tensor("level", level, {batch});
    f.tensor("mean", mean, {map_only ? 0 : batch});
    f.tensor("out", out, {batch, channels, map.height, map.width});
    dtype = f.storage();
  }
};

template <class T>
struct StructuredNoiseBody {
  StructuredNoiseParams p;

  FI_HD void operator()(std::int64_t block) const {
    using A = Acc<T>;
    const std::int64_t plane = p.map.height * p.map.width, n = p.channels * plane;
    A normal[4] = {0, 0, 0, 0};
    if (!p.map_only) four_normals(philox(p.seed, p.offset, std::uint64_t(block)), normal);
    FI_UNROLL
    for (int lane = 0; lane < 4; ++lane) {
      const std::int64_t at = 4 * block + lane;
      if (at >= p.batch * n) return;
      const std::int64_t b = at / n, position = (at - b * n) % plane;
      const A shape = A(p.shape ? p.shape[position]
                                : p.map.shape(position / p.map.width, position % p.map.width));
      const A sigma = p.map.sigma(load(static_cast<const T*>(p.level) + b), shape);
      store(static_cast<T*>(p.out) + at,
            p.map_only ? sigma : load(static_cast<const T*>(p.mean) + b) + sigma * normal[lane]);
    }
  }
};

struct DigitsParams {
  DType dtype;
  PatchGrid grid;
  std::int64_t bank_size;
  std::uint64_t seed, offset;
  const void* bank;  // [M, h, w]
  std::int64_t* index;  // [B, K], written by place_digits
  std::int64_t* places;  // [B, K, 3], written by place_digits
  void* out;  // [B, C, H, W]

  template <class Fields>
  void fields(Fields& f) {
    f.size("batch", grid.batch);
    f.size("count", grid.count);
    f.size("bank_size", bank_size);
    f.size("patch_height", grid.patch_height);
    f.size("patch_width", grid.patch_width);
    f.size("channels", grid.channels);
    f.size("height", grid.height);
    f.size("width", grid.width);
    f.require(bank_size > 0 && grid.patch_height <= grid.height && grid.patch_width <= grid.width,
              "bank: expected digits no larger than the image");
    f.word("seed", seed);
    f.word("offset", offset);
    f.tensor("bank", bank, {bank_size, grid.patch_height, grid.patch_width});
    f.tensor("index", index, {grid.batch, grid.count});
    f.tensor("places", places, {grid.batch, grid.count, 3});
    f.tensor("out", out, {grid.batch, grid.channels, grid.height, grid.width});
    dtype = f.storage();
  }
};

struct PlaceDigitsBody {
  DigitsParams p;

  FI_HD void operator()(std::int64_t patch) const {
    const PhiloxBlock bits = philox(p.seed, p.offset, std::uint64_t(patch));
    const std::int64_t sizes[4] = {p.bank_size, p.grid.channels,
                                   p.grid.height - p.grid.patch_height + 1,
                                   p.grid.width - p.grid.patch_width + 1};
    std::int64_t drawn[4];
    FI_UNROLL
    for (int i = 0; i < 4; ++i) drawn[i] = (std::int64_t(bits.lane[i]) * sizes[i]) >> 32;
    p.index[patch] = drawn[0];
    FI_UNROLL
    for (int i = 0; i < 3; ++i) p.places[3 * patch + i] = drawn[i + 1];
  }
};

FI_OP(random_bits, RandomBitsParams)
FI_OP(gaussian_noise, GaussianNoiseParams)
FI_OP(structured_noise, StructuredNoiseParams)
FI_OP(digit_overlay, DigitsParams)

}  // namespace flowinv
