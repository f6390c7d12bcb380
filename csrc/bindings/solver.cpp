#include "bindings/tensor_arg.h"
#include "solver/adam.h"

namespace flowinv {

void register_solver(py::module_& m) {
  using T = TensorArg::Tuple;
  m.def("adam_step", [](std::int64_t batch, std::int64_t n, const T& x_t, const T& grad_t,
                        const T& avg_t, const T& avg_sq_t, const T& best_t, const T& loss_t,
                        const T& best_loss_t, const T& active_t, const T& rates, double beta1,
                        double beta2, double eps, const PlaceTuple& place) {
    const TensorArg x("x", x_t), grad("grad", grad_t), avg("exp_avg", avg_t);
    const TensorArg avg_sq("exp_avg_sq", avg_sq_t), best("best", best_t), loss("loss", loss_t);
    const TensorArg best_loss("best_loss", best_loss_t), active("active", active_t);
    const DType dtype = x.dtype(), acc = accumulate_type(dtype);
    const std::int64_t all = product(batch, n);
    AdamParams p{dtype,
                 batch,
                 n,
                 x.get(dtype, all),
                 grad.get(dtype, all),
                 avg.get(dtype, all),
                 avg_sq.get(dtype, all),
                 best.get(dtype, all),
                 loss.get(acc, batch),
                 best_loss.get(acc, batch),
                 static_cast<const bool*>(active.get(DType::kBool, batch)),
                 static_cast<const double*>(TensorArg("rates", rates).get(DType::kFloat64, 2)),
                 beta1,
                 beta2,
                 eps};
    run(adam_step, p, place_of(place));
  });
}

}  // namespace flowinv
