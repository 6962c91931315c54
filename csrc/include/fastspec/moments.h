// The moments problem, as every backend sees it: raw pointers and strides, no framework.
#pragma once

#include <cstdint>

#include "fastspec/parallel.h"
#include "fastspec/scalar.h"

namespace fastspec {

// Samples x columns of one network, or of several. A sample is a row and, for convolutional arrays, a position.
struct Array {
  const void* data;
  int64_t sample_sizes[4];    // [N, *space], 1 where absent
  int64_t sample_strides[4];  // in elements, like every stride
  int64_t column_stride;
  int64_t network_stride;  // 0: one array for all networks
};

// A linear layer of one network, or of several.
struct Layer {
  const void* weight;  // [networks, nodes, inputs]
  int64_t network_stride, node_stride, input_stride;
  const void* bias;  // [networks, nodes] or null
  int64_t bias_network_stride, bias_node_stride;
  int64_t inputs;
};

struct Side {
  Array array;  // the layer's input, or the activations themselves
  Layer layer;
  int64_t networks, nodes;
  void* activation;  // [networks, N, nodes] contiguous, or null: not asked for
};

// The layers of outputs above the activations, contiguous, of the problem's type: f32 or f64.
struct Outputs {
  const void *teacher_weight, *teacher_bias;  // [outputs, m], [outputs] or null
  const void *student_weight, *student_bias;  // [P, outputs, n], [P, outputs] or null
  int64_t outputs;
  double* loss;  // [P], half the squares of what teacher and student differ by; null: not asked for
};

struct MomentsProblem {
  Scalar scalar;
  bool layered;  // the arrays are inputs of layers; otherwise they are the activations
  double negative_slope;
  Side teacher, student;  // m and P x n nodes
  int64_t samples;        // N times positions
  double* teacher_mean;   // [m]
  double* student_mean;   // [P, n]
  double* teacher_scatter;
  double* student_scatter;
  double* cross_scatter;    // [P, m, n]
  int64_t* teacher_active;  // [m]
  int64_t* student_active;  // [P, n]
  int64_t* coactive;        // [P, m, n] or null: not asked for
  Outputs top;
};

// Fills the problem's outputs. The result does not depend on `parallel.parts`.
// Throws std::bad_alloc when the workspace (sums, chunks, packed weights) cannot be had.
void compute_moments(const MomentsProblem& problem, const Parallel& parallel);

}  // namespace fastspec
