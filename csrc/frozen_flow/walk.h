// The walk over a plan's layers, for both engines, both directions, values and gradients: the only
// place that asks of which kind a layer is.
//
// Down is from the image to the latents: encode, and the gradient of decode. Up is the way back:
// decode, and the gradient of encode. The state is the image as far as it has come: C H W numbers of
// the present resolution. A factored-out half is the second half of the state's channels, and goes to
// (or comes from) its place among the latents, [z_1 | z_2 | ... | what remains].
//
// An engine does each of these for every image that it works on:
//     take(from, to, count)       state[to ...] = in[from ...]
//     put(from, to, count)        out[to ...] = state[from ...]
//     standardise<kDown>(layer)   standardise.h
//     squeeze(map, kDown)         layout/squeeze.h, or its inverse
//     mix(layer)                  mixing.h
//     couple(layer)               coupling/affine_coupling.h and its conditioner
// where the last two know from the call whether they encode or decode, values or gradients.
#pragma once

#include "frozen_flow/plan.h"

namespace flowinv {

template <bool kDown, class Engine>
void walk(const Plan& plan, Engine& engine) {
  const std::int64_t n = plan.n, rest = plan.rest();
  if (kDown)
    engine.take(0, 0, n);
  else
    engine.take(n - rest, 0, rest);
  const int count = int(plan.layers.size());
  for (int i = 0; i < count; ++i) {
    const Layer& layer = plan.layers[kDown ? i : count - 1 - i];
    const std::int64_t half = layer.elements / 2;
    switch (layer.kind) {
      case LayerKind::kStandardise:
        engine.template standardise<kDown>(plan.standardise_layers[layer.index]);
        break;
      case LayerKind::kSqueeze: engine.squeeze(plan.squeezes[layer.index], kDown); break;
      case LayerKind::kFactorOut:
        if (kDown)
          engine.put(half, n - layer.elements, half);
        else
          engine.take(n - layer.elements, half, half);
        break;
      case LayerKind::kMixing: engine.mix(plan.mixings[layer.index]); break;
      case LayerKind::kCoupling: engine.couple(plan.couplings[layer.index]); break;
    }
  }
  if (kDown)
    engine.put(0, n - rest, rest);
  else
    engine.put(0, 0, n);
}

}  // namespace flowinv
