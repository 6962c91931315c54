#include "baseline.h"
#include "output_loss.h"

namespace fastspec {
void compute_output_loss_baseline(const OutputLossProblem& problem, const Parallel& parallel) {
  baseline::output_loss(problem, parallel);
}
}  // namespace fastspec
