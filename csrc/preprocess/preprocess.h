// Logit and dequantisation of a flow for images in [0, 1].
//
//     encode      p = alpha + (1 - 2 alpha) x,  z = log p - log(1 - p)
//                 log|dz/dx| = log(1 - 2 alpha) - log p - log(1 - p)
//                 for p outside (0, 1), which no z decodes to: z of the p that is eps from that
//                 end, log|dz/dx| = -infinity, and the gradient zero; NaN stays NaN
//     decode      x = (sigmoid(z) - alpha) / (1 - 2 alpha)
//                 log|dx/dz| = -softplus(z) - softplus(-z) - log(1 - 2 alpha)
//     dequantise  (round(x (levels - 1)) + u) / levels, u uniform on [0, 1) by Philox
//
// All tensors are [B, N] in memory order; logdet is [B] in the accumulate type.
#pragma once

#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/math.h"
#include "common/philox.h"

namespace flowinv {

template <class A>
struct Logit {
  A alpha, range, log_range;

  FI_HD explicit Logit(double a)
      : alpha(A(a)), range(A(1 - 2 * a)), log_range(A(math::log(1 - 2 * a))) {}

  FI_HD A encode(A x, A& log_term) const {
    const A at = alpha + range * x;
    const bool below = at <= A(0), above = at >= A(1);
    constexpr A eps = sizeof(A) == 8 ? A(2.220446049250313e-16) : A(1.1920928955078125e-7);
    const A p = below ? eps : above ? A(1) - eps : at;
    const A log_p = math::log(p), log_q = math::log1p(-p);
    const A term = log_range - log_p - log_q;
    log_term = below || above ? A(-INFINITY) : term;
    return log_p - log_q;
  }
  FI_HD A decode(A z, A& log_term) const {
    log_term = -math::softplus(z) - math::softplus(-z) - log_range;
    return (math::sigmoid(z) - alpha) / range;
  }
  FI_HD A encode_grad(A grad_z, A grad_logdet, A x) const {
    const A at = alpha + range * x;
    const bool outside = at <= A(0) || at >= A(1);
    const A p = outside ? A(0.5) : at;
    const A grad = (grad_z + grad_logdet * (A(2) * p - A(1))) * range / (p * (A(1) - p));
    return outside ? A(0) : grad;
  }
  FI_HD A decode_grad(A grad_x, A grad_logdet, A z) const {
    const A s = math::sigmoid(z);
    return grad_x * s * math::sigmoid(-z) / range + grad_logdet * (A(1) - A(2) * s);
  }
};

struct LogitParams {
  DType dtype;
  bool decode;
  std::int64_t batch, n;
  double alpha;
  const void* in;
  const void* logdet_in;
  void* out;
  void* logdet_out;
  void* partials;  // [B, tiles], CUDA only

  template <class Fields>
  void fields(Fields& f) {
    f.flag("decode", decode);
    f.size("batch", batch);
    f.size("n", n);
    f.number("alpha", alpha);
    f.tensor("x", in, {batch, n});
    f.sums("logdet", logdet_in, {batch});
    f.tensor("out", out, {batch, n});
    f.sums("logdet_out", logdet_out, {batch});
    f.partials("partials", partials, batch, n);
    dtype = f.storage();
  }
};

template <class T, bool kDecode>
struct LogitBody {
  LogitParams p;
  Logit<Acc<T>> logit;

  explicit LogitBody(const LogitParams& params) : p(params), logit(params.alpha) {}

  FI_HD Acc<T> operator()(std::int64_t b, std::int64_t i) const {
    const Acc<T> value = load(static_cast<const T*>(p.in) + b * p.n + i);
    Acc<T> term;
    store(static_cast<T*>(p.out) + b * p.n + i,
          kDecode ? logit.decode(value, term) : logit.encode(value, term));
    return term;
  }
};

struct LogitBackwardParams {
  DType dtype;
  bool decode;
  std::int64_t batch, n;
  double alpha;
  const void* grad_out;
  const void* grad_logdet;
  const void* in;
  void* grad_in;

  template <class Fields>
  void fields(Fields& f) {
    f.flag("decode", decode);
    f.size("batch", batch);
    f.size("n", n);
    f.number("alpha", alpha);
    f.tensor("grad_out", grad_out, {batch, n});
    f.sums("grad_logdet", grad_logdet, {batch});
    f.tensor("x", in, {batch, n});
    f.tensor("grad_in", grad_in, {batch, n});
    dtype = f.storage();
  }
};

template <class T, bool kDecode>
struct LogitBackwardBody {
  LogitBackwardParams p;
  Logit<Acc<T>> logit;

  explicit LogitBackwardBody(const LogitBackwardParams& params) : p(params), logit(params.alpha) {}

  FI_HD void operator()(std::int64_t i) const {
    const Acc<T> value = load(static_cast<const T*>(p.in) + i);
    const Acc<T> grad_out = load(static_cast<const T*>(p.grad_out) + i);
    const Acc<T> grad_logdet = static_cast<const Acc<T>*>(p.grad_logdet)[i / p.n];
    store(static_cast<T*>(p.grad_in) + i, kDecode
                                              ? logit.decode_grad(grad_out, grad_logdet, value)
                                              : logit.encode_grad(grad_out, grad_logdet, value));
  }
};

struct DequantiseParams {
  DType dtype;
  std::int64_t n;  // elements in all
  int levels;
  std::uint64_t seed, offset;
  const void* in;
  void* out;

  template <class Fields>
  void fields(Fields& f) {
    f.size("n", n);
    f.integer("levels", levels, 2, 1 << 24);
    f.word("seed", seed);
    f.word("offset", offset);
    f.tensor("x", in, {n});
    f.tensor("out", out, {n});
    dtype = f.storage();
  }
};

// One Philox block: four neighbouring elements.
template <class T>
struct DequantiseBody {
  DequantiseParams p;

  FI_HD void operator()(std::int64_t block) const {
    using A = Acc<T>;
    const PhiloxBlock bits = philox(p.seed, p.offset, std::uint64_t(block));
    FI_UNROLL
    for (int lane = 0; lane < 4; ++lane) {
      const std::int64_t i = 4 * block + lane;
      if (i >= p.n) return;
      const A scaled = load(static_cast<const T*>(p.in) + i) * A(p.levels - 1);
      // Rounds half to even, as torch does.
      const A down = math::floor(scaled), rest = scaled - down;
      const bool odd = down - A(2) * math::floor(down / A(2)) != A(0);
      const A index = down + (rest > A(0.5) || (rest == A(0.5) && odd) ? A(1) : A(0));
      store(static_cast<T*>(p.out) + i, (index + uniform_of<A>(bits.lane[lane])) / A(p.levels));
    }
  }
};

FI_OP(logit, LogitParams)
FI_OP(logit_backward, LogitBackwardParams)
FI_OP(dequantise, DequantiseParams)

}  // namespace flowinv
