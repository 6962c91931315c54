// What the body of a kernel asks of the block that runs it: a CUDA block (cuda/cuda_block.h) or threads of the CPU that
// stand for one (emulated_block.h). A cluster is a few blocks that can read each other's shared memory.
//
//   thread(), threads()       of this block
//   rank(), ranks()           this block in its cluster
//   sync(), sync_all()        barrier of the block, of the cluster
//   any(bool)                 whether any thread of the cluster says so; a barrier of the cluster
//   of_rank(pointer, rank)    where another block of the cluster has what lies at `pointer` in this one's memory
//   fetch(to, from)           copies a value to this block's memory, later
//   fetched()                 waits for this thread's fetches; a barrier shows them to the others
#pragma once

#include <cstdint>

#include "fastspec/philox.h"

namespace fastspec {
namespace block {

FASTSPEC_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTSPEC_HD constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
FASTSPEC_HD constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTSPEC_HD constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// 16 bytes, which one instruction moves.
template <typename T>
struct alignas(16) Vector {
  static constexpr int size = 16 / sizeof(T);
  T at[size];
};

template <int count, typename T>
FASTSPEC_HD void load(T (&to)[count], const T* from) {
  using V = Vector<T>;
  static_assert(count % V::size == 0);
#pragma unroll
  for (int i = 0; i < count; i += V::size) {
    const V v = *reinterpret_cast<const V*>(from + i);
#pragma unroll
    for (int j = 0; j < V::size; ++j) to[i + j] = v.at[j];
  }
}

template <int count, typename T>
FASTSPEC_HD void store(T* to, const T (&from)[count]) {
  using V = Vector<T>;
  static_assert(count % V::size == 0);
#pragma unroll
  for (int i = 0; i < count; i += V::size) {
    V v;
#pragma unroll
    for (int j = 0; j < V::size; ++j) v.at[j] = from[i + j];
    *reinterpret_cast<V*>(to + i) = v;
  }
}

}  // namespace block
}  // namespace fastspec
