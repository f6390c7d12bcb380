// One way to refuse an argument in C++: an exception that Python sees as ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace flowinv {

inline void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace flowinv
