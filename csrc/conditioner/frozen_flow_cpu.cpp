// parallelism  a team of threads walks the network together, a barrier after each layer; a layer's
//              Winograd tiles, or runs of pixels, of a group of images are dealt out evenly
// memory       a group is as many images as keep its activations near 8 MB
// sums         fixed runs of pixels of an image, added in order: any thread count, any batch, the
//              same bits
#include "conditioner/frozen_flow.h"

#include <atomic>
#include <thread>

#include "common/parallel.h"
#include "conditioner/convolution_cpu.h"

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

  explicit Workspace(const FrozenFlow& flow) {
    int64_t seen_size = 0, map = 0, runs = 0, outputs = blocks_of(flow.hidden);
    for (const Level& level : flow.levels) {
      seen_size = std::max(seen_size, level.padded() * std::max(level.inputs, 2 * level.gains));
      map = std::max(map, level.padded() * blocks_of(flow.hidden) * kBlock);
      runs = std::max(runs, (int64_t(level.pixels[0].size()) + kRun - 1) / kRun);
      outputs = std::max<int64_t>(outputs, blocks_of(2 * level.gains));
    }
    int64_t at = 0;
    const auto place = [&](int64_t count) {
      const int64_t here = at;
      at += (count + kBlock - 1) / kBlock * kBlock;
      return here;
    };
    state = place(flow.n), other = place(flow.n), seen = place(seen_size);
    a = place(map), h = place(map), logdet = place(1), partials = place(runs);
    image = at;
    at = 0;
    winograd = place(winograd_scratch(flow.hidden));
    rows = place(kRun * outputs * kBlock + 4 * kRun);
    thread = at;
  }
};

class Worker {
 public:
  Worker(const FrozenFlowParams& p, const Workspace& space, float* memory, Barrier& barrier,
         int thread, int threads)
      : p_(p),
        flow_(*p.flow),
        space_(space),
        memory_(memory),
        barrier_(barrier),
        thread_(thread),
        threads_(threads) {}

  void run(int64_t first, int64_t images) {
    first_ = first;
    images_ = images;
    scratch_ = memory_ + images * space_.image + thread_ * space_.thread;
    const bool down = p_.decode == p_.backward;  // from the image to the latents
    down ? walk_down() : walk_up();
  }

 private:
  float* at(int64_t image, int64_t offset) { return memory_ + image * space_.image + offset; }
  char* saved(int64_t image) {
    return p_.saved ? p_.saved + (first_ + image) * flow_.saved_bytes : nullptr;
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

  // --- the walk over scales ----------------------------------------------------------------------

  // encode, or the gradient of decode: images in, latents out.
  void walk_down() {
    share(images_, [&](int64_t b) {
      const float* in = p_.in + (first_ + b) * flow_.n;
      float* state = at(b, space_.state);
      for (int64_t i = 0; i < flow_.n; ++i)
        state[i] =
            p_.backward ? in[i] * flow_.spread[i] : (in[i] - flow_.location[i]) / flow_.spread[i];
      *at(b, space_.logdet) = p_.backward ? p_.grad_logdet[first_ + b] : -float(flow_.log_spread);
    });
    int64_t left = flow_.n, next = 0;
    for (int l = 0; l < int(flow_.levels.size()); ++l) {
      const Level& level = flow_.levels[l];
      enter(level);
      for (; next < int64_t(flow_.couplings.size()) && flow_.couplings[next].level == l; ++next)
        coupling(flow_.couplings[next]);
      const bool last = l + 1 == int(flow_.levels.size());
      share(images_, [&](int64_t b) {
        float *state = at(b, space_.state), *out = p_.out + (first_ + b) * flow_.n + flow_.n - left;
        if (last) {
          std::copy_n(state, left, out);
        } else if (level.checkerboard) {
          squeeze(level, state, at(b, space_.other), true);
          std::copy_n(at(b, space_.other), left, state);
        } else {
          std::copy_n(state + left / 2, left / 2, out);
        }
        if (last && !p_.backward) p_.logdet[first_ + b] = *at(b, space_.logdet);
      });
      if (!last && !level.checkerboard) left /= 2;
    }
  }

  // decode, or the gradient of encode: latents in, images out.
  void walk_up() {
    int64_t left = flow_.n >> (flow_.scales - 1), next = flow_.couplings.size() - 1;
    share(images_, [&](int64_t b) {
      const float* in = p_.in + (first_ + b) * flow_.n;
      std::copy_n(in + flow_.n - left, left, at(b, space_.state));
      *at(b, space_.logdet) = p_.backward ? p_.grad_logdet[first_ + b] : float(flow_.log_spread);
    });
    for (int l = int(flow_.levels.size()) - 1; l >= 0; --l) {
      const Level& level = flow_.levels[l];
      if (!level.checkerboard) {
        share(images_, [&](int64_t b) {
          const float* in = p_.in + (first_ + b) * flow_.n + flow_.n - 2 * left;
          std::copy_n(in, left, at(b, space_.state) + left);
        });
        left *= 2;
      }
      enter(level);
      for (; next >= 0 && flow_.couplings[next].level == l; --next) coupling(flow_.couplings[next]);
      if (!level.checkerboard)
        share(images_, [&](int64_t b) {
          float *state = at(b, space_.state), *other = at(b, space_.other);
          squeeze(flow_.levels[l - 1], other, state, false);
          std::copy_n(other, left, state);
        });
    }
    share(images_, [&](int64_t b) {
      const float* state = at(b, space_.state);
      float* out = p_.out + (first_ + b) * flow_.n;
      for (int64_t i = 0; i < flow_.n; ++i)
        out[i] = p_.backward ? state[i] / flow_.spread[i]
                             : state[i] * flow_.spread[i] + flow_.location[i];
      if (!p_.backward) p_.logdet[first_ + b] = *at(b, space_.logdet);
    });
  }

  // Between `plain` of this level and `squeezed`, four times the channels at half the size.
  static void squeeze(const Level& level, float* plain, float* squeezed, bool forward) {
    const int h = level.height / 2, w = level.width / 2;
    for (int c = 0; c < level.channels; ++c)
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j)
          for (int y = 0; y < h; ++y)
            for (int x = 0; x < w; ++x) {
              float& of_plain =
                  plain[(int64_t(c) * level.height + 2 * y + i) * level.width + 2 * x + j];
              float& of_squeezed = squeezed[(int64_t(4 * c + 2 * i + j) * h + y) * w + x];
              forward ? of_squeezed = of_plain : of_plain = of_squeezed;
            }
  }

  // Clears the maps, whose borders stay zero while the level lasts.
  void enter(const Level& level) {
    const int64_t map = level.padded() * blocks_of(flow_.hidden) * kBlock;
    const int64_t seen = level.padded() * std::max(level.inputs, 2 * level.gains);
    share(images_, [&](int64_t b) {
      std::fill_n(at(b, space_.a), map, 0.0f);
      std::fill_n(at(b, space_.h), map, 0.0f);
      std::fill_n(at(b, space_.seen), seen, 0.0f);
    });
  }

  void coupling(const FrozenCoupling& c) {
    const Level& level = flow_.levels[c.level];
    p_.backward ? coupling_backward(c, level) : coupling_forward(c, level);
  }

  // --- a coupling --------------------------------------------------------------------------------

  Maps maps(const FrozenCoupling& c, const Level& level, int64_t in, int64_t out, int bit_map) {
    char* bits = saved(0);
    if (bits) {
      bits += c.saved_bits +
              int64_t(bit_map) * level.height * level.width * blocks_of(flow_.hidden) * 2;
    }
    return {memory_ + in, memory_ + out, space_.image, bits, flow_.saved_bytes};
  }

  void convolve(const Level& level, const Maps& maps, const PackedWeights& weights,
                const float* bias, bool add, bool rectify) {
    const int64_t tiles = images_ * level.tiles_high * level.tiles_wide;
    const int64_t first = tiles * thread_ / threads_, last = tiles * (thread_ + 1) / threads_;
    const int64_t parts = (last - first + kTilesAtOnce - 1) / kTilesAtOnce;
    const Epilogue epilogue{p_.backward, add, rectify, bias, nullptr};
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = first + (last - first) * part / parts;
      const int count = int(first + (last - first) * (part + 1) / parts - begin);
      const auto tiles_of_size = [&](auto size) {
        constexpr int kTile = decltype(size)::value;
        p_.backward ? winograd_tiles<kTile, false>(level, maps, weights, epilogue, begin, count,
                                                   scratch_ + space_.winograd)
                    : winograd_tiles<kTile, true>(level, maps, weights, epilogue, begin, count,
                                                  scratch_ + space_.winograd);
      };
      level.tile == 4 ? tiles_of_size(std::integral_constant<int, 4>{})
                      : tiles_of_size(std::integral_constant<int, 2>{});
    }
    barrier_.wait();
  }

  // First layer: out = direct convolution of `seen` at all pixels, with the epilogue.
  void open(const FrozenCoupling& c, const Level& level, const PackedWeights& weights,
            const float* bias, bool rectify, int bit_map) {
    const Maps to = maps(c, level, space_.seen, space_.h, bit_map);
    const int blocks = blocks_of(flow_.hidden);
    share_runs(level.pixels[0], [&](int64_t b, int64_t, const int* pixels, int count) {
      float* rows = scratch_ + space_.rows;
      widen(at(b, space_.seen), level, pixels, count, weights, rows);
      std::uint16_t* bits =
          to.bits ? reinterpret_cast<std::uint16_t*>(to.bits + b * to.bit_stride) : nullptr;
      const Epilogue finish{p_.backward, false, rectify, bias, bits};
      for (int r = 0; r < count; ++r)
        for (int k = 0; k < blocks; ++k) {
          const Block sum = load_vector<Block>(rows + (r * blocks + k) * kBlock);
          finish(sum, at(b, space_.h) + place(level, pixels[r]) * blocks * kBlock + k * kBlock,
                 int64_t(pixels[r]) * blocks + k, k * kBlock);
        }
    });
  }

  static int64_t place(const Level& level, int pixel) {
    return int64_t(pixel / level.width + 1) * level.padded_wide + pixel % level.width + 1;
  }

  void coupling_forward(const FrozenCoupling& c, const Level& level) {
    const int64_t plane = int64_t(level.height) * level.width;
    const std::vector<int>&seen = level.pixels[c.untouched()],
          &moved = level.pixels[c.transformed()];
    const int seen_first = c.mask == Mask::kChannelFirst ? level.gains : 0;
    const int moved_first = c.mask == Mask::kChannelSecond ? level.gains : 0;
    share(images_, [&](int64_t b) {
      float *to = at(b, space_.seen), *state = at(b, space_.state);
      if (level.checkerboard) std::fill_n(to, level.padded() * level.inputs, 0.0f);
      for (const int pixel : seen)
        for (int i = 0; i < level.inputs; ++i)
          to[place(level, pixel) * level.inputs + i] = state[(seen_first + i) * plane + pixel];
    });
    // What the last layer reads is rectified as it is written.
    open(c, level, c.first.forward, c.first.bias.data(), flow_.blocks == 0, 0);
    for (int i = 0; i < flow_.blocks; ++i) {
      const FrozenConv &before = c.hidden[2 * i], &after = c.hidden[2 * i + 1];
      convolve(level, maps(c, level, space_.h, space_.a, 2 * i + 1), before.forward,
               before.bias.data(), false, false);
      convolve(level, maps(c, level, space_.a, space_.h, 2 * i + 2), after.forward,
               after.bias.data(), true, i + 1 == flow_.blocks);
    }
    const int ld = c.last.forward.outputs;
    const int64_t values = moved.size();
    share_runs(moved, [&](int64_t b, int64_t run, const int* pixels, int count) {
      float* rows = scratch_ + space_.rows;
      float *raw = rows + int64_t(kRun) * ld, *shift = raw + kRun, *in = shift + kRun;
      narrow(at(b, space_.h), level, pixels, count, c.last.forward, rows);
      float total = 0;
      for (int g = 0; g < level.gains; ++g) {
        float* state = at(b, space_.state) + (moved_first + g) * plane;
        for (int r = 0; r < count; ++r) {
          raw[r] = rows[r * ld + g] + c.last.bias[g];
          shift[r] = rows[r * ld + level.gains + g] + c.last.bias[level.gains + g];
          in[r] = state[pixels[r]];
        }
        float sum = 0;
        const float gain = c.gain[g];
#pragma omp simd reduction(+ : sum)
        for (int r = 0; r < count; ++r) {
          const Affine<float> affine(raw[r], gain, p_.decode);
          const float x = in[r];
          const float y = p_.decode ? affine.decode(x, shift[r]) : affine.encode(x, shift[r]);
          sum += affine.s;
          raw[r] = affine.s;
          shift[r] = p_.decode ? y : x;
          in[r] = y;
        }
        for (int r = 0; r < count; ++r) state[pixels[r]] = in[r];
        if (p_.saved) {
          float* s = reinterpret_cast<float*>(saved(b) + c.saved_values) + g * values + run * kRun;
          std::copy_n(raw, count, s);
          std::copy_n(shift, count, s + level.gains * values);
        }
        total += sum;
      }
      at(b, space_.partials)[run] = p_.decode ? -total : total;
    });
    const int64_t runs = (values + kRun - 1) / kRun;
    share(images_, [&](int64_t b) {
      float sum = 0;
      for (int64_t run = 0; run < runs; ++run) sum += at(b, space_.partials)[run];
      *at(b, space_.logdet) += sum;
    });
  }

  void coupling_backward(const FrozenCoupling& c, const Level& level) {
    const int64_t plane = int64_t(level.height) * level.width;
    const std::vector<int>&seen = level.pixels[c.untouched()],
          &moved = level.pixels[c.transformed()];
    const int seen_first = c.mask == Mask::kChannelFirst ? level.gains : 0;
    const int moved_first = c.mask == Mask::kChannelSecond ? level.gains : 0;
    const int64_t values = moved.size();
    const int outputs = 2 * level.gains;
    share(images_, [&](int64_t b) {
      float *to = at(b, space_.seen), grad_logdet = *at(b, space_.logdet);
      if (level.checkerboard) std::fill_n(to, level.padded() * outputs, 0.0f);
      for (int g = 0; g < level.gains; ++g) {
        float* grad = at(b, space_.state) + (moved_first + g) * plane;
        const float* s = reinterpret_cast<float*>(saved(b) + c.saved_values) + g * values;
        const float* value = s + level.gains * values;
        for (int64_t i = 0; i < values; ++i) {
          const auto affine = Affine<float>::of_saved(s[i], c.gain[g], p_.decode);
          float& here = grad[moved[i]];
          const auto d = p_.decode ? affine.decode_grad(here, grad_logdet, value[i])
                                   : affine.encode_grad(here, grad_logdet, value[i]);
          float* raw = to + place(level, moved[i]) * outputs;
          raw[g] = affine.raw_scale_grad(d.log_scale, c.gain[g]);
          raw[level.gains + g] = d.shift;
          here = d.in;
        }
      }
    });
    open(c, level, c.last.backward, nullptr, false, 2 * flow_.blocks);
    for (int i = flow_.blocks - 1; i >= 0; --i) {
      convolve(level, maps(c, level, space_.h, space_.a, 2 * i + 1), c.hidden[2 * i + 1].backward,
               nullptr, false, false);
      convolve(level, maps(c, level, space_.a, space_.h, 2 * i), c.hidden[2 * i].backward, nullptr,
               true, false);
    }
    const int ld = c.first.backward.outputs;
    share_runs(seen, [&](int64_t b, int64_t, const int* pixels, int count) {
      float* rows = scratch_ + space_.rows;
      narrow(at(b, space_.h), level, pixels, count, c.first.backward, rows);
      float* grad = at(b, space_.state);
      for (int r = 0; r < count; ++r)
        for (int i = 0; i < level.inputs; ++i)
          grad[(seen_first + i) * plane + pixels[r]] += rows[r * ld + i];
    });
  }

  const FrozenFlowParams& p_;
  const FrozenFlow& flow_;
  const Workspace& space_;
  float* const memory_;
  Barrier& barrier_;
  const int thread_, threads_;
  int64_t first_ = 0, images_ = 0;
  float* scratch_ = nullptr;
};

}  // namespace

void frozen_flow(const FrozenFlowParams& p, const Execution& place) {
  if (p.batch == 0) return;
  const FrozenFlow& flow = *p.flow;
  const Workspace space(flow);
  const int threads = place.threads;
  const int64_t per_thread = std::max<int64_t>(1, (int64_t(8) << 20) / (4 * space.image) / threads);
  const int64_t group = std::min<int64_t>(p.batch, per_thread * threads);
  const int64_t bytes = 4 * (group * space.image + threads * space.thread);
  AlignedArray<char> memory = flow.take(bytes);
  Barrier barrier(threads);
  const auto work = [&](int64_t thread) {
    Worker worker(p, space, reinterpret_cast<float*>(memory.get()), barrier, int(thread), threads);
    for (int64_t first = 0; first < p.batch; first += group)
      worker.run(first, std::min(group, p.batch - first));
  };
  parallel_for(threads, threads, work);
  flow.give(std::move(memory), bytes);
}

}  // namespace FI_ISA
}  // namespace flowinv
