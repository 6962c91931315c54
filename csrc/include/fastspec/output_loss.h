// The loss of a population's outputs, as every backend sees the problem (fastspec/ops/output_loss/README.md).
#pragma once

#include <cstdint>

#include "fastspec/parallel.h"
#include "fastspec/scalar.h"

namespace fastspec {

// All contiguous.
struct OutputLossProblem {
  Scalar scalar;  // f32 or f64
  int64_t students, samples, nodes, outputs;
  const void* answers;      // [samples, outputs]
  const void* activations;  // [students, samples, nodes]
  const void* weight;       // [students, outputs, nodes]
  const void* bias;         // [students, outputs], or null
  double* loss;             // [students]
};

// Sums over the samples, independent of the number of threads and of the other students.
// Throws std::bad_alloc when the workspace (for each core, the answers of a chunk and some of a student's weights)
// cannot be had.
void compute_output_loss(const OutputLossProblem& problem, const Parallel& parallel);

}  // namespace fastspec
