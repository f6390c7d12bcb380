// The CPU half of "map every element of an image, sum one number per image".
//
// An image's elements are cut into tiles of kTile; a tile is summed, then the tiles in order, so
// the bits of the result do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/macros.h"
#include "common/parallel.h"

namespace flowinv {

constexpr std::int64_t kTile = 1024;

FI_HD std::int64_t tiles_of(std::int64_t n) { return n == 0 ? 1 : (n + kTile - 1) / kTile; }

namespace FI_ISA {

// f(begin, end) over ranges of whole units; small work stays on the calling thread.
template <class F>
void for_ranges(std::int64_t units, std::int64_t elements_per_unit, int threads, const F& f) {
  constexpr std::int64_t kGrain = 16384;  // elements worth handing to another thread
  const std::int64_t per_range =
      std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, elements_per_unit));
  const std::int64_t ranges = (units + per_range - 1) / per_range;
  parallel_for(ranges, threads,
               [&](std::int64_t r) { f(r * per_range, std::min(units, (r + 1) * per_range)); });
}

// out[b] = in[b] + sum over part < parts of part_sum(b, part), added in order; in may be null.
template <class A, class PartSum>
void reduce_parts(const PartSum& part_sum, std::int64_t batch, std::int64_t parts,
                  std::int64_t elements_per_part, const A* in, A* out, int threads) {
  std::vector<A> partials(batch * parts);
  for_ranges(batch * parts, elements_per_part, threads, [&](std::int64_t unit, std::int64_t end) {
    for (; unit < end; ++unit) partials[unit] = part_sum(unit / parts, unit % parts);
  });
  for (std::int64_t b = 0; b < batch; ++b) {
    A sum = 0;
    for (std::int64_t part = 0; part < parts; ++part) sum += partials[b * parts + part];
    out[b] = (in ? in[b] : A(0)) + sum;
  }
}

// out[b] = in[b] + sum over i < n of body(b, i); in may be null. Body writes its own outputs.
template <class A, class Body>
void image_reduce(const Body& body, std::int64_t batch, std::int64_t n, const A* in, A* out,
                  int threads) {
  const auto tile_sum = [&](std::int64_t b, std::int64_t tile) {
    const std::int64_t first = tile * kTile, last = std::min(n, first + kTile);
    const Body local = body;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = first; i < last; ++i) sum += local(b, i);
    return sum;
  };
  reduce_parts(tile_sum, batch, tiles_of(n), std::min(n, kTile), in, out, threads);
}

// body(i) for every i < n.
template <class Body>
void for_each(const Body& body, std::int64_t n, int threads) {
  for_ranges((n + kTile - 1) / kTile, kTile, threads, [&](std::int64_t begin, std::int64_t end) {
    const Body local = body;
    const std::int64_t last = std::min(n, end * kTile);
#pragma omp simd
    for (std::int64_t i = begin * kTile; i < last; ++i) local(i);
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
