// A 3x3 convolution with zero padding as a matrix product on tensor cores, one warp a tile: rows are
// pixels of one image, columns output channels. What is read and what becomes of the sums are
// functors, so that the first layer reads the image, and the last one ends in the coupling.
//
// parallelism  a warp owns 16 kM pixels and 8 kN outputs; warps share nothing, no shared memory.
//              (kM, kN) is (2, 8) where that fills the device, (1, 2) below
// launch       128 threads, grid (4 warps a block over all tiles of pixels, tiles of outputs)
// traffic      a lane reads two neighbouring inputs of a pixel at once: 8 rows of 32 bytes a load, each
//              input 9 times, from the L1; weights lie in the order of the lanes. 64 to 64 channels
//              on 64x64x128: 134 MB in, 134 MB out, 39 GFLOP
// reduction    taps, then inputs, in order inside a warp: the same bits for every tiling and batch
// numerics     float32: x = hi + lo in tf32, hi hi + hi lo + lo hi, error about 2^-21 a product;
//              tf32, bf16: operands rounded to nearest; sums in float32
// edge cases   pixels beyond the image are zeros; rows beyond the last pixel compute and drop zeros
// measured     never run on a GPU
#pragma once

#include "common/mma.cuh"
#include "frozen_flow/plan.h"

namespace flowinv {
namespace cuda {

constexpr int kConvolutionThreads = 128;

// Pixels of an image that a convolution computes: all, or those of one parity of y + x.
struct PixelRows {
  int height, width, parity, count;  // parity: 0 all, 1 even, 2 odd

  PixelRows(const Resolution& resolution, int parity)
      : height(resolution.height),
        width(resolution.width),
        parity(parity),
        count(int(resolution.pixels[parity].size())) {}

  FI_HD int pixel(int row) const {
    if (parity == 0) return row;
    if (width % 2) return 2 * row + parity - 1;
    const int half = width / 2, y = row / half;
    return y * width + 2 * (row - y * half) + ((y + parity - 1) & 1);
  }
  // The row of a pixel that is among them.
  FI_HD int row(int pixel) const { return parity == 0 ? pixel : pixel / 2; }
  FI_HD bool has(int pixel) const {
    return parity == 0 || ((pixel / width + pixel % width) & 1) == parity - 1;
  }
};

// Two neighbouring numbers on their 8-byte boundary.
struct alignas(8) FloatPair {
  float x, y;
};

template <int kWords>
struct alignas(4 * kWords) Words {
  std::uint32_t w[kWords];
};

// Rows `group` and `group + 8` of A, for eight inputs.
template <Precision kPrecision>
struct LeftFragment {
  std::uint32_t high[4], low[4];

  __device__ void set(const FloatPair& upper, const FloatPair& lower) {
    const float values[4] = {upper.x, lower.x, upper.y, lower.y};
    FI_UNROLL
    for (int i = 0; i < 4; ++i) {
      high[i] = to_tf32(values[i]);
      if (kPrecision == Precision::kFloat32) low[i] = to_tf32(values[i] - float_of(high[i]));
    }
  }
  __device__ void multiply(float (&sum)[4], const Words<fragment_words(kPrecision)>& b) const {
    const std::uint32_t b_high[2] = {b.w[0], b.w[1]};
    if constexpr (kPrecision == Precision::kFloat32) {
      const std::uint32_t b_low[2] = {b.w[2], b.w[3]};
      mma_tf32(sum, low, b_high);
      mma_tf32(sum, high, b_low);
    }
    mma_tf32(sum, high, b_high);
  }
};

template <>
struct LeftFragment<Precision::kBFloat16> {
  std::uint32_t pairs[2];

  __device__ void set(const FloatPair& upper, const FloatPair& lower) {
    pairs[0] = to_bf16_pair(upper.x, upper.y);
    pairs[1] = to_bf16_pair(lower.x, lower.y);
  }
  __device__ void multiply(float (&sum)[4], const Words<1>& b) const {
    mma_bf16(sum, pairs, b.w[0]);
  }
};

// What the kernel is told beside its functors.
struct Product {
  PixelRows rows;
  std::int64_t batch;
  int units;  // tiles of 16 kM rows per image
  Fragments weights;
  const std::uint32_t* words;
};

// source.pair(image, pixel, input): inputs `input` and the next one there.
// sink(image, rows, pixels, tile, block, values): for two rows of an image (pixel < 0: none), tile
// their sixteen, block their sixteen outputs, values the lane's four: 2 quad, 2 quad + 1, and these
// plus 8. All lanes of the warp call it.
template <Precision kPrecision, int kM, int kN, class Source, class Sink>
__global__ void __launch_bounds__(kConvolutionThreads)
    convolution_kernel(Product p, Source source, Sink sink) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const std::int64_t unit = std::int64_t(blockIdx.x) * (kConvolutionThreads / 32) + warp;
  const std::int64_t image = unit / p.units;
  if (image >= p.batch) return;  // the whole warp
  const int first_tile = int(unit - image * p.units) * kM, first_output = int(blockIdx.y) * kN;
  const int height = p.rows.height, width = p.rows.width;

  int row[kM][2], pixel[kM][2];
  FI_UNROLL
  for (int m = 0; m < kM; ++m) {
    FI_UNROLL
    for (int half = 0; half < 2; ++half) {
      row[m][half] = (first_tile + m) * 16 + half * 8 + group;
      pixel[m][half] = row[m][half] < p.rows.count ? p.rows.pixel(row[m][half]) : -1;
    }
  }
  float sum[kM][kN][4] = {};
  const auto* weights =
      reinterpret_cast<const Words<fragment_words(kPrecision)>*>(p.words + p.weights.at) +
      first_output * 32 + lane;
  for (int tap = 0; tap < 9; ++tap) {
    const int dy = tap / 3 - 1, dx = tap % 3 - 1;
    int near[kM][2];
    FI_UNROLL
    for (int m = 0; m < kM; ++m) {
      FI_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int y = pixel[m][half] / width + dy, x = pixel[m][half] % width + dx;
        const bool inside = pixel[m][half] >= 0 && y >= 0 && y < height && x >= 0 && x < width;
        near[m][half] = inside ? y * width + x : -1;
      }
    }
    for (int chunk = 0; chunk < p.weights.chunks; ++chunk, weights += p.weights.tiles * 32) {
      LeftFragment<kPrecision> left[kM];
      FI_UNROLL
      for (int m = 0; m < kM; ++m)
        left[m].set(source.pair(image, near[m][0], 8 * chunk + 2 * quad),
                    source.pair(image, near[m][1], 8 * chunk + 2 * quad));
      FI_UNROLL
      for (int n = 0; n < kN; ++n) {
        const auto right = weights[n * 32];
        FI_UNROLL
        for (int m = 0; m < kM; ++m) left[m].multiply(sum[m][n], right);
      }
    }
  }
  FI_UNROLL
  for (int m = 0; m < kM; ++m) {
    FI_UNROLL
    for (int n = 0; n < kN; n += 2) {
      const float values[2][4] = {{sum[m][n][0], sum[m][n][1], sum[m][n + 1][0], sum[m][n + 1][1]},
                                  {sum[m][n][2], sum[m][n][3], sum[m][n + 1][2], sum[m][n + 1][3]}};
      sink(image, row[m], pixel[m], first_tile + m, (first_output + n) / 2, values);
    }
  }
}

template <Precision kPrecision, class Source, class Sink>
void convolve(const char* name, const PixelRows& rows, std::int64_t batch, const Fragments& weights,
              const std::uint32_t* words, const Source& source, const Sink& sink,
              const Execution& execution) {
  const auto run = [&](auto kernel, int m, int n) {
    const int units = (rows.count + 16 * m - 1) / (16 * m);
    constexpr int kWarps = kConvolutionThreads / 32;
    const std::int64_t blocks = (batch * units + kWarps - 1) / kWarps;
    launch(name, kernel, dim3(unsigned(blocks), unsigned(weights.tiles / n)), kConvolutionThreads,
           execution, Product{rows, batch, units, weights, words}, source, sink);
  };
  // Large tiles where they keep a device busy.
  const std::int64_t large = batch * ((rows.count + 31) / 32) * (weights.tiles / 8);
  if (weights.tiles % 8 == 0 && large >= kManyWarps)
    run(convolution_kernel<kPrecision, 2, 8, Source, Sink>, 2, 8);
  else
    run(convolution_kernel<kPrecision, 1, 2, Source, Sink>, 1, 2);
}

}  // namespace cuda
}  // namespace flowinv
