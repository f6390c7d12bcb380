// Standardisation of every element by constants.
//
//     encode  z = (x - mean) / std         log|det dz/dx| = -sum log(std)
//     decode  x = z std + mean             log|det dx/dz| =  sum log(std)
// Gradients, with g the gradient to the output: g / std of encode, g std of decode.
//
// tensor     shape                           order      access
// state      [B, C, H, W]                    NCHW       read, written
// mean, std  [C, H, W] of the layer's input  NCHW       read
#pragma once

#include "common/macros.h"

namespace flowinv {

// One element. kDown: from the image to the latents, which is encode or the gradient of decode.
template <bool kDown>
struct Standardised {
  FI_HD static float value(float in, float mean, float std) {
    return kDown ? (in - mean) / std : in * std + mean;
  }
  FI_HD static float gradient(float grad, float std) { return kDown ? grad * std : grad / std; }
};

}  // namespace flowinv
