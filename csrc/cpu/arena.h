// Sizes, and memory that is laid out once.
#pragma once

#include <cstdint>

namespace fastspec {
namespace FASTSPEC_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t common_divisor(int64_t a, int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Hands out aligned pieces of one block; with base == nullptr it only counts.
struct Arena {
  char* base = nullptr;
  int64_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    T* const at = reinterpret_cast<T*>(base + used);
    used += ceil_div(count * sizeof(T), 64) * 64;
    return at;
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
