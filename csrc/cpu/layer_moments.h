// layer_moments fills a panel with activations: a product of packed inputs and packed weights, bias and gate in
// registers.
#pragma once

#include "panels.h"
#include "plan.h"
#include "strided.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// panel[row, column] = leaky_relu(sum_i inputs[row, i] * weights[i, column] + bias[column]), in pieces of the sum
// whose weights stay in the first-level cache; the panel holds the partial sums between them. The bias comes last: a
// large one would round every term of the sum.
template <int vectors, typename T>
inline void activate_panel(const T* inputs, const T* weights, const T* bias, int64_t depth, int64_t rows, T slope,
                           T* panel) {
  using L = Tile<T>;
  using S = Simd<T>;
  const int64_t pieces = ceil_div(depth, 320 * 4 / int64_t(sizeof(T))), piece = ceil_div(depth, pieces ? pieces : 1);
  int64_t from = 0;
  do {
    const int64_t to = from + piece < depth ? from + piece : depth;
    for (int64_t first = 0; first < rows; first += L::rows) {
      L tile;
      if (from == 0) {
        tile.start(typename L::V{}, typename L::V{});
      } else {
        tile.load(panel + first * L::columns);
      }
      tile.template multiply<vectors>(inputs + first * depth + from * L::rows, weights + from * L::columns, to - from);
      if (to == depth) {
#pragma GCC unroll 16
        for (int r = 0; r < L::rows; ++r) {
#pragma GCC unroll 2
          for (int half = 0; half < vectors; ++half) {
            const typename L::V z = tile.sum[r][half] + S::load(bias + half * S::lanes), low = slope * z;
            tile.sum[r][half] = low > z ? low : z;  // NaN stays NaN
          }
        }
      }
      tile.store(panel + first * L::columns);
    }
    from = to;
  } while (from < depth);
}

// Inputs of a chunk, packed for tiles: out[tile, input, row in tile]; rows beyond the chunk are zero.
template <typename Stored, typename T>
inline void pack_inputs(const Stored* data, const int64_t* rows_at, int64_t rows, int64_t stride, int64_t depth,
                        T* __restrict out) {
  constexpr int tile_rows = Tile<T>::rows;
  int64_t first = 0;
  for (; first + tile_rows <= rows; first += tile_rows) {
    const Stored* row[tile_rows];
    for (int r = 0; r < tile_rows; ++r) row[r] = data + rows_at[first + r];
    for (int64_t i = 0; i < depth; ++i, out += tile_rows) {
#pragma GCC unroll 16
      for (int r = 0; r < tile_rows; ++r) out[r] = T(row[r][i * stride]);
    }
  }
  for (int64_t i = 0; first < rows && i < depth; ++i, out += tile_rows) {
    for (int64_t r = 0; r < tile_rows; ++r) out[r] = first + r < rows ? T(data[rows_at[first + r] + i * stride]) : T(0);
  }
}

// Weights of `width` nodes, packed for tiles: out[input, column]; columns beyond the width are zero.
template <typename Stored, typename T>
inline void pack_weights(const Stored* data, const int64_t* columns_at, int width, int64_t stride, int64_t depth,
                         T* out) {
  constexpr int columns = Tile<T>::columns;
  for (int64_t i = 0; i < depth; ++i, out += columns) {
    for (int c = 0; c < columns; ++c) out[c] = c < width ? T(data[columns_at[c] + i * stride]) : T(0);
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
