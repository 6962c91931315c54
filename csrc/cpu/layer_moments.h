// layer_moments fills a panel with activations: a product of packed inputs and packed weights, bias and gate in
// registers.
#pragma once

#include "panels.h"
#include "strided.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// panel[row, column] = leaky_relu(bias[column] + sum_i inputs[row, i] * weights[i, column])
template <typename T>
inline void activate_panel(const T* inputs, const T* weights, const T* bias, int64_t depth, int64_t rows, T slope,
                           T* panel) {
  using L = Tile<T>;
  using S = Simd<T>;
  const typename L::V bias0 = S::load(bias), bias1 = S::load(bias + S::lanes);
  for (int64_t first = 0; first < rows; first += L::rows) {
    L tile;
    tile.multiply(inputs + first * depth, weights, depth, bias0, bias1);
#pragma GCC unroll 16
    for (int r = 0; r < L::rows; ++r) {
      for (int half = 0; half < 2; ++half) {
        const typename L::V z = tile.sum[r][half], low = slope * z;
        S::store(panel + (first + r) * L::columns + half * S::lanes, low > z ? low : z);  // NaN stays NaN
      }
    }
  }
}

// Inputs of a chunk, packed for tiles: out[tile, input, row in tile]; rows beyond the chunk are zero.
template <typename Stored, typename T>
inline void pack_inputs(const Stored* data, const int64_t* rows_at, int64_t rows, int64_t stride, int64_t depth,
                        T* out) {
  constexpr int tile_rows = Tile<T>::rows;
  for (int64_t first = 0; first < rows; first += tile_rows) {
    const int64_t count = rows - first < tile_rows ? rows - first : tile_rows;
    for (int64_t i = 0; i < depth; ++i, out += tile_rows) {
      for (int64_t r = 0; r < tile_rows; ++r) out[r] = r < count ? T(data[rows_at[first + r] + i * stride]) : T(0);
    }
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
