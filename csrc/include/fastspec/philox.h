// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), for g++ and nvcc.
//
// One stream per (seed, purpose, step); fastspec/ops/philox.py is the same generator, bit for bit:
//   key     = (seed low, seed high)
//   counter = (i / 4, purpose, step low, step high), and word i of a stream is word i % 4 of that block.
#pragma once

#include <cstdint>

#ifndef FASTSPEC_HD
#ifdef __CUDACC__
#define FASTSPEC_HD __host__ __device__ __forceinline__
#else
#define FASTSPEC_HD __attribute__((always_inline)) inline
#endif
#endif

namespace fastspec {

struct PhiloxBlock {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t word[2];
};

enum class StreamPurpose : uint32_t { batch = 0, fresh = 1 };

FASTSPEC_HD constexpr PhiloxBlock philox4x32(PhiloxBlock counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * counter.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.word[1] ^ key.word[0], static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.word[3] ^ key.word[1], static_cast<uint32_t>(p0)}};
    key = {{key.word[0] + 0x9E3779B9u, key.word[1] + 0xBB67AE85u}};
  }
  return counter;
}

// Words 4 * block .. 4 * block + 3 of a stream.
FASTSPEC_HD constexpr PhiloxBlock stream_block(int64_t seed, StreamPurpose purpose, int64_t step, uint32_t block) {
  const uint64_t s = static_cast<uint64_t>(seed), t = static_cast<uint64_t>(step);
  return philox4x32({{block, static_cast<uint32_t>(purpose), static_cast<uint32_t>(t), static_cast<uint32_t>(t >> 32)}},
                    {{static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)}});
}

// A sample number in [0, samples), samples <= 2^31; its probability is within samples / 2^32 of 1 / samples,
// relatively.
FASTSPEC_HD constexpr int64_t batch_index(uint32_t word, int64_t samples) {
  return static_cast<int64_t>((static_cast<uint64_t>(word) * static_cast<uint64_t>(samples)) >> 32);
}

}  // namespace fastspec
