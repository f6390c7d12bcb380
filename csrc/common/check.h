// Ways to refuse an argument in C++: exceptions that Python sees as ValueError.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace flowinv {

inline void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// Product of sizes; refuses negative ones and overflow.
inline std::int64_t product(std::initializer_list<std::int64_t> sizes) {
  std::int64_t total = 1;
  for (const std::int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(total, size, &total))
      throw std::invalid_argument("sizes: negative or too large");
  }
  return total;
}
template <class... Sizes>
std::int64_t product(Sizes... sizes) {
  return product({static_cast<std::int64_t>(sizes)...});
}

}  // namespace flowinv
