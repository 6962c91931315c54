// A panel holds a chunk's activations of Tile::columns nodes, [rows, columns] packed: the layout that a register
// tile reads. Both ops fill panels, each in its own way; what follows is shared (ops/cross_moments/README.md).
#pragma once

#include "simd.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// What a chunk's panel adds to its nodes' statistics: sums of x - shift, exact in float64 from here on.
template <typename T>
struct PanelStatistics {
  static constexpr int columns = Tile<T>::columns;
  double shift[columns], sum[columns], square[columns];
  int64_t active[columns];
};

// A provisional mean: the mean of `rows` values rounded to a power of two near their standard deviation. It lies
// within about half a standard deviation of the mean, and keeps small integers on a grid on which sums are exact.
inline double provisional_mean(double first, double sum, double square, int64_t rows) {
  const double mean = sum / rows, variance = square / rows - mean * mean;  // of x - first
  if (!(variance > 0) || !(variance < 1e300)) return first;
  uint64_t bits;
  std::memcpy(&bits, &variance, sizeof bits);
  const uint64_t exponent = ((((bits >> 52) & 0x7ff) - 1023 + 2048) >> 1) - 1024 + 1023;
  bits = exponent << 52;
  double grid;
  std::memcpy(&grid, &bits, sizeof grid);
  const double steps = (first + mean) / grid, round = 0x1.8p52;
  return steps < 0x1p51 && steps > -0x1p51 ? (steps + round - round) * grid : first;
}

// Subtracts a provisional mean from the panel in place and collects its statistics.
template <typename T>
inline void center_panel(T* panel, int64_t rows, PanelStatistics<T>& out) {
  using S = Simd<T>;
  using V = typename S::Vector;
  constexpr int columns = Tile<T>::columns, lanes = S::lanes;
  const int64_t sample = rows < 32 ? rows : 32;
  V shift[2];
  for (int half = 0; half < 2; ++half) {
    const T* const x = panel + half * lanes;
    const V first = S::load(x);
    V sum = {}, square = {};
    for (int64_t r = 0; r < sample; ++r) {
      const V d = S::load(x + r * columns) - first;
      sum += d, square += d * d;
    }
    for (int c = 0; c < lanes; ++c) shift[half][c] = T(provisional_mean(first[c], sum[c], square[c], sample));
  }
  // Two rows at a time, summed apart: one chain of additions would be waited for.
  V sum[2][2] = {}, square[2][2] = {};
  typename S::Mask active[2][2] = {};
  const auto add = [&](int64_t row, int parity) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      T* const at = panel + row * columns + half * lanes;
      const V value = S::load(at), d = value - shift[half];
      S::store(at, d);
      active[parity][half] -= value > 0;
      sum[parity][half] += d;
      square[parity][half] += d * d;
    }
  };
  int64_t row = 0;
  for (; row + 1 < rows; row += 2) add(row, 0), add(row + 1, 1);
  if (row < rows) add(row, 0);
  for (int half = 0; half < 2; ++half) {
    for (int c = 0; c < lanes; ++c) {
      const int at = half * lanes + c;
      out.shift[at] = shift[half][c];
      out.sum[at] = double(sum[0][half][c]) + double(sum[1][half][c]);
      out.square[at] = double(square[0][half][c]) + double(square[1][half][c]);
      out.active[at] = active[0][half][c] + active[1][half][c];
    }
  }
}

// Gates of a panel as bits, gates[column * words + row / 64]; call it before the panel is centred.
template <typename T>
inline void gate_bits(const T* panel, int64_t rows, int64_t words, uint64_t* gates) {
  constexpr int columns = Tile<T>::columns;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t word[columns] = {};
    const int64_t end = rows - 64 * w < 64 ? rows - 64 * w : 64;
    for (int64_t r = 0; r < end; ++r) {
      const T* row = panel + (64 * w + r) * columns;
      for (int c = 0; c < columns; ++c) word[c] |= uint64_t(row[c] > 0) << r;
    }
    for (int c = 0; c < columns; ++c) gates[c * words + w] = word[c];
  }
}

// counts[node, column] += co-activations of every teacher node with every column of one panel.
inline void count_coactive(const uint64_t* teacher, int64_t nodes, const uint64_t* student, int columns, int64_t words,
                           int64_t* counts) {
  for (int64_t j = 0; j < nodes; ++j) {
    for (int c = 0; c < columns; ++c) {
      int64_t count = 0;
      for (int64_t w = 0; w < words; ++w)
        count += __builtin_popcountll(teacher[j * words + w] & student[c * words + w]);
      counts[j * columns + c] += count;
    }
  }
}

// A teacher tile's view of one chunk, in float64: its shift from the reference and its sum of x - shift.
struct TileMoments {
  double offset[FASTSPEC_TILE_ROWS], sum[FASTSPEC_TILE_ROWS];
};

// One tile's product. Not inlined: beside what is done with it, gcc keeps the tile in memory.
template <int vectors, typename T>
__attribute__((noinline)) void product_tile(const T* a, const T* b, int64_t depth, T* out) {
  Tile<T> tile;
  tile.start(typename Tile<T>::V{}, typename Tile<T>::V{});
  tile.template multiply<vectors>(a, b, depth);
  tile.store(out);
}

// cross += sum over the chunk of (t - reference)(s - reference), from the product of the shifted panels:
// sum (t' + a)(s' + b) = sum t's' + a (sum s' + rows b) + b sum t'.
template <int vectors, typename T>
inline void accumulate_tile(const T* teacher, const T* student, int64_t rows, const TileMoments& tile,
                            const double* student_total, const double* student_offset, double* cross) {
  using L = Tile<T>;
  T sums[L::rows][L::columns];
  product_tile<vectors>(teacher, student, rows, &sums[0][0]);
  constexpr int lanes = Simd<double>::lanes;
#pragma GCC unroll 16
  for (int r = 0; r < L::rows; ++r) {
    for (int c = 0; c < vectors * Simd<T>::lanes; c += lanes) {
      double* const out = cross + r * L::columns + c;
      const Double total = Simd<double>::load(student_total + c), offset = Simd<double>::load(student_offset + c);
      Simd<double>::store(
          out, Simd<double>::load(out) + (widen(&sums[r][c]) + tile.offset[r] * total + tile.sum[r] * offset));
    }
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
