// Known answers of Philox 4x32-10, as published with Random123 (kat_vectors).
#include <cstdio>

#include "common/philox.h"

int main() {
  using flowinv::PhiloxBlock;
  struct Known {
    PhiloxBlock counter;
    std::uint32_t key[2];
    PhiloxBlock answer;
  };
  const Known known[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{~0u, ~0u, ~0u, ~0u}}, {~0u, ~0u}, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       {0xa4093822, 0x299f31d0},
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  int failures = 0;
  for (const Known& k : known) {
    const PhiloxBlock got = flowinv::philox(k.counter, k.key[0], k.key[1]);
    for (int lane = 0; lane < 4; ++lane) {
      if (got.lane[lane] == k.answer.lane[lane]) continue;
      std::printf("lane %d: %08x, not %08x\n", lane, got.lane[lane], k.answer.lane[lane]);
      ++failures;
    }
  }
  return failures != 0;
}
