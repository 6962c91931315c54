// Fresh Gaussian inputs: word k of stream (seed, fresh, step) is input k % d of sample k / d.
#pragma once

#include "fastspec/normal.h"
#include "simd.h"

namespace fastspec {
namespace FASTSPEC_ISA {

#pragma GCC push_options
#pragma GCC optimize("no-math-errno", "fp-contract=off")

// Standard normal numbers 4 * block .. 4 * (block + blocks) - 1 of a stream.
inline void fresh_normals(int64_t seed, int64_t step, int64_t block, int64_t blocks, uint32_t* __restrict words,
                          float* __restrict out) {
  for (int64_t i = 0; i < blocks; ++i) {
    const PhiloxBlock drawn = stream_block(seed, StreamPurpose::fresh, step, uint32_t(block + i));
    for (int j = 0; j < 4; ++j) words[4 * i + j] = drawn.word[j];
  }
  for (int64_t i = 0; i < 4 * blocks; ++i) out[i] = standard_normal(words[i]);
}

#pragma GCC pop_options

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
