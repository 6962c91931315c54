// Reading and writing arrays of any dtype and any strides.
#pragma once

#include "fastspec/moments.h"

namespace fastspec {
namespace FASTSPEC_ISA {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct BFloat16 {
  uint16_t bits;
  operator float() const { return from_bits(uint32_t(bits) << 16); }
  static BFloat16 from(float value) {  // to nearest, ties to even
    const uint32_t b = to_bits(value);
    if (value != value) return {uint16_t(0x7fc0)};
    return {uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16)};
  }
};

struct Half {
  uint16_t bits;
  operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | (magnitude << 13));
    // A half's exponent, placed in a float's field, is too small by 112: multiply instead of counting (handles
    // subnormals).
    return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
  }
  static Half from(float value) {  // to nearest, ties to even
    const uint32_t b = to_bits(value), sign = (b >> 16) & 0x8000, magnitude = b & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
    if (magnitude < 0x38800000) {  // subnormal: the sum's own rounding does it
      return {uint16_t(sign | (to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f)))};
    }
    return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
  }
};

template <typename Stored, typename T>
inline Stored cast(T value) {
  if constexpr (requires { Stored::from(value); }) {
    return Stored::from(value);
  } else {
    return Stored(value);
  }
}

// Offsets of samples [first, first + rows) in an array.
inline void sample_offsets(const Array& array, int64_t first, int64_t rows, int64_t* offsets) {
  int64_t index[4], rest = first;
  for (int axis = 3; axis >= 0; --axis) {
    index[axis] = rest % array.sample_sizes[axis];
    rest /= array.sample_sizes[axis];
  }
  for (int64_t row = 0; row < rows; ++row) {
    int64_t offset = 0;
    for (int axis = 0; axis < 4; ++axis) offset += index[axis] * array.sample_strides[axis];
    offsets[row] = offset;
    for (int axis = 3; axis >= 0 && ++index[axis] == array.sample_sizes[axis]; --axis) index[axis] = 0;
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
