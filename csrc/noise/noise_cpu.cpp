// CPU loops of the random numbers and structured noises.
//
// Normal numbers are made in chunks: Philox over all blocks of a chunk, then Box-Muller over all its
// lanes, then the mean and standard deviation; each a loop that the compiler vectorises.
#include "noise/noise.h"

#include <algorithm>
#include <vector>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

constexpr std::int64_t kBlocks = 256, kChunk = 4 * kBlocks;

// normals[4 j + lane] of blocks first, first + 1, ...; four_normals taken apart into loops, which is six
// times as fast: in one loop the compiler does not vectorise.
template <class A>
void fill_normals(std::uint64_t seed, std::uint64_t offset, std::int64_t first, A* normals) {
  std::uint32_t bits[4][kBlocks];
#pragma omp simd
  for (std::int64_t j = 0; j < kBlocks; ++j) {
    const PhiloxBlock block = philox(seed, offset, std::uint64_t(first + j));
    bits[0][j] = block.lane[0];
    bits[1][j] = block.lane[1];
    bits[2][j] = block.lane[2];
    bits[3][j] = block.lane[3];
  }
  A parts[4][kBlocks];
  for (int pair = 0; pair < 4; pair += 2) {
#pragma omp simd
    for (std::int64_t j = 0; j < kBlocks; ++j)
      normals_of(bits[pair][j], bits[pair + 1][j], parts[pair][j], parts[pair + 1][j]);
  }
  for (std::int64_t j = 0; j < kBlocks; ++j)
    for (int lane = 0; lane < 4; ++lane) normals[4 * j + lane] = parts[lane][j];
}

// use(b, i, count, normals) for runs of elements i .. i + count - 1 of image b, n elements an image.
template <class A, class Use>
void for_normals(std::uint64_t seed, std::uint64_t offset, std::int64_t batch, std::int64_t n,
                 int threads, const Use& use) {
  const std::int64_t total = batch * n;
  for_ranges((total + kChunk - 1) / kChunk, kChunk, threads,
             [&](std::int64_t chunk, std::int64_t end) {
               A normals[kChunk];
               for (; chunk < end; ++chunk) {
                 fill_normals(seed, offset, chunk * kBlocks, normals);
                 std::int64_t at = chunk * kChunk;
                 const std::int64_t last = std::min(total, at + kChunk);
                 for (const A* next = normals; at < last;) {
                   const std::int64_t b = at / n, i = at - b * n;
                   const std::int64_t count = std::min(n - i, last - at);
                   use(b, i, count, next);
                   at += count;
                   next += count;
                 }
               }
             });
}

template <class T>
void gaussian_noise(const GaussianNoiseParams& p, const Execution& execution) {
  using A = Acc<T>;
  for_normals<A>(p.seed, p.offset, p.batch, p.n, execution.threads,
                 [&](std::int64_t b, std::int64_t i, std::int64_t count, const A* normals) {
                   A mean[kChunk], sd[kChunk];
                   p.mean.template copy<T>(b, i, count, mean);
                   p.sd.template copy<T>(b, i, count, sd);
                   T* out = static_cast<T*>(p.out) + b * p.n + i;
#pragma omp simd
                   for (std::int64_t k = 0; k < count; ++k)
                     store(out + k, mean[k] + sd[k] * normals[k]);
                 });
}

// p.shape is given; a plane of a channel is a run of its own.
template <class T>
void structured(const StructuredNoiseParams& p, const Execution& execution) {
  using A = Acc<T>;
  const std::int64_t plane = p.map.height * p.map.width;
  for_normals<A>(p.seed, p.offset, p.batch * p.channels, plane, execution.threads,
                 [&](std::int64_t u, std::int64_t i, std::int64_t count, const A* normals) {
                   const A mean = load(static_cast<const T*>(p.mean) + u / p.channels);
                   const A level = load(static_cast<const T*>(p.level) + u / p.channels);
                   T* out = static_cast<T*>(p.out) + u * plane + i;
#pragma omp simd
                   for (std::int64_t k = 0; k < count; ++k) {
                     const A sigma = p.map.sigma(level, A(p.shape[i + k]));
                     store(out + k, mean + sigma * normals[k]);
                   }
                 });
}

template <class T>
void structured_noise(const StructuredNoiseParams& p, const Execution& execution) {
  StructuredNoiseParams params = p;
  std::vector<double> shape(p.map.height * p.map.width);
  for (std::int64_t i = 0; i < std::int64_t(shape.size()); ++i)
    shape[i] = p.map.shape(i / p.map.width, i % p.map.width);
  params.shape = shape.data();
  if (!p.map_only) return structured<T>(params, execution);
  const std::int64_t n = p.batch * p.channels * std::int64_t(shape.size());
  for_each(StructuredNoiseBody<T>{params}, (n + 3) / 4, execution.threads);
}

template <class T>
void digit_overlay(const DigitsParams& p, const Execution& execution) {
  for_each(PlaceDigitsBody{p}, p.grid.batch * p.grid.count, execution.threads);
  const PatchSumBody<T> sum{p.grid, p.bank, p.index, p.places, p.out};
  for_each(sum, p.grid.pixels(), execution.threads);
}

}  // namespace

void random_bits(const RandomBitsParams& p, const Execution& execution) {
  for_each(RandomBitsBody{p}, (p.n + 3) / 4, execution.threads);
}

FI_FLOAT_OP(gaussian_noise, GaussianNoiseParams)
FI_FLOAT_OP(structured_noise, StructuredNoiseParams)
FI_FLOAT_OP(digit_overlay, DigitsParams)

}  // namespace FI_ISA
}  // namespace flowinv
