// Which of the compiled instruction sets a machine runs; FASTSPEC_ISA=baseline|avx2|avx512 asks for a smaller one.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fastspec {

enum class InstructionSet { baseline, avx2, avx512 };

inline const char* name_of(InstructionSet set) {
  return set == InstructionSet::avx512 ? "avx512" : set == InstructionSet::avx2 ? "avx2" : "baseline";
}

inline InstructionSet largest_instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

inline InstructionSet choose_instruction_set() {
  const InstructionSet largest = largest_instruction_set();
  const char* const asked = std::getenv("FASTSPEC_ISA");
  for (const InstructionSet set : {InstructionSet::baseline, InstructionSet::avx2}) {
    if (asked && std::strcmp(asked, name_of(set)) == 0 && set < largest) return set;
  }
  return largest;
}

// The moments are faster in 256 bits where a 512-bit operation is made of two (ops/layer_moments/README.md), as on
// AMD's processors with AVX-512 that were measured; FASTSPEC_ISA=avx512 asks for it all the same.
inline InstructionSet choose_for_moments() {
  const InstructionSet chosen = choose_instruction_set();
#if defined(__x86_64__)
  const char* const asked = std::getenv("FASTSPEC_ISA");
  if (chosen == InstructionSet::avx512 && !asked && __builtin_cpu_is("amd")) return InstructionSet::avx2;
#endif
  return chosen;
}

}  // namespace fastspec
