// Stands in for the CUDA launchers when the build has none. Python refuses CUDA tensors first, so
// nobody should see these messages.
#include <stdexcept>

#define FI_EACH_OP(name, Params)                                             \
  namespace cuda {                                                           \
  void name(const Params&, const Execution&) {                               \
    throw std::runtime_error(#name ": flowinv_fast was built without CUDA"); \
  }                                                                          \
  }

#include "bindings/ops.h"
