// The CUDA words as fibers on the CPU, so that tests run the kernels' own source without a GPU.
// Tests only; never part of a build that is installed.
//
// Every thread of a block is a fiber. Blocks, warps and lanes run in random order, and each goes
// on as far as it can: a warp may be a barrier ahead of all others, which is what a missing
// barrier needs to show. Shared memory is NaN at the start of every block. A barrier that part of
// the block reaches elsewhere or never, and a shuffle without all its lanes, are errors that name
// the line. Only the words that the kernels use exist; anything else fails to compile.
//
// It cannot see memory ordering inside a warp, launch limits, the device's own math functions,
// streams, graphs, or speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/execution.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)
#define __forceinline__ inline

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace flowinv {

// Small, so that tests walk past the end of a grid and take both sides of a choice by size.
constexpr std::int64_t kMaxGridY = 3;
constexpr std::int64_t kManyWarps = 2;

namespace shim {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 64 * 1024;

enum class Wait { kNone, kBarrier, kShuffle, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait;
  int line;  // where it waits
  unsigned char offered[24];  // what it hands to its next shuffle
  unsigned char exchanged[24];  // what it handed to the last one that took execution
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  unsigned size = 0, current = 0;
  dim3 thread_index, block_index, block_dim, grid_dim;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  std::mt19937_64 random{std::random_device{}()};
  std::vector<std::pair<void*, std::size_t>> shared;
};

inline Block& block() {
  static thread_local Block instance;
  return instance;
}

// One shared array: NaN at the start of every block (in integers, all bits set).
template <class T, int N>
struct Shared {
  T data[N];
  Shared() {
    std::memset(data, 0xff, sizeof data);
    block().shared.emplace_back(data, sizeof data);
  }
};

inline void wait(Wait why, int line) {
  Block& b = block();
  Fiber& self = *b.fibers[b.current];
  self.wait = why;
  self.line = line;
  swapcontext(&self.context, &b.scheduler);
}

inline void fiber_main() {
  Block& b = block();
  b.body(b.argument);
  wait(Wait::kDone, 0);
}

inline void resume(unsigned thread) {
  Block& b = block();
  b.current = thread;
  b.thread_index.x = thread;
  b.fibers[thread]->wait = Wait::kNone;
  swapcontext(&b.scheduler, &b.fibers[thread]->context);
}

inline std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), block().random);
  return order;
}

inline std::string where(const char* kernel, int line) {
  return std::string(kernel) + ": line " + std::to_string(line) + ": ";
}

// Runs a warp until every lane waits at a barrier or is done, serving its shuffles on the way.
inline void run_warp(const char* kernel, unsigned warp) {
  Block& b = block();
  const unsigned first = warp * kWarp, last = std::min(b.size, first + kWarp);
  for (;;) {
    for (const unsigned lane : shuffled(last - first))
      if (b.fibers[first + lane]->wait == Wait::kNone) resume(first + lane);
    const auto begin = b.fibers.begin() + first, end = b.fibers.begin() + last;
    const auto at = std::find_if(begin, end, [](auto& f) { return f->wait == Wait::kShuffle; });
    if (at == end) return;
    const int line = (*at)->line;
    if (last - first < kWarp ||
        !std::all_of(
            begin, end, [&](auto& f) { return f->wait == Wait::kShuffle && f->line == line; }))
      throw std::logic_error(where(kernel, line) + "shuffle without all lanes of the warp");
    for (auto f = begin; f != end; ++f) {
      std::memcpy((*f)->exchanged, (*f)->offered, sizeof(*f)->offered);
      (*f)->wait = Wait::kNone;
    }
  }
}

inline void run_block(const char* kernel) {
  Block& b = block();
  for (auto& [data, bytes] : b.shared) std::memset(data, 0xff, bytes);
  while (b.fibers.size() < b.size) b.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < b.size; ++i) {
    Fiber& f = *b.fibers[i];
    f.wait = Wait::kNone;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
  }
  for (;;) {
    for (const unsigned warp : shuffled((b.size + kWarp - 1) / kWarp)) run_warp(kernel, warp);
    const auto begin = b.fibers.begin(), end = b.fibers.begin() + b.size;
    const auto at = std::find_if(begin, end, [](auto& f) { return f->wait == Wait::kBarrier; });
    if (at == end) return;
    const int line = (*at)->line;
    if (!std::all_of(begin, end,
                     [&](auto& f) { return f->wait == Wait::kBarrier && f->line == line; }))
      throw std::logic_error(where(kernel, line) + "barrier that part of the block does not reach");
    for (auto f = begin; f != end; ++f) (*f)->wait = Wait::kNone;
  }
}

}  // namespace shim

template <class... Formal, class... Actual>
void launch(const char* name, void (*kernel)(Formal...), dim3 grid, unsigned threads,
            const Execution&, Actual... arguments) {
  shim::Block& b = shim::block();
  auto call = [&] { kernel(arguments...); };
  b.size = threads;
  b.block_dim = dim3(threads);
  b.grid_dim = grid;
  b.argument = &call;
  b.body = [](void* argument) { (*static_cast<decltype(call)*>(argument))(); };
  for (const unsigned index : shim::shuffled(grid.x * grid.y * grid.z)) {
    b.block_index = dim3(index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y));
    shim::run_block(name);
  }
}

}  // namespace flowinv

#define threadIdx (::flowinv::shim::block().thread_index)
#define blockIdx (::flowinv::shim::block().block_index)
#define blockDim (::flowinv::shim::block().block_dim)
#define gridDim (::flowinv::shim::block().grid_dim)

#define FI_SHARED(T, name, N)                     \
  static ::flowinv::shim::Shared<T, N> name##_at; \
  T* const name = name##_at.data

#define __syncthreads() ::flowinv::shim::wait(::flowinv::shim::Wait::kBarrier, __LINE__)

namespace flowinv {
namespace shim {

// Hands `mine` to the warp and waits for every lane to have done so.
template <class T>
void offer(const T& mine, int line) {
  static_assert(sizeof(T) <= sizeof(Fiber::offered), "more than a lane can offer");
  std::memcpy(block().fibers[block().current]->offered, &mine, sizeof mine);
  wait(Wait::kShuffle, line);
}

// What a lane of this warp handed over.
template <class T>
T taken(unsigned lane) {
  T value;
  const unsigned first = block().current / kWarp * kWarp;
  std::memcpy(&value, block().fibers[first + lane]->exchanged, sizeof value);
  return value;
}

inline float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// This lane's part of D += A B, given A[row][k] and B[k][column].
template <class A, class B>
void multiply(float (&d)[4], const A& a, const B& b) {
  const unsigned lane = block().current % kWarp;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 8; ++k) d[i] += a(row, k) * b(k, column);
  }
}

}  // namespace shim

inline std::uint32_t to_tf32(float x) {
  return x - x == 0 ? (shim::as_bits(x) + 0x1000u) & 0xffffe000u : shim::as_bits(x);
}

inline std::uint32_t to_bf16_pair(float lower, float upper) {
  const auto half = [](float x) {
    const std::uint32_t bits = shim::as_bits(x);
    return x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  return half(lower) | half(upper) << 16;
}

inline void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                     int line = __builtin_LINE()) {
  struct Lane {
    std::uint32_t a[4], b[2];
  };
  shim::offer(Lane{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, line);
  const auto of_a = [](unsigned row, unsigned k) {
    return shim::as_float(shim::taken<Lane>(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]);
  };
  const auto of_b = [](unsigned k, unsigned column) {
    return shim::as_float(shim::taken<Lane>(column * 4 + k % 4).b[k / 4]);
  };
  shim::multiply(d, of_a, of_b);
}

inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[2], std::uint32_t b,
                     int line = __builtin_LINE()) {
  struct Lane {
    std::uint32_t a[2], b;
  };
  shim::offer(Lane{{a[0], a[1]}, b}, line);
  const auto half = [](std::uint32_t pair, unsigned k) {
    return shim::as_float(k % 2 ? pair & 0xffff0000u : pair << 16);
  };
  const auto of_a = [&](unsigned row, unsigned k) {
    return half(shim::taken<Lane>(row % 8 * 4 + k / 2).a[row / 8], k);
  };
  const auto of_b = [&](unsigned k, unsigned column) {
    return half(shim::taken<Lane>(column * 4 + k / 2).b, k);
  };
  shim::multiply(d, of_a, of_b);
}

}  // namespace flowinv

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int line = __builtin_LINE()) {
  using namespace flowinv::shim;
  if (mask != 0xffffffffu) std::abort();  // a partial mask is not one of our words
  offer(value, line);
  return taken<T>((block().current % kWarp) ^ unsigned(lane_mask));
}
