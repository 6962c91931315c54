#if defined(__x86_64__)
#include "avx512.h"
#include "one_pass.h"

namespace fastspec {
void compute_moments_avx512(const MomentsProblem& problem, const Parallel& parallel) {
  avx512::compute(problem, parallel);
}
}  // namespace fastspec
#endif
