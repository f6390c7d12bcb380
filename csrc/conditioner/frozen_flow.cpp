// Packing of a frozen flow's weights; the same for every instruction set.
#include "conditioner/frozen_flow.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "common/check.h"
#include "common/dtype.h"
#include "conditioner/winograd.h"

namespace flowinv {

void AlignedDelete::operator()(void* p) const { std::free(p); }

void* aligned_bytes(std::int64_t bytes) {
  void* p = std::aligned_alloc(64, (std::max<std::int64_t>(bytes, 1) + 63) / 64 * 64);
  if (!p) throw std::bad_alloc();
  return p;
}

PackedWeights::PackedWeights(int taps, int inputs, int outputs, bool in_bf16)
    : taps(taps), inputs(inputs), outputs(outputs) {
  if (in_bf16) {
    bf16 = aligned_array<std::uint16_t>(count());
    std::fill_n(bf16.get(), count(), std::uint16_t(0));
  } else {
    f32 = aligned_array<float>(count());
    std::fill_n(f32.get(), count(), 0.0f);
  }
}

namespace {

// w(o, i, y, x) of a convolution, or of its transpose: inputs and outputs exchanged, turned round.
struct Filter {
  const FrozenFlow::ConvArg& conv;
  bool transposed;
  int inputs() const { return transposed ? conv.outputs : conv.inputs; }
  int outputs() const { return transposed ? conv.inputs : conv.outputs; }
  double operator()(int o, int i, int y, int x) const {
    return transposed ? conv.weight[((i * conv.inputs + o) * 3 + 2 - y) * 3 + 2 - x]
                      : conv.weight[((o * conv.inputs + i) * 3 + y) * 3 + x];
  }
};

int whole_blocks(int channels) { return blocks_of(channels) * kBlock; }

// Image to hidden map.
PackedWeights pack_widening(const Filter& w) {
  PackedWeights p(9, w.inputs(), whole_blocks(w.outputs()), false);
  for (int tap = 0; tap < 9; ++tap)
    for (int i = 0; i < p.inputs; ++i)
      for (int o = 0; o < w.outputs(); ++o) {
        const int block = tap * p.blocks() + o / kBlock;
        p.f32[(std::int64_t(block) * p.inputs + i) * kBlock + o % kBlock] =
            float(w(o, i, tap / 3, tap % 3));
      }
  return p;
}

// Hidden map to image.
PackedWeights pack_narrowing(const Filter& w) {
  PackedWeights p(9, whole_blocks(w.inputs()), w.outputs(), false);
  for (int o = 0; o < w.outputs(); ++o)
    for (int tap = 0; tap < 9; ++tap)
      for (int i = 0; i < w.inputs(); ++i)
        p.f32[std::int64_t(o * 9 + tap) * p.inputs + i] = float(w(o, i, tap / 3, tap % 3));
  return p;
}

template <int kTile>
PackedWeights pack_winograd(const Filter& w, bool bf16) {
  using W = Winograd<kTile>;
  PackedWeights p(W::kPoints * W::kPoints, whole_blocks(w.inputs()), whole_blocks(w.outputs()),
                  bf16);
  for (int o = 0; o < w.outputs(); ++o)
    for (int i = 0; i < w.inputs(); ++i) {
      double half[W::kPoints][3], full[W::kPoints][W::kPoints];
      for (int x = 0; x < 3; ++x) {
        const double g[3] = {w(o, i, 0, x), w(o, i, 1, x), w(o, i, 2, x)};
        double column[W::kPoints];
        W::filter(g, column);
        for (int k = 0; k < W::kPoints; ++k) half[k][x] = column[k];
      }
      for (int k = 0; k < W::kPoints; ++k) W::filter(half[k], full[k]);
      for (int tap = 0; tap < p.taps; ++tap) {
        const float value = float(full[tap / W::kPoints][tap % W::kPoints]);
        const std::int64_t block = std::int64_t(tap) * p.blocks() + o / kBlock;
        if (bf16) {
          BFloat16 rounded;
          store(&rounded, value);
          p.bf16[(block * (p.inputs / 2) + i / 2) * 2 * kBlock + o % kBlock * 2 + i % 2] =
              rounded.bits;
        } else {
          p.f32[(block * p.inputs + i) * kBlock + o % kBlock] = value;
        }
      }
    }
  return p;
}

// Where a convolution stands: from the image to the hidden maps, between them, or back.
enum class Stage { kFirst, kHidden, kLast };

// raw_s, t of each gain in turn, to their place among the channels: all raw_s, then all t.
int alternating(int channel, int count) { return channel / 2 + channel % 2 * (count / 2); }

// Float to tf32, to nearest.
std::uint32_t tf32_bits(float x) { return (bits_of(x) + 0x1000u) & 0xffffe000u; }

Fragments pack_fragments(const Filter& w, bool alternate_in, bool alternate_out,
                         Precision precision, std::vector<std::uint32_t>& words) {
  const Fragments f{std::int64_t(words.size()), (w.inputs() + 7) / 8, 2 * blocks_of(w.outputs())};
  const auto weight = [&](int tap, int i, int o) {
    if (i >= w.inputs() || o >= w.outputs()) return 0.0f;
    const int from = alternate_in ? alternating(i, w.inputs()) : i;
    const int to = alternate_out ? alternating(o, w.outputs()) : o;
    return float(w(to, from, tap / 3, tap % 3));
  };
  words.reserve(words.size() +
                std::size_t(9 * f.chunks * f.tiles * 32) * fragment_words(precision));
  for (int tap = 0; tap < 9; ++tap)
    for (int chunk = 0; chunk < f.chunks; ++chunk)
      for (int tile = 0; tile < f.tiles; ++tile)
        for (int lane = 0; lane < 32; ++lane) {
          const int i = 8 * chunk + 2 * (lane % 4), o = 8 * tile + lane / 4;
          const float pair[2] = {weight(tap, i, o), weight(tap, i + 1, o)};
          if (precision == Precision::kBFloat16) {
            BFloat16 half[2];
            store(&half[0], pair[0]), store(&half[1], pair[1]);
            words.push_back(half[0].bits | std::uint32_t(half[1].bits) << 16);
            continue;
          }
          const std::uint32_t high[2] = {tf32_bits(pair[0]), tf32_bits(pair[1])};
          words.insert(words.end(), {high[0], high[1]});
          if (precision == Precision::kFloat32)
            words.insert(words.end(), {tf32_bits(pair[0] - float_of(high[0])),
                                       tf32_bits(pair[1] - float_of(high[1]))});
        }
  return f;
}

// `count` numbers, zeros behind them up to whole blocks.
std::int64_t put(std::vector<std::uint32_t>& words, const float* values, std::int64_t count) {
  const std::int64_t at = std::int64_t(words.size());
  for (std::int64_t i = 0; i < count; ++i) words.push_back(bits_of(values[i]));
  words.resize((words.size() + kBlock - 1) / kBlock * kBlock, 0u);
  return at;
}

FrozenConv freeze_for_device(const FrozenFlow::ConvArg& conv, Stage stage, Precision precision,
                             std::vector<std::uint32_t>& words) {
  const bool last = stage == Stage::kLast;
  FrozenConv frozen;
  frozen.device_forward = pack_fragments({conv, false}, false, last, precision, words);
  frozen.device_backward = pack_fragments({conv, true}, last, false, precision, words);
  std::vector<float> bias(conv.outputs);
  for (int o = 0; o < conv.outputs; ++o)
    bias[o] = conv.bias[last ? alternating(o, conv.outputs) : o];
  frozen.device_bias = put(words, bias.data(), conv.outputs);
  return frozen;
}

FrozenConv freeze(const FrozenFlow::ConvArg& conv, Stage stage, int tile, bool bf16) {
  FrozenConv frozen;
  const Filter forward{conv, false}, backward{conv, true};
  if (stage == Stage::kFirst) {
    frozen.forward = pack_widening(forward);
    frozen.backward = pack_narrowing(backward);
  } else if (stage == Stage::kLast) {
    frozen.forward = pack_narrowing(forward);
    frozen.backward = pack_widening(backward);
  } else if (tile == 4) {
    frozen.forward = pack_winograd<4>(forward, bf16);
    frozen.backward = pack_winograd<4>(backward, bf16);
  } else {
    frozen.forward = pack_winograd<2>(forward, bf16);
    frozen.backward = pack_winograd<2>(backward, bf16);
  }
  frozen.bias.assign(whole_blocks(conv.outputs), 0.0f);
  std::copy_n(conv.bias, conv.outputs, frozen.bias.begin());
  return frozen;
}

std::int64_t padded(std::int64_t bytes) { return (bytes + 3) / 4 * 4; }

}  // namespace

Level::Level(int channels, int height, int width, bool checkerboard)
    : channels(channels), height(height), width(width), checkerboard(checkerboard) {
  gains = inputs = checkerboard ? channels : channels / 2;
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

FrozenFlow::FrozenFlow(int channels, int height, int width, int scales, int hidden, int blocks,
                       const float* location, const float* spread,
                       const std::vector<CouplingArg>& args, Precision precision, bool on_device)
    : channels(channels),
      height(height),
      width(width),
      scales(scales),
      hidden(hidden),
      blocks(blocks),
      n(std::int64_t(channels) * height * width),
      precision(precision),
      on_device(on_device),
      location(location, location + n),
      spread(spread, spread + n) {
  const bool bf16 = precision == Precision::kBFloat16;
  check(on_device || !bf16 || cpu_bf16(), "precision: no bf16 on this machine");
  log_spread = 0;
  for (const float value : this->spread) log_spread += std::log(double(value));
  saved_bytes = weight_bytes = 0;
  std::size_t next = 0;
  int c = channels, h = height, w = width;
  const auto add = [&](bool checkerboard, int count) {
    levels.emplace_back(c, h, w, checkerboard);
    const Level& level = levels.back();
    for (int k = 0; k < count; ++k, ++next) {
      check(next < args.size(), "couplings: too few for this many scales");
      const CouplingArg& arg = args[next];
      check(int(arg.convs.size()) == 2 + 2 * blocks, "convs: expected 2 + 2 blocks of them");
      FrozenCoupling coupling;
      coupling.level = int(levels.size()) - 1;
      coupling.mask = Mask((checkerboard ? 0 : 2) + k % 2);
      coupling.gain.assign(arg.gain, arg.gain + level.gains);
      for (int i = 0; i < int(arg.convs.size()); ++i) {
        const ConvArg& conv = arg.convs[i];
        const bool first = i == 0, last = i + 1 == int(arg.convs.size());
        check(conv.inputs == (first ? level.inputs : hidden) &&
                  conv.outputs == (last ? 2 * level.gains : hidden),
              "convs: channels that do not fit the flow");
        const Stage stage = first ? Stage::kFirst : last ? Stage::kLast : Stage::kHidden;
        FrozenConv frozen = on_device ? freeze_for_device(conv, stage, precision, device_words)
                                      : freeze(conv, stage, level.tile, bf16);
        weight_bytes += frozen.forward.bytes() + frozen.backward.bytes();
        if (first)
          coupling.first = std::move(frozen);
        else if (last)
          coupling.last = std::move(frozen);
        else
          coupling.hidden.push_back(std::move(frozen));
      }
      const std::int64_t values =
          std::int64_t(level.pixels[coupling.transformed()].size()) * level.gains;
      coupling.saved_values = saved_bytes;
      coupling.saved_bits = saved_bytes + 8 * values;
      saved_bytes = coupling.saved_bits +
                    padded(std::int64_t(2 * blocks + 1) * h * w * blocks_of(hidden) * 2);
      if (on_device) coupling.device_gain = put(device_words, arg.gain, level.gains);
      couplings.push_back(std::move(coupling));
    }
  };
  for (int scale = 0; scale < scales; ++scale) {
    const bool last = scale + 1 == scales;
    add(true, last ? 4 : 3);
    if (last) break;
    check(h % 2 == 0 && w % 2 == 0, "height, width: expected even numbers at every squeeze");
    c *= 4, h /= 2, w /= 2;
    add(false, 3);
    c /= 2;
  }
  check(next == args.size(), "couplings: too many for this many scales");
  if (on_device) {
    device_location = put(device_words, location, n);
    device_spread = put(device_words, spread, n);
    weight_bytes = 4 * std::int64_t(device_words.size());
  }
  workspace = on_device ? DeviceWorkspace(*this).image : 0;
}

DeviceWorkspace::DeviceWorkspace(const FrozenFlow& flow) {
  std::int64_t map = 0, raw_map = 0, slots = 0;
  for (const Level& level : flow.levels) {
    const std::int64_t plane = level.pixels[0].size();
    map = std::max(map, plane * blocks_of(flow.hidden) * kBlock);
    raw_map = std::max(raw_map, plane * 8 * ((2 * level.gains + 7) / 8));
  }
  for (const FrozenCoupling& c : flow.couplings) {
    const Level& level = flow.levels[c.level];
    first_slot.push_back(slots);
    slots +=
        (std::int64_t(level.pixels[c.transformed()].size()) + 15) / 16 * blocks_of(2 * level.gains);
  }
  std::int64_t at = 0;
  const auto place = [&](std::int64_t count) {
    const std::int64_t here = at;
    at += (count + 3) / 4 * 4;
    return here;
  };
  state = place(flow.n), other = place(flow.n), a = place(std::max(map, raw_map)), h = place(map);
  partials = place(slots);
  this->slots = slots;
  image = at;
}

bool cpu_bf16() {
#if defined(__x86_64__)
  return cpu_isa() == 2 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

AlignedArray<char> FrozenFlow::take(std::int64_t bytes) const {
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

void FrozenFlow::give(AlignedArray<char> space, std::int64_t bytes) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (spare_.size() < 4) spare_.emplace_back(bytes, std::move(space));
}

}  // namespace flowinv
