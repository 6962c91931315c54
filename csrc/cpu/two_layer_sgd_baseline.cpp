#include "baseline.h"
#include "two_layer_sgd.h"

namespace fastspec {
void train_two_layer_baseline(const TrainingProblem& problem, const int64_t* order, const Parallel& parallel) {
  baseline::train(problem, order, parallel);
}
}  // namespace fastspec
