#if defined(__x86_64__)
#include "avx2.h"
#include "one_pass.h"

namespace fastspec {
void compute_moments_avx2(const MomentsProblem& problem, const Parallel& parallel) { avx2::compute(problem, parallel); }
}  // namespace fastspec
#endif
