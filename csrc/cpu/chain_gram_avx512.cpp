#if defined(__x86_64__)
#include "avx512.h"
#include "chain_gram.h"

namespace fastspec {
void compute_chain_gram_avx512(const ChainGramProblem& problem, const Parallel& parallel) {
  avx512::chain_gram(problem, parallel);
}
}  // namespace fastspec
#endif
