// CPU loops of the log-densities.
//
// Gaussian: mean and 1 / sd of a tile are laid out densely first, once for all images where both
// are the same for all, so that the loop over elements has no strides, division or logarithm.
#include "density/density.h"

#include <vector>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

template <class A>
struct Tile {
  A mean[kTile], inverse_sd[kTile];
  A constant;
};

template <class T>
void prepare(const GaussianParams& p, std::int64_t b, std::int64_t tile, Tile<Acc<T>>& out) {
  using A = Acc<T>;
  const std::int64_t first = tile * kTile, count = std::min(kTile, p.n - first);
  A sd[kTile];
  p.mean.template copy<T>(b, first, count, out.mean);
  p.sd.template copy<T>(b, first, count, sd);
  A constant = 0;
#pragma omp simd reduction(+ : constant)
  for (std::int64_t i = 0; i < count; ++i) {
    out.inverse_sd[i] = A(1) / sd[i];
    constant += GaussianTerm<A>::constant(sd[i]);
  }
  out.constant = constant;
}

template <class T>
void gaussian_log_prob(const GaussianParams& p, const Execution& execution) {
  using A = Acc<T>;
  const std::int64_t tiles = tiles_of(p.n);
  const bool shared = p.batch > 1 && p.mean.batch_stride == 0 && p.sd.batch_stride == 0;
  std::vector<Tile<A>> prepared(shared ? tiles : 0);
  for (std::int64_t tile = 0; tile < std::int64_t(prepared.size()); ++tile)
    prepare<T>(p, 0, tile, prepared[tile]);
  const auto tile_sum = [&](std::int64_t b, std::int64_t tile) {
    Tile<A> own;
    if (!shared) prepare<T>(p, b, tile, own);
    const Tile<A>& row = shared ? prepared[tile] : own;
    const std::int64_t count = std::min(kTile, p.n - tile * kTile);
    const std::int64_t at = b * p.n + tile * kTile;
    const T* y = static_cast<const T*>(p.y) + at;
    const T* fx = static_cast<const T*>(p.fx) + at;
    T* score = static_cast<T*>(p.score) + at;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < count; ++i) {
      const GaussianTerm<A> term(load(y + i), load(fx + i), row.mean[i], row.inverse_sd[i]);
      store(score + i, term.score());
      sum += term.value();
    }
    return sum + row.constant;
  };
  reduce_parts<A>(tile_sum, p.batch, tiles, std::min(p.n, kTile), nullptr,
                  static_cast<A*>(p.log_prob), execution.threads);
}

template <class T>
void standard_normal_log_prob(const StandardNormalParams& p, const Execution& execution) {
  image_reduce<Acc<T>>(StandardNormalBody<T>{p}, p.batch, p.n, nullptr,
                       static_cast<Acc<T>*>(p.log_prob), execution.threads);
}

}  // namespace

FI_FLOAT_OP(gaussian_log_prob, GaussianParams)
FI_FLOAT_OP(standard_normal_log_prob, StandardNormalParams)

}  // namespace FI_ISA
}  // namespace flowinv
