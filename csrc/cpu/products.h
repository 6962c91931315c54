// Products of small matrices: out[r, c] = sum over k of a(r, k) * b[k, c], a block of rows at a time in registers.
// Elements of `a` are broadcast, rows of `b` are read as vectors; what happens to a finished vector is the caller's.
#pragma once

#include <type_traits>

#include "simd.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <int value>
struct Count {
  static constexpr int of = value;
};

// Rows of a block: as many sums of two vectors as registers hold, with room for operands.
constexpr int block_rows = FASTSPEC_VECTOR_BYTES == 64 ? 8 : 6;

// Calls body(Count<rows>, first) for blocks of rows of nearly equal size, so that none has very few.
template <int most = block_rows, typename Body>
inline void by_rows(int64_t rows, const Body& body) {
  const int64_t blocks = (rows + most - 1) / most;
  int64_t first = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t size = rows / blocks + (block < rows % blocks);
    switch (size) {
      case 1: body(Count<1>{}, first); break;
      case 2: body(Count<2>{}, first); break;
      case 3: body(Count<3>{}, first); break;
      case 4: body(Count<4>{}, first); break;
      case 5: body(Count<5>{}, first); break;
      case 6: body(Count<6>{}, first); break;
      case 7:
        if constexpr (most > 6) body(Count<7>{}, first);
        break;
      case 8:
        if constexpr (most > 7) body(Count<8>{}, first);
        break;
    }
    first += size;
  }
}

// How `a` lies in memory: `adjacent` rows, a[k * stride + r], or rows apart, a[r * stride + k].
enum class Lie { apart, adjacent };

template <typename S, int rows, int vectors, Lie lie, typename T, typename Store>
inline void register_tile(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t depth, const Store& store) {
  typename S::Vector sum[rows][vectors] = {};
  const T* row[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) row[r] = lie == Lie::apart ? a + r * stride : a + r;
  const int64_t step = lie == Lie::apart ? 1 : stride;
  for (int64_t k = 0; k < depth; ++k) {
    typename S::Vector right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) right[v] = S::load(b + k * b_stride + v * S::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const T left = row[r][k * step];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(S{}, r, v * S::lanes, sum[r][v]);
  }
}

// One block of rows over `columns` columns; both `b` and what `store(vectors, row, column, sums)` writes to have room
// for whole vectors. Where the last vector is at most half full, and vectors are wide, it is one of half the width.
template <int rows, Lie lie, typename T, typename Store>
inline void block_product(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t depth, int64_t columns,
                          const Store& store) {
  constexpr int bytes = FASTSPEC_VECTOR_BYTES, lanes = Simd<T>::lanes;
  constexpr int half = bytes == 64 ? lanes / 2 : 0;
  int64_t column = 0;
  const auto tile = [&](auto vectors, auto count) {
    register_tile<decltype(vectors), rows, decltype(count)::of, lie>(
        a, stride, b + column, b_stride, depth,
        [&](auto s, int r, int64_t c, auto sums) { store(s, r, column + c, sums); });
    column += decltype(count)::of * decltype(vectors)::lanes;
  };
  while (columns - column > lanes + half) tile(Simd<T>{}, Count<2>{});
  if (columns - column > half) tile(Simd<T>{}, Count<1>{});
  if constexpr (half > 0) {
    if (columns > column) tile(Simd<T, bytes / 2>{}, Count<1>{});
  }
}

// Which lanes of the pair (a, b) the two rows of a transposition's step take.
template <typename T, int distance>
struct Exchange {
  static constexpr int lanes = Simd<T>::lanes;
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  struct Lanes {
    Integer low[lanes], high[lanes];
  };
  static constexpr Lanes make() {
    Lanes l{};
    for (int c = 0; c < lanes; ++c) {
      l.low[c] = c & distance ? lanes + c - distance : c;
      l.high[c] = c & distance ? lanes + c : c + distance;
    }
    return l;
  }
  alignas(64) static constexpr Lanes of = make();
};

// In place, rows of one square of lanes x lanes: element (r, c) becomes (c, r).
template <typename T, int distance = 1>
inline void transpose(typename Simd<T>::Vector (&row)[Simd<T>::lanes]) {
  constexpr int lanes = Simd<T>::lanes;
  if constexpr (distance < lanes) {
    using Mask = typename Simd<T>::Mask;
    using Lanes = Exchange<T, distance>;
    Mask low, high;
    std::memcpy(&low, Lanes::of.low, sizeof low);
    std::memcpy(&high, Lanes::of.high, sizeof high);
#pragma GCC unroll 16
    for (int r = 0; r < lanes; ++r) {
      if (r & distance) continue;
      const auto a = row[r], b = row[r + distance];
      row[r] = __builtin_shuffle(a, b, low), row[r + distance] = __builtin_shuffle(a, b, high);
    }
    transpose<T, distance * 2>(row);
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
