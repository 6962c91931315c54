#if defined(__x86_64__)
#include "avx512.h"
#include "output_loss.h"

namespace fastspec {
void compute_output_loss_avx512(const OutputLossProblem& problem, const Parallel& parallel) {
  avx512::output_loss(problem, parallel);
}
}  // namespace fastspec
#endif
