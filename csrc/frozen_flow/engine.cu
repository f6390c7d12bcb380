// CUDA engine of a frozen flow: a chain of kernels on one stream, no allocation, no synchronisation,
// so that a graph can hold it. Per coupling forward: first, hidden and last convolution, the last one
// ending in the affine map; backward the same and one kernel for the coupling's own gradients.
//
// parallelism  convolution.cuh; the rest one thread an element, log-determinants one block an image
// launch       256 threads an elementwise kernel; 1x28x28, 3 scales, 2 blocks: 96 kernels of
//              convolutions and 9 others forward, 120 backward
// traffic      a hidden map is read and written once a layer in float32, 1 MB at 64x64; saved for the
//              backward pass: s, value and a bit per hidden number. Mixing reads each input
//              C / 4 times, from the caches
// reduction    log-determinants: 16 pixels by 8 gains in a warp, these in order within an image
// numerics     state, maps and log-determinants float32 in every precision
// edge cases   empty batch launches nothing; NaN stays NaN
// measured     never run on a GPU
#include "frozen_flow/frozen_flow.h"

#include "common/image_reduce.cuh"
#include "frozen_flow/convolution.cuh"
#include "frozen_flow/mixing.h"
#include "frozen_flow/standardise.h"
#include "frozen_flow/walk.h"

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

template <bool kDown>
struct StandardiseBody {
  float* state;  // [B, stride], of which the first `count` an image
  const float *mean, *std;
  std::int64_t count, stride;
  bool backward;

  __device__ void operator()(std::int64_t index) const {
    using S = Standardised<kDown>;
    const std::int64_t b = index / count, i = index - b * count;
    float& here = state[b * stride + i];
    here = backward ? S::gradient(here, std[i]) : S::value(here, mean[i], std[i]);
  }
};

struct SqueezeStateBody {
  const float* in;
  float* out;
  SqueezeMap map;
  std::int64_t stride;
  bool down;

  __device__ void operator()(std::int64_t index) const {
    const std::int64_t b = index / map.count(), i = index - b * map.count();
    out[b * stride + i] = in[b * stride + map.source(i, down)];
  }
};

// A group of outputs of one pixel.
struct MixBody {
  const float* in;
  float* out;
  const float* matrix;
  std::int64_t stride;
  int channels, plane;

  __device__ void operator()(std::int64_t index) const {
    const int pixel = int(index % plane), groups = mixed_groups(channels);
    const std::int64_t b = index / plane / groups;
    const int group = int(index / plane - b * groups);
    const float* from = in + b * stride + pixel;
    float* to = out + b * stride + pixel;
    const MixedChannels<float> mixed(matrix, channels, group,
                                     [&](int c) { return from[std::int64_t(c) * plane]; });
    FI_UNROLL
    for (int k = 0; k < kMixedOutputs; ++k) {
      const int channel = group * kMixedOutputs + k;
      if (channel < channels) to[std::int64_t(channel) * plane] = mixed.outputs[k];
    }
  }
};

// The same numbers of every image, from one array with `stride` numbers an image to another.
struct CopyBody {
  const float* in;
  float* out;
  std::int64_t count, stride;

  __device__ void operator()(std::int64_t index) const {
    const std::int64_t b = index / count, i = index - b * count;
    out[b * stride + i] = in[b * stride + i];
  }
};

// An image's log-determinant, and the zeros behind what its couplings have saved.
__global__ void __launch_bounds__(kThreads)
    sum_slots_kernel(const float* FI_RESTRICT partials, std::int64_t slots, float start,
                     float* FI_RESTRICT logdet, char* FI_RESTRICT saved, std::int64_t used_bytes,
                     std::int64_t saved_bytes) {
  const float* row = partials + std::int64_t(blockIdx.x) * slots;
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < slots; i += kThreads) sum += row[i];
  const float total = block_sum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  logdet[blockIdx.x] = start + total;
  if (!saved) return;
  char* end = saved + std::int64_t(blockIdx.x) * saved_bytes;
  for (std::int64_t i = used_bytes; i < saved_bytes; ++i) end[i] = 0;
}

// --- the engine --------------------------------------------------------------------------------

// State arrays hold n numbers an image, whatever part of them is in use.
template <Precision kPrecision>
class Engine {
 public:
  Engine(const FrozenFlowParams& p, const Execution& execution)
      : p_(p), plan_(*p.plan), execution_(execution), n_(p.plan->n) {
    const DeviceWorkspace space(plan_);
    const auto array = [&](std::int64_t offset) { return p.workspace + p.batch * offset; };
    state_ = array(space.state), other_ = array(space.other);
    a_ = array(space.a), h_ = array(space.h), partials_ = array(space.partials);
  }

  void run() {
    p_.down() ? walk<true>(plan_, *this) : walk<false>(plan_, *this);
    if (p_.backward) return;
    launch(kName, sum_slots_kernel, dim3(unsigned(p_.batch)), kThreads, execution_, partials_,
           plan_.slots, p_.constant(), p_.logdet, p_.saved, plan_.used_bytes, plan_.saved_bytes);
  }

  // --- what walk.h asks for ----------------------------------------------------------------------

  void take(std::int64_t from, std::int64_t to, std::int64_t count) {
    for_each(kName, CopyBody{p_.in + from, state_ + to, count, n_}, p_.batch * count, execution_);
  }

  void put(std::int64_t from, std::int64_t to, std::int64_t count) {
    for_each(kName, CopyBody{state_ + from, p_.out + to, count, n_}, p_.batch * count, execution_);
  }

  template <bool kDown>
  void standardise(const StandardiseLayer& layer) {
    const std::int64_t count = std::int64_t(layer.std.size());
    const StandardiseBody<kDown> body{
        state_, floats(layer.device_mean), floats(layer.device_std), count, n_, p_.backward};
    for_each(kName, body, p_.batch * count, execution_);
  }

  void squeeze(const SqueezeMap& map, bool down) {
    for_each(kName, SqueezeStateBody{state_, other_, map, n_, down}, p_.batch * map.count(),
             execution_);
    std::swap(state_, other_);
  }

  void mix(const MixingLayer& layer) {
    const float* matrix = floats(layer.weights.device_matrix[p_.decode][p_.backward]);
    const MixBody body{state_, other_, matrix, n_, layer.channels, layer.plane};
    for_each(kName, body, p_.batch * mixed_groups(layer.channels) * layer.plane, execution_);
    std::swap(state_, other_);
  }

  void couple(const CouplingLayer& c) {
    const Resolution& resolution = plan_.resolutions[c.resolution];
    p_.backward ? coupling_backward(c, resolution) : coupling_forward(c, resolution);
  }

 private:
  static constexpr const char* kName = "frozen_flow";

  const float* floats(std::int64_t at) const {
    return reinterpret_cast<const float*>(p_.words) + at;
  }
  char* saved(std::int64_t offset) const { return p_.saved ? p_.saved + offset : nullptr; }

  // A convolution into a hidden map.
  template <class Source>
  void to_hidden(const CouplingLayer& c, const Resolution& resolution, const FrozenConv& conv,
                 const Source& source, float* out, bool add, int bit_map) {
    const int plane = resolution.plane(), channels = c.hidden_channels();
    const std::int64_t bits = c.saved_bits + 2 * bit_map * c.bit_words(resolution);
    const HiddenSink sink{out,         plane,
                          channels,    p_.backward,
                          add,         floats(conv.device_bias),
                          saved(bits), plan_.saved_bytes};
    convolve<kPrecision>("frozen_flow_hidden", PixelRows(resolution, 0), p_.batch,
                         p_.backward ? conv.device_backward : conv.device_forward, p_.words, source,
                         sink, execution_);
  }

  MapSource map(const CouplingLayer& c, const Resolution& resolution, const float* from) const {
    return {from, resolution.plane(), c.hidden_channels(), p_.backward ? -INFINITY : 0.0f};
  }

  void coupling_forward(const CouplingLayer& c, const Resolution& resolution) {
    const int plane = resolution.plane();
    const PixelRows seen(resolution, c.seen()), moved(resolution, c.moved());
    const StateSource source{state_, n_, seen, plane, c.inputs, c.seen_channel()};
    to_hidden(c, resolution, c.first, source, h_, false, 0);
    for (int i = 0; i < c.blocks; ++i) {
      to_hidden(c, resolution, c.between[2 * i], map(c, resolution, h_), a_, false, 2 * i + 1);
      to_hidden(c, resolution, c.between[2 * i + 1], map(c, resolution, a_), h_, true, 2 * i + 2);
    }
    AffineSink sink{};
    sink.state = state_, sink.stride = n_, sink.plane = plane, sink.gains = c.gains;
    sink.first_channel = c.moved_channel();
    sink.decode = c.decodes(p_.decode);
    sink.gain = floats(c.device_gain), sink.bias = floats(c.last.device_bias);
    sink.saved = saved(c.saved_values), sink.saved_stride = plan_.saved_bytes;
    sink.rows = moved.count;
    sink.partials = partials_ + c.first_slot, sink.slots = plan_.slots;
    sink.blocks = blocks_of(2 * c.gains);
    convolve<kPrecision>("frozen_flow_last", moved, p_.batch, c.last.device_forward, p_.words,
                         map(c, resolution, h_), sink, execution_);
  }

  void coupling_backward(const CouplingLayer& c, const Resolution& resolution) {
    const int plane = resolution.plane(), chunks = c.last.device_backward.chunks;
    const PixelRows seen(resolution, c.seen()), moved(resolution, c.moved());
    CouplingGradBody body{state_, a_, n_, plan_.saved_bytes, moved};
    body.plane = plane, body.gains = c.gains, body.pairs = 4 * chunks;
    body.first_channel = c.moved_channel();
    body.decode = c.decodes(p_.decode);
    body.gain = floats(c.device_gain);
    body.saved = saved(c.saved_values);
    body.grad_logdet = p_.grad_logdet;
    for_each("frozen_flow_coupling_grad", body, p_.batch * plane * body.pairs, execution_);
    const MapSource raw{a_, plane, 8 * chunks, -INFINITY};
    to_hidden(c, resolution, c.last, raw, h_, false, 2 * c.blocks);
    for (int i = c.blocks - 1; i >= 0; --i) {
      to_hidden(c, resolution, c.between[2 * i + 1], map(c, resolution, h_), a_, false, 2 * i + 1);
      to_hidden(c, resolution, c.between[2 * i], map(c, resolution, a_), h_, true, 2 * i);
    }
    const GradientSink sink{state_, n_, plane, c.inputs, c.seen_channel()};
    convolve<kPrecision>("frozen_flow_first_grad", seen, p_.batch, c.first.device_backward,
                         p_.words, map(c, resolution, h_), sink, execution_);
  }

  const FrozenFlowParams& p_;
  const Plan& plan_;
  const Execution& execution_;
  const std::int64_t n_;  // between images of a state
  float *state_, *other_, *a_, *h_, *partials_;
};

}  // namespace

void frozen_flow(const FrozenFlowParams& p, const Execution& execution) {
  if (p.batch == 0) return;
  switch (p.plan->precision) {
    case Precision::kFloat32: return Engine<Precision::kFloat32>(p, execution).run();
    case Precision::kTf32: return Engine<Precision::kTf32>(p, execution).run();
    case Precision::kBFloat16: return Engine<Precision::kBFloat16>(p, execution).run();
  }
}

}  // namespace cuda
}  // namespace flowinv
