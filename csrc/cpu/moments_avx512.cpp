// The kernels for avx512; called only where dispatch.cpp has seen that the machine has it.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,popcnt")
#define FASTSPEC_ISA avx512
#define FASTSPEC_VECTOR_BYTES 64
#define FASTSPEC_TILE_ROWS 12
#include "one_pass.h"

namespace fastspec {
void compute_moments_avx512(const MomentsProblem& problem, const Parallel& parallel) {
  avx512::compute(problem, parallel);
}
}  // namespace fastspec
#endif
