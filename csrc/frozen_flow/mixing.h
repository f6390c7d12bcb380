// Mixing of the channels of every pixel, the 1x1 convolution of Glow (Kingma and Dhariwal, 2018).
//
//     encode  z = W x         log|det dz/dx| =  H W log|det W|
//     decode  x = W^-1 z      log|det dx/dz| = -H W log|det W|
// Gradients, with g the gradient to the output: W^T g of encode, W^-T g of decode. Nothing is saved
// for them, and log|det W| of frozen weights is a constant of the plan.
//
// tensor  shape                order                                                   access
// state   [B, C, H, W]         NCHW                                                    read, written
// matrix  [ceil(C / 4), C, 4]  the weights from one input to four outputs together;    read
//                              zeros behind the last output
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace flowinv {

constexpr int kMixedOutputs = 4;  // computed together, so that an input is read once for four

FI_HD int mixed_groups(int channels) { return (channels + kMixedOutputs - 1) / kMixedOutputs; }

// The outputs of one group, of a pixel or of a vector of pixels: sums over the inputs in order.
template <class V>
struct MixedChannels {
  V outputs[kMixedOutputs];

  // input(c): channel c of the pixel.
  template <class Input>
  FI_HD MixedChannels(const float* matrix, int channels, int group, const Input& input)
      : outputs{} {
    const float* weights = matrix + std::int64_t(group) * channels * kMixedOutputs;
    for (int c = 0; c < channels; ++c, weights += kMixedOutputs) {
      const V value = input(c);
      FI_UNROLL
      for (int k = 0; k < kMixedOutputs; ++k) outputs[k] += weights[k] * value;
    }
  }
};

}  // namespace flowinv
