#include "baseline.h"
#include "chain_gram.h"

namespace fastspec {
void compute_chain_gram_baseline(const ChainGramProblem& problem, const Parallel& parallel) {
  baseline::chain_gram(problem, parallel);
}
}  // namespace fastspec
