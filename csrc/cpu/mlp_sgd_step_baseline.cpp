#include "baseline.h"
#include "mlp_sgd_step.h"

namespace fastspec {
void train_deep_baseline(const DeepProblem& problem, const Parallel& parallel) {
  baseline::train_deep(problem, parallel);
}
}  // namespace fastspec
