#include "baseline.h"
#include "one_pass.h"

namespace fastspec {
void compute_moments_baseline(const MomentsProblem& problem, const Parallel& parallel) {
  baseline::compute(problem, parallel);
}
}  // namespace fastspec
