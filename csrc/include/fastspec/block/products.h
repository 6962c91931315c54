// Products of small matrices by a block. A thread has two columns, which lie half of all columns apart, so that
// adjacent threads read adjacent values; its sums stay in registers, and their order depends on nothing but the sizes.
// Where a thread works does not change from step to step: the caller keeps it, as a division is long.
#pragma once

#include "fastspec/block/plan.h"

namespace fastspec {
namespace block {

template <typename T>
struct Left {  // value (k, column) lies at data[k * depth_stride + column * column_stride]
  const T* data;
  int depth_stride, column_stride;
};

struct Range {
  int begin, end;
};

// One of 2^log equal parts of a range.
FASTSPEC_HD constexpr Range part_of(int size, int part, int log) {
  return {int(int64_t{size} * part >> log), int(int64_t{size} * (part + 1) >> log)};
}

struct Place {  // which part of the sums, which column of the pair, which samples
  int part, column, b;
};

template <int samples>
FASTSPEC_HD Place place_of(int item, int columns, int wide) {
  const int pairs = (columns + 1) / 2, rest = item / pairs, groups = wide / samples;
  return {rest / groups, item - rest * pairs, rest % groups * samples};
}

// out[(part * columns + column) * row + b] = sum over k of left(k, column) * right[k * row + b], for each of `parts`
// ranges of k, `depth(part)`. mine: the place of this thread's first item.
template <int samples, typename T, typename Block, typename DepthOf>
FASTSPEC_HD void product(const Block& block, Place mine, int parts, int columns, int wide, const Left<T>& left,
                         const T* right, int row, const DepthOf& depth, T* out) {
  const int pairs = (columns + 1) / 2, items = parts * pairs * (wide / samples);
  for (int item = block.thread(); item < items;) {
    const bool both = mine.column + pairs < columns;
    const Range k = depth(mine.part);
    const T* l0 = left.data + int64_t{k.begin} * left.depth_stride + mine.column * left.column_stride;
    const T* l1 = both ? l0 + pairs * left.column_stride : l0;
    const T* r = right + int64_t{k.begin} * row + mine.b;
    T sum0[samples] = {}, sum1[samples] = {};
#pragma unroll 4
    for (int count = k.end - k.begin; count > 0; --count) {
      T values[samples];
      load(values, r);
      const T w0 = *l0, w1 = *l1;
#pragma unroll
      for (int i = 0; i < samples; ++i) sum0[i] += w0 * values[i], sum1[i] += w1 * values[i];
      l0 += left.depth_stride, l1 += left.depth_stride, r += row;
    }
    T* const to = out + (int64_t{mine.part} * columns + mine.column) * row + mine.b;
    store(to, sum0);
    if (both) store(to + pairs * row, sum1);
    item += block.threads();
    if (item < items) mine = place_of<samples>(item, columns, wide);
  }
}

// body(column, b, sums) of four samples at a time, the sums over `parts` parts of a product, in order.
template <typename T, typename Block, typename Body>
FASTSPEC_HD void combine(const Block& block, int parts, int columns, Quads quads, const T* partial, int row,
                         const Body& body) {
  const int64_t distance = int64_t{columns} * row;
#pragma unroll 1
  for (int item = block.thread(); item < columns * quads.count; item += block.threads()) {
    const int column = quads.of(item), b = (item - column * quads.count) * 4;
    const T* from = partial + int64_t{column} * row + b;
    T sum[4];
    load(sum, from);
#pragma unroll 4
    for (int part = 1; part < parts; ++part) {
      T more[4];
      from += distance;
      load(more, from);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += more[i];
    }
    body(column, b, sum);
  }
}

struct Strip {  // a pair of columns of weights, and rows of them
  int column, begin, end;
};

template <typename T>
constexpr int rows_at_once = sizeof(T) == 4 ? 4 : 2;  // of weights, as many sums as registers hold

template <typename T>
FASTSPEC_HD int strips_of(int columns, int rows, int threads) {  // of each pair of columns
  return int(smaller(ceil_div(rows, rows_at_once<T>), larger(1, threads / larger(1, (columns + 1) / 2))));
}

template <typename T>
FASTSPEC_HD Strip strip_of(int item, int columns, int rows, int strips) {
  constexpr int some = rows_at_once<T>;
  const int pairs = int(larger(1, (columns + 1) / 2)), strip = item / pairs;
  const int64_t blocks = ceil_div(rows, some);
  const int64_t begin = some * (blocks * strip / strips), end = some * (blocks * (strip + 1) / strips);
  return {item - strip * pairs, int(begin), int(smaller(rows, end))};
}

// change(k, count, column, two_columns, first, last, add) for `count` rows from k on, at most rows_at_once, and a pair
// of columns; add(sums) adds to sums[r][c] the products over b of rows_of[(k + r) * row + b] and scale *
// columns_of[..], `samples` samples at a time: once for each of these passes, of which the first and the last are
// marked. mine: this thread's first strip.
template <int samples, typename T, typename Block, typename Change>
FASTSPEC_HD void outer_product(const Block& block, Strip mine, int columns, int rows, int wide, const T* columns_of,
                               T scale, const T* rows_of, int row, const Change& change) {
  constexpr int some = rows_at_once<T>;
  const int pairs = (columns + 1) / 2, strips = strips_of<T>(columns, rows, block.threads()), items = pairs * strips;
  for (int item = block.thread(); item < items;) {
    const bool both = mine.column + pairs < columns;
#pragma unroll 1
    for (int b = 0; b < wide; b += samples) {
      T g[2][samples];
      const T* const own = columns_of + int64_t{mine.column} * row + b;
      load(g[0], own);
      load(g[1], both ? own + pairs * row : own);
#pragma unroll
      for (int i = 0; i < samples; ++i) g[0][i] *= scale, g[1][i] *= scale;
      const T* from = rows_of + int64_t{mine.begin} * row + b;
#pragma unroll 1
      for (int k = mine.begin; k < mine.end; k += some, from += some * row) {
        const int count = int(smaller(some, mine.end - k));
        change(k, count, mine.column, both, b == 0, b + samples == wide, [&](T(&sum)[some][2]) {
#pragma unroll
          for (int i = 0; i < samples; i += 4) {
#pragma unroll
            for (int r = 0; r < some; ++r) {
              T value[4];
              load(value, from + (r < count ? r : 0) * row + i);
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                sum[r][0] += value[j] * g[0][i + j], sum[r][1] += value[j] * g[1][i + j];
              }
            }
          }
        });
      }
    }
    item += block.threads();
    if (item < items) mine = strip_of<T>(item, columns, rows, strips);
  }
}

}  // namespace block
}  // namespace fastspec
