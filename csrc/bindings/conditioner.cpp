#include <pybind11/stl.h>

#include <cstring>

#include "bindings/tensor_arg.h"
#include "common/check.h"
#include "conditioner/frozen_flow.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;
// (weight, bias, inputs, outputs); (gain, convolutions).
using ConvTuple = std::tuple<T, T, int, int>;
using CouplingTuple = std::tuple<T, std::vector<ConvTuple>>;

const float* floats(const char* name, const T& t, std::int64_t count) {
  return static_cast<const float*>(TensorArg(name, t).get(DType::kFloat32, count));
}

std::unique_ptr<FrozenFlow> freeze(const std::tuple<int, int, int>& shape, int scales, int hidden,
                                   int blocks, const T& location, const T& spread,
                                   const std::vector<CouplingTuple>& couplings, int precision,
                                   bool on_device) {
  const auto [channels, height, width] = shape;
  check(channels > 0 && height > 0 && width > 0 && scales > 0 && hidden > 0 && blocks >= 0,
        "sizes: expected positive numbers");
  check(precision >= 0 && precision <= 2, "precision: expected 0, 1 or 2");
  const std::int64_t n = product(channels, height, width);
  std::vector<FrozenFlow::CouplingArg> args;
  for (const auto& [gain, convs] : couplings) {
    FrozenFlow::CouplingArg arg;
    check(!convs.empty(), "convs: expected at least two");
    arg.gain = floats("gain", gain, std::get<3>(convs.back()) / 2);
    for (const auto& [weight, bias, inputs, outputs] : convs)
      arg.convs.push_back({floats("weight", weight, product(9, inputs, outputs)),
                           floats("bias", bias, outputs), inputs, outputs});
    args.push_back(std::move(arg));
  }
  return std::make_unique<FrozenFlow>(channels, height, width, scales, hidden, blocks,
                                      floats("location", location, n), floats("spread", spread, n),
                                      args, Precision(precision), on_device);
}

void copy_words(const FrozenFlow& flow, const T& out) {
  const std::int64_t count = std::int64_t(flow.device_words.size());
  void* to = TensorArg("out", out).get(DType::kFloat32, count);
  if (count) std::memcpy(to, flow.device_words.data(), 4 * count);
}

// What both directions share. words, workspace: null where the flow is on the CPU.
FrozenFlowParams params_of(const FrozenFlow& flow, bool decode, std::int64_t batch, const T& words,
                           const T& workspace, const ExecutionTuple& execution) {
  check(flow.on_device == (std::get<0>(execution) >= 0),
        "execution: not where the flow was frozen for");
  FrozenFlowParams p{};
  p.flow = &flow;
  p.decode = decode;
  p.batch = batch;
  if (flow.on_device) {
    p.words = reinterpret_cast<const std::uint32_t*>(
        floats("words", words, std::int64_t(flow.device_words.size())));
    p.workspace =
        const_cast<float*>(floats("workspace", workspace, product(batch, flow.workspace)));
  }
  return p;
}

void run_forward(const FrozenFlow& flow, bool decode, std::int64_t batch, const T& in, const T& out,
                 const T& logdet, const T& saved, const T& words, const T& workspace,
                 const ExecutionTuple& execution) {
  FrozenFlowParams p = params_of(flow, decode, batch, words, workspace, execution);
  p.in = floats("in", in, product(batch, flow.n));
  p.out = const_cast<float*>(floats("out", out, product(batch, flow.n)));
  p.logdet = const_cast<float*>(floats("logdet", logdet, batch));
  p.saved = static_cast<char*>(
      TensorArg("saved", saved).get_or_null(DType::kBool, product(batch, flow.saved_bytes)));
  run(frozen_flow, p, execution_of(execution));
}

void run_backward(const FrozenFlow& flow, bool decode, std::int64_t batch, const T& grad_out,
                  const T& grad_logdet, const T& saved, const T& grad_in, const T& words,
                  const T& workspace, const ExecutionTuple& execution) {
  FrozenFlowParams p = params_of(flow, decode, batch, words, workspace, execution);
  p.backward = true;
  p.in = floats("grad_out", grad_out, product(batch, flow.n));
  p.grad_logdet = floats("grad_logdet", grad_logdet, batch);
  p.saved = static_cast<char*>(
      TensorArg("saved", saved).get(DType::kBool, product(batch, flow.saved_bytes)));
  p.out = const_cast<float*>(floats("grad_in", grad_in, product(batch, flow.n)));
  run(frozen_flow, p, execution_of(execution));
}

}  // namespace

void register_conditioner(py::module_& m) {
  py::class_<FrozenFlow>(m, "FrozenFlow", py::module_local())
      .def(py::init(&freeze))
      .def_readonly("saved_bytes", &FrozenFlow::saved_bytes)
      .def_readonly("weight_bytes", &FrozenFlow::weight_bytes)
      .def_readonly("workspace", &FrozenFlow::workspace)
      .def_property_readonly("words", [](const FrozenFlow& f) { return f.device_words.size(); })
      .def("copy_words", copy_words)
      .def("forward", run_forward)
      .def("backward", run_backward);
  m.def("cpu_bf16", cpu_bf16);
}

}  // namespace flowinv
