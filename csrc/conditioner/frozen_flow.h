// A RealNVP whose weights no longer change: encode, decode and their vector-Jacobian products, each
// in one call. Nothing of the conditioners is kept for the backward pass but the signs of their
// ReLUs, one bit each.
//
// A conditioner is  h = first(u);  h += after(relu(before(relu(h))))  per block;  last(relu(h)),
// its convolutions 3x3 with zero padding, u the untouched elements. With frozen weights its gradient
// to u needs only the signs: the same network run backwards with transposed weights, each ReLU
// replaced by its bits. A coupling keeps s and the value named in coupling/affine_coupling.h.
//
// tensor    shape                    order in memory                        access
// x, z      [B, C, H, W], [B, N]     NCHW; z: latents by scale, the rest    float32
// logdet    [B]                                                            float32, written
// saved     [B, saved_bytes]         per coupling: s, value, then the bits  written, or null
//
// CPU: hidden convolutions run as Winograd's minimal filtering (Lavin and Gray, 2016), F(4x4, 3x3)
// on maps of more than 14 pixels a side and F(2x2, 3x3) below, with interpolation points 0,
// +-sqrt(1/2), +-sqrt(2) and infinity, whose rounding error is half that of 0, +-1, +-2.
// CUDA: direct convolutions on tensor cores (convolution.cuh), from weights in `device_words`.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common/execution.h"
#include "coupling/affine_coupling.h"

namespace flowinv {

constexpr int kBlock = 16;  // hidden channels and outputs are padded to whole blocks

inline int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

// Numbers on a 64-byte boundary.
struct AlignedDelete {
  void operator()(void* p) const;
};
template <class T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;
void* aligned_bytes(std::int64_t bytes);
template <class T>
AlignedArray<T> aligned_array(std::int64_t count) {
  return AlignedArray<T>(static_cast<T*>(aligned_bytes(count * std::int64_t(sizeof(T)))));
}

// Weights as the kernels read them. Into a hidden map: [tap][output block][input][16], in bf16
// [tap][output block][input / 2][16][2], the taps those of the filter or the points of Winograd's
// transform. Out of one, to few channels: [output][tap][input].
struct PackedWeights {
  int taps = 0, inputs = 0, outputs = 0;  // inputs and outputs as padded
  AlignedArray<float> f32;
  AlignedArray<std::uint16_t> bf16;  // hidden to hidden only, where asked for

  PackedWeights() = default;
  PackedWeights(int taps, int inputs, int outputs, bool in_bf16);  // zeros
  int blocks() const { return outputs / kBlock; }
  std::int64_t count() const { return std::int64_t(taps) * inputs * outputs; }
  std::int64_t bytes() const { return count() * (bf16 ? 2 : 4); }
};

// How the numbers of a convolution are multiplied. kFloat32 on CUDA: a tf32 product and two of the
// parts that tf32 leaves off.
enum class Precision : int { kFloat32 = 0, kTf32 = 1, kBFloat16 = 2 };
constexpr const char* kPrecisionNames[] = {"fp32", "tf32", "bf16"};

// Words that a lane holds of an 8x8 piece of the weights, see common/mma.cuh.
constexpr int fragment_words(Precision precision) {
  return precision == Precision::kFloat32 ? 4 : precision == Precision::kTf32 ? 2 : 1;
}

// Weights for tensor cores, [tap][eight inputs][eight outputs][lane][fragment_words], from word `at`
// of device_words. Inputs 2 quad and 2 quad + 1 are the lane's two.
struct Fragments {
  std::int64_t at = 0;
  int chunks = 0, tiles = 0;  // eights of inputs, eights of outputs
};

struct FrozenConv {
  PackedWeights forward, backward;  // backward: from the gradient of the outputs to the inputs
  std::vector<float> bias;  // padded to whole blocks
  // CUDA. The outputs of a last layer, and the inputs of its way back, alternate: raw_s, t of each
  // gain.
  Fragments device_forward, device_backward;
  std::int64_t device_bias = 0;
};

// What the couplings of one resolution share.
struct Level {
  int channels, height, width;  // of the state
  bool checkerboard;
  int gains, inputs;  // transformed channels; channels that the conditioner sees
  int tile;  // 4 or 2: outputs a side of a Winograd tile
  int tiles_high, tiles_wide;  // tiles of the map
  int padded_high, padded_wide;
  std::vector<int> pixels[3];  // all; of even parity; of odd parity: y W + x

  Level(int channels, int height, int width, bool checkerboard);
  std::int64_t padded() const { return std::int64_t(padded_high) * padded_wide; }
};

struct FrozenCoupling {
  int level;
  Mask mask;
  std::vector<float> gain;
  FrozenConv first, last;
  std::vector<FrozenConv> hidden;  // before, after of each block
  std::int64_t saved_values, saved_bits;  // offsets into an image's saved bytes
  std::int64_t device_gain = 0;

  bool first_half() const { return mask == Mask::kChannelFirst; }
  // Transformed pixels, and the pixels that the conditioner sees: 0 all, 1 even, 2 odd.
  int transformed() const { return int(mask) < 2 ? 1 + int(mask) : 0; }
  int untouched() const { return int(mask) < 2 ? 2 - int(mask) : 0; }
};

class FrozenFlow {
 public:
  struct ConvArg {
    const float *weight, *bias;  // [outputs, inputs, 3, 3], [outputs]
    int inputs, outputs;
  };
  struct CouplingArg {
    const float* gain;
    std::vector<ConvArg> convs;  // first, before and after of each block, last
  };

  // Couplings in the order of encode; for a CUDA device or for the CPU. Throws
  // std::invalid_argument where sizes do not fit.
  FrozenFlow(int channels, int height, int width, int scales, int hidden, int blocks,
             const float* location, const float* spread, const std::vector<CouplingArg>& couplings,
             Precision precision, bool on_device);

  int channels, height, width, scales, hidden, blocks;
  std::int64_t n;
  Precision precision;
  bool on_device;
  std::vector<float> location, spread;
  double log_spread;  // sum of log(spread)
  std::vector<Level> levels;
  std::vector<FrozenCoupling> couplings;
  std::int64_t saved_bytes;  // per image
  std::int64_t weight_bytes;  // of the packed weights, both directions
  std::int64_t workspace;  // CUDA: floats of workspace per image
  std::vector<std::uint32_t> device_words;  // CUDA: all numbers of the flow, to be copied there
  std::int64_t device_location = 0, device_spread = 0;

  // A workspace of at least this size, kept for the next call.
  AlignedArray<char> take(std::int64_t bytes) const;
  void give(AlignedArray<char> space, std::int64_t bytes) const;

 private:
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<std::int64_t, AlignedArray<char>>> spare_;
};

// Floats of a CUDA workspace: each array holds all images, [B, ...], from B times its offset on.
struct DeviceWorkspace {
  std::int64_t state, other, a, h, partials;  // offsets per image
  std::int64_t slots;  // partial log-determinants of an image
  std::vector<std::int64_t> first_slot;  // of each coupling
  std::int64_t image;  // floats per image in all

  explicit DeviceWorkspace(const FrozenFlow& flow);
};

// Whether this machine and build multiply in bf16.
bool cpu_bf16();

struct FrozenFlowParams {
  const FrozenFlow* flow;
  bool decode, backward;
  std::int64_t batch;
  const float* in;  // x or z; backward: the gradient to the output
  const float* grad_logdet;  // backward only, [B]
  float* out;  // z or x; backward: the gradient to the input
  float* logdet;  // forward only, [B]
  char* saved;  // written forward (or null), read backward
  // CUDA: device_words on the device, and [B, workspace] floats.
  const std::uint32_t* words;
  float* workspace;
};

FI_OP(frozen_flow, FrozenFlowParams)

}  // namespace flowinv
