// CPU engine of a frozen flow.
//
// parallelism  a team of threads walks the network together, a barrier after each layer; a layer's
//              Winograd tiles, or runs of pixels, of a group of images are dealt out evenly
// memory       a group is as many images as keep its activations near 8 MB
// sums         fixed runs of pixels of an image, added in order: any thread count, any batch, the
//              same bits
#include "frozen_flow/frozen_flow.h"

#include <array>
#include <atomic>
#include <thread>
#include <utility>

#include "common/parallel.h"
#include "frozen_flow/convolution_cpu.h"
#include "frozen_flow/mixing.h"
#include "frozen_flow/standardise.h"
#include "frozen_flow/walk.h"

namespace flowinv {
namespace FI_ISA {
namespace {

constexpr int kRun = 48;  // pixels of a run

// Threads that wait for each other; spinning first, since layers are short.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    if (count_ == 1) return;
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
      if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
      else
        _mm_pause();
#endif
    }
  }

 private:
  const int count_;
  std::atomic<int> arrived_{0}, turn_{0};
};

// Where things lie in a group's workspace; all offsets in floats.
struct Workspace {
  int64_t state, other, seen, a, h, logdet, partials, image;  // of an image, and its whole size
  int64_t thread;  // scratch of a thread
  int64_t winograd, rows;  // in that scratch

  explicit Workspace(const Plan& plan) {
    int64_t seen_size = 0, map = 0, runs = 0, outputs = 1, hidden = 0, channels = 0;
    for (const CouplingLayer& c : plan.couplings) {
      const Resolution& r = plan.resolutions[c.resolution];
      seen_size = std::max(seen_size, r.padded() * std::max(c.inputs, 2 * c.gains));
      map = std::max(map, r.padded() * c.hidden_channels());
      runs = std::max(runs, (int64_t(r.plane()) + kRun - 1) / kRun);
      outputs = std::max<int64_t>(outputs, blocks_of(std::max(c.hidden, 2 * c.gains)));
      hidden = std::max<int64_t>(hidden, c.hidden);
    }
    for (const MixingLayer& m : plan.mixings) channels = std::max<int64_t>(channels, m.channels);
    int64_t at = 0;
    const auto place = [&](int64_t count) {
      const int64_t here = at;
      at += (count + kBlock - 1) / kBlock * kBlock;
      return here;
    };
    state = place(plan.n), other = place(plan.n), seen = place(seen_size);
    a = place(map), h = place(map), logdet = place(1), partials = place(runs);
    image = at;
    at = 0;
    winograd = place(winograd_scratch(int(hidden)));
    rows = place(std::max(kRun * outputs * kBlock + 4 * kRun, channels * kRun));
    thread = at;
  }
};

// One thread of the team; all of them make the same calls.
class Engine {
 public:
  Engine(const FrozenFlowParams& p, const Workspace& space, float* memory, Barrier& barrier,
         int thread, int threads)
      : p_(p),
        plan_(*p.plan),
        space_(space),
        memory_(memory),
        barrier_(barrier),
        thread_(thread),
        threads_(threads) {}

  void run(int64_t first, int64_t images) {
    first_ = first;
    images_ = images;
    scratch_ = memory_ + images * space_.image + thread_ * space_.thread;
    layout_ = {};
    share(images_, [&](int64_t b) {
      *at(b, space_.logdet) = p_.backward ? p_.grad_logdet[first_ + b] : p_.constant();
    });
    p_.down() ? walk<true>(plan_, *this) : walk<false>(plan_, *this);
    if (p_.backward) return;
    share(images_, [&](int64_t b) {
      p_.logdet[first_ + b] = *at(b, space_.logdet);
      if (p_.saved) std::fill(saved(b) + plan_.used_bytes, saved(b) + plan_.saved_bytes, char(0));
    });
  }

  // --- what walk.h asks for ----------------------------------------------------------------------

  void take(int64_t from, int64_t to, int64_t count) {
    share(images_, [&](int64_t b) {
      std::copy_n(p_.in + (first_ + b) * plan_.n + from, count, at(b, space_.state) + to);
    });
  }

  void put(int64_t from, int64_t to, int64_t count) {
    share(images_, [&](int64_t b) {
      std::copy_n(at(b, space_.state) + from, count, p_.out + (first_ + b) * plan_.n + to);
    });
  }

  template <bool kDown>
  void standardise(const StandardiseLayer& layer) {
    using S = Standardised<kDown>;
    const float *mean = layer.mean.data(), *std = layer.std.data();
    share(images_, [&](int64_t b) {
      float* state = at(b, space_.state);
      const int64_t count = layer.std.size();
      if (p_.backward)
        for (int64_t i = 0; i < count; ++i) state[i] = S::gradient(state[i], std[i]);
      else
        for (int64_t i = 0; i < count; ++i) state[i] = S::value(state[i], mean[i], std[i]);
    });
  }

  void squeeze(const SqueezeMap& map, bool down) {
    share(images_, [&](int64_t b) {
      float *state = at(b, space_.state), *other = at(b, space_.other);
      for (int64_t row = 0; row < map.rows(); ++row) map.move_row(row, state, other, down);
      std::copy_n(other, map.count(), state);
    });
  }

  // A run of pixels at a time, copied first, since its outputs take the place of its inputs.
  void mix(const MixingLayer& layer) {
    const float* matrix = layer.weights.matrix[p_.decode][p_.backward].data();
    const int64_t runs = (layer.plane + kRun - 1) / kRun;
    share(images_ * runs, [&](int64_t i) {
      const int64_t first = i % runs * kRun, count = std::min<int64_t>(kRun, layer.plane - first);
      float *state = at(i / runs, space_.state) + first, *copy = scratch_ + space_.rows;
      for (int c = 0; c < layer.channels; ++c)
        std::fill_n(std::copy_n(state + int64_t(c) * layer.plane, count, copy + c * kRun),
                    kRun - count, 0.0f);
      for (int64_t block = 0; block < count; block += kBlock)
        for (int group = 0; group < mixed_groups(layer.channels); ++group) {
          const MixedChannels<Block> mixed(matrix, layer.channels, group, [&](int c) {
            return load_vector<Block>(copy + c * kRun + block);
          });
          const int64_t width = std::min<int64_t>(kBlock, count - block);
          const int outputs = std::min(kMixedOutputs, layer.channels - group * kMixedOutputs);
          for (int k = 0; k < outputs; ++k) {
            float* to = state + int64_t(group * kMixedOutputs + k) * layer.plane + block;
            if (width == kBlock)
              store_vector(to, mixed.outputs[k]);
            else
              std::memcpy(to, &mixed.outputs[k], 4 * width);
          }
        }
    });
  }

  void couple(const CouplingLayer& c) {
    const Resolution& resolution = plan_.resolutions[c.resolution];
    lay_out(c, resolution);
    decode_ = c.decodes(p_.decode);
    p_.backward ? coupling_backward(c, resolution) : coupling_forward(c, resolution);
  }

 private:
  float* at(int64_t image, int64_t offset) { return memory_ + image * space_.image + offset; }
  char* saved(int64_t image) {
    return p_.saved ? p_.saved + (first_ + image) * plan_.saved_bytes : nullptr;
  }

  // f(i) for this thread's share of 0..count-1, then the barrier.
  template <class F>
  void share(int64_t count, const F& f) {
    for (int64_t i = count * thread_ / threads_; i < count * (thread_ + 1) / threads_; ++i) f(i);
    barrier_.wait();
  }
  template <class F>
  void share_runs(const std::vector<int>& pixels, const F& f) {
    const int64_t size = pixels.size(), runs = (size + kRun - 1) / kRun;
    share(images_ * runs, [&](int64_t i) {
      const int64_t run = i % runs;
      f(i / runs, run, pixels.data() + run * kRun, int(std::min<int64_t>(kRun, size - run * kRun)));
    });
  }

  // Clears the maps where their layout changes; their borders stay zero as long as it lasts.
  void lay_out(const CouplingLayer& c, const Resolution& resolution) {
    const std::array<int, 3> layout{c.resolution, c.gains, c.hidden};
    if (std::exchange(layout_, layout) == layout) return;
    const int64_t map = resolution.padded() * c.hidden_channels();
    const int64_t seen = resolution.padded() * std::max(c.inputs, 2 * c.gains);
    share(images_, [&](int64_t b) {
      std::fill_n(at(b, space_.a), map, 0.0f);
      std::fill_n(at(b, space_.h), map, 0.0f);
      std::fill_n(at(b, space_.seen), seen, 0.0f);
    });
  }

  // --- a coupling --------------------------------------------------------------------------------

  Maps maps(const CouplingLayer& c, const Resolution& resolution, int64_t in, int64_t out,
            int bit_map) {
    char* bits = saved(0);
    if (bits) {
      bits += c.saved_bits + 2 * bit_map * c.bit_words(resolution);
    }
    return {memory_ + in, memory_ + out, space_.image, bits, plan_.saved_bytes};
  }

  void convolve(const Resolution& resolution, const Maps& maps, const PackedWeights& weights,
                const float* bias, bool add, bool rectify) {
    const int64_t tiles = images_ * resolution.tiles_high * resolution.tiles_wide;
    const int64_t first = tiles * thread_ / threads_, last = tiles * (thread_ + 1) / threads_;
    const int64_t parts = (last - first + kTilesAtOnce - 1) / kTilesAtOnce;
    const Epilogue epilogue{p_.backward, add, rectify, bias, nullptr};
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = first + (last - first) * part / parts;
      const int count = int(first + (last - first) * (part + 1) / parts - begin);
      const auto tiles_of_size = [&](auto size) {
        constexpr int kTile = decltype(size)::value;
        p_.backward ? winograd_tiles<kTile, false>(resolution, maps, weights, epilogue, begin,
                                                   count, scratch_ + space_.winograd)
                    : winograd_tiles<kTile, true>(resolution, maps, weights, epilogue, begin, count,
                                                  scratch_ + space_.winograd);
      };
      resolution.tile == 4 ? tiles_of_size(std::integral_constant<int, 4>{})
                           : tiles_of_size(std::integral_constant<int, 2>{});
    }
    barrier_.wait();
  }

  // First layer: out = direct convolution of `seen` at all pixels, with the epilogue.
  void open(const CouplingLayer& c, const Resolution& resolution, const PackedWeights& weights,
            const float* bias, bool rectify, int bit_map) {
    const Maps to = maps(c, resolution, space_.seen, space_.h, bit_map);
    const int blocks = blocks_of(c.hidden);
    share_runs(resolution.pixels[0], [&](int64_t b, int64_t, const int* pixels, int count) {
      float* rows = scratch_ + space_.rows;
      widen(at(b, space_.seen), resolution, pixels, count, weights, rows);
      std::uint16_t* bits =
          to.bits ? reinterpret_cast<std::uint16_t*>(to.bits + b * to.bit_stride) : nullptr;
      const Epilogue finish{p_.backward, false, rectify, bias, bits};
      for (int r = 0; r < count; ++r)
        for (int k = 0; k < blocks; ++k) {
          const Block sum = load_vector<Block>(rows + (r * blocks + k) * kBlock);
          finish(sum, at(b, space_.h) + place(resolution, pixels[r]) * blocks * kBlock + k * kBlock,
                 int64_t(pixels[r]) * blocks + k, k * kBlock);
        }
    });
  }

  static int64_t place(const Resolution& resolution, int pixel) {
    return int64_t(pixel / resolution.width + 1) * resolution.padded_wide +
           pixel % resolution.width + 1;
  }

  void coupling_forward(const CouplingLayer& c, const Resolution& resolution) {
    const int64_t plane = resolution.plane();
    share(images_, [&](int64_t b) {
      float *to = at(b, space_.seen), *state = at(b, space_.state);
      if (c.checkerboard()) std::fill_n(to, resolution.padded() * c.inputs, 0.0f);
      for (const int pixel : resolution.pixels[c.seen()])
        for (int i = 0; i < c.inputs; ++i)
          to[place(resolution, pixel) * c.inputs + i] =
              state[(c.seen_channel() + i) * plane + pixel];
    });
    // What the last layer reads is rectified as it is written.
    open(c, resolution, c.first.forward, c.first.bias.data(), c.blocks == 0, 0);
    for (int i = 0; i < c.blocks; ++i) {
      const FrozenConv &before = c.between[2 * i], &after = c.between[2 * i + 1];
      convolve(resolution, maps(c, resolution, space_.h, space_.a, 2 * i + 1), before.forward,
               before.bias.data(), false, false);
      convolve(resolution, maps(c, resolution, space_.a, space_.h, 2 * i + 2), after.forward,
               after.bias.data(), true, i + 1 == c.blocks);
    }
    transform(c, resolution);
  }

  // The last convolution and the affine map of what is transformed, in place.
  void transform(const CouplingLayer& c, const Resolution& resolution) {
    const int64_t plane = resolution.plane();
    const std::vector<int>& moved = resolution.pixels[c.moved()];
    const int ld = c.last.forward.outputs;
    const int64_t values = moved.size();
    share_runs(moved, [&](int64_t b, int64_t run, const int* pixels, int count) {
      float* rows = scratch_ + space_.rows;
      float *raw = rows + int64_t(kRun) * ld, *shift = raw + kRun, *in = shift + kRun;
      narrow(at(b, space_.h), resolution, pixels, count, c.last.forward, rows);
      float total = 0;
      for (int g = 0; g < c.gains; ++g) {
        float* state = at(b, space_.state) + (c.moved_channel() + g) * plane;
        for (int r = 0; r < count; ++r) {
          raw[r] = rows[r * ld + g] + c.last.bias[g];
          shift[r] = rows[r * ld + c.gains + g] + c.last.bias[c.gains + g];
          in[r] = state[pixels[r]];
        }
        float sum = 0;
        const float gain = c.gain[g];
#pragma omp simd reduction(+ : sum)
        for (int r = 0; r < count; ++r) {
          const Affine<float> affine(raw[r], gain, decode_);
          const float x = in[r];
          const float y = decode_ ? affine.decode(x, shift[r]) : affine.encode(x, shift[r]);
          sum += affine.s;
          raw[r] = affine.s;
          shift[r] = decode_ ? y : x;
          in[r] = y;
        }
        for (int r = 0; r < count; ++r) state[pixels[r]] = in[r];
        if (p_.saved) {
          float* s = reinterpret_cast<float*>(saved(b) + c.saved_values) + g * values + run * kRun;
          std::copy_n(raw, count, s);
          std::copy_n(shift, count, s + c.gains * values);
        }
        total += sum;
      }
      at(b, space_.partials)[run] = decode_ ? -total : total;
    });
    const int64_t runs = (values + kRun - 1) / kRun;
    share(images_, [&](int64_t b) {
      float sum = 0;
      for (int64_t run = 0; run < runs; ++run) sum += at(b, space_.partials)[run];
      *at(b, space_.logdet) += sum;
    });
  }

  void coupling_backward(const CouplingLayer& c, const Resolution& resolution) {
    const int64_t plane = resolution.plane();
    const std::vector<int>& moved = resolution.pixels[c.moved()];
    const int64_t values = moved.size();
    const int outputs = 2 * c.gains;
    share(images_, [&](int64_t b) {
      float *to = at(b, space_.seen), grad_logdet = *at(b, space_.logdet);
      if (c.checkerboard()) std::fill_n(to, resolution.padded() * outputs, 0.0f);
      for (int g = 0; g < c.gains; ++g) {
        float* grad = at(b, space_.state) + (c.moved_channel() + g) * plane;
        const float* s = reinterpret_cast<float*>(saved(b) + c.saved_values) + g * values;
        const float* value = s + c.gains * values;
        for (int64_t i = 0; i < values; ++i) {
          const auto affine = Affine<float>::of_saved(s[i], c.gain[g], decode_);
          float& here = grad[moved[i]];
          const auto d = decode_ ? affine.decode_grad(here, grad_logdet, value[i])
                                 : affine.encode_grad(here, grad_logdet, value[i]);
          float* raw = to + place(resolution, moved[i]) * outputs;
          raw[g] = affine.raw_scale_grad(d.log_scale, c.gain[g]);
          raw[c.gains + g] = d.shift;
          here = d.in;
        }
      }
    });
    open(c, resolution, c.last.backward, nullptr, false, 2 * c.blocks);
    for (int i = c.blocks - 1; i >= 0; --i) {
      convolve(resolution, maps(c, resolution, space_.h, space_.a, 2 * i + 1),
               c.between[2 * i + 1].backward, nullptr, false, false);
      convolve(resolution, maps(c, resolution, space_.a, space_.h, 2 * i),
               c.between[2 * i].backward, nullptr, true, false);
    }
    const int ld = c.first.backward.outputs;
    share_runs(resolution.pixels[c.seen()], [&](int64_t b, int64_t, const int* pixels, int count) {
      float* rows = scratch_ + space_.rows;
      narrow(at(b, space_.h), resolution, pixels, count, c.first.backward, rows);
      float* grad = at(b, space_.state);
      for (int r = 0; r < count; ++r)
        for (int i = 0; i < c.inputs; ++i)
          grad[(c.seen_channel() + i) * plane + pixels[r]] += rows[r * ld + i];
    });
  }

  const FrozenFlowParams& p_;
  const Plan& plan_;
  const Workspace& space_;
  float* const memory_;
  Barrier& barrier_;
  const int thread_, threads_;
  int64_t first_ = 0, images_ = 0;
  float* scratch_ = nullptr;
  bool decode_ = false;  // the formula of the coupling that runs
  std::array<int, 3>
      layout_{};  // of the maps: resolution, gains, hidden channels; no gains at first
};

}  // namespace

void frozen_flow(const FrozenFlowParams& p, const Execution& execution) {
  if (p.batch == 0) return;
  const Workspace space(*p.plan);
  const int threads = execution.threads;
  const int64_t per_thread = std::max<int64_t>(1, (int64_t(8) << 20) / (4 * space.image) / threads);
  const int64_t group = std::min<int64_t>(p.batch, per_thread * threads);
  const int64_t bytes = 4 * (group * space.image + threads * space.thread);
  AlignedArray<char> memory = p.spare->take(bytes);
  Barrier barrier(threads);
  const auto work = [&](int64_t thread) {
    Engine engine(p, space, reinterpret_cast<float*>(memory.get()), barrier, int(thread), threads);
    for (int64_t first = 0; first < p.batch; first += group)
      engine.run(first, std::min(group, p.batch - first));
  };
  parallel_for(threads, threads, work);
  p.spare->give(std::move(memory), bytes);
}

}  // namespace FI_ISA
}  // namespace flowinv
