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

#include "common/place.h"

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

constexpr std::int64_t kMaxGridY = 3;  // small, so that tests walk past the end of a grid

namespace shim {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 64 * 1024;

enum class Wait { kNone, kBarrier, kShuffle, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait;
  int line;  // where it waits
  unsigned char offered[8];  // what it hands to its next shuffle
  unsigned char exchanged[8];  // what it handed to the last one that took place
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
void launch(const char* name, void (*kernel)(Formal...), dim3 grid, unsigned threads, const Place&,
            Actual... arguments) {
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

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  using namespace flowinv::shim;
  if (mask != 0xffffffffu) std::abort();  // a partial mask is not one of our words
  Block& b = block();
  const unsigned self = b.current;
  std::memcpy(b.fibers[self]->offered, &value, sizeof value);
  wait(Wait::kShuffle, line);
  std::memcpy(&value, b.fibers[self ^ unsigned(lane_mask)]->exchanged, sizeof value);
  return value;
}
