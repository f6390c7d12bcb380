#include "frozen_flow/plan.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace flowinv {

Resolution::Resolution(int height, int width) : height(height), width(width) {
  tile = std::max(height, width) > 14 ? 4 : 2;
  tiles_high = (height + tile - 1) / tile;
  tiles_wide = (width + tile - 1) / tile;
  padded_high = tiles_high * tile + 2;
  padded_wide = tiles_wide * tile + 2;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      pixels[0].push_back(y * width + x);
      pixels[1 + ((y + x) & 1)].push_back(y * width + x);
    }
}

// --- layers in the order of encode -------------------------------------------------------------

Plan::Plan(int channels, int height, int width, Precision precision, bool on_device)
    : channels(channels),
      height(height),
      width(width),
      n(std::int64_t(channels) * height * width),
      precision(precision),
      on_device(on_device) {
  check(on_device || precision != Precision::kBFloat16 || cpu_bf16(),
        "precision: no bf16 on this machine");
  resolutions.emplace_back(height, width);
}

void Plan::add(LayerKind kind, std::size_t index) {
  check(!finished, "plan: finished, no layer can be added");
  layers.push_back({kind, int(index), rest()});
}

void Plan::add_standardise(const float* mean, const float* std) {
  add(LayerKind::kStandardise, standardise_layers.size());
  StandardiseLayer layer;
  layer.mean.assign(mean, mean + rest());
  layer.std.assign(std, std + rest());
  for (const float value : layer.std) logdet -= std::log(double(value));
  standardise_layers.push_back(std::move(layer));
}

void Plan::add_squeeze() {
  check(height % 2 == 0 && width % 2 == 0, "height, width: expected even numbers at a squeeze");
  add(LayerKind::kSqueeze, squeezes.size());
  channels *= 4, height /= 2, width /= 2;
  squeezes.push_back({channels, height, width});
  resolutions.emplace_back(height, width);
}

void Plan::add_factor_out() {
  check(channels % 2 == 0, "channels: expected an even number where half is factored out");
  add(LayerKind::kFactorOut, 0);
  channels /= 2;
}

void Plan::add_mixing(const double* weight, double log_size_sum) {
  add(LayerKind::kMixing, mixings.size());
  mixings.push_back({channels, height * width, FrozenMixing(weight, channels)});
  logdet += double(height) * width * log_size_sum;
  weight_bytes += mixings.back().weights.bytes();
}

FrozenConv Plan::freeze(const ConvArg& conv, Stage stage) {
  FrozenConv frozen = on_device ? freeze_for_device(conv, stage, precision, device_words)
                                : freeze_for_cpu(conv, stage, resolutions.back().tile,
                                                 precision == Precision::kBFloat16);
  weight_bytes += frozen.bytes();
  return frozen;
}

void Plan::add_coupling(Mask mask, bool inverse, const float* gain,
                        const std::vector<ConvArg>& convs) {
  CouplingLayer c{};
  c.resolution = int(resolutions.size()) - 1;
  c.mask = mask;
  c.inverse = inverse;
  check(c.checkerboard() || channels % 2 == 0, "channels: expected an even number for this mask");
  c.gains = c.inputs = c.checkerboard() ? channels : channels / 2;
  check(convs.size() >= 2 && convs.size() % 2 == 0, "convs: expected 2 + 2 blocks of them");
  c.hidden = convs.front().outputs;
  c.blocks = int(convs.size()) / 2 - 1;
  for (std::size_t i = 0; i < convs.size(); ++i) {
    const bool first = i == 0, last = i + 1 == convs.size();
    check(convs[i].inputs == (first ? c.inputs : c.hidden) &&
              convs[i].outputs == (last ? 2 * c.gains : c.hidden),
          "convs: channels that do not fit the flow");
  }
  add(LayerKind::kCoupling, couplings.size());
  c.gain.assign(gain, gain + c.gains);
  c.first = freeze(convs.front(), Stage::kFirst);
  for (std::size_t i = 1; i + 1 < convs.size(); ++i)
    c.between.push_back(freeze(convs[i], Stage::kHidden));
  c.last = freeze(convs.back(), Stage::kLast);
  couplings.push_back(std::move(c));
}

// Where each coupling saves: first s and value of all, which are floats, then the bits of all.
void Plan::finish() {
  check(!finished, "plan: finished already");
  finished = true;
  for (CouplingLayer& c : couplings) {
    const std::int64_t values = std::int64_t(resolutions[c.resolution].pixels[c.moved()].size());
    c.saved_values = used_bytes;
    used_bytes += 8 * values * c.gains;
    c.first_slot = slots;
    slots += (values + 15) / 16 * blocks_of(2 * c.gains);
  }
  for (CouplingLayer& c : couplings) {
    c.saved_bits = used_bytes;
    used_bytes += 2 * (2 * c.blocks + 1) * c.bit_words(resolutions[c.resolution]);
  }
  saved_bytes = (used_bytes + 7) / 8 * 8;
  if (!on_device) return;
  for (StandardiseLayer& layer : standardise_layers) {
    layer.device_mean = append(device_words, layer.mean.data(), std::int64_t(layer.mean.size()));
    layer.device_std = append(device_words, layer.std.data(), std::int64_t(layer.std.size()));
  }
  for (MixingLayer& layer : mixings) layer.weights.append_to(device_words);
  for (CouplingLayer& c : couplings) c.device_gain = append(device_words, c.gain.data(), c.gains);
  weight_bytes = 4 * std::int64_t(device_words.size());
  workspace = DeviceWorkspace(*this).image;
}

// --- workspaces --------------------------------------------------------------------------------

DeviceWorkspace::DeviceWorkspace(const Plan& plan) {
  std::int64_t map = 0, raw_map = 0;
  for (const CouplingLayer& c : plan.couplings) {
    const std::int64_t plane = plan.resolutions[c.resolution].plane();
    map = std::max(map, plane * c.hidden_channels());
    raw_map = std::max(raw_map, plane * 8 * ((2 * c.gains + 7) / 8));
  }
  image = 0;
  const auto place = [&](std::int64_t count) {
    const std::int64_t here = image;
    image += (count + 3) / 4 * 4;
    return here;
  };
  state = place(plan.n), other = place(plan.n), a = place(std::max(map, raw_map)), h = place(map);
  partials = place(plan.slots);
}

AlignedArray<char> SpareMemory::take(std::int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = spare_.begin(); it != spare_.end(); ++it)
      if (it->first >= bytes) {
        AlignedArray<char> found = std::move(it->second);
        spare_.erase(it);
        return found;
      }
    spare_.clear();  // too small for what is asked now
  }
  return aligned_array<char>(bytes);
}

void SpareMemory::give(AlignedArray<char> space, std::int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (spare_.size() < 4) spare_.emplace_back(bytes, std::move(space));
}

}  // namespace flowinv
