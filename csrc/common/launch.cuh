// Kernel launches: geometry, stream, device, and errors as exceptions. The shim of the tests
// supplies its own version of this file's functions.
#pragma once

#include <cstdint>

#ifdef FLOWINV_HOST_SHIM
#include "tests/host_shim.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common/place.h"

#define FI_SHARED(T, name, N) __shared__ T name[N]

namespace flowinv {

constexpr std::int64_t kMaxGridY = 65535;
constexpr std::int64_t kManyWarps = 8 * 132;  // 8 on each multiprocessor of an H200

inline void cuda_check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device current in our copy of the CUDA runtime, and puts the old one back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cuda_check(cudaGetDevice(&before_), "cudaGetDevice");
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

template <class... Formal, class... Actual>
void launch(const char* name, void (*kernel)(Formal...), dim3 grid, unsigned block,
            const Place& place, Actual... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  DeviceGuard guard(place.device);
  const auto stream = reinterpret_cast<cudaStream_t>(place.stream);
  // clang-format off: it would split the brackets
  kernel<<<grid, block, 0, stream>>>(arguments...);
  // clang-format on
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(name) + " with grid (" + std::to_string(grid.x) + ", " +
                             std::to_string(grid.y) + ", " + std::to_string(grid.z) + ") x " +
                             std::to_string(block) + ": " + cudaGetErrorString(error));
}

}  // namespace flowinv
#endif
