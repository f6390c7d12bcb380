// CUDA walk of a frozen flow: a chain of kernels on one stream, no allocation, no synchronisation, so
// that a graph can hold it. Per coupling forward: first, hidden and last convolution, the last one
// ending in the affine map; backward the same and one kernel for the coupling's own gradients.
//
// parallelism  convolution.cuh; the rest one thread an element, log-determinants one block an image
// launch       256 threads an elementwise kernel; 1x28x28, 3 scales, 2 blocks: 96 kernels of
//              convolutions and 10 others forward, 122 backward
// traffic      a hidden map is read and written once a layer in float32, 1 MB at 64x64; saved for the
//              backward pass: s, value and a bit per hidden number
// reduction    log-determinants: 16 pixels by 8 gains in a warp, these in order within an image
// numerics     state, maps and log-determinants float32 in every precision
// edge cases   empty batch launches nothing; NaN stays NaN
// measured     never run on a GPU
#include "conditioner/frozen_flow.h"

#include "common/image_reduce.cuh"
#include "conditioner/convolution.cuh"
#include "layout/squeeze.h"

namespace flowinv {
namespace cuda {
namespace {

// --- what a convolution reads ------------------------------------------------------------------

// The untouched half of the state, NCHW.
struct StateSource {
  const float* state;
  std::int64_t stride;
  PixelRows seen;
  int plane, inputs, first_channel;

  __device__ FloatPair pair(std::int64_t image, int pixel, int input) const {
    if (pixel < 0 || !seen.has(pixel)) return {0, 0};
    const float* at = state + image * stride + std::int64_t(first_channel + input) * plane + pixel;
    return {input < inputs ? at[0] : 0.0f, input + 1 < inputs ? at[plane] : 0.0f};
  }
};

// A map with its channels together, numbers below `floor` raised to it.
struct MapSource {
  const float* map;
  int plane, channels;
  float floor;

  __device__ FloatPair pair(std::int64_t image, int pixel, int input) const {
    if (pixel < 0) return {0, 0};
    const float* at = map + (image * plane + pixel) * channels + input;
    const FloatPair v = *reinterpret_cast<const FloatPair*>(at);
    return {v.x < floor ? floor : v.x, v.y < floor ? floor : v.y};  // NaN passes
  }
};

// --- what becomes of its sums ------------------------------------------------------------------

// Forward: plus bias and, on request, what was there; the signs go to `bits`. Backward: the saved
// signs select, then what was there is added.
struct HiddenSink {
  float* map;
  int plane, channels;
  bool backward, add;
  const float* bias;
  char* bits;  // of the first image, or null
  std::int64_t bit_stride;

  __device__ void operator()(std::int64_t image, const int (&)[2], const int (&pixel)[2], int,
                             int block, const float (&values)[2][4]) const {
    const int quad = threadIdx.x % 4;
    FI_UNROLL
    for (int half = 0; half < 2; ++half) {
      const bool there = pixel[half] >= 0;
      const std::int64_t at = image * plane + (there ? pixel[half] : 0);
      std::uint16_t* word = bits ? reinterpret_cast<std::uint16_t*>(bits + image * bit_stride) +
                                       (there ? pixel[half] : 0) * (channels / kBlock) + block
                                 : nullptr;
      unsigned set = backward && there ? unsigned(*word) : 0;
      FI_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        const int bit = pair * 8 + 2 * quad, channel = block * kBlock + bit;
        FloatPair* to = reinterpret_cast<FloatPair*>(map + at * channels + channel);
        FloatPair v{values[half][2 * pair], values[half][2 * pair + 1]};
        if (backward)
          v = {set >> bit & 1 ? v.x : 0.0f, set >> (bit + 1) & 1 ? v.y : 0.0f};
        else
          v = {v.x + bias[channel], v.y + bias[channel + 1]};
        if (add && there) v = {v.x + to->x, v.y + to->y};
        if (there) *to = v;
        if (!backward) set |= unsigned(v.x > 0) << bit | unsigned(v.y > 0) << (bit + 1);
      }
      if (backward || !bits) continue;
      set |= __shfl_xor_sync(0xffffffffu, set, 1);
      set |= __shfl_xor_sync(0xffffffffu, set, 2);
      if (quad == 0 && there) *word = std::uint16_t(set);
    }
  }
};

// raw_s and t of eight gains: the affine map on the state, in place.
struct AffineSink {
  float* state;
  std::int64_t stride;
  int plane, gains, first_channel;
  bool decode;
  const float *gain, *bias;
  char* saved;  // s, then values, [gains, rows] each, of the first image; or null
  std::int64_t saved_stride, rows;
  float* partials;  // [B, slots], from the coupling's first slot on
  std::int64_t slots;
  int blocks;

  __device__ void operator()(std::int64_t image, const int (&row)[2], const int (&pixel)[2],
                             int tile, int block, const float (&values)[2][4]) const {
    float total = 0;
    FI_UNROLL
    for (int half = 0; half < 2; ++half) {
      FI_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        const int g = block * (kBlock / 2) + pair * 4 + threadIdx.x % 4;
        if (pixel[half] < 0 || g >= gains) continue;
        const float raw = values[half][2 * pair] + bias[2 * g];
        const float shift = values[half][2 * pair + 1] + bias[2 * g + 1];
        const Affine<float> affine(raw, gain[g], decode);
        float& here = state[image * stride + std::int64_t(first_channel + g) * plane + pixel[half]];
        const float in = here, out = decode ? affine.decode(in, shift) : affine.encode(in, shift);
        here = out;
        total += decode ? -affine.s : affine.s;
        if (saved) {
          float* s = reinterpret_cast<float*>(saved + image * saved_stride) + g * rows + row[half];
          s[0] = affine.s;
          s[gains * rows] = decode ? out : in;
        }
      }
    }
    total = warp_sum(total);
    // A warp's last tile may lie beyond the rows, where no slot is.
    if (threadIdx.x % 32 == 0 && std::int64_t(tile) * 16 < rows)
      partials[image * slots + std::int64_t(tile) * blocks + block] = total;
  }
};

// Added to the gradient of the untouched half.
struct GradientSink {
  float* grad;
  std::int64_t stride;
  int plane, inputs, first_channel;

  __device__ void operator()(std::int64_t image, const int (&)[2], const int (&pixel)[2], int,
                             int block, const float (&values)[2][4]) const {
    FI_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int half = i / 4,
                channel = block * kBlock + i / 2 % 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
      if (pixel[half] >= 0 && channel < inputs)
        grad[image * stride + std::int64_t(first_channel + channel) * plane + pixel[half]] +=
            values[half][i % 4];
    }
  }
};

// --- elementwise -------------------------------------------------------------------------------

// The coupling's own gradients: `grad` in place on the transformed half, and the gradients to
// raw_s, t of each gain in turn into a map, zeros on the untouched pixels.
struct CouplingGradBody {
  float* grad;
  float* raw_map;
  std::int64_t stride, saved_stride;
  PixelRows moved;
  int plane, gains, pairs, first_channel;  // pairs: raw_s, t that the map has room for
  bool decode;
  const float* gain;
  const char* saved;
  const float* grad_logdet;

  __device__ void operator()(std::int64_t index) const {
    const int g = int(index % pairs), pixel = int(index / pairs % plane);
    const std::int64_t b = index / pairs / plane;
    FloatPair raw{0, 0};
    if (g < gains && moved.has(pixel)) {
      const std::int64_t rows = moved.count;
      const float* s =
          reinterpret_cast<const float*>(saved + b * saved_stride) + g * rows + moved.row(pixel);
      const auto affine = Affine<float>::of_saved(s[0], gain[g], decode);
      float& here = grad[b * stride + std::int64_t(first_channel + g) * plane + pixel];
      const float value = s[gains * rows];
      const auto d = decode ? affine.decode_grad(here, grad_logdet[b], value)
                            : affine.encode_grad(here, grad_logdet[b], value);
      raw = {affine.raw_scale_grad(d.log_scale, gain[g]), d.shift};
      here = d.in;
    }
    reinterpret_cast<FloatPair*>(raw_map)[index] = raw;
  }
};

// Between images and standardised ones: x = state spread + location, or its gradients.
struct StandardiseBody {
  const float *in, *location, *spread;
  float* out;
  std::int64_t n;
  bool to_image, backward;

  __device__ void operator()(std::int64_t index) const {
    const std::int64_t i = index % n;
    const float x = in[index];
    out[index] = backward
                     ? (to_image ? x / spread[i] : x * spread[i])
                     : (to_image ? x * spread[i] + location[i] : (x - location[i]) / spread[i]);
  }
};

struct CopyRowsBody {
  const float* in;
  float* out;
  std::int64_t count, in_stride, out_stride;

  __device__ void operator()(std::int64_t index) const {
    const std::int64_t b = index / count, i = index - b * count;
    out[b * out_stride + i] = in[b * in_stride + i];
  }
};

__global__ void __launch_bounds__(kThreads)
    sum_slots_kernel(const float* FI_RESTRICT partials, std::int64_t slots, float start,
                     float* FI_RESTRICT logdet) {
  const float* row = partials + std::int64_t(blockIdx.x) * slots;
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < slots; i += kThreads) sum += row[i];
  const float total = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) logdet[blockIdx.x] = start + total;
}

// --- the walk ----------------------------------------------------------------------------------

template <Precision kPrecision>
class Walk {
 public:
  Walk(const FrozenFlowParams& p, const Execution& place)
      : p_(p), flow_(*p.flow), place_(place), space_(flow_) {
    state_ = array(space_.state), other_ = array(space_.other);
    a_ = array(space_.a), h_ = array(space_.h), partials_ = array(space_.partials);
  }

  void run() {
    if (p_.batch == 0) return;
    p_.decode == p_.backward ? down() : up();
    if (!p_.backward)
      launch("frozen_flow", sum_slots_kernel, dim3(unsigned(p_.batch)), kThreads, place_, partials_,
             space_.slots, float(p_.decode ? flow_.log_spread : -flow_.log_spread), p_.logdet);
  }

 private:
  float* array(std::int64_t offset) { return p_.workspace + p_.batch * offset; }
  const float* floats(std::int64_t at) const {
    return reinterpret_cast<const float*>(p_.words) + at;
  }
  int coupling_count() const { return int(flow_.couplings.size()); }

  void standardise(const float* in, float* out, bool to_image) {
    const StandardiseBody body{in,
                               floats(flow_.device_location),
                               floats(flow_.device_spread),
                               out,
                               flow_.n,
                               to_image,
                               p_.backward};
    for_each("frozen_flow", body, p_.batch * flow_.n, place_);
  }
  void copy_rows(const float* in, std::int64_t in_stride, float* out, std::int64_t out_stride,
                 std::int64_t count) {
    for_each("frozen_flow", CopyRowsBody{in, out, count, in_stride, out_stride}, p_.batch * count,
             place_);
  }
  // From state_ to other_, and their names exchanged. level: the squeezed one.
  void squeeze_state(const Level& level, bool to_squeezed) {
    SqueezeParams s{};
    s.element_size = 4;
    s.squeeze = to_squeezed;
    s.batch = p_.batch;
    s.channels = level.channels, s.height = level.height, s.width = level.width;
    s.in_stride = stride_;
    s.in = state_, s.out = other_;
    squeeze(s, place_);
    std::swap(state_, other_);
  }

  // encode, or the gradient of decode: images in, latents out.
  void down() {
    standardise(p_.in, state_, false);
    std::int64_t left = stride_ = flow_.n;
    int next = 0;
    for (int l = 0; l < int(flow_.levels.size()); ++l) {
      const Level& level = flow_.levels[l];
      if (!level.checkerboard) squeeze_state(level, true), stride_ = left;
      for (; next < coupling_count() && flow_.couplings[next].level == l; ++next) coupling(next);
      const bool last = l + 1 == int(flow_.levels.size());
      float* out = p_.out + flow_.n - left;
      if (last) copy_rows(state_, stride_, out, flow_.n, left);
      if (level.checkerboard) continue;
      copy_rows(state_ + left / 2, stride_, out, flow_.n, left / 2);
      left /= 2;
    }
  }

  // decode, or the gradient of encode: latents in, images out.
  void up() {
    std::int64_t left = flow_.n >> (flow_.scales - 1);
    int next = coupling_count() - 1;
    stride_ = left;
    copy_rows(p_.in + flow_.n - left, flow_.n, state_, stride_, left);
    for (int l = int(flow_.levels.size()) - 1; l >= 0; --l) {
      const Level& level = flow_.levels[l];
      if (!level.checkerboard) {
        copy_rows(state_, stride_, other_, 2 * left, left);
        copy_rows(p_.in + flow_.n - 2 * left, flow_.n, other_ + left, 2 * left, left);
        std::swap(state_, other_);
        stride_ = left *= 2;
      }
      for (; next >= 0 && flow_.couplings[next].level == l; --next) coupling(next);
      if (!level.checkerboard) squeeze_state(level, false);
    }
    standardise(state_, p_.out, true);
  }

  void coupling(int index) {
    const FrozenCoupling& c = flow_.couplings[index];
    const Level& level = flow_.levels[c.level];
    p_.backward ? coupling_backward(c, level) : coupling_forward(c, level, index);
  }

  char* saved(std::int64_t offset) const { return p_.saved ? p_.saved + offset : nullptr; }

  // A convolution into a hidden map.
  template <class Source>
  void to_hidden(const FrozenCoupling& c, const Level& level, const FrozenConv& conv,
                 const Source& source, float* out, bool add, int bit_map) {
    const int plane = level.height * level.width, channels = blocks_of(flow_.hidden) * kBlock;
    const std::int64_t bits =
        c.saved_bits + std::int64_t(bit_map) * plane * (channels / kBlock) * 2;
    const HiddenSink sink{out,         plane,
                          channels,    p_.backward,
                          add,         floats(conv.device_bias),
                          saved(bits), flow_.saved_bytes};
    convolve<kPrecision>("frozen_flow_hidden", PixelRows(level, 0), p_.batch,
                         p_.backward ? conv.device_backward : conv.device_forward, p_.words, source,
                         sink, place_);
  }

  MapSource map(const Level& level, const float* from) const {
    return {from, level.height * level.width, blocks_of(flow_.hidden) * kBlock,
            p_.backward ? -INFINITY : 0.0f};
  }

  void coupling_forward(const FrozenCoupling& c, const Level& level, int index) {
    const int plane = level.height * level.width;
    const PixelRows seen(level, c.untouched()), moved(level, c.transformed());
    const StateSource source{state_, stride_,      seen,
                             plane,  level.inputs, c.first_half() ? level.gains : 0};
    to_hidden(c, level, c.first, source, h_, false, 0);
    for (int i = 0; i < flow_.blocks; ++i) {
      to_hidden(c, level, c.hidden[2 * i], map(level, h_), a_, false, 2 * i + 1);
      to_hidden(c, level, c.hidden[2 * i + 1], map(level, a_), h_, true, 2 * i + 2);
    }
    AffineSink sink{};
    sink.state = state_, sink.stride = stride_, sink.plane = plane, sink.gains = level.gains;
    sink.first_channel = c.mask == Mask::kChannelSecond ? level.gains : 0;
    sink.decode = p_.decode;
    sink.gain = floats(c.device_gain), sink.bias = floats(c.last.device_bias);
    sink.saved = saved(c.saved_values), sink.saved_stride = flow_.saved_bytes;
    sink.rows = moved.count;
    sink.partials = partials_ + space_.first_slot[index], sink.slots = space_.slots;
    sink.blocks = blocks_of(2 * level.gains);
    convolve<kPrecision>("frozen_flow_last", moved, p_.batch, c.last.device_forward, p_.words,
                         map(level, h_), sink, place_);
  }

  void coupling_backward(const FrozenCoupling& c, const Level& level) {
    const int plane = level.height * level.width, chunks = c.last.device_backward.chunks;
    const PixelRows seen(level, c.untouched()), moved(level, c.transformed());
    CouplingGradBody body{state_, a_, stride_, flow_.saved_bytes, moved};
    body.plane = plane, body.gains = level.gains, body.pairs = 4 * chunks;
    body.first_channel = c.mask == Mask::kChannelSecond ? level.gains : 0;
    body.decode = p_.decode;
    body.gain = floats(c.device_gain);
    body.saved = saved(c.saved_values);
    body.grad_logdet = p_.grad_logdet;
    for_each("frozen_flow_coupling_grad", body, p_.batch * plane * body.pairs, place_);
    const MapSource raw{a_, plane, 8 * chunks, -INFINITY};
    to_hidden(c, level, c.last, raw, h_, false, 2 * flow_.blocks);
    for (int i = flow_.blocks - 1; i >= 0; --i) {
      to_hidden(c, level, c.hidden[2 * i + 1], map(level, h_), a_, false, 2 * i + 1);
      to_hidden(c, level, c.hidden[2 * i], map(level, a_), h_, true, 2 * i);
    }
    const GradientSink sink{state_, stride_, plane, level.inputs, c.first_half() ? level.gains : 0};
    convolve<kPrecision>("frozen_flow_first_grad", seen, p_.batch, c.first.device_backward,
                         p_.words, map(level, h_), sink, place_);
  }

  const FrozenFlowParams& p_;
  const FrozenFlow& flow_;
  const Execution& place_;
  const DeviceWorkspace space_;
  float *state_, *other_, *a_, *h_, *partials_;
  std::int64_t stride_ = 0;  // between images of state_
};

}  // namespace

void frozen_flow(const FrozenFlowParams& p, const Execution& place) {
  switch (p.flow->precision) {
    case Precision::kFloat32: return Walk<Precision::kFloat32>(p, place).run();
    case Precision::kTf32: return Walk<Precision::kTf32>(p, place).run();
    case Precision::kBFloat16: return Walk<Precision::kBFloat16>(p, place).run();
  }
}

}  // namespace cuda
}  // namespace flowinv
