#include "density/density.h"

#include "bindings/tensor_arg.h"
#include "common/check.h"
#include "density/patches.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;
using Strides = std::tuple<std::int64_t, std::int64_t>;

void gaussian(std::int64_t batch, std::int64_t n, const T& y_t, const T& fx_t, const T& mean_t,
              const Strides& mean_s, const T& sd_t, const Strides& sd_s, const T& score_t,
              const T& log_prob_t, const T& partials_t, const PlaceTuple& place_t) {
  const Place place = place_of(place_t);
  const TensorArg y("y", y_t), fx("fx", fx_t), score("score", score_t);
  const TensorArg log_prob("log_prob", log_prob_t), partials("partials", partials_t);
  const DType dtype = fx.dtype();
  const std::int64_t all = product(batch, n);
  GaussianParams p{dtype,
                   batch,
                   n,
                   y.get(dtype, all),
                   fx.get(dtype, all),
                   broadcast("mean", mean_t, mean_s, dtype, batch, n),
                   broadcast("std", sd_t, sd_s, dtype, batch, n),
                   score.get(dtype, all),
                   log_prob.get(accumulate_type(dtype), batch),
                   partials_of(partials, dtype, batch, n, place)};
  run(gaussian_log_prob, p, place);
}

void standard_normal(std::int64_t batch, std::int64_t n, const T& z_t, const T& log_prob_t,
                     const T& partials_t, const PlaceTuple& place_t) {
  const Place place = place_of(place_t);
  const TensorArg z("z", z_t), log_prob("log_prob", log_prob_t), partials("partials", partials_t);
  const DType dtype = z.dtype();
  StandardNormalParams p{dtype,
                         batch,
                         n,
                         z.get(dtype, product(batch, n)),
                         log_prob.get(accumulate_type(dtype), batch),
                         partials_of(partials, dtype, batch, n, place)};
  run(standard_normal_log_prob, p, place);
}

void move_patches(bool scatter, std::int64_t batch, std::int64_t count, std::int64_t patch_height,
                  std::int64_t patch_width, std::int64_t channels, std::int64_t height,
                  std::int64_t width, const T& in_t, const T& places_t, const T& out_t,
                  const PlaceTuple& place) {
  const TensorArg in("in", in_t), places("places", places_t), out("out", out_t);
  const DType dtype = in.dtype();
  const std::int64_t patches_n = product(batch, count, patch_height, patch_width);
  const std::int64_t image_n = product(batch, channels, height, width);
  const void* where = places.get(DType::kInt64, product(batch, count, 3));
  PatchesParams p{dtype,
                  scatter,
                  batch,
                  count,
                  patch_height,
                  patch_width,
                  channels,
                  height,
                  width,
                  in.get(dtype, scatter ? patches_n : image_n),
                  static_cast<const std::int64_t*>(where),
                  out.get(dtype, scatter ? image_n : patches_n)};
  run(patches, p, place_of(place));
}

}  // namespace

void register_density(py::module_& m) {
  m.def("gaussian_log_prob", gaussian);
  m.def("standard_normal_log_prob", standard_normal);
  m.def("patches", move_patches);
}

}  // namespace flowinv
