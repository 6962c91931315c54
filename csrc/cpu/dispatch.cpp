// Chooses the instruction set once, when the library is loaded.
#include <algorithm>
#include <numeric>
#include <vector>

#include "fastspec/chain_gram.h"
#include "fastspec/instruction_set.h"
#include "fastspec/mlp_sgd_step.h"
#include "fastspec/moments.h"
#include "fastspec/two_layer_sgd.h"

namespace fastspec {

void compute_moments_baseline(const MomentsProblem&, const Parallel&);
void compute_moments_avx2(const MomentsProblem&, const Parallel&);
void compute_moments_avx512(const MomentsProblem&, const Parallel&);
void train_two_layer_baseline(const TrainingProblem&, const int64_t*, const Parallel&);
void train_two_layer_avx2(const TrainingProblem&, const int64_t*, const Parallel&);
void train_two_layer_avx512(const TrainingProblem&, const int64_t*, const Parallel&);
void compute_chain_gram_baseline(const ChainGramProblem&, const Parallel&);
void compute_chain_gram_avx2(const ChainGramProblem&, const Parallel&);
void compute_chain_gram_avx512(const ChainGramProblem&, const Parallel&);
void train_deep_baseline(const DeepProblem&, const Parallel&);
void train_deep_avx2(const DeepProblem&, const Parallel&);
void train_deep_avx512(const DeepProblem&, const Parallel&);

namespace {

const InstructionSet chosen = choose_instruction_set(), for_moments = choose_for_moments();

// Widest students first, so that the last ones to finish are short.
std::vector<int64_t> by_width(const TrainingProblem& p) {
  std::vector<int64_t> order(p.students);
  std::iota(order.begin(), order.end(), 0);
  const auto width = [&](int64_t k) { return p.offsets[k + 1] - p.offsets[k]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return width(a) > width(b); });
  return order;
}

}  // namespace

void compute_moments(const MomentsProblem& problem, const Parallel& parallel) {
#if defined(__x86_64__)
  if (for_moments == InstructionSet::avx512) return compute_moments_avx512(problem, parallel);
  if (for_moments == InstructionSet::avx2) return compute_moments_avx2(problem, parallel);
#endif
  compute_moments_baseline(problem, parallel);
}

void train_two_layer(const TrainingProblem& problem, const Parallel& parallel) {
  const std::vector<int64_t> order = by_width(problem);
#if defined(__x86_64__)
  if (chosen == InstructionSet::avx512) return train_two_layer_avx512(problem, order.data(), parallel);
  if (chosen == InstructionSet::avx2) return train_two_layer_avx2(problem, order.data(), parallel);
#endif
  train_two_layer_baseline(problem, order.data(), parallel);
}

void compute_chain_gram(const ChainGramProblem& problem, const Parallel& parallel) {
#if defined(__x86_64__)
  if (chosen == InstructionSet::avx512) return compute_chain_gram_avx512(problem, parallel);
  if (chosen == InstructionSet::avx2) return compute_chain_gram_avx2(problem, parallel);
#endif
  compute_chain_gram_baseline(problem, parallel);
}

void train_deep(const DeepProblem& problem, const Parallel& parallel) {
#if defined(__x86_64__)
  if (chosen == InstructionSet::avx512) return train_deep_avx512(problem, parallel);
  if (chosen == InstructionSet::avx2) return train_deep_avx2(problem, parallel);
#endif
  train_deep_baseline(problem, parallel);
}

}  // namespace fastspec
