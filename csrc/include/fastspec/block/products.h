// Products of small matrices by a block. A thread has two columns, which lie half of all columns apart, so that
// adjacent threads read adjacent values; its sums stay in registers, and their order depends on nothing but the sizes.
#pragma once

#include "fastspec/block/plan.h"

namespace fastspec {
namespace block {

template <typename T>
struct Left {  // value (k, column) lies at data[k * depth_stride + column * column_stride]
  const T* data;
  int64_t depth_stride, column_stride;
};

struct Depth {
  int64_t begin, end;
};

// sum[column, b] = sum over k of left(k, column) * right[k * row + b], for each of `parts` ranges of k, `depth(part)`;
// store(part, column, b, sums) receives `samples` of them.
template <int samples, typename T, typename Block, typename DepthOf, typename Store>
FASTSPEC_HD void product(const Block& block, int parts, int columns, int wide, const Left<T>& left, const T* right,
                         int64_t row, const DepthOf& depth, const Store& store) {
  const int pairs = (columns + 1) / 2, sample_groups = wide / samples, items = parts * pairs * sample_groups;
  for (int item = block.thread(); item < items; item += block.threads()) {
    const int part = item / (pairs * sample_groups), rest = item - part * pairs * sample_groups;
    const int b = rest / pairs * samples, column = rest % pairs, other = column + pairs;
    const bool both = other < columns;
    const Depth k = depth(part);
    const T* l0 = left.data + k.begin * left.depth_stride + column * left.column_stride;
    const T* l1 = both ? l0 + pairs * left.column_stride : l0;
    const T* r = right + k.begin * row + b;
    T sum0[samples] = {}, sum1[samples] = {};
#pragma unroll 4
    for (int64_t count = k.end - k.begin; count > 0; --count) {
      T values[samples];
      load(values, r);
      const T w0 = *l0, w1 = *l1;
#pragma unroll
      for (int i = 0; i < samples; ++i) sum0[i] += w0 * values[i], sum1[i] += w1 * values[i];
      l0 += left.depth_stride, l1 += left.depth_stride, r += row;
    }
    store(part, column, b, sum0);
    if (both) store(part, other, b, sum1);
  }
}

// change(k, column, sum over b of rows[k * row + b] * scale * columns_of[column * row + b], first, last) for all k and
// columns, `samples` of a row at a time: once for each of these passes, of which the first and the last are marked.
template <int samples, typename T, typename Block, typename Change>
FASTSPEC_HD void outer_product(const Block& block, int columns, int64_t rows, int wide, const T* columns_of, T scale,
                               const T* rows_of, int64_t row, const Change& change) {
  const int pairs = (columns + 1) / 2;
  const int slices = int(smaller(rows, larger(1, block.threads() / larger(1, pairs))));
  for (int item = block.thread(); item < pairs * slices; item += block.threads()) {
    const int slice = item / pairs, column = item % pairs, other = column + pairs;
    const bool both = other < columns;
    for (int b = 0; b < wide; b += samples) {
      T g0[samples], g1[samples];
      load(g0, columns_of + int64_t{column} * row + b);
      load(g1, columns_of + int64_t{both ? other : column} * row + b);
#pragma unroll
      for (int i = 0; i < samples; ++i) g0[i] *= scale, g1[i] *= scale;
      const bool first = b == 0, last = b + samples == wide;
      const int64_t end = rows * (slice + 1) / slices;
      for (int64_t k = rows * slice / slices; k < end; ++k) {
        T sum0 = 0, sum1 = 0;
#pragma unroll
        for (int i = 0; i < samples; i += 4) {
          T values[4];
          load(values, rows_of + k * row + b + i);
#pragma unroll
          for (int j = 0; j < 4; ++j) sum0 += values[j] * g0[i + j], sum1 += values[j] * g1[i + j];
        }
        change(k, column, sum0, first, last);
        if (both) change(k, other, sum1, first, last);
      }
    }
  }
}

}  // namespace block
}  // namespace fastspec
