#if defined(__x86_64__)
#include "avx2.h"
#include "mlp_sgd_step.h"

namespace fastspec {
void train_deep_avx2(const DeepProblem& problem, const Parallel& parallel) { avx2::train_deep(problem, parallel); }
}  // namespace fastspec
#endif
