// Affine coupling of a RealNVP (Dinh et al., 2016), with s = gain tanh(raw_s) bounded by the gain.
//
// On the transformed elements, every other element passing through:
//     encode  z = x exp(s) + t         log|det dz/dx| =  sum s
//     decode  x = (z - t) exp(-s)      log|det dx/dz| = -sum s
// Gradients, with g the gradient to the output and l that to the log-determinant:
//     encode  dx = g exp(s)    dt = g             ds = g x exp(s) + l
//     decode  dz = g exp(-s)   dt = -g exp(-s)    ds = -g x - l           (x: the output)
//     draw_s = ds gain (1 - tanh^2)               dgain = sum ds tanh
//
// tensor        shape                                   order       access
// in, out       [B, C, H, W]                            NCHW        out may be in; in may have any batch stride
// raw           [B, 2C, H, W] (checkerboard: raw_s, t)  NCHW        read
//               [B, C, H, W]  (channel halves)
// gain          [C] or [C/2]                                        read
// logdet        [B], accumulate type                                read, written
// grad_gain     [C] or [C/2], null if not wanted                    written
// partials      workspace, accumulate type                          written
#pragma once

#include "common/check.h"
#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"
#include "common/math.h"

namespace flowinv {

enum class Mask : int {
  kCheckerboardEven = 0,
  kCheckerboardOdd = 1,
  kChannelFirst = 2,
  kChannelSecond = 3
};
constexpr const char* kMaskNames[] = {"checkerboard_even", "checkerboard_odd", "channel_first",
                                      "channel_second"};

// The formula, for one transformed element. Nothing else in the repository contains it.
template <class A>
struct Affine {
  A tanh, s, scale;  // scale: exp(s) for encode, exp(-s) for decode

  Affine() = default;
  FI_HD Affine(A raw_scale, A gain, bool decode)
      : tanh(math::tanh(raw_scale)), s(gain * tanh), scale(math::exp(decode ? -s : s)) {}

  // From s itself, for a backward pass that kept nothing else.
  FI_HD static Affine of_saved(A s, A gain, bool decode) {
    Affine affine;
    affine.tanh = gain != A(0) ? s / gain : A(0);
    affine.s = s;
    affine.scale = math::exp(decode ? -s : s);
    return affine;
  }

  FI_HD A encode(A x, A shift) const { return x * scale + shift; }
  FI_HD A decode(A z, A shift) const { return (z - shift) * scale; }

  struct Grad {
    A in, shift, log_scale;
  };
  // value: the input of encode, or the output of decode.
  FI_HD Grad encode_grad(A grad_out, A grad_logdet, A value) const {
    return {grad_out * scale, grad_out, grad_out * value * scale + grad_logdet};
  }
  FI_HD Grad decode_grad(A grad_out, A grad_logdet, A value) const {
    return {grad_out * scale, -grad_out * scale, -grad_out * value - grad_logdet};
  }
  FI_HD A gain_grad(A grad_log_scale) const { return grad_log_scale * tanh; }
  FI_HD A raw_scale_grad(A grad_log_scale, A gain) const {
    return grad_log_scale * gain * (A(1) - tanh * tanh);
  }
};

// Where an element of an image sits, and where its raw scale and shift are. Shared by both sides.
struct CouplingLayout {
  std::int64_t plane, n;  // H W, C H W
  std::int64_t width, first_channel, gains, raw_n;
  int parity;  // -1 for channel masks

  template <class Params>
  FI_HD explicit CouplingLayout(const Params& p) {
    const bool checkerboard = int(p.mask) < 2;
    plane = p.height * p.width;
    n = p.channels * plane;
    width = p.width;
    gains = checkerboard ? p.channels : p.channels / 2;
    first_channel = p.mask == Mask::kChannelSecond ? gains : 0;
    raw_n = 2 * gains * plane;
    parity = checkerboard ? int(p.mask) : -1;
  }

  // Channel among the gains, or -1 if the whole channel passes through.
  FI_HD std::int64_t gain_index(std::int64_t channel) const {
    const std::int64_t g = channel - first_channel;
    return g >= 0 && g < gains ? g : -1;
  }
  FI_HD bool pixel_transformed(std::int64_t position) const {
    return parity < 0 || ((position / width + position % width) & 1) == parity;
  }
};

// The fields that both directions of the gradient share.
template <class Fields, class Params>
void coupling_fields(Fields& f, Params& p) {
  f.flag("decode", p.decode);
  f.integer("mask", p.mask, 0, 3);
  f.size("batch", p.batch);
  f.size("channels", p.channels);
  f.size("height", p.height);
  f.size("width", p.width);
  f.require(int(p.mask) < 2 || p.channels % 2 == 0, "channels: expected an even number");
  product(p.batch, 2 * p.channels, p.height, p.width);  // what CouplingLayout multiplies fits
}

struct AffineCouplingParams {
  DType dtype;
  Mask mask;
  bool decode;
  std::int64_t batch, channels, height, width;
  std::int64_t in_stride;  // elements between images of `in`
  const void* in;
  const void* raw;
  const void* gain;
  const void* logdet_in;
  void* out;
  void* logdet_out;
  void* partials;  // [B, tiles], CUDA only

  template <class Fields>
  void fields(Fields& f) {
    coupling_fields(f, *this);
    const CouplingLayout layout(*this);
    f.images("x", in, in_stride, batch, layout.n);
    f.tensor("raw", raw, {batch, layout.raw_n});
    f.tensor("gain", gain, {layout.gains});
    f.sums("logdet", logdet_in, {batch});
    f.tensor("out", out, {batch, layout.n});
    f.sums("logdet_out", logdet_out, {batch});
    f.partials("partials", partials, batch, layout.n);
    dtype = f.storage();
  }
};

struct AffineCouplingBackwardParams {
  DType dtype;
  Mask mask;
  bool decode;
  std::int64_t batch, channels, height, width;
  const void* grad_out;
  const void* grad_logdet;
  const void* value;  // encode: its input; decode: its output
  const void* raw;
  const void* gain;
  void* grad_in;
  void* grad_raw;
  void* grad_gain;  // null if not wanted
  void* partials;  // [B, gains], accumulate type, if grad_gain is wanted

  template <class Fields>
  void fields(Fields& f) {
    coupling_fields(f, *this);
    const CouplingLayout layout(*this);
    f.tensor("grad_out", grad_out, {batch, layout.n});
    f.sums("grad_logdet", grad_logdet, {batch});
    f.tensor("x", value, {batch, layout.n});
    f.tensor("raw", raw, {batch, layout.raw_n});
    f.tensor("gain", gain, {layout.gains});
    f.tensor("grad_in", grad_in, {batch, layout.n});
    f.tensor("grad_raw", grad_raw, {batch, layout.raw_n});
    f.optional("grad_gain", grad_gain, {layout.gains});
    f.sums("partials", partials, {grad_gain ? batch : 0, layout.gains});
    dtype = f.storage();
  }
};

FI_OP(affine_coupling, AffineCouplingParams)
FI_OP(affine_coupling_backward, AffineCouplingBackwardParams)

}  // namespace flowinv
