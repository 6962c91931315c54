#if defined(__x86_64__)
#include "avx512.h"
#include "two_layer_sgd.h"

namespace fastspec {
void train_two_layer_avx512(const TrainingProblem& problem, const int64_t* order, const Parallel& parallel) {
  avx512::train(problem, order, parallel);
}
}  // namespace fastspec
#endif
