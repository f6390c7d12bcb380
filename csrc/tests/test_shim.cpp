// The shim's own test: a right kernel gives the right sum under every schedule, and each planted
// bug is found. Exits with 1 and a line per surprise.
#include <cstdio>
#include <functional>
#include <limits>

#include "common/macros.h"
#include "common/reduce.cuh"

using flowinv::block_sum;
using flowinv::Execution;
using flowinv::launch;

namespace {

constexpr unsigned kThreads = 256;
constexpr int kBlocks = 3, kN = kBlocks * kThreads - 37;

__global__ void right(const float* in, float* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const float total = block_sum<kThreads>(i < kN ? in[i] : 0.0f);
  const float again = block_sum<kThreads>(2 * (i < kN ? in[i] : 0.0f));  // reuses shared memory
  if (threadIdx.x == 0) out[blockIdx.x] = total + again;
}

// block_sum with one of its barriers missing, or a tail that is not masked.
template <bool kFirst, bool kSecond, bool kTail>
__global__ void broken(const float* in, float* out) {
  FI_SHARED(float, warps, kThreads / 32);
  const int i = blockIdx.x * kThreads + threadIdx.x;
  float result = 0;
  for (int pass = 1; pass <= 2; ++pass) {
    const float value = flowinv::warp_sum(pass * (kTail || i < kN ? in[i] : 0.0f));
    if (kFirst) __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    if (kSecond) __syncthreads();
    if (threadIdx.x == 0)
      for (unsigned w = 0; w < kThreads / 32; ++w) result += warps[w];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = result;
}

__global__ void early_return(const float* in, float* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= kN) return;
  const float total = block_sum<kThreads>(3 * in[i]);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

__global__ void divergent_barrier(const float* in, float* out) {
  if (threadIdx.x < 128)
    __syncthreads();
  else
    __syncthreads();
  right(in, out);
}

__global__ void wrong_lane(const float* in, float* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  float value = 3 * (i < kN ? in[i] : 0.0f);
  for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  FI_SHARED(float, warps, kThreads / 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
  for (unsigned w = 0; w < kThreads / 32; ++w) total += warps[w];
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

__global__ void shuffle_in_branch(const float* in, float* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  float value = i < kN ? in[i] : 0.0f;
  if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(0xffffffffu, value, 1);
  out[blockIdx.x] = value;
}

// Whether any of 20 random schedules gives a wrong sum or an error.
bool found(void (*kernel)(const float*, float*)) {
  std::vector<float> in(kBlocks * kThreads, std::numeric_limits<float>::quiet_NaN());
  for (int i = 0; i < kN; ++i) in[i] = float(i % 7 - 3);
  for (int trial = 0; trial < 20; ++trial) {
    float out[kBlocks];
    try {
      launch("kernel", kernel, dim3(kBlocks), kThreads, Execution{}, in.data(), out);
    } catch (const std::logic_error&) {
      return true;
    }
    for (int block = 0; block < kBlocks; ++block) {
      float want = 0;
      for (int i = block * int(kThreads); i < std::min(kN, (block + 1) * int(kThreads)); ++i)
        want += 3 * in[i];
      if (!(out[block] == want)) return true;
    }
  }
  return false;
}

}  // namespace

int main() {
  struct Trial {
    const char* name;
    void (*kernel)(const float*, float*);
    bool bug;
  };
  const Trial trials[] = {
      {"right", right, false},
      {"right, written out", broken<true, true, false>, false},
      {"no barrier before shared memory is reused", broken<false, true, false>, true},
      {"no barrier between write and read", broken<true, false, false>, true},
      {"tail not masked", broken<true, true, true>, true},
      {"early return above a barrier", early_return, true},
      {"barriers in two branches", divergent_barrier, true},
      {"shuffle over half of the warp", wrong_lane, true},
      {"shuffle in a branch", shuffle_in_branch, true},
  };
  int surprises = 0;
  for (const Trial& t : trials) {
    if (found(t.kernel) == t.bug) continue;
    std::printf("%s: %s\n", t.name, t.bug ? "not found" : "wrongly reported");
    ++surprises;
  }
  return surprises != 0;
}
