// Standard normal numbers from random words, for g++ and nvcc; fastspec/ops/normal.py is the same, bit for bit.
//
// The magnitude of word w is the quantile of p = (w mod 2^31 + 1/2) / 2^32, its sign bit 31; |error| < 2e-6 against the
// exact quantile. Every operation is rounded to float32 on its own: no fused multiply-add may be formed here (g++ is
// told so by the file that includes this, nvcc below).
#pragma once

#include <cstdint>
#include <cstring>

#include "fastspec/philox.h"

namespace fastspec {

FASTSPEC_HD float multiply_then_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

FASTSPEC_HD float standard_normal(uint32_t word) {
  const float tail = static_cast<float>(static_cast<int32_t>(word & 0x7fffffffu)) + 0.5f;  // 2^32 p
  int32_t bits;
  std::memcpy(&bits, &tail, sizeof bits);
  const float exponent = static_cast<float>((bits >> 23) - 159);
  bits = (bits & 0x007fffff) | 0x3f800000;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  f = f - 1.5f;  // ln(f + 1.5) on [1, 2), a minimax polynomial
  float ln = -0.006299947693247789f;
  ln = multiply_then_add(ln, f, 0.010243887617179563f);
  ln = multiply_then_add(ln, f, -0.01426410561588118f);
  ln = multiply_then_add(ln, f, 0.025967303772055254f);
  ln = multiply_then_add(ln, f, -0.04942121735948568f);
  ln = multiply_then_add(ln, f, 0.09879175484327986f);
  ln = multiply_then_add(ln, f, -0.22222078830720673f);
  ln = multiply_then_add(ln, f, 0.6666661659591437f);
  ln = multiply_then_add(ln, f, 0.40546509926276864f);
  ln = multiply_then_add(exponent, 0.6931471805599453f, ln);
  const float t = __builtin_sqrtf(-ln);  // the quantile is a quotient of polynomials in sqrt(-ln p)
  float top = 1.98412721f;
  top = multiply_then_add(top, t, 11.64350476f);
  top = multiply_then_add(top, t, 6.71291842f);
  top = multiply_then_add(top, t, -10.95922261f);
  top = multiply_then_add(top, t, -3.20143585f);
  float bottom = 1.402143f;
  bottom = multiply_then_add(bottom, t, 8.2768664f);
  bottom = multiply_then_add(bottom, t, 7.63313869f);
  bottom = multiply_then_add(bottom, t, 1.0f);
  const float z = top / bottom;
  return word & 0x80000000u ? -z : z;
}

}  // namespace fastspec
