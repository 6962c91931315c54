#if defined(__x86_64__)
#include "avx512.h"
#include "mlp_sgd_step.h"

namespace fastspec {
void train_deep_avx512(const DeepProblem& problem, const Parallel& parallel) { avx512::train_deep(problem, parallel); }
}  // namespace fastspec
#endif
