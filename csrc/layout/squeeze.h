// Squeeze and unsqueeze of a multi-scale flow.
//
//     squeeze    out[b, 4c + 2i + j, h, w] = in[b, c, 2h + i, 2w + j]
//     unsqueeze  its inverse
//
// `squeezed` is [B, 4C, H, W], `plain` is [B, C, 2H, 2W]; either is input, with any batch stride.
#pragma once

#include "common/check.h"
#include "common/dtype.h"
#include "common/execution.h"
#include "common/macros.h"

namespace flowinv {

struct SqueezeParams {
  int element_size;  // bytes: 2, 4 or 8; values are only moved
  bool squeeze;
  std::int64_t batch, channels, height, width;  // of the squeezed tensor: C is channels / 4
  std::int64_t in_stride;
  const void* in;
  void* out;

  template <class Fields>
  void fields(Fields& f) {
    f.flag("to_squeezed", squeeze);
    f.size("batch", batch);
    f.size("channels", channels);
    f.size("height", height);
    f.size("width", width);
    f.require(channels % 4 == 0, "channels: expected a multiple of 4");
    f.images("x", in, in_stride, batch, product(channels, height, width));
    f.tensor("out", out, {batch, channels, height, width});
    element_size = static_cast<int>(size_of(f.storage()));
  }
};

// Moves element `index` of the output, whichever side that is.
template <class Word>
struct SqueezeBody {
  SqueezeParams p;

  FI_HD void operator()(std::int64_t index) const {
    const Word* in = static_cast<const Word*>(p.in);
    Word* out = static_cast<Word*>(p.out);
    const std::int64_t n = p.channels * p.height * p.width;
    const std::int64_t b = index / n;
    std::int64_t rest = index - b * n, from;
    if (p.squeeze) {
      const std::int64_t w = rest % p.width, h = rest / p.width % p.height;
      const std::int64_t k = rest / (p.width * p.height), c = k / 4, i = k / 2 % 2, j = k % 2;
      from = (c * 2 * p.height + 2 * h + i) * 2 * p.width + 2 * w + j;
    } else {
      const std::int64_t x = rest % (2 * p.width), y = rest / (2 * p.width) % (2 * p.height);
      const std::int64_t c = rest / (4 * p.width * p.height);
      from = ((4 * c + 2 * (y % 2) + x % 2) * p.height + y / 2) * p.width + x / 2;
    }
    out[index] = in[b * p.in_stride + from];
  }
};

template <class F>
void for_word(int element_size, F&& f) {
  switch (element_size) {
    case 2: return f(std::uint16_t{});
    case 4: return f(std::uint32_t{});
    case 8: return f(std::uint64_t{});
    default: throw std::invalid_argument("element size: expected 2, 4 or 8 bytes");
  }
}

FI_OP(squeeze, SqueezeParams)

}  // namespace flowinv
