// Chooses the instruction set once, when the library is loaded.
#include "fastspec/instruction_set.h"
#include "fastspec/moments.h"

namespace fastspec {

void compute_moments_baseline(const MomentsProblem&, const Parallel&);
void compute_moments_avx2(const MomentsProblem&, const Parallel&);
void compute_moments_avx512(const MomentsProblem&, const Parallel&);

namespace {
const InstructionSet chosen = choose_instruction_set();
}

void compute_moments(const MomentsProblem& problem, const Parallel& parallel) {
#if defined(__x86_64__)
  if (chosen == InstructionSet::avx512) return compute_moments_avx512(problem, parallel);
  if (chosen == InstructionSet::avx2) return compute_moments_avx2(problem, parallel);
#endif
  compute_moments_baseline(problem, parallel);
}

}  // namespace fastspec
