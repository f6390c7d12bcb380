// Kernel launches: geometry, stream, device, and errors as exceptions. With the file mma.cuh the only
// words of CUDA that are more than arithmetic; a build that puts other files of these names first in
// its include path (as the tests do) runs the kernels on something else.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/execution.h"

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
            const Execution& execution, Actual... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  DeviceGuard guard(execution.device);
  const auto stream = reinterpret_cast<cudaStream_t>(execution.stream);
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
