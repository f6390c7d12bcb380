// The convolutions of a frozen conditioner on the CPU: small matrix products over blocks of 16
// outputs, and Winograd's transforms around them. Included by engine_cpu.cpp only, once per
// instruction set; all of it is local to that file.
//
// Activations lie channels-last in a map with a border of zeros, [padded_high, padded_wide, C].
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "frozen_flow/plan.h"
#include "frozen_flow/winograd.h"

namespace flowinv {
namespace FI_ISA {
namespace {

using std::int64_t;

// Sixteen floats, one block of channels; the compiler splits them where registers are narrower.
typedef float Block __attribute__((vector_size(64)));

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 6, kMaxBlocks = 4;  // 24 sums of 16
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 6, kMaxBlocks = 1;  // 12 sums of 8
#else
constexpr int kLanes = 4, kRows = 2, kMaxBlocks = 1;  // 8 sums of 4
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));

template <class V>
FI_HD V load_vector(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FI_HD void store_vector(float* p, const V& v) {
  std::memcpy(p, &v, sizeof v);
}

// Bit c: x[c] > 0.
FI_HD std::uint16_t signs(const Block& x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
  __m256 half[2];
  std::memcpy(half, &x, sizeof half);
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(half[0], _mm256_setzero_ps(), _CMP_GT_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(half[1], _mm256_setzero_ps(), _CMP_GT_OQ));
  return std::uint16_t(low | high << 8);
#else
  std::uint16_t bits = 0;
  for (int c = 0; c < kBlock; ++c) bits |= std::uint16_t(x[c] > 0.0f) << c;
  return bits;
#endif
}

FI_HD Block keep(std::uint16_t bits, const Block& x) {
#if defined(__AVX512F__)
  return (Block)_mm512_maskz_mov_ps(bits, (__m512)x);
#elif defined(__AVX2__)
  const __m256i of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  Block kept;
  for (int half = 0; half < 2; ++half) {
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits >> 8 * half), of_lane);
    __m256 part;
    std::memcpy(&part, reinterpret_cast<const char*>(&x) + 32 * half, sizeof part);
    part = _mm256_and_ps(part, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, of_lane)));
    std::memcpy(reinterpret_cast<char*>(&kept) + 32 * half, &part, sizeof part);
  }
  return kept;
#else
  Block kept;
  for (int c = 0; c < kBlock; ++c) kept[c] = bits >> c & 1 ? x[c] : 0.0f;
  return kept;
#endif
}

// NaN stays NaN.
FI_HD Block relu(const Block& x) {
#if defined(__AVX512F__)
  return (Block)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#else
  const Block zero = {};
  return x < zero ? zero : x;
#endif
}

// --- matrix products ---------------------------------------------------------------------------

// out[r] = sum over taps and k of rows[r][offsets[tap] + k] * weights[tap][k], for kR rows and kB
// blocks of 16 outputs.
template <int kR, int kB>
void product(const float* const* rows, const int64_t* offsets, int taps, int inputs,
             const float* weights, int64_t tap_stride, int64_t block_stride, float* const* out) {
  constexpr int kPer = kBlock / kLanes, kV = kB * kPer;
  Vec sum[kR][kV] = {};
  for (int tap = 0; tap < taps; ++tap) {
    const float* w = weights + tap * tap_stride;
    const float* a[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) a[r] = rows[r] + offsets[tap];
    for (int k = 0; k < inputs; ++k, w += kBlock) {
      Vec b[kV];
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v)
        b[v] = load_vector<Vec>(w + v / kPer * block_stride + v % kPer * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kV; ++v) sum[r][v] += a[r][k] * b[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store_vector(out[r] + v * kLanes, sum[r][v]);
}

#if defined(__AVX512F__)
// The same in bf16 with float32 sums, two inputs a time; rows and weights hold pairs.
template <int kR, int kB>
__attribute__((target("avx512bf16"))) void product_bf16(const std::uint32_t* const* rows, int pairs,
                                                        const std::uint32_t* weights,
                                                        int64_t block_stride, float* const* out) {
  __m512 sum[kR][kB];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kB; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k, weights += kBlock) {
    __m512bh b[kB];
#pragma GCC unroll 8
    for (int v = 0; v < kB; ++v) b[v] = (__m512bh)_mm512_loadu_si512(weights + v * block_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const __m512bh a = (__m512bh)_mm512_set1_epi32(int(rows[r][k]));
#pragma GCC unroll 8
      for (int v = 0; v < kB; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kB; ++v) _mm512_storeu_ps(out[r] + v * kBlock, sum[r][v]);
}
#endif

// Calls f with a compile-time row count of 1..kRows.
template <class F>
FI_HD void for_row_count(int rows, const F& f) {
  switch (rows) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
#if defined(__AVX2__)
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
#endif
  }
}

// Calls f(first block, compile-time count) over all output blocks.
template <class F>
FI_HD void for_blocks(int blocks, const F& f) {
  int block = 0;
#if defined(__AVX512F__)
  for (; block + 4 <= blocks; block += 4) f(block, std::integral_constant<int, 4>{});
  for (; block + 2 <= blocks; block += 2) f(block, std::integral_constant<int, 2>{});
#endif
  for (; block < blocks; ++block) f(block, std::integral_constant<int, 1>{});
}

// The nine taps' offsets, and the places of pixels (y W + x), in a padded map.
struct Direct {
  int64_t offsets[9];
  const Resolution& resolution;
  int inputs;

  Direct(const Resolution& resolution, int inputs) : resolution(resolution), inputs(inputs) {
    for (int tap = 0; tap < 9; ++tap)
      offsets[tap] = (int64_t(tap / 3) * resolution.padded_wide + tap % 3) * inputs;
  }
  const float* corner(const float* map, int pixel) const {
    const int y = pixel / resolution.width, x = pixel % resolution.width;
    return map + (int64_t(y) * resolution.padded_wide + x) * inputs;
  }
};

// Convolution of few channels into a hidden map's: out[count, outputs], without bias.
void widen(const float* map, const Resolution& resolution, const int* pixels, int count,
           const PackedWeights& w, float* out) {
  const Direct direct(resolution, w.inputs);
  const int64_t block_stride = int64_t(w.inputs) * kBlock;
  for (int first = 0; first < count; first += kRows) {
    const int rows = std::min(kRows, count - first);
    const float* in[kRows];
    for (int r = 0; r < rows; ++r) in[r] = direct.corner(map, pixels[first + r]);
    for_row_count(rows, [&](auto row_count) {
      for_blocks(w.blocks(), [&](int block, auto block_count) {
        float* to[kRows];
        for (int r = 0; r < rows; ++r) to[r] = out + (first + r) * w.outputs + block * kBlock;
        product<decltype(row_count)::value, decltype(block_count)::value>(
            in, direct.offsets, 9, w.inputs, w.f32.get() + block * block_stride,
            block_stride * w.blocks(), block_stride, to);
      });
    });
  }
}

FI_HD float total(const Block& x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = 0;
  for (int c = 0; c < kBlock; ++c) sum += x[c];
  return sum;
#endif
}

#if defined(__AVX512F__)
constexpr int kDotRows = 4;
#else
constexpr int kDotRows = 1;
#endif

// kR pixels and kO outputs of a convolution out of a hidden map: blocks of inputs side by side,
// summed up at the end.
template <int kR, int kO>
void dots(const float* const* rows, const Direct& direct, const float* weights, float* out,
          int out_stride) {
  Block sum[kR][kO] = {};
  const int64_t filter = 9 * int64_t(direct.inputs);
  for (int tap = 0; tap < 9; ++tap)
    for (int i = 0; i < direct.inputs; i += kBlock) {
      Block w[kO];
#pragma GCC unroll 4
      for (int o = 0; o < kO; ++o)
        w[o] = load_vector<Block>(weights + o * filter + tap * direct.inputs + i);
#pragma GCC unroll 4
      for (int r = 0; r < kR; ++r) {
        const Block a = load_vector<Block>(rows[r] + direct.offsets[tap] + i);
#pragma GCC unroll 4
        for (int o = 0; o < kO; ++o) sum[r][o] += a * w[o];
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int o = 0; o < kO; ++o) out[r * out_stride + o] = total(sum[r][o]);
}

// Convolution of a hidden map into few channels: out[count, outputs], without bias.
void narrow(const float* map, const Resolution& resolution, const int* pixels, int count,
            const PackedWeights& w, float* out) {
  const Direct direct(resolution, w.inputs);
  const auto outputs_of = [&](const float* const* rows, auto row_count, float* to) {
    constexpr int kR = decltype(row_count)::value;
    int o = 0;
    const auto at = [&](int o) { return w.f32.get() + 9 * int64_t(o) * w.inputs; };
    for (; o + 4 <= w.outputs; o += 4) dots<kR, 4>(rows, direct, at(o), to + o, w.outputs);
    for (; o + 2 <= w.outputs; o += 2) dots<kR, 2>(rows, direct, at(o), to + o, w.outputs);
    for (; o < w.outputs; ++o) dots<kR, 1>(rows, direct, at(o), to + o, w.outputs);
  };
  int first = 0;
  for (; first + kDotRows <= count; first += kDotRows) {
    const float* rows[kDotRows];
    for (int r = 0; r < kDotRows; ++r) rows[r] = direct.corner(map, pixels[first + r]);
    outputs_of(rows, std::integral_constant<int, kDotRows>{}, out + first * w.outputs);
  }
  for (; first < count; ++first) {
    const float* row = direct.corner(map, pixels[first]);
    outputs_of(&row, std::integral_constant<int, 1>{}, out + first * w.outputs);
  }
}

// --- Winograd ------------------------------------------------------------------------------------

// What becomes of a convolution's sums: bias added and signs stored forward, masked by signs
// backward; added to what is there where `add`, negatives cut off where `rectify`.
struct Epilogue {
  bool backward, add, rectify;
  const float* bias;  // forward
  std::uint16_t* bits;  // of the output's signs; null where nothing is kept

  FI_HD void operator()(Block sum, float* out, int64_t bit_index, int channel) const {
    if (backward) {
      sum = keep(bits[bit_index], sum);
      if (add) sum += load_vector<Block>(out);
    } else {
      sum += load_vector<Block>(bias + channel);
      if (add) sum += load_vector<Block>(out);
      if (bits) bits[bit_index] = signs(sum);
      if (rectify) sum = relu(sum);
    }
    store_vector(out, sum);
  }
};

// Images of a group, each with maps and saved bits of its own.
struct Maps {
  const float* in;
  float* out;
  int64_t map_stride;  // floats between images
  char* bits;  // null where nothing is kept
  int64_t bit_stride;  // bytes between images
};

// Room for V and M of this many tiles.
constexpr int kTilesAtOnce = 18;
inline int64_t winograd_scratch(int hidden) {
  return int64_t(2) * 36 * kTilesAtOnce * blocks_of(hidden) * kBlock;
}

template <int kTile, bool kRelu>
FI_HD void transform_in(const float* in, int64_t row, int64_t column,
                        Block (&v)[kTile + 2][kTile + 2]) {
  using W = Winograd<kTile>;
  Block half[W::kPoints][W::kPoints];
#pragma GCC unroll 8
  for (int x = 0; x < W::kPoints; ++x) {
    Block d[W::kPoints], u[W::kPoints];
#pragma GCC unroll 8
    for (int y = 0; y < W::kPoints; ++y) {
      d[y] = load_vector<Block>(in + y * row + x * column);
      if (kRelu) d[y] = relu(d[y]);
    }
    W::input(d, u);
#pragma GCC unroll 8
    for (int k = 0; k < W::kPoints; ++k) half[k][x] = u[k];
  }
#pragma GCC unroll 8
  for (int k = 0; k < W::kPoints; ++k) W::input(half[k], v[k]);
}

// Tiles [first, first + count) of the group's, numbered image by image.
template <int kTile, bool kRelu>
void winograd_tiles(const Resolution& resolution, const Maps& maps, const PackedWeights& w,
                    const Epilogue& epilogue, int64_t first, int count, float* scratch) {
  using W = Winograd<kTile>;
  const int channels = w.inputs, blocks = w.blocks();
  const int64_t column = channels, row = int64_t(resolution.padded_wide) * channels;
  const int64_t image_tiles = int64_t(resolution.tiles_high) * resolution.tiles_wide;
  const int64_t point = int64_t(kTilesAtOnce) * channels;  // floats between points
  float *in_v = scratch, *out_m = scratch + W::kPoints * W::kPoints * point;
  for (int t = 0; t < count; ++t) {
    const int64_t image = (first + t) / image_tiles, tile = (first + t) % image_tiles;
    const int64_t y = tile / resolution.tiles_wide * kTile,
                  x = tile % resolution.tiles_wide * kTile;
    const float* in = maps.in + image * maps.map_stride + y * row + x * column;
    for (int c = 0; c < channels; c += kBlock) {
      Block v[W::kPoints][W::kPoints];
      transform_in<kTile, kRelu>(in + c, row, column, v);
#if defined(__AVX512F__)
      if (w.bf16) {
        std::uint16_t* to = reinterpret_cast<std::uint16_t*>(in_v) + t * channels + c;
#pragma GCC unroll 8
        for (int k = 0; k < w.taps; ++k) {
          // Round to nearest even by adding, NaN left to the sums: its upper bits survive.
          const __m512i bits = _mm512_castps_si512((__m512)v[k / W::kPoints][k % W::kPoints]);
          const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
          const __m512i rounded =
              _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k * point),
                              _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
        }
        continue;
      }
#endif
#pragma GCC unroll 8
      for (int k = 0; k < W::kPoints * W::kPoints; ++k)
        store_vector(in_v + k * point + t * channels + c, v[k / W::kPoints][k % W::kPoints]);
    }
  }
  const int64_t block_stride = int64_t(w.inputs) * kBlock, no_offset = 0;
  for (int k = 0; k < W::kPoints * W::kPoints; ++k)
    for (int t = 0; t < count; t += kRows) {
      const int rows = std::min(kRows, count - t);
      float* m = out_m + k * point + t * channels;
      for_row_count(rows, [&](auto row_count) {
        for_blocks(blocks, [&](int block, auto block_count) {
          constexpr int kR = decltype(row_count)::value, kB = decltype(block_count)::value;
          float* out[kRows];
          for (int r = 0; r < rows; ++r) out[r] = m + r * channels + block * kBlock;
          const int64_t at = (int64_t(k) * blocks + block) * block_stride;
#if defined(__AVX512F__)
          if (w.bf16) {
            const std::uint32_t* in[kRows];
            const std::uint32_t* v =
                reinterpret_cast<const std::uint32_t*>(in_v) + (k * point + t * channels) / 2;
            for (int r = 0; r < rows; ++r) in[r] = v + r * channels / 2;
            const auto* weights = reinterpret_cast<const std::uint32_t*>(w.bf16.get()) + at / 2;
            product_bf16<kR, kB>(in, channels / 2, weights, block_stride / 2, out);
            return;
          }
#endif
          const float* in[kRows];
          for (int r = 0; r < rows; ++r) in[r] = in_v + k * point + (t + r) * channels;
          product<kR, kB>(in, &no_offset, 1, channels, w.f32.get() + at, 0, block_stride, out);
        });
      });
    }
  for (int t = 0; t < count; ++t) {
    const int64_t image = (first + t) / image_tiles, tile = (first + t) % image_tiles;
    const int y0 = int(tile / resolution.tiles_wide) * kTile,
              x0 = int(tile % resolution.tiles_wide) * kTile;
    float* out = maps.out + image * maps.map_stride + (y0 + 1) * row + (x0 + 1) * column;
    Epilogue finish = epilogue;
    finish.bits =
        maps.bits ? reinterpret_cast<std::uint16_t*>(maps.bits + image * maps.bit_stride) : nullptr;
    for (int c = 0; c < channels; c += kBlock) {
      const float* m = out_m + t * channels + c;
      Block half[kTile][W::kPoints];
#pragma GCC unroll 8
      for (int x = 0; x < W::kPoints; ++x) {
        Block column_m[W::kPoints], y[kTile];
#pragma GCC unroll 8
        for (int k = 0; k < W::kPoints; ++k)
          column_m[k] = load_vector<Block>(m + (k * W::kPoints + x) * point);
        W::output(column_m, y);
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) half[i][x] = y[i];
      }
      for (int i = 0; i < kTile && y0 + i < resolution.height; ++i) {
        Block y[kTile];
        W::output(half[i], y);
#pragma GCC unroll 8
        for (int j = 0; j < kTile; ++j)
          if (x0 + j < resolution.width)
            finish(y[j], out + i * row + j * column + c,
                   (int64_t(y0 + i) * resolution.width + x0 + j) * blocks + c / kBlock, c);
      }
    }
  }
}

}  // namespace
}  // namespace FI_ISA
}  // namespace flowinv
