// What a frozen flow does, as a list of layer records: made once from the weights, never changed
// after that, and read by the walk (walk.h) and the engines.
//
// A layer is one of: standardise (standardise.h), squeeze (layout/squeeze.h), factor out half of the
// channels, mix the channels (mixing.h), or an affine coupling (coupling/affine_coupling.h) with its
// conditioner. Their log-determinants are the couplings' own, and one constant for all others.
//
// A conditioner is  h = first(u);  h += after(relu(before(relu(h))))  per block;  last(relu(h)),
// its convolutions 3x3 with zero padding, u the untouched elements. With frozen weights its gradient
// to u needs only the signs: the same network run backwards with transposed weights, each ReLU
// replaced by its bits. A coupling keeps s, the value named in coupling/affine_coupling.h, and a bit
// for each hidden number.
//
// An inverse coupling encodes by the formula of decode and decodes by that of encode. Before a
// factor_out it is the conditional prior of the half that leaves: latent = (u - mean) exp(-log_std),
// with mean = t and log_std = s from the half that stays.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "coupling/affine_coupling.h"
#include "frozen_flow/pack.h"
#include "layout/squeeze.h"

namespace flowinv {

enum class LayerKind : int { kStandardise, kSqueeze, kFactorOut, kMixing, kCoupling };

// Layer `index` of its kind, and the numbers per image of the state that encode hands it.
struct Layer {
  LayerKind kind;
  int index;
  std::int64_t elements;
};

// Maps of one height and width.
struct Resolution {
  int height, width;
  int tile;  // 4 or 2: outputs a side of a Winograd tile
  int tiles_high, tiles_wide;  // tiles of the map
  int padded_high, padded_wide;
  std::vector<int> pixels[3];  // all; of even parity; of odd parity: y W + x

  Resolution(int height, int width);
  int plane() const { return height * width; }
  std::int64_t padded() const { return std::int64_t(padded_high) * padded_wide; }
};

struct StandardiseLayer {
  std::vector<float> mean, std;
  std::int64_t device_mean = 0, device_std = 0;
};

struct MixingLayer {
  int channels, plane;
  FrozenMixing weights;
};

struct CouplingLayer {
  int resolution;
  Mask mask;
  bool inverse;
  int gains, inputs;  // transformed channels; channels that the conditioner sees
  int hidden, blocks;  // of its conditioner
  std::vector<float> gain;
  FrozenConv first, last;
  std::vector<FrozenConv> between;  // before, after of each block
  std::int64_t saved_values, saved_bits;  // offsets into an image's saved bytes
  std::int64_t first_slot;  // CUDA: of its partial log-determinants
  std::int64_t device_gain = 0;

  bool checkerboard() const { return int(mask) < 2; }
  // Pixels that it transforms, and pixels that the conditioner sees: 0 all, 1 even, 2 odd.
  int moved() const { return checkerboard() ? 1 + int(mask) : 0; }
  int seen() const { return checkerboard() ? 2 - int(mask) : 0; }
  // Channels of the state from which on it transforms, and the conditioner sees.
  int moved_channel() const { return mask == Mask::kChannelSecond ? gains : 0; }
  int seen_channel() const { return mask == Mask::kChannelFirst ? gains : 0; }
  // The formula, which an inverse coupling exchanges.
  bool decodes(bool decode) const { return decode != inverse; }
  int hidden_channels() const { return blocks_of(hidden) * kBlock; }
  // 16-bit words of signs in a hidden map of the image.
  std::int64_t bit_words(const Resolution& r) const {
    return std::int64_t(r.plane()) * blocks_of(hidden);
  }
};

class Plan {
 public:
  // Images of this shape, for a CUDA device or for the CPU. Layers are then added in the order of
  // encode, and `finish` ends the plan. All throw std::invalid_argument where sizes do not fit.
  Plan(int channels, int height, int width, Precision precision, bool on_device);
  void add_standardise(const float* mean, const float* std);  // [C, H, W] each
  void add_squeeze();
  void add_factor_out();
  void add_mixing(const double* weight, double log_size_sum);  // [C, C]; log|det W|
  // convs: first, before and after of each block, last.
  void add_coupling(Mask mask, bool inverse, const float* gain, const std::vector<ConvArg>& convs);
  void finish();

  int channels, height, width;  // of the state behind the last layer
  std::int64_t n;  // numbers of an image
  Precision precision;
  bool on_device, finished = false;

  std::vector<Resolution> resolutions;
  std::vector<Layer> layers;
  std::vector<StandardiseLayer> standardise_layers;
  std::vector<SqueezeMap> squeezes;
  std::vector<MixingLayer> mixings;
  std::vector<CouplingLayer> couplings;

  double logdet = 0;  // of encode, of all layers but the couplings
  std::int64_t used_bytes = 0;  // that an image's couplings save
  std::int64_t saved_bytes = 0;  // the same up to whole words of 8 bytes; the last are zeros
  std::int64_t weight_bytes = 0;  // of the packed weights, both directions
  std::int64_t slots = 0;  // CUDA: partial log-determinants of an image
  std::int64_t workspace = 0;  // CUDA: floats of workspace per image
  DeviceWords device_words;

  // Numbers per image behind the last layer.
  std::int64_t rest() const { return std::int64_t(channels) * height * width; }

 private:
  void add(LayerKind kind, std::size_t index);
  FrozenConv freeze(const ConvArg& conv, Stage stage);
};

// Floats of a CUDA workspace: each array holds all images, [B, ...], from B times its offset on.
struct DeviceWorkspace {
  std::int64_t state, other, a, h, partials;  // offsets per image
  std::int64_t image;  // floats per image in all

  explicit DeviceWorkspace(const Plan& plan);
};

// Workspaces of the CPU that no call uses now, kept for the next one.
class SpareMemory {
 public:
  AlignedArray<char> take(std::int64_t bytes);
  void give(AlignedArray<char> space, std::int64_t bytes);

 private:
  std::mutex mutex_;
  std::vector<std::pair<std::int64_t, AlignedArray<char>>> spare_;
};

}  // namespace flowinv
