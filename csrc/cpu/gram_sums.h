// Sums of products as the chain kernel keeps them.
#pragma once

#include "arena.h"
#include "products.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
inline int64_t padded(int64_t nodes) {
  return ceil_div(nodes, Simd<T>::lanes) * Simd<T>::lanes;
}

// each(i, lane) of at most `count` lanes.
template <typename W, typename Vector, typename Each>
inline void each_lane(W v, Vector z, int64_t count, const Each& each) {
  std::remove_cvref_t<decltype(z[0])> lanes[W::lanes];
  v.store(lanes, z);
  for (int64_t i = 0; i < W::lanes && i < count; ++i) each(i, lanes[i]);
}

// Rows `begin` to `end` of out[j, k] += sum over `depth` rows of left[row, j] right[row, k], rows of padded<T> columns.
template <typename T, typename Sum>
inline void add_rows(const T* left, int64_t nodes, int64_t begin, int64_t end, const T* right, int64_t columns,
                     int64_t depth, Sum* out) {
  by_rows(end - begin, [&](auto block, int64_t j) {
    j += begin;
    block_product<decltype(block)::of, Lie::adjacent>(
        left + j, padded<T>(nodes), right, padded<T>(columns), depth, columns, [&](auto v, int r, int64_t k, auto z) {
          Sum* const to = out + (j + r) * columns + k;
          each_lane(v, z, columns - k, [&](int64_t i, T value) { to[i] += value; });
        });
  });
}

template <typename T>
inline void add_dense(const T* left, int64_t nodes, const T* right, int64_t columns, int64_t depth, T* out) {
  add_rows(left, nodes, 0, nodes, right, columns, depth, out);
}

// total += the slots' sums, in their order; the slots are 0 again.
template <typename T>
inline void collect(double* total, T* first_slot, int64_t used, int64_t values, int64_t begin, int64_t end) {
  for (int64_t slot = 0; slot < used; ++slot) {
    T* const part = first_slot + slot * values;
    for (int64_t i = begin; i < end; ++i) total[i] += double(part[i]), part[i] = 0;
  }
}

// Of gates, those that are not 0.
template <typename T>
inline int64_t count_open(const T* gates, int64_t count) {
  int64_t open = 0;
  for (int64_t i = 0; i < count; ++i) open += gates[i] != 0;
  return open;
}

// 0, or NaN where a value is not finite.
template <typename T>
inline double spoilt(const void* values, int64_t count) {
  using S = Simd<T>;
  const T* const at = static_cast<const T*>(values);
  T sum = 0;
  int64_t i = 0;
  typename S::Vector sums = {};
  for (; i + S::lanes <= count; i += S::lanes) sums += S::load(at + i) * T(0);
  for (int lane = 0; lane < S::lanes; ++lane) sum += sums[lane];
  for (; i < count; ++i) sum += at[i] * T(0);
  return double(sum);
}

// Rows `begin` to `end` of a matrix out of the sums, plus `spoilt`; with `mirror` only what is above its diagonal is
// there.
inline void copy_out(const double* total, int64_t begin, int64_t end, int64_t columns, bool mirror, double spoilt,
                     double* out) {
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t at = mirror && k < j ? k * columns + j : j * columns + k;
      out[j * columns + k] = total[at] + spoilt;
    }
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
