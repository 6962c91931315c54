// Grams of the gated backward maps of two chains of layers, as every backend sees the problem
// (fastspec/ops/chain_gram/README.md).
#pragma once

#include <cstdint>

#include "fastspec/parallel.h"
#include "fastspec/scalar.h"

namespace fastspec {

// A hidden layer of one network, contiguous.
struct ChainLayer {
  const void* map;    // [nodes of the layer above, or outputs; nodes]
  const void* gates;  // [samples, nodes]
  int64_t nodes;
};

struct GramMatrices {
  double *student_teacher, *teacher, *student;  // [m, n], [m, m], [n, n]
};

// One teacher against one student, hidden layers lowest first.
struct ChainGramProblem {
  Scalar scalar;  // f32 or f64
  int64_t samples, outputs, layers;
  const ChainLayer *teacher, *student;
  const GramMatrices* out;
  bool of_teacher, of_student;  // which matrices of one network with itself are wanted
};

// Sums over the samples, independent of the number of threads.
// Throws std::bad_alloc when the workspace (sums of eight blocks of samples) cannot be had.
void compute_chain_gram(const ChainGramProblem& problem, const Parallel& parallel);

}  // namespace fastspec
