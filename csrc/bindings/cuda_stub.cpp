// Stands in for the CUDA launchers when the build has none. Python refuses CUDA tensors first, so
// nobody should see these messages.
#include <stdexcept>

#include "frozen_flow/frozen_flow.h"
#include "coupling/affine_coupling.h"
#include "density/density.h"
#include "density/patches.h"
#include "layout/squeeze.h"
#include "noise/noise.h"
#include "preprocess/preprocess.h"
#include "quantise/quantise.h"
#include "solver/adam.h"

namespace flowinv {
namespace cuda {

#define FI_NO_CUDA(name, Params)                                             \
  void name(const Params&, const Place&) {                                   \
    throw std::runtime_error(#name ": flowinv_fast was built without CUDA"); \
  }

FI_NO_CUDA(frozen_flow, FrozenFlowParams)
FI_NO_CUDA(affine_coupling, AffineCouplingParams)
FI_NO_CUDA(affine_coupling_backward, AffineCouplingBackwardParams)
FI_NO_CUDA(squeeze, SqueezeParams)
FI_NO_CUDA(logit, LogitParams)
FI_NO_CUDA(logit_backward, LogitBackwardParams)
FI_NO_CUDA(dequantise, DequantiseParams)
FI_NO_CUDA(gaussian_log_prob, GaussianParams)
FI_NO_CUDA(standard_normal_log_prob, StandardNormalParams)
FI_NO_CUDA(patches, PatchesParams)
FI_NO_CUDA(random_bits, RandomBitsParams)
FI_NO_CUDA(gaussian_noise, GaussianNoiseParams)
FI_NO_CUDA(structured_noise, StructuredNoiseParams)
FI_NO_CUDA(digit_overlay, DigitsParams)
FI_NO_CUDA(quantise, QuantiseParams)
FI_NO_CUDA(adam_step, AdamParams)

}  // namespace cuda
}  // namespace flowinv
