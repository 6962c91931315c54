// Vectors of one instruction set and the register tile that both products of the moments share.
// Included once per instruction set, inside its own namespace: nothing here may be visible to the linker twice.
#pragma once

#include <cstdint>
#include <cstring>

// Of a function whose arguments would otherwise go through memory, among them what a lambda captures.
#ifndef FASTSPEC_INLINE
#define FASTSPEC_INLINE __attribute__((always_inline))
#endif

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T, int bytes = FASTSPEC_VECTOR_BYTES>
struct Simd {
  static constexpr int lanes = bytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(bytes)));
  typedef decltype(Vector{} > Vector{}) Mask;  // integer lanes, -1 where true

  static inline Vector load(const T* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static inline void store(T* p, Vector v) { std::memcpy(p, &v, sizeof v); }
};

// Sums are kept in float64; half as many lanes as floats, as many as doubles.
typedef Simd<double>::Vector Double;

template <typename T>
inline Double widen(const T* p) {  // the next Double's worth of T
  typedef T Part __attribute__((vector_size(sizeof(Double) / sizeof(double) * sizeof(T))));
  Part part;
  std::memcpy(&part, p, sizeof part);
  return __builtin_convertvector(part, Double);
}

// A tile is `rows` x `columns` products held in registers: rows are broadcast, columns are two vectors.
template <typename T>
struct Tile {
  using S = Simd<T>;
  using V = typename S::Vector;
  static constexpr int rows = FASTSPEC_TILE_ROWS;
  static constexpr int columns = 2 * S::lanes;

  V sum[rows][2];

  inline void start(V start0, V start1) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) sum[r][0] = start0, sum[r][1] = start1;
  }

  inline void load(const T* packed) {  // [rows, columns]
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      sum[r][0] = S::load(packed + r * columns), sum[r][1] = S::load(packed + r * columns + S::lanes);
    }
  }

  inline void store(T* packed) const {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      S::store(packed + r * columns, sum[r][0]), S::store(packed + r * columns + S::lanes, sum[r][1]);
    }
  }

  // sum[r][c] += sum_k a[k, r] * b[k, c]; a is [depth, rows], b is [depth, columns], both packed. Of the first
  // `vectors` of the columns.
  template <int vectors>
  inline void multiply(const T* __restrict a, const T* __restrict b, int64_t depth) {
    V s[rows][vectors];  // a copy that the compiler keeps in registers
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) s[r][v] = sum[r][v];
    }
    for (int64_t k = 0; k < depth; ++k) {
      V right[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) right[v] = S::load(b + v * S::lanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) s[r][v] += a[r] * right[v];
      }
      a += rows, b += columns;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] = s[r][v];
    }
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
