// A flow whose weights no longer change: encode, decode and their vector-Jacobian products, each in
// one call. plan.h says what the layers are, walk.h in which order they run, and the engines how.
//
// tensor    shape                    order in memory                        access
// x, z      [B, C, H, W], [B, N]     NCHW; z: latents as they leave, rest   float32
// logdet    [B]                                                            float32, written
// saved     [B, saved_bytes]         per coupling s, value, and the bits    written, or null
//
// CPU: hidden convolutions run as Winograd's minimal filtering (Lavin and Gray, 2016), F(4x4, 3x3)
// on maps of more than 14 pixels a side and F(2x2, 3x3) below, with interpolation points 0,
// +-sqrt(1/2), +-sqrt(2) and infinity, whose rounding error is half that of 0, +-1, +-2.
// CUDA: direct convolutions on tensor cores (convolution.cuh), from weights in `device_words`.
#pragma once

#include "common/execution.h"
#include "frozen_flow/plan.h"

namespace flowinv {

struct FrozenFlowParams {
  const Plan* plan;
  SpareMemory* spare;  // CPU
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

  bool down() const { return decode == backward; }  // from the image to the latents
  // Log-determinant of all layers but the couplings.
  float constant() const { return float(decode ? -plan->logdet : plan->logdet); }
};

FI_OP(frozen_flow, FrozenFlowParams)

}  // namespace flowinv
