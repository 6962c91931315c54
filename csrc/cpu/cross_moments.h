// cross_moments fills a panel with given activations, read where they lie: any strides, no permuted copy.
#pragma once

#include "panels.h"
#include "strided.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// panel[row, column] = data[rows_at[row] + columns_at[column]]; columns beyond the width are zero.
template <typename Stored, typename T>
inline void gather_panel(const Stored* data, const int64_t* rows_at, int64_t rows, const int64_t* columns_at, int width,
                         T* __restrict panel) {
  constexpr int columns = Tile<T>::columns;
  bool adjacent = width == columns;
  for (int c = 1; c < width; ++c) adjacent &= columns_at[c] == columns_at[0] + c;
  if (adjacent) {
    for (int64_t r = 0; r < rows; ++r) {
      const Stored* __restrict row = data + rows_at[r] + columns_at[0];
      for (int c = 0; c < columns; ++c) panel[r * columns + c] = row[c];
    }
    return;
  }
  if (width < columns) std::memset(panel, 0, rows * columns * sizeof(T));
  for (int c = 0; c < width; ++c) {
    const Stored* column = data + columns_at[c];
    for (int64_t r = 0; r < rows; ++r) panel[r * columns + c] = column[rows_at[r]];
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
