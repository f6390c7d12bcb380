// CPU loops of squeeze and unsqueeze: rows of pixel pairs.
#include "layout/squeeze.h"

#include "common/image_reduce.h"

namespace flowinv {
namespace FI_ISA {

void squeeze(const SqueezeParams& p, const Execution& execution) {
  for_word(p.element_size, [&](auto word) {
    using Word = decltype(word);
    const SqueezeMap map{p.channels, p.height, p.width};
    for_ranges(p.batch * map.rows(), 2 * p.width, execution.threads,
               [&](std::int64_t unit, std::int64_t end) {
                 for (; unit < end; ++unit) {
                   const std::int64_t b = unit / map.rows();
                   const Word* in = static_cast<const Word*>(p.in) + b * p.in_stride;
                   Word* out = static_cast<Word*>(p.out) + b * map.count();
                   map.move_row(unit - b * map.rows(), in, out, p.squeeze);
                 }
               });
  });
}

}  // namespace FI_ISA
}  // namespace flowinv
