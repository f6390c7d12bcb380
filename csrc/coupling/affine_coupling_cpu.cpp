// CPU loops of the affine coupling: one task per channel plane, vectorised over its pixels.
#include "coupling/affine_coupling.h"

#include <vector>

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {
namespace {

// 1 where the pixel of a plane is transformed, 0 where it passes through.
template <class A>
std::vector<A> pixel_map(const CouplingLayout& layout) {
  std::vector<A> map(layout.plane);
  for (std::int64_t i = 0; i < layout.plane; ++i)
    map[i] = layout.pixel_transformed(i) ? A(1) : A(0);
  return map;
}

template <class T, bool kDecode>
void coupling(const AffineCouplingParams& p, const Execution& execution) {
  using A = Acc<T>;
  const CouplingLayout layout(p);
  const std::vector<A> map = pixel_map<A>(layout);
  const auto plane_sum = [&](std::int64_t b, std::int64_t c) {
    const std::int64_t g = layout.gain_index(c);
    const T* in = static_cast<const T*>(p.in) + b * p.in_stride + c * layout.plane;
    T* out = static_cast<T*>(p.out) + b * layout.n + c * layout.plane;
    if (g < 0) {
      if (in != out) std::copy(in, in + layout.plane, out);
      return A(0);
    }
    const T* raw = static_cast<const T*>(p.raw) + b * layout.raw_n + g * layout.plane;
    const T* shift = raw + layout.gains * layout.plane;
    const A gain = load(static_cast<const T*>(p.gain) + g);
    const A* transformed = map.data();
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < layout.plane; ++i) {
      const Affine<A> affine(load(raw + i), gain, kDecode);
      const A x = load(in + i), t = load(shift + i);
      const A y = kDecode ? affine.decode(x, t) : affine.encode(x, t);
      const bool change = transformed[i] != A(0);
      store(out + i, change ? y : x);
      sum += change ? affine.s : A(0);
    }
    return kDecode ? -sum : sum;
  };
  reduce_parts(plane_sum, p.batch, p.channels, layout.plane, static_cast<const A*>(p.logdet_in),
               static_cast<A*>(p.logdet_out), execution.threads);
}

template <class T, bool kDecode>
void coupling_backward(const AffineCouplingBackwardParams& p, const Execution& execution) {
  using A = Acc<T>;
  const CouplingLayout layout(p);
  const std::vector<A> map = pixel_map<A>(layout);
  A* partials = static_cast<A*>(p.partials);
  for_ranges(
      p.batch * p.channels, layout.plane, execution.threads, [&](std::int64_t u, std::int64_t end) {
        for (; u < end; ++u) {
          const std::int64_t b = u / p.channels, c = u % p.channels, g = layout.gain_index(c);
          const T* grad_out = static_cast<const T*>(p.grad_out) + u * layout.plane;
          T* grad_in = static_cast<T*>(p.grad_in) + u * layout.plane;
          if (g < 0) {
            std::copy(grad_out, grad_out + layout.plane, grad_in);
            continue;
          }
          const T* value = static_cast<const T*>(p.value) + u * layout.plane;
          const std::int64_t raw_at = b * layout.raw_n + g * layout.plane;
          const std::int64_t shift_at = raw_at + layout.gains * layout.plane;
          const T* raw = static_cast<const T*>(p.raw) + raw_at;
          T* grad_raw = static_cast<T*>(p.grad_raw) + raw_at;
          T* grad_shift = static_cast<T*>(p.grad_raw) + shift_at;
          const A gain = load(static_cast<const T*>(p.gain) + g);
          const A grad_logdet = static_cast<const A*>(p.grad_logdet)[b];
          const A* transformed = map.data();
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (std::int64_t i = 0; i < layout.plane; ++i) {
            const Affine<A> affine(load(raw + i), gain, kDecode);
            const A go = load(grad_out + i), v = load(value + i);
            const auto grad = kDecode ? affine.decode_grad(go, grad_logdet, v)
                                      : affine.encode_grad(go, grad_logdet, v);
            const bool change = transformed[i] != A(0);
            store(grad_in + i, change ? grad.in : go);
            store(grad_raw + i, change ? affine.raw_scale_grad(grad.log_scale, gain) : A(0));
            store(grad_shift + i, change ? grad.shift : A(0));
            sum += change ? affine.gain_grad(grad.log_scale) : A(0);
          }
          if (partials) partials[b * layout.gains + g] = sum;
        }
      });
  if (!p.grad_gain) return;
  for (std::int64_t g = 0; g < layout.gains; ++g) {
    A sum = 0;
    for (std::int64_t b = 0; b < p.batch; ++b) sum += partials[b * layout.gains + g];
    store(static_cast<T*>(p.grad_gain) + g, sum);
  }
}

template <class T>
void affine_coupling(const AffineCouplingParams& p, const Execution& execution) {
  p.decode ? coupling<T, true>(p, execution) : coupling<T, false>(p, execution);
}

template <class T>
void affine_coupling_backward(const AffineCouplingBackwardParams& p, const Execution& execution) {
  p.decode ? coupling_backward<T, true>(p, execution) : coupling_backward<T, false>(p, execution);
}

}  // namespace

FI_FLOAT_OP(affine_coupling, AffineCouplingParams)
FI_FLOAT_OP(affine_coupling_backward, AffineCouplingBackwardParams)

}  // namespace FI_ISA
}  // namespace flowinv
