// The training problem of deep students of one shape, as every backend sees it (fastspec/ops/mlp_sgd_step/README.md).
#pragma once

#include <cstdint>

#include "fastspec/parallel.h"
#include "fastspec/scalar.h"

namespace fastspec {

struct DeepRule {
  double momentum, weight_decay, negative_slope, loss_limit;
  bool normalize;
};

struct DeepProblem {
  Scalar scalar;  // f32 or f64
  int64_t samples, students, steps, batch, layers;
  const int64_t* widths;         // [layers + 1]: inputs, hidden nodes, outputs
  const bool* bias;              // [layers]
  const void* x;                 // [samples, inputs], columns adjacent
  int64_t x_stride;              // between rows
  const void* y;                 // [samples, outputs], or null with labels
  int64_t y_stride;              //
  const int64_t* labels;         // [samples] or null
  void *parameters, *buffers;    // [students, count] read and written; no buffers without momentum
  int64_t count;                 // of one student: each layer's weight [out, in], then its bias [out]
  const int64_t* indices;        // [steps, batch] for each student
  int64_t indices_stride;        // between students; 0 if all share one table
  const double* lr;              // [steps]
  int64_t first_step;            // number of the call's first step
  int64_t* diverged_step;        // [students], -1 for none; read and written
  double *loss, *gradient_norm;  // [students, steps], [students, steps, layers] or null; written for steps made
  DeepRule rule;
};

// Trains every student. Its result depends on nothing but its own parameters and batches, and the data. `parallel` must
// run its parts at the same time: they wait for each other.
// Throws std::bad_alloc when the workspace (some copies of a student and its activations) cannot be had.
void train_deep(const DeepProblem& problem, const Parallel& parallel);

}  // namespace fastspec
