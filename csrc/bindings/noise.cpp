#include "noise/noise.h"

#include "bindings/tensor_arg.h"
#include "common/check.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;
using Strides = std::tuple<std::int64_t, std::int64_t>;

void bits(std::int64_t n, std::uint64_t seed, std::uint64_t offset, const T& out_t,
          const PlaceTuple& place) {
  const TensorArg out("out", out_t);
  RandomBitsParams p{n, seed, offset,
                     static_cast<std::int64_t*>(out.get(DType::kInt64, product(n)))};
  run(random_bits, p, place_of(place));
}

void gaussian(std::int64_t batch, std::int64_t n, std::uint64_t seed, std::uint64_t offset,
              const T& mean_t, const Strides& mean_s, const T& sd_t, const Strides& sd_s,
              const T& out_t, const PlaceTuple& place) {
  const TensorArg out("out", out_t);
  const DType dtype = out.dtype();
  GaussianNoiseParams p{dtype,
                        batch,
                        n,
                        seed,
                        offset,
                        broadcast("mean", mean_t, mean_s, dtype, batch, n),
                        broadcast("std", sd_t, sd_s, dtype, batch, n),
                        out.get(dtype, product(batch, n))};
  run(gaussian_noise, p, place_of(place));
}

void structured(bool map_only, std::int64_t batch, std::int64_t channels, std::int64_t height,
                std::int64_t width, int kind, double rate, double floor, double ceiling,
                std::uint64_t seed, std::uint64_t offset, const T& mean_t, const T& level_t,
                const T& out_t, const PlaceTuple& place) {
  check(kind >= 0 && kind <= 3, "kind: expected 0, 1, 2 or 3");
  const TensorArg mean("mean", mean_t), level("level", level_t), out("out", out_t);
  const DType dtype = out.dtype();
  const SigmaMap map{static_cast<SigmaKind>(kind), height, width, rate, floor, ceiling};
  StructuredNoiseParams p{dtype,
                          map_only,
                          batch,
                          channels,
                          map,
                          seed,
                          offset,
                          map_only ? nullptr : mean.get(dtype, batch),
                          level.get(dtype, batch),
                          nullptr,
                          out.get(dtype, product(batch, channels, height, width))};
  run(structured_noise, p, place_of(place));
}

void digits(std::int64_t batch, std::int64_t count, std::int64_t bank_size,
            std::int64_t patch_height, std::int64_t patch_width, std::int64_t channels,
            std::int64_t height, std::int64_t width, std::uint64_t seed, std::uint64_t offset,
            const T& bank_t, const T& index_t, const T& places_t, const T& out_t,
            const PlaceTuple& place) {
  check(bank_size > 0 && patch_height <= height && patch_width <= width,
        "bank: expected digits no larger than the image");
  const TensorArg bank("bank", bank_t), index("index", index_t), places("places", places_t);
  const TensorArg out("out", out_t);
  const DType dtype = bank.dtype();
  DigitsParams p{dtype,
                 batch,
                 count,
                 bank_size,
                 patch_height,
                 patch_width,
                 channels,
                 height,
                 width,
                 seed,
                 offset,
                 bank.get(dtype, product(bank_size, patch_height, patch_width)),
                 static_cast<std::int64_t*>(index.get(DType::kInt64, product(batch, count))),
                 static_cast<std::int64_t*>(places.get(DType::kInt64, product(batch, count, 3))),
                 out.get(dtype, product(batch, channels, height, width))};
  run(digit_overlay, p, place_of(place));
}

}  // namespace

void register_noise(py::module_& m) {
  m.def("random_bits", bits);
  m.def("gaussian_noise", gaussian);
  m.def("structured_noise", structured);
  m.def("digit_overlay", digits);
}

}  // namespace flowinv
