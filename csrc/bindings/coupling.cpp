#include "coupling/affine_coupling.h"

#include "bindings/tensor_arg.h"
#include "common/check.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;
using Shape = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

template <class Params>
Params with_shape(const Shape& shape, int mask, bool decode, DType dtype) {
  Params p{};
  std::tie(p.batch, p.channels, p.height, p.width) = shape;
  check(mask >= 0 && mask <= 3, "mask: expected 0, 1, 2 or 3");
  check(mask < 2 || p.channels % 2 == 0, "channels: expected an even number for a channel mask");
  product(p.batch, 2 * p.channels, p.height, p.width);
  p.mask = static_cast<Mask>(mask);
  p.decode = decode;
  p.dtype = dtype;
  return p;
}

void forward(bool decode, int mask, const Shape& shape, std::int64_t in_stride, const T& in_t,
             const T& raw_t, const T& gain_t, const T& logdet_in_t, const T& out_t,
             const T& logdet_out_t, const T& partials_t, const PlaceTuple& place_t) {
  const Place place = place_of(place_t);
  const TensorArg in("in", in_t), raw("raw", raw_t), gain("gain", gain_t);
  const TensorArg logdet_in("logdet_in", logdet_in_t), out("out", out_t);
  const TensorArg logdet_out("logdet_out", logdet_out_t), partials("partials", partials_t);
  auto p = with_shape<AffineCouplingParams>(shape, mask, decode, in.dtype());
  const CouplingLayout layout(p);
  const DType acc = accumulate_type(p.dtype);
  check(in_stride >= layout.n || p.batch <= 1, "in_stride: expected at least C H W");
  p.in_stride = in_stride;
  p.in = in.get(p.dtype, p.batch == 0 ? 0 : product(p.batch - 1, in_stride) + layout.n);
  p.raw = raw.get(p.dtype, p.batch * layout.raw_n);
  p.gain = gain.get(p.dtype, layout.gains);
  p.logdet_in = logdet_in.get(acc, p.batch);
  p.out = out.get(p.dtype, p.batch * layout.n);
  p.logdet_out = logdet_out.get(acc, p.batch);
  p.partials = partials_of(partials, p.dtype, p.batch, layout.n, place);
  run(affine_coupling, p, place);
}

void backward(bool decode, int mask, const Shape& shape, const T& grad_out_t,
              const T& grad_logdet_t, const T& value_t, const T& raw_t, const T& gain_t,
              const T& grad_in_t, const T& grad_raw_t, const T& grad_gain_t, const T& partials_t,
              const PlaceTuple& place_t) {
  const TensorArg grad_out("grad_out", grad_out_t), grad_logdet("grad_logdet", grad_logdet_t);
  const TensorArg value("value", value_t), raw("raw", raw_t), gain("gain", gain_t);
  const TensorArg grad_in("grad_in", grad_in_t), grad_raw("grad_raw", grad_raw_t);
  const TensorArg grad_gain("grad_gain", grad_gain_t), partials("partials", partials_t);
  auto p = with_shape<AffineCouplingBackwardParams>(shape, mask, decode, value.dtype());
  const CouplingLayout layout(p);
  const DType acc = accumulate_type(p.dtype);
  p.grad_out = grad_out.get(p.dtype, p.batch * layout.n);
  p.grad_logdet = grad_logdet.get(acc, p.batch);
  p.value = value.get(p.dtype, p.batch * layout.n);
  p.raw = raw.get(p.dtype, p.batch * layout.raw_n);
  p.gain = gain.get(p.dtype, layout.gains);
  p.grad_in = grad_in.get(p.dtype, p.batch * layout.n);
  p.grad_raw = grad_raw.get(p.dtype, p.batch * layout.raw_n);
  p.grad_gain = grad_gain.get_or_null(p.dtype, layout.gains);
  p.partials = p.grad_gain ? partials.get(acc, p.batch * layout.gains) : nullptr;
  run(affine_coupling_backward, p, place_of(place_t));
}

}  // namespace

void register_coupling(py::module_& m) {
  m.def("affine_coupling", forward);
  m.def("affine_coupling_backward", backward);
}

}  // namespace flowinv
