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

// Where an element goes, as indices inside one image.
struct SqueezeMap {
  std::int64_t channels, height, width;  // of the squeezed image

  FI_HD std::int64_t count() const { return channels * height * width; }
  FI_HD std::int64_t plain_of(std::int64_t squeezed) const {
    const std::int64_t w = squeezed % width, h = squeezed / width % height;
    const std::int64_t k = squeezed / (width * height), c = k / 4, i = k / 2 % 2, j = k % 2;
    return (c * 2 * height + 2 * h + i) * 2 * width + 2 * w + j;
  }
  FI_HD std::int64_t squeezed_of(std::int64_t plain) const {
    const std::int64_t x = plain % (2 * width), y = plain / (2 * width) % (2 * height);
    const std::int64_t c = plain / (4 * width * height);
    return ((4 * c + 2 * (y % 2) + x % 2) * height + y / 2) * width + x / 2;
  }
  // The input element that output element `out` takes.
  FI_HD std::int64_t source(std::int64_t out, bool squeeze) const {
    return squeeze ? plain_of(out) : squeezed_of(out);
  }

  // Rows of the plain image, over all channels: each pairs with two rows of the squeezed one.
  FI_HD std::int64_t rows() const { return channels / 2 * height; }
  template <class Word>
  FI_HD void move_row(std::int64_t row, const Word* in, Word* out, bool squeeze) const {
    const std::int64_t plain = row * 2 * width;
    const std::int64_t even = squeezed_of(plain), odd = squeezed_of(plain + 1);
    if (squeeze) {
      for (std::int64_t w = 0; w < width; ++w) {
        out[even + w] = in[plain + 2 * w];
        out[odd + w] = in[plain + 2 * w + 1];
      }
    } else {
      for (std::int64_t w = 0; w < width; ++w) {
        out[plain + 2 * w] = in[even + w];
        out[plain + 2 * w + 1] = in[odd + w];
      }
    }
  }
};

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
    const SqueezeMap map{p.channels, p.height, p.width};
    const std::int64_t b = index / map.count(), i = index - b * map.count();
    static_cast<Word*>(p.out)[index] =
        static_cast<const Word*>(p.in)[b * p.in_stride + map.source(i, p.squeeze)];
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
