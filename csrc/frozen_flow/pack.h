// The weights of a frozen flow as its engines read them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

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

// How the numbers of a convolution are multiplied. kFloat32 on CUDA: a tf32 product and two of the
// parts that tf32 leaves off.
enum class Precision : int { kFloat32 = 0, kTf32 = 1, kBFloat16 = 2 };
constexpr const char* kPrecisionNames[] = {"fp32", "tf32", "bf16"};

// Whether this machine and build multiply in bf16 on the CPU.
bool cpu_bf16();

// --- CPU ---------------------------------------------------------------------------------------

// Weights of one convolution. Into a hidden map: [tap][output block][input][16], in bf16
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

// --- CUDA --------------------------------------------------------------------------------------

// All numbers of a flow on a device, one array of words to be copied there.
using DeviceWords = std::vector<std::uint32_t>;

// Appends `count` numbers, zeros behind them up to whole blocks; returns the index of the first.
std::int64_t append(DeviceWords& words, const float* values, std::int64_t count);

// Words that a lane holds of an 8x8 piece of the weights, see common/mma.cuh.
constexpr int fragment_words(Precision precision) {
  return precision == Precision::kFloat32 ? 4 : precision == Precision::kTf32 ? 2 : 1;
}

// Weights for tensor cores, [tap][eight inputs][eight outputs][lane][fragment_words], from word `at`
// on. Inputs 2 quad and 2 quad + 1 are the lane's two.
struct Fragments {
  std::int64_t at = 0;
  int chunks = 0, tiles = 0;  // eights of inputs, eights of outputs
};

// --- a layer's weights, for the engine that the flow is frozen for -------------------------------

// A 3x3 convolution as it comes from Python.
struct ConvArg {
  const float *weight, *bias;  // [outputs, inputs, 3, 3], [outputs]
  int inputs, outputs;
};

// Where a convolution stands: from the image to the hidden maps, between them, or back.
enum class Stage { kFirst, kHidden, kLast };

// Backward goes from the gradient of the outputs to that of the inputs.
struct FrozenConv {
  PackedWeights forward, backward;
  std::vector<float> bias;  // padded to whole blocks
  // CUDA. The outputs of a last layer, and the inputs of its way back, alternate: raw_s, t of each
  // gain.
  Fragments device_forward, device_backward;
  std::int64_t device_bias = 0;

  std::int64_t bytes() const { return forward.bytes() + backward.bytes(); }
};

// tile: outputs a side of a Winograd tile, 4 or 2.
FrozenConv freeze_for_cpu(const ConvArg& conv, Stage stage, int tile, bool bf16);
FrozenConv freeze_for_device(const ConvArg& conv, Stage stage, Precision precision,
                             DeviceWords& words);

// W [channels, channels] of a mixing in the four forms of mixing.h: W, its transpose, its inverse and
// the transpose of that. Throws std::invalid_argument where W has no inverse.
struct FrozenMixing {
  std::vector<float> matrix[2][2];  // [decode][gradient]
  std::int64_t device_matrix[2][2] = {};

  FrozenMixing(const double* weight, int channels);
  void append_to(DeviceWords& words);
  std::int64_t bytes() const { return std::int64_t(4 * 4 * matrix[0][0].size()); }
};

}  // namespace flowinv
