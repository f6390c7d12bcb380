// CPU loops of squeeze and unsqueeze: rows of pixel pairs.
#include "layout/squeeze.h"

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {

void squeeze(const SqueezeParams& p, const Execution& execution) {
  for_word(p.element_size, [&](auto word) {
    using Word = decltype(word);
    // A unit is one row of the plain tensor: it pairs with two rows of the squeezed one.
    const std::int64_t channels = p.channels / 4, rows = 2 * p.height,
                       n = p.channels * p.height * p.width;
    for_ranges(p.batch * channels * rows, 2 * p.width, execution.threads,
               [&](std::int64_t u, std::int64_t end) {
                 for (; u < end; ++u) {
                   const std::int64_t y = u % rows, c = u / rows % channels,
                                      b = u / rows / channels;
                   const std::int64_t plain = (c * rows + y) * 2 * p.width;
                   const std::int64_t even = ((4 * c + 2 * (y % 2)) * p.height + y / 2) * p.width;
                   const std::int64_t odd = even + p.height * p.width;
                   const Word* in = static_cast<const Word*>(p.in) + b * p.in_stride;
                   Word* out = static_cast<Word*>(p.out) + b * n;
                   if (p.squeeze) {
                     for (std::int64_t w = 0; w < p.width; ++w) {
                       out[even + w] = in[plain + 2 * w];
                       out[odd + w] = in[plain + 2 * w + 1];
                     }
                   } else {
                     for (std::int64_t w = 0; w < p.width; ++w) {
                       out[plain + 2 * w] = in[even + w];
                       out[plain + 2 * w + 1] = in[odd + w];
                     }
                   }
                 }
               });
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
