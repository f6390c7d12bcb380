#include "quantise/quantise.h"

#include "bindings/tensor_arg.h"
#include "common/check.h"

namespace flowinv {

void register_quantise(py::module_& m) {
  using T = TensorArg::Tuple;
  m.def("quantise", [](std::int64_t n, int bits, double low, double high, const T& in_t,
                       const T& out_t, const PlaceTuple& place) {
    check(bits >= 1 && bits <= 24, "bits: expected 1..24");
    const TensorArg in("in", in_t), out("out", out_t);
    QuantiseParams p{
        in.dtype(), n, bits, low, high, in.get(in.dtype(), product(n)), out.get(in.dtype(), n)};
    run(quantise, p, place_of(place));
  });
}

}  // namespace flowinv
