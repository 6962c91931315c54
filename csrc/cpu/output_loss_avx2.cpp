#if defined(__x86_64__)
#include "avx2.h"
#include "output_loss.h"

namespace fastspec {
void compute_output_loss_avx2(const OutputLossProblem& problem, const Parallel& parallel) {
  avx2::output_loss(problem, parallel);
}
}  // namespace fastspec
#endif
