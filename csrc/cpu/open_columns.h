// The open columns of a row, those whose gate is not 0: packed side by side, and added back to their places.
#pragma once

#ifdef FASTSPEC_AVX512
#include <immintrin.h>
#endif

#include "gram_sums.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
struct OpenColumns {
  int64_t count;
  int32_t* node;  // [count]
  T* gate;        // [count to whole vectors], 0 after the last
#ifdef FASTSPEC_AVX512
  int64_t vectors;
  uint16_t* bits;   // [vectors], which columns of a vector are open
  int32_t* before;  // [vectors], how many open columns are before it
#endif

  void lay_out(Arena& arena, int64_t columns) {
    node = arena.template take<int32_t>(padded<T>(columns)), gate = arena.template take<T>(padded<T>(columns));
#ifdef FASTSPEC_AVX512
    vectors = padded<T>(columns) / Simd<T>::lanes;
    bits = arena.template take<uint16_t>(vectors), before = arena.template take<int32_t>(vectors);
#endif
  }

  void find(const T* gates, int64_t columns) {
    count = 0;
#ifdef FASTSPEC_AVX512
    constexpr int lanes = Simd<T>::lanes;
    vectors = padded<T>(columns) / lanes;
    for (int64_t v = 0; v < vectors; ++v) bits[v] = 0, before[v] = 0;
#endif
    for (int64_t k = 0; k < columns; ++k) {
      const bool open = !(gates[k] == 0);  // NaN is kept
      node[count] = int32_t(k), gate[count] = gates[k];
#ifdef FASTSPEC_AVX512
      bits[k / lanes] |= uint16_t(open) << k % lanes;
      if (k % lanes == 0) before[k / lanes] = int32_t(count);
#endif
      count += open;
    }
    for (int64_t j = count; j < padded<T>(count); ++j) gate[j] = 0;
  }
};

#ifdef FASTSPEC_AVX512

inline __m512 load_open(uint16_t bits, const float* p) { return _mm512_maskz_loadu_ps(bits, p); }
inline __m512d load_open(uint16_t bits, const double* p) { return _mm512_maskz_loadu_pd(__mmask8(bits), p); }
inline void store_open(uint16_t bits, float* p, __m512 v) { _mm512_mask_storeu_ps(p, bits, v); }
inline void store_open(uint16_t bits, double* p, __m512d v) { _mm512_mask_storeu_pd(p, __mmask8(bits), v); }
inline __m512 compress(uint16_t bits, __m512 v) { return _mm512_maskz_compress_ps(bits, v); }
inline __m512d compress(uint16_t bits, __m512d v) { return _mm512_maskz_compress_pd(__mmask8(bits), v); }
inline __m512 expand(uint16_t bits, __m512 v) { return _mm512_maskz_expand_ps(bits, v); }
inline __m512d expand(uint16_t bits, __m512d v) { return _mm512_maskz_expand_pd(__mmask8(bits), v); }

// to[j] = from[node[j]], then a vector of zeros.
template <typename T>
inline void pack_open(const OpenColumns<T>& open, const T* from, T* to) {
  for (int64_t v = 0; v < open.vectors; ++v) {
    const uint16_t bits = open.bits[v];
    Simd<T>::store(to + open.before[v], compress(bits, load_open(bits, from + v * Simd<T>::lanes)));
  }
  Simd<T>::store(to + open.count, typename Simd<T>::Vector{});
}

// The first open column of the vector that open column `j` is in.
template <typename T>
inline int64_t open_start(const OpenColumns<T>& open, int64_t j) {
  return open.before[open.node[j] / Simd<T>::lanes];
}

// to[node[j]] += packed[j - start] from open column `start` on, the first of its vector. Reads a vector after the last.
template <typename T>
inline void add_open(const OpenColumns<T>& open, int64_t start, const T* packed, T* to) {
  for (int64_t v = open.node[start] / Simd<T>::lanes; v < open.vectors; ++v) {
    const uint16_t bits = open.bits[v];
    T* const at = to + v * Simd<T>::lanes;
    store_open(bits, at, load_open(bits, at) + expand(bits, Simd<T>::load(packed + open.before[v] - start)));
  }
}

#else

template <typename T>
inline void pack_open(const OpenColumns<T>& open, const T* from, T* to) {
  for (int64_t j = 0; j < open.count; ++j) to[j] = from[open.node[j]];
  Simd<T>::store(to + open.count, typename Simd<T>::Vector{});
}

template <typename T>
inline int64_t open_start(const OpenColumns<T>&, int64_t j) {
  return j;
}

template <typename T>
inline void add_open(const OpenColumns<T>& open, int64_t start, const T* packed, T* to) {
  for (int64_t j = start; j < open.count; ++j) to[open.node[j]] += packed[j - start];
}

#endif

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
