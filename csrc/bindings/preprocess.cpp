#include "preprocess/preprocess.h"

#include "bindings/tensor_arg.h"
#include "common/check.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;

void forward(bool decode, std::int64_t batch, std::int64_t n, double alpha, const T& in_t,
             const T& logdet_in_t, const T& out_t, const T& logdet_out_t, const T& partials_t,
             const PlaceTuple& place_t) {
  const Place place = place_of(place_t);
  const TensorArg in("in", in_t), logdet_in("logdet_in", logdet_in_t), out("out", out_t);
  const TensorArg logdet_out("logdet_out", logdet_out_t), partials("partials", partials_t);
  const DType dtype = in.dtype(), acc = accumulate_type(dtype);
  const std::int64_t all = product(batch, n);
  LogitParams p{dtype,
                decode,
                batch,
                n,
                alpha,
                in.get(dtype, all),
                logdet_in.get(acc, batch),
                out.get(dtype, all),
                logdet_out.get(acc, batch),
                partials_of(partials, dtype, batch, n, place)};
  run(logit, p, place);
}

void backward(bool decode, std::int64_t batch, std::int64_t n, double alpha, const T& grad_out_t,
              const T& grad_logdet_t, const T& in_t, const T& grad_in_t, const PlaceTuple& place) {
  const TensorArg grad_out("grad_out", grad_out_t), grad_logdet("grad_logdet", grad_logdet_t);
  const TensorArg in("in", in_t), grad_in("grad_in", grad_in_t);
  const DType dtype = in.dtype();
  const std::int64_t all = product(batch, n);
  LogitBackwardParams p{dtype,
                        decode,
                        batch,
                        n,
                        alpha,
                        grad_out.get(dtype, all),
                        grad_logdet.get(accumulate_type(dtype), batch),
                        in.get(dtype, all),
                        grad_in.get(dtype, all)};
  run(logit_backward, p, place_of(place));
}

void add_noise(std::int64_t n, int levels, std::uint64_t seed, std::uint64_t offset, const T& in_t,
               const T& out_t, const PlaceTuple& place) {
  check(levels >= 2, "levels: expected at least 2");
  const TensorArg in("in", in_t), out("out", out_t);
  DequantiseParams p{
      in.dtype(), n, levels, seed, offset, in.get(in.dtype(), product(n)), out.get(in.dtype(), n)};
  run(dequantise, p, place_of(place));
}

}  // namespace

void register_preprocess(py::module_& m) {
  m.def("logit", forward);
  m.def("logit_backward", backward);
  m.def("dequantise", add_noise);
}

}  // namespace flowinv
