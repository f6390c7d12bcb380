#include "bindings/tensor_arg.h"
#include "common/check.h"
#include "layout/squeeze.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;

// Sizes are the squeezed tensor's.
void move_pixels(bool to_squeezed, std::int64_t batch, std::int64_t channels, std::int64_t height,
                 std::int64_t width, std::int64_t in_stride, const T& in_t, const T& out_t,
                 const PlaceTuple& place) {
  const TensorArg in("in", in_t), out("out", out_t);
  const std::int64_t n = product(channels, height, width);
  check(channels % 4 == 0, "channels: expected a multiple of 4");
  check(in_stride >= n || batch <= 1, "in_stride: expected at least C H W");
  const DType dtype = in.dtype();
  SqueezeParams p{static_cast<int>(size_of(dtype)),
                  to_squeezed,
                  batch,
                  channels,
                  height,
                  width,
                  in_stride,
                  in.get(dtype, batch == 0 ? 0 : product(batch - 1, in_stride) + n),
                  out.get(dtype, product(batch, n))};
  run(squeeze, p, place_of(place));
}

}  // namespace

void register_layout(py::module_& m) { m.def("squeeze", move_pixels); }

}  // namespace flowinv
