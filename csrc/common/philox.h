// Philox 4x32-10 (Salmon et al., SC 2011): counter-based random bits, identical on every device.
//
// Contract: element i of stream (seed, offset) is lane i % 4 of the block with the 128-bit counter
// offset + i / 4 (high 64 bits zero) and the 64-bit key seed.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "common/math.h"

namespace flowinv {

struct PhiloxBlock {
  std::uint32_t lane[4];
};

FI_HD PhiloxBlock philox(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
  FI_UNROLL
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t(0xD2511F53u) * counter.lane[0];
    const std::uint64_t b = std::uint64_t(0xCD9E8D57u) * counter.lane[2];
    counter = {{std::uint32_t(b >> 32) ^ counter.lane[1] ^ key0, std::uint32_t(b),
                std::uint32_t(a >> 32) ^ counter.lane[3] ^ key1, std::uint32_t(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Block number `index` of the stream.
FI_HD PhiloxBlock philox(std::uint64_t seed, std::uint64_t offset, std::uint64_t index) {
  const std::uint64_t counter = offset + index;
  return philox({{std::uint32_t(counter), std::uint32_t(counter >> 32), 0u, 0u}},
                std::uint32_t(seed), std::uint32_t(seed >> 32));
}

// Uniform on [0, 1) with 24 bits.
template <class A>
FI_HD A uniform_of(std::uint32_t bits) {
  return A(std::int32_t(bits >> 8)) * A(5.9604644775390625e-8);
}

// Two standard normal numbers from two lanes (Box-Muller; u in (0, 1], so |n| <= 5.77).
template <class A>
FI_HD void normals_of(std::uint32_t bits_u, std::uint32_t bits_v, A& first, A& second) {
  const A u = A(std::int32_t(bits_u >> 8) + 1) * A(5.9604644775390625e-8);
  const A r = math::sqrt(A(-2) * math::log(u));
  A c, s;
  math::cos_sin_turn(uniform_of<A>(bits_v), c, s);
  first = r * c;
  second = r * s;
}

}  // namespace flowinv
