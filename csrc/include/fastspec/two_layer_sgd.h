// The training problem of many two-layer students, as every backend sees it (fastspec/ops/two_layer_sgd/README.md).
#pragma once

#include <cstdint>

#include "fastspec/parallel.h"
#include "fastspec/scalar.h"

namespace fastspec {

// Rows of samples; the columns of a row are adjacent.
struct Rows {
  const void* data;
  int64_t row_stride;
};

// Weights or momentum buffers of students whose nodes lie one after the other, contiguous.
struct Packed {
  void *w1, *b1, *w2, *b2;  // [nodes, d], [nodes], [nodes, C], [students, C]
};

struct Rule {
  double momentum, weight_decay, negative_slope, loss_limit;
  bool bias, normalize, fixed_first, fixed_top;
};

// Where the batch of a step comes from: `indices`, or all samples, or a draw of samples, or fresh Gaussian inputs.
struct Batches {
  const int64_t* indices;  // [students, steps, size] or null
  int64_t student_stride, step_stride;
  int64_t size;      // samples of a batch; 0: all samples
  int64_t first;     // number of the call's first step
  double fresh_std;  // above 0: inputs are drawn, and the teacher answers them
};

struct TrainingProblem {
  Scalar scalar;  // f32 or f64
  int64_t samples, inputs, outputs, students, steps;
  Rows x, y;                  // [N, d], [N, C]
  Packed weights, buffers;    // read and written; no buffers without momentum
  const int64_t* offsets;     // [students + 1]
  const double* lr;           // [students]
  const double* multipliers;  // [steps] or null
  const int64_t* seeds;       // [students]
  int64_t* diverged_step;     // [students], -1 for none; read and written
  Packed teacher;             // of one network, for fresh inputs
  int64_t teacher_nodes;
  Batches batches;
  Rule rule;
};

// Trains every student. Its result depends on nothing but its own weights, rate, seed and data.
// Throws std::bad_alloc when the workspace (one student's weights for each part) cannot be had.
void train_two_layer(const TrainingProblem& problem, const Parallel& parallel);

}  // namespace fastspec
