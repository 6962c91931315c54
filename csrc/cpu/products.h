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

// Calls body(Count<count>) for a count from 1 to `most`.
template <int most, typename Body>
FASTSPEC_INLINE inline void by_count(int64_t count, const Body& body) {
  if constexpr (most > 0) {
    if (count == most) return body(Count<most>{});
    by_count<most - 1>(count, body);
  }
}

// Calls body(Count<rows>, first) for blocks of rows of nearly equal size, so that none has very few.
template <int most = block_rows, typename Body>
FASTSPEC_INLINE inline void by_rows(int64_t rows, const Body& body) {
  const int64_t blocks = (rows + most - 1) / most;
  int64_t first = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t size = rows / blocks + (block < rows % blocks);
    by_count<most>(size, [&](auto count) FASTSPEC_INLINE { body(count, first); });
    first += size;
  }
}

// How `a` lies in memory: `adjacent` rows, a[k * stride + r], or rows apart, a[r * stride + k].
enum class Lie { apart, adjacent };

// A tile of `vectors` vectors of columns, and one of half the width if `half`. Inlined, so that `store` is too.
template <int rows, int vectors, bool half, Lie lie, typename T, typename Store>
FASTSPEC_INLINE inline void register_tile(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t depth,
                                          const Store& store) {
  using S = Simd<T>;
  using H = Simd<T, half ? FASTSPEC_VECTOR_BYTES / 2 : FASTSPEC_VECTOR_BYTES>;
  typename S::Vector sum[rows][vectors + 1] = {};
  typename H::Vector last[rows] = {};
  const int64_t step = lie == Lie::apart ? 1 : stride, next = lie == Lie::apart ? stride : 1;
  for (int64_t k = 0; k < depth; ++k) {
    const T* const right = b + k * b_stride;
    const typename H::Vector right_last = half ? H::load(right + vectors * S::lanes) : typename H::Vector{};
    typename S::Vector right_at[vectors + 1];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right_at[v] = S::load(right + v * S::lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const typename S::Vector left = a[r * next + k * step] - typename S::Vector{};  // in all lanes, once
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] += left * right_at[v];
      if constexpr (half) {
        typename H::Vector low;
        std::memcpy(&low, &left, sizeof low);
        last[r] += low * right_last;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(S{}, r, v * S::lanes, sum[r][v]);
    if constexpr (half) store(H{}, r, vectors * S::lanes, last[r]);
  }
}

// One block of rows over `columns` columns, at most `most` vectors at a time; both `b` and what `store(vectors, row,
// column, sums)` writes to have room for whole vectors. Where the last vector is at most half full, and vectors are
// wide, it is one of half the width.
template <int rows, Lie lie, int most = 2, typename T, typename Store>
FASTSPEC_INLINE inline void block_product(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t depth,
                                          int64_t columns, const Store& store) {
  constexpr int lanes = Simd<T>::lanes;
  constexpr bool halves = FASTSPEC_VECTOR_BYTES == 64;
  const int64_t rest = columns % lanes;
  const bool half = halves && rest > 0 && rest <= lanes / 2;
  int64_t column = 0, left = columns / lanes + (rest > 0);
  while (left > 0) {
    const int64_t count = left >= 2 * most ? most : left > most ? (left + 1) / 2 : left;
    left -= count;
    const auto tile = [&](auto vectors, auto narrow) FASTSPEC_INLINE {
      register_tile<rows, decltype(vectors)::of, decltype(narrow)::of, lie>(
          a, stride, b + column, b_stride, depth,
          [&](auto s, int r, int64_t c, auto sums) FASTSPEC_INLINE { store(s, r, column + c, sums); });
    };
    by_count<most>(count, [&](auto vectors) FASTSPEC_INLINE {
      if constexpr (halves) {
        if (half && left == 0) return tile(Count<decltype(vectors)::of - 1>{}, Count<1>{});
      }
      tile(vectors, Count<0>{});
    });
    column += count * lanes;
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
