#if defined(__x86_64__)
#include "avx2.h"
#include "two_layer_sgd.h"

namespace fastspec {
void train_two_layer_avx2(const TrainingProblem& problem, const int64_t* order, const Parallel& parallel) {
  avx2::train(problem, order, parallel);
}
}  // namespace fastspec
#endif
