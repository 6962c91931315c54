// One SGD step of one student, whose nodes are spread over the blocks of a cluster.
#pragma once

#include <cmath>

#include "fastspec/block/products.h"
#include "fastspec/two_layer_sgd.h"

namespace fastspec {
namespace block {

template <typename T>
struct StepRule {
  T momentum, weight_decay, slope;
  double limit;
  bool bias, normalize, train_first, train_top;
};

// The part of a batch that a step is made of.
struct Part {
  int64_t number;  // counted over all steps
  int64_t samples;
  bool first, last;  // of its batch
};

template <typename T, int tile, typename Block>
struct Step {
  Block block;  // values, not references: what a register can hold must have no address
  const Shape& shape;
  const Plan& plan;
  StepRule<T> rule;
  Arrays<T> a;
  int nodes;  // of this block

  // Weights change by sums of gradients: at once, or by way of `sums`, which are the momentum buffers or collect the
  // parts of a batch.
  struct Update {
    T eta, decay;
    bool first, last;  // part of the batch
  };

  FASTSPEC_HD void change(T* weight, T* sum, T gradient, const Update& u, bool first, bool last) const {
    first = first && u.first, last = last && u.last;
    const T w = *weight;
    if (!plan.sums) {
      *weight = first ? u.decay * w + gradient : w + gradient;
      return;
    }
    const bool momentum = shape.momentum;
    if (!first) {
      gradient += *sum;
    } else if (momentum) {
      gradient += rule.momentum * *sum - rule.weight_decay * w;
    }
    *sum = gradient;
    if (last) *weight = momentum ? w + u.eta * gradient : u.decay * w + gradient;
  }

  // hidden of a network whose first layer is given, and how it adds a bias.
  template <typename Bias>
  FASTSPEC_HD void hidden_layer(const Left<T>& first, int columns, int64_t depth, const T* x, T* hidden,
                                const Bias& bias) const {
    product<tile / 2>(
        block, 1, columns, int(plan.wide), first, x, plan.row, [&](int) { return Depth{0, depth}; },
        [&](int, int j, int b, T(&z)[tile / 2]) {
          const T constant = bias(j);
#pragma unroll
          for (int i = 0; i < tile / 2; ++i) {
            const T value = z[i] + constant, low = rule.slope * value;
            z[i] = low > value ? low : value;  // NaN stays NaN
          }
          store(hidden + int64_t{j} * plan.row + b, z);
        });
  }

  // The outputs of the groups that another block has.
  FASTSPEC_HD const T* outputs_of(int rank) const {
    if (plan.ranks == 1) return a.gradient;
    if (plan.placement != Placement::global) return block.of_rank(a.gradient, rank);
    const int64_t distance = (rank - block.rank()) * plan.global_bytes;
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(a.gradient) + distance);
  }

  // Residuals in the place of the targets, from the outputs of all groups of nodes.
  FASTSPEC_HD void residuals(T* residual, int64_t samples) const {
    const int quads = int(plan.wide / 4), outputs = int(shape.outputs), own = int(plan.groups / plan.ranks);
    const T* const bias = a.weights.top + nodes * top_row(shape);
    for (int item = block.thread(); item < outputs * quads; item += block.threads()) {
      const int c = item / quads, b = item % quads * 4;
      const int64_t at = c * plan.row + b;
      T sum[4], r[4];
      const T constant = rule.bias ? bias[c] : T(0);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = constant;
      for (int rank = 0; rank < int(plan.ranks); ++rank) {
        const T* groups = outputs_of(rank);
        for (int group = 0; group < own; ++group) {
          T part[4];
          load(part, groups + group * shape.outputs * plan.row + at);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += part[i];
        }
      }
      load(r, residual + at);
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = b + i < samples ? r[i] - sum[i] : T(0);
      store(residual + at, r);
    }
  }

  FASTSPEC_HD void sum_squares(const T* residual) const {
    for (int slot = block.thread(); slot < loss_slots; slot += block.threads()) {
      T sum = 0;
      for (int64_t c = slot; c < shape.outputs; c += loss_slots) {
        for (int b = 0; b < int(plan.wide); b += 4) {
          T r[4];
          load(r, residual + c * plan.row + b);
          sum += (r[0] * r[0] + r[1] * r[1]) + (r[2] * r[2] + r[3] * r[3]);
        }
      }
      a.loss[slot] = double(sum);
    }
  }

  // Called by one thread.
  FASTSPEC_HD void judge(const Part& part) const {
    double sum = part.first ? 0 : a.loss[loss_slots];
    for (int slot = 0; slot < loss_slots; ++slot) sum += a.loss[slot];
    a.loss[loss_slots] = sum;
    if (part.last) *a.bad = !(sum / (2 * double(shape.batch)) <= rule.limit);
  }

  // Divides each node's fan-in, without its bias, by its norm; a node of zeros stays.
  FASTSPEC_HD void normalize() const {
    const int64_t row = first_row(plan);
    for (int j = block.thread(); j < nodes; j += block.threads()) {
      T square = 0;
      for (int64_t k = 0; k < shape.inputs; ++k) square += a.weights.first[k * row + j] * a.weights.first[k * row + j];
      if (square == 0) continue;
      const T norm = std::sqrt(square);
      for (int64_t k = 0; k < shape.inputs; ++k) a.weights.first[k * row + j] /= norm;
    }
  }

  // One part of a step at rate eta; the batch is of use, and `a.bad` tells of it, after the last part. `next` prepares
  // the part after this one.
  template <typename Next>
  FASTSPEC_HD void run(T eta, const Part& part, const Next& next) const {
    const T scale = (shape.momentum ? T(1) : eta) / T(shape.batch);
    const Update u{eta, T(1) - eta * rule.weight_decay, part.first, part.last};
    const int wide = int(plan.wide), own = int(plan.groups / plan.ranks), outputs = int(shape.outputs);
    const int64_t row = plan.row, in_row = first_row(plan), out_row = top_row(shape);
    const T* const x = a.x.of(part.number);
    T* const residual = a.residual.of(part.number);
    const Network<T>&w = a.weights, &v = a.sums;

    const auto bias = [&](int j) { return rule.bias ? w.first[shape.inputs * in_row + j] : T(0); };
    hidden_layer({w.first, in_row, 1}, nodes, shape.inputs, x, a.hidden, bias);
    next.choose();
    block.sync();

    next.fetch();
    const int64_t first_group = block.rank() * own, before = group_begin(shape.nodes, plan.groups, first_group);
    product<tile / 2>(
        block, own, outputs, wide, {w.top, out_row, 1}, a.hidden, row,
        [&](int group) {
          const int64_t g = first_group + group;
          return Depth{group_begin(shape.nodes, plan.groups, g) - before,
                       group_begin(shape.nodes, plan.groups, g + 1) - before};
        },
        [&](int group, int c, int b, const T(&sums)[tile / 2]) {
          store(a.gradient + (int64_t{group} * outputs + c) * row + b, sums);
        });
    block.sync_all();

    residuals(residual, part.samples);
    block.sync_all();

    if (rule.train_first) {
      product<tile / 2>(
          block, 1, nodes, wide, {w.top, 1, out_row}, residual, row, [&](int) { return Depth{0, outputs}; },
          [&](int, int j, int b, T(&g)[tile / 2]) {
            T hidden[tile / 2];
            load(hidden, a.hidden + int64_t{j} * row + b);
#pragma unroll
            for (int i = 0; i < tile / 2; ++i) g[i] *= hidden[i] > 0 ? scale : rule.slope * scale;
            store(a.gradient + int64_t{j} * row + b, g);
          });
    }
    sum_squares(residual);
    block.sync();

    if (rule.train_top) {
      outer_product<tile>(block, outputs, nodes + rule.bias, wide, residual, scale, a.hidden, row,
                          [&](int64_t j, int c, T gradient, bool first, bool last) {
                            const int64_t at = j * out_row + c;
                            change(w.top + at, v.top + at, gradient, u, first, last);
                          });
    }
    if (rule.train_first) {
      outer_product<tile>(block, nodes, shape.inputs + rule.bias, wide, a.gradient, T(1), x, row,
                          [&](int64_t k, int j, T gradient, bool first, bool last) {
                            const int64_t at = k * in_row + j;
                            change(w.first + at, v.first + at, gradient, u, first, last);
                          });
    }
    if (block.thread() == 0) judge(part);
    next.wait();
    block.sync();
    if (rule.normalize && rule.train_first && part.last) {
      normalize();
      block.sync();
    }
  }
};

}  // namespace block
}  // namespace fastspec
