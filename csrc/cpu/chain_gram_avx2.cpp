#if defined(__x86_64__)
#include "avx2.h"
#include "chain_gram.h"

namespace fastspec {
void compute_chain_gram_avx2(const ChainGramProblem& problem, const Parallel& parallel) {
  avx2::chain_gram(problem, parallel);
}
}  // namespace fastspec
#endif
