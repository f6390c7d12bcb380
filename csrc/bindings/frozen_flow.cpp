#include "frozen_flow/frozen_flow.h"

#include <pybind11/stl.h>

#include <cstring>

#include "bindings/tensor_arg.h"
#include "common/check.h"

namespace flowinv {
namespace {

using T = TensorArg::Tuple;
using ConvTuple = std::tuple<T, T, int, int>;  // weight, bias, inputs, outputs

const float* floats(const char* name, const T& t, std::int64_t count) {
  return static_cast<const float*>(TensorArg(name, t).get(DType::kFloat32, count));
}

// A plan, and the spare memory of its calls.
class FrozenFlow {
 public:
  FrozenFlow(const std::tuple<int, int, int>& shape, int precision, bool on_device)
      : plan(make(shape, precision, on_device)) {}

  Plan plan;
  mutable SpareMemory spare;

 private:
  static Plan make(const std::tuple<int, int, int>& shape, int precision, bool on_device) {
    const auto [channels, height, width] = shape;
    check(channels > 0 && height > 0 && width > 0, "shape: expected positive numbers");
    check(product(channels, height, width) < std::int64_t(1) << 31,
          "shape: expected less than 2^31");
    check(precision >= 0 && precision <= 2, "precision: expected a value of PRECISIONS");
    return Plan(channels, height, width, Precision(precision), on_device);
  }
};

void add_standardise(FrozenFlow& flow, const T& mean, const T& std) {
  const std::int64_t n = flow.plan.rest();
  flow.plan.add_standardise(floats("mean", mean, n), floats("std", std, n));
}

void add_mixing(FrozenFlow& flow, const T& weight, double log_size_sum) {
  const std::int64_t count = product(flow.plan.channels, flow.plan.channels);
  flow.plan.add_mixing(
      static_cast<const double*>(TensorArg("weight", weight).get(DType::kFloat64, count)),
      log_size_sum);
}

void add_coupling(FrozenFlow& flow, int mask, bool inverse, const T& gain,
                  const std::vector<ConvTuple>& convs) {
  check(mask >= 0 && mask <= 3, "mask: expected a value of MASKS");
  check(!convs.empty(), "convs: expected at least two");
  std::vector<ConvArg> args;
  for (const auto& [weight, bias, inputs, outputs] : convs) {
    check(inputs > 0 && outputs > 0, "convs: expected positive numbers of channels");
    args.push_back({floats("weight", weight, product(9, inputs, outputs)),
                    floats("bias", bias, outputs), inputs, outputs});
  }
  flow.plan.add_coupling(Mask(mask), inverse, floats("gain", gain, args.back().outputs / 2), args);
}

void copy_words(const FrozenFlow& flow, const T& out) {
  const std::int64_t count = std::int64_t(flow.plan.device_words.size());
  void* to = TensorArg("out", out).get(DType::kFloat32, count);
  if (count) std::memcpy(to, flow.plan.device_words.data(), 4 * count);
}

// What both directions share. words, workspace: null where the flow is on the CPU.
FrozenFlowParams params_of(const FrozenFlow& flow, bool decode, std::int64_t batch, const T& words,
                           const T& workspace, const ExecutionTuple& execution) {
  const Plan& plan = flow.plan;
  check(plan.finished, "plan: not finished");
  check(plan.on_device == (std::get<0>(execution) >= 0),
        "execution: not where the flow was frozen for");
  FrozenFlowParams p{};
  p.plan = &plan;
  p.spare = &flow.spare;
  p.decode = decode;
  p.batch = batch;
  if (plan.on_device) {
    p.words = reinterpret_cast<const std::uint32_t*>(
        floats("words", words, std::int64_t(plan.device_words.size())));
    p.workspace =
        const_cast<float*>(floats("workspace", workspace, product(batch, plan.workspace)));
  }
  return p;
}

std::int64_t saved_words(const FrozenFlow& flow, std::int64_t batch) {
  return product(batch, flow.plan.saved_bytes / 8);
}

void run_forward(const FrozenFlow& flow, bool decode, std::int64_t batch, const T& in, const T& out,
                 const T& logdet, const T& saved, const T& words, const T& workspace,
                 const ExecutionTuple& execution) {
  FrozenFlowParams p = params_of(flow, decode, batch, words, workspace, execution);
  p.in = floats("in", in, product(batch, flow.plan.n));
  p.out = const_cast<float*>(floats("out", out, product(batch, flow.plan.n)));
  p.logdet = const_cast<float*>(floats("logdet", logdet, batch));
  p.saved = static_cast<char*>(
      TensorArg("saved", saved).get_or_null(DType::kInt64, saved_words(flow, batch)));
  run(frozen_flow, p, execution_of(execution));
}

void run_backward(const FrozenFlow& flow, bool decode, std::int64_t batch, const T& grad_out,
                  const T& grad_logdet, const T& saved, const T& grad_in, const T& words,
                  const T& workspace, const ExecutionTuple& execution) {
  FrozenFlowParams p = params_of(flow, decode, batch, words, workspace, execution);
  p.backward = true;
  p.in = floats("grad_out", grad_out, product(batch, flow.plan.n));
  p.grad_logdet = floats("grad_logdet", grad_logdet, batch);
  p.saved =
      static_cast<char*>(TensorArg("saved", saved).get(DType::kInt64, saved_words(flow, batch)));
  p.out = const_cast<float*>(floats("grad_in", grad_in, product(batch, flow.plan.n)));
  run(frozen_flow, p, execution_of(execution));
}

}  // namespace

void register_frozen_flow(py::module_& m) {
  const auto of_plan = [](auto member) {
    return [member](const FrozenFlow& flow) { return flow.plan.*member; };
  };
  // By a function, not py::init: where memory for pybind11's own table of objects fails behind a
  // constructor, nobody catches the exception, and the process ends.
  m.def("make_frozen_flow",
        [](const std::tuple<int, int, int>& shape, int precision, bool on_device) {
          return new FrozenFlow(shape, precision, on_device);
        });
  py::class_<FrozenFlow>(m, "FrozenFlow", py::module_local())
      .def("add_standardise", add_standardise)
      .def("add_squeeze", [](FrozenFlow& flow) { flow.plan.add_squeeze(); })
      .def("add_factor_out", [](FrozenFlow& flow) { flow.plan.add_factor_out(); })
      .def("add_mixing", add_mixing)
      .def("add_coupling", add_coupling)
      .def("finish", [](FrozenFlow& flow) { flow.plan.finish(); })
      .def_property_readonly("saved_bytes", of_plan(&Plan::saved_bytes))
      .def_property_readonly("weight_bytes", of_plan(&Plan::weight_bytes))
      .def_property_readonly("workspace", of_plan(&Plan::workspace))
      .def_property_readonly("words",
                             [](const FrozenFlow& f) { return f.plan.device_words.size(); })
      .def_property_readonly("state",  // shape of it behind the last layer
                             [](const FrozenFlow& flow) {
                               const Plan& p = flow.plan;
                               return std::make_tuple(p.channels, p.height, p.width);
                             })
      .def("copy_words", copy_words)
      .def("forward", run_forward)
      .def("backward", run_backward);
  m.def("cpu_bf16", cpu_bf16);
}

}  // namespace flowinv
