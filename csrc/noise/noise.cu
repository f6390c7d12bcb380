// CUDA kernels of the random numbers and structured noises.
//
// parallelism  one thread per Philox block of four elements, grid-stride; digits: one thread a pixel
// traffic      one write an element; sigma is computed, not read. 3 x 64 x 64, batch 128, float32:
//              6.3 MB, about 2 us at 4 TB/s; the arithmetic (10 Philox rounds, log, sincos for four
//              elements, one double exp or sin an element for sigma) is the larger cost
// numerics     integers equal on every device; floats to a few ulp of the CPU's
// edge cases   a count that is no multiple of four ends inside a block
// measured     never run on a GPU
#include "noise/noise.h"

#include "common/image_reduce.cuh"

namespace flowinv {
namespace cuda {
namespace {

template <class T>
void gaussian_noise(const GaussianNoiseParams& p, const Execution& execution) {
  for_each("gaussian_noise", GaussianNoiseBody<T>{p}, (p.batch * p.n + 3) / 4, execution);
}

template <class T>
void structured_noise(const StructuredNoiseParams& p, const Execution& execution) {
  const std::int64_t n = p.batch * p.channels * p.map.height * p.map.width;
  for_each("structured_noise", StructuredNoiseBody<T>{p}, (n + 3) / 4, execution);
}

template <class T>
void digit_overlay(const DigitsParams& p, const Execution& execution) {
  for_each("place_digits", PlaceDigitsBody{p}, p.grid.batch * p.grid.count, execution);
  const PatchSumBody<T> sum{p.grid, p.bank, p.index, p.places, p.out};
  for_each("digit_overlay", sum, p.grid.pixels(), execution);
}

}  // namespace

void random_bits(const RandomBitsParams& p, const Execution& execution) {
  for_each("random_bits", RandomBitsBody{p}, (p.n + 3) / 4, execution);
}

FI_FLOAT_OP(gaussian_noise, GaussianNoiseParams)
FI_FLOAT_OP(structured_noise, StructuredNoiseParams)
FI_FLOAT_OP(digit_overlay, DigitsParams)

}  // namespace cuda
}  // namespace flowinv
