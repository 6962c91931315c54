// The kernels for avx2; called only where dispatch.cpp has seen that the machine has it.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,popcnt")
#define FASTSPEC_ISA avx2
#define FASTSPEC_VECTOR_BYTES 32
#define FASTSPEC_TILE_ROWS 6
#include "one_pass.h"

namespace fastspec {
void compute_moments_avx2(const MomentsProblem& problem, const Parallel& parallel) { avx2::compute(problem, parallel); }
}  // namespace fastspec
#endif
