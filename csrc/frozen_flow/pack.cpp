// Packing of a frozen flow's weights; the same for every instruction set.
#include "frozen_flow/pack.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <utility>
#include <stdexcept>

#include "common/check.h"
#include "common/dtype.h"
#include "common/execution.h"
#include "frozen_flow/mixing.h"
#include "frozen_flow/winograd.h"

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

bool cpu_bf16() {
#if defined(__x86_64__)
  return cpu_isa() == 2 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

namespace {

// w(o, i, y, x) of a convolution, or of its transpose: inputs and outputs exchanged, turned round.
struct Filter {
  const ConvArg& conv;
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

// raw_s, t of each gain in turn, to their place among the channels: all raw_s, then all t.
int alternating(int channel, int count) { return channel / 2 + channel % 2 * (count / 2); }

// Float to tf32, to nearest.
std::uint32_t tf32_bits(float x) { return (bits_of(x) + 0x1000u) & 0xffffe000u; }

Fragments pack_fragments(const Filter& w, bool alternate_in, bool alternate_out,
                         Precision precision, DeviceWords& words) {
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

// Columns of `weight` to rows.
std::vector<double> transpose(const std::vector<double>& weight, int n) {
  std::vector<double> t(weight.size());
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) t[std::size_t(j) * n + i] = weight[std::size_t(i) * n + j];
  return t;
}

// Gauss and Jordan, with the largest pivot of each column.
std::vector<double> inverse(std::vector<double> a, int n) {
  std::vector<double> inverse(a.size(), 0.0);
  const auto at = [n](std::vector<double>& m, int i) { return m.begin() + std::ptrdiff_t(i) * n; };
  for (int i = 0; i < n; ++i) at(inverse, i)[i] = 1;
  for (int column = 0; column < n; ++column) {
    int pivot = column;
    for (int i = column + 1; i < n; ++i)
      if (std::abs(at(a, i)[column]) > std::abs(at(a, pivot)[column])) pivot = i;
    const double size = at(a, pivot)[column];
    check(std::isfinite(size) && size != 0, "weight: expected a matrix that has an inverse");
    for (auto* m : {&a, &inverse}) {
      std::swap_ranges(at(*m, pivot), at(*m, pivot) + n, at(*m, column));
      for (int j = 0; j < n; ++j) at(*m, column)[j] /= size;
    }
    for (int i = 0; i < n; ++i) {
      const double factor = at(a, i)[column];
      if (i == column || factor == 0) continue;
      for (auto* m : {&a, &inverse})
        for (int j = 0; j < n; ++j) at(*m, i)[j] -= factor * at(*m, column)[j];
    }
  }
  return inverse;
}

// As mixing.h reads it.
std::vector<float> pack_mixing(const std::vector<double>& weight, int channels) {
  std::vector<float> p(std::size_t(mixed_groups(channels)) * channels * kMixedOutputs, 0.0f);
  for (int o = 0; o < channels; ++o)
    for (int c = 0; c < channels; ++c)
      p[(std::size_t(o / kMixedOutputs) * channels + c) * kMixedOutputs + o % kMixedOutputs] =
          float(weight[std::size_t(o) * channels + c]);
  return p;
}

}  // namespace

std::int64_t append(DeviceWords& words, const float* values, std::int64_t count) {
  const std::int64_t at = std::int64_t(words.size());
  for (std::int64_t i = 0; i < count; ++i) words.push_back(bits_of(values[i]));
  words.resize((words.size() + kBlock - 1) / kBlock * kBlock, 0u);
  return at;
}

FrozenConv freeze_for_device(const ConvArg& conv, Stage stage, Precision precision,
                             DeviceWords& words) {
  const bool last = stage == Stage::kLast;
  FrozenConv frozen;
  frozen.device_forward = pack_fragments({conv, false}, false, last, precision, words);
  frozen.device_backward = pack_fragments({conv, true}, last, false, precision, words);
  std::vector<float> bias(conv.outputs);
  for (int o = 0; o < conv.outputs; ++o)
    bias[o] = conv.bias[last ? alternating(o, conv.outputs) : o];
  frozen.device_bias = append(words, bias.data(), conv.outputs);
  return frozen;
}

FrozenConv freeze_for_cpu(const ConvArg& conv, Stage stage, int tile, bool bf16) {
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

FrozenMixing::FrozenMixing(const double* weight, int channels) {
  const std::vector<double> w(weight, weight + std::size_t(channels) * channels);
  const std::vector<double> back = inverse(w, channels);
  matrix[false][false] = pack_mixing(w, channels);
  matrix[false][true] = pack_mixing(transpose(w, channels), channels);
  matrix[true][false] = pack_mixing(back, channels);
  matrix[true][true] = pack_mixing(transpose(back, channels), channels);
}

void FrozenMixing::append_to(DeviceWords& words) {
  for (int decode = 0; decode < 2; ++decode)
    for (int gradient = 0; gradient < 2; ++gradient) {
      const std::vector<float>& m = matrix[decode][gradient];
      device_matrix[decode][gradient] = append(words, m.data(), std::int64_t(m.size()));
    }
}

}  // namespace flowinv
