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
#include "common/dtype.h"
#include "common/macros.h"
#include "common/philox.h"
#include "common/place.h"
#include "noise/sigma_maps.h"

namespace flowinv {

struct RandomBitsParams {
  std::int64_t n;
  std::uint64_t seed, offset;
  std::int64_t* out;
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
  std::int64_t batch, count, bank_size, patch_height, patch_width, channels, height, width;
  std::uint64_t seed, offset;
  const void* bank;  // [M, h, w]
  std::int64_t* index;  // [B, K], written by place_digits
  std::int64_t* places;  // [B, K, 3], written by place_digits
  void* out;  // [B, C, H, W]
};

struct PlaceDigitsBody {
  DigitsParams p;

  FI_HD void operator()(std::int64_t patch) const {
    const PhiloxBlock bits = philox(p.seed, p.offset, std::uint64_t(patch));
    const std::int64_t sizes[4] = {p.bank_size, p.channels, p.height - p.patch_height + 1,
                                   p.width - p.patch_width + 1};
    std::int64_t drawn[4];
    FI_UNROLL
    for (int i = 0; i < 4; ++i) drawn[i] = (std::int64_t(bits.lane[i]) * sizes[i]) >> 32;
    p.index[patch] = drawn[0];
    FI_UNROLL
    for (int i = 0; i < 3; ++i) p.places[3 * patch + i] = drawn[i + 1];
  }
};

template <class T>
struct DigitOverlayBody {
  DigitsParams p;

  FI_HD void operator()(std::int64_t at) const {
    const std::int64_t x = at % p.width, y = at / p.width % p.height;
    const std::int64_t c = at / (p.width * p.height) % p.channels;
    const std::int64_t b = at / (p.width * p.height * p.channels);
    Acc<T> sum = 0;
    for (std::int64_t k = 0; k < p.count; ++k) {
      const std::int64_t patch = b * p.count + k;
      const std::int64_t* place = p.places + 3 * patch;
      const std::int64_t i = y - place[1], j = x - place[2];
      if (place[0] == c && i >= 0 && i < p.patch_height && j >= 0 && j < p.patch_width)
        sum += load(static_cast<const T*>(p.bank) +
                    (p.index[patch] * p.patch_height + i) * p.patch_width + j);
    }
    store(static_cast<T*>(p.out) + at, sum);
  }
};

FI_OP(random_bits, RandomBitsParams)
FI_OP(gaussian_noise, GaussianNoiseParams)
FI_OP(structured_noise, StructuredNoiseParams)
FI_OP(digit_overlay, DigitsParams)

}  // namespace flowinv
