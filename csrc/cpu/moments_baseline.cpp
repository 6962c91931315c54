// The kernels for any machine: vectors of 16 bytes, which every 64-bit processor has.
#define FASTSPEC_ISA baseline
#define FASTSPEC_VECTOR_BYTES 16
#define FASTSPEC_TILE_ROWS 6
#include "one_pass.h"

namespace fastspec {
void compute_moments_baseline(const MomentsProblem& problem, const Parallel& parallel) {
  baseline::compute(problem, parallel);
}
}  // namespace fastspec
