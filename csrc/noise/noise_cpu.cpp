// CPU loops of the random numbers and structured noises.
#include "noise/noise.h"

#include <type_traits>
#include <vector>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {

void random_bits(const RandomBitsParams& p, const Place& place) {
  for_each(RandomBitsBody{p}, (p.n + 3) / 4, place.threads);
}

void gaussian_noise(const GaussianNoiseParams& p, const Place& place) {
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each(GaussianNoiseBody<T>{p}, (p.batch * p.n + 3) / 4, place.threads);
  });
}

void structured_noise(const StructuredNoiseParams& p, const Place& place) {
  StructuredNoiseParams params = p;
  std::vector<double> shape(p.map.height * p.map.width);
  for (std::int64_t i = 0; i < std::int64_t(shape.size()); ++i)
    shape[i] = p.map.shape(i / p.map.width, i % p.map.width);
  params.shape = shape.data();
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::int64_t n = p.batch * p.channels * std::int64_t(shape.size());
    for_each(StructuredNoiseBody<T>{params}, (n + 3) / 4, place.threads);
  });
}

void digit_overlay(const DigitsParams& p, const Place& place) {
  for_each(PlaceDigitsBody{p}, p.batch * p.count, place.threads);
  for_float_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each(DigitOverlayBody<T>{p}, p.batch * p.channels * p.height * p.width, place.threads);
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
