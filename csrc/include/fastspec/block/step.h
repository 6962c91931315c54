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
  bool bias, normalize, train_first, train_top;
};

// The part of a batch that a step is made of.
struct Part {
  bool odd;  // in which half of the memory it is
  int samples;
  bool first, last;  // of its batch
};

template <typename T, int tile, typename Block>
struct Step {
  Block block;  // values, not references: what a register can hold must have no address
  const Shape& shape;
  const Plan& plan;
  StepRule<T> rule;
  Arrays<T> a;
  int nodes;               // of this block
  Place node, output;      // this thread's first tile of nodes, of outputs
  Strip of_top, of_first;  // and of their weights

  // Weights change by sums of gradients: at once, or by way of `sums`, which are the momentum buffers or collect the
  // parts of a batch.
  struct Update {
    T eta, decay;
    bool first, last;  // part of the batch
  };

  // What a weight becomes that changes by way of `sum`.
  FASTSPEC_HD T changed(T w, T* sum, T gradient, const Update& u, bool first, bool last) const {
    const bool momentum = shape.momentum;
    if (!first) {
      gradient += *sum;
    } else if (momentum) {
      gradient += rule.momentum * *sum - rule.weight_decay * w;
    }
    *sum = gradient;
    if (!last) return w;
    return momentum ? w + u.eta * gradient : u.decay * w + gradient;
  }

  // `columns` of weights, from `rows` of what they are given and `gradients` of what they give.
  template <bool by_sums>
  FASTSPEC_HD void learn(Strip mine, int columns, int rows, const T* gradients, T scale, const T* given, T* weights,
                         T* sums, int stride, const Update& u) const {
    const int pairs = (columns + 1) / 2;
    outer_product<tile>(block, mine, columns, rows, int(plan.wide), gradients, scale, given, int(plan.row),
                        [&](int k, int count, int column, bool two_columns, bool first, bool last, const auto& add) {
                          constexpr int some = rows_at_once<T>;
                          const int64_t at = int64_t{k} * stride + column;
                          const int right = two_columns ? pairs : 0;
                          T* const w = weights + at;
                          T sum[some][2] = {}, now[some][2];
#pragma unroll
                          for (int r = 0; r < some; ++r) {
                            const T* const there = w + (r < count ? r : 0) * stride;
                            now[r][0] = there[0], now[r][1] = there[right];
                          }
                          add(sum);
                          const T kept = first ? u.decay : T(1);
#pragma unroll
                          for (int r = 0; r < some; ++r) {
                            const int below = r * stride;
                            if (r >= count) break;
#pragma unroll
                            for (int c = 0; c < 2; ++c) {
                              if (c && !two_columns) break;
                              const int place = below + c * right;
                              w[place] = by_sums ? changed(now[r][c], sums + at + place, sum[r][c], u, first && u.first,
                                                           last && u.last)
                                                 : kept * now[r][c] + sum[r][c];
                            }
                          }
                        });
  }

  template <bool by_sums>
  FASTSPEC_HD void learn_all(const T* x, const T* residual, T scale, const Update& u) const {
    const Network<T>&w = a.weights, &v = a.sums;
    const int outputs = int(shape.outputs), inputs = int(shape.inputs);
    if (rule.train_top) {
      learn<by_sums>(of_top, outputs, nodes + rule.bias, residual, scale, a.hidden, w.top, v.top, int(top_row(shape)),
                     u);
    }
    if (rule.train_first) {
      learn<by_sums>(of_first, nodes, inputs + rule.bias, a.partial, T(1), x, w.first, v.first, int(first_row(plan)),
                     u);
    }
  }

  // The hidden activations in the place `hidden` of pre-activations in `parts` partial sums.
  template <typename Bias>
  FASTSPEC_HD void activate(int parts, int columns, const T* partial, T* hidden, const Bias& bias) const {
    const int row = int(plan.row);
    combine(block, parts, columns, plan.quads, partial, row, [&](int j, int b, T(&z)[4]) {
      const T constant = bias(j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T value = z[i] + constant, low = rule.slope * value;
        z[i] = low > value ? low : value;  // NaN stays NaN
      }
      store(hidden + int64_t{j} * row + b, z);
    });
  }

  // The outputs of the groups that another block has.
  FASTSPEC_HD const T* outputs_of(int rank) const {
    if (plan.ranks == 1) return a.partial;
    if (plan.placement != Placement::global) return block.of_rank(a.partial, rank);
    const int64_t distance = (rank - block.rank()) * plan.global_bytes;
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(a.partial) + distance);
  }

  // Residuals in the place of the targets, from the outputs of all groups of nodes.
  FASTSPEC_HD void residuals(T* residual, int samples) const {
    const int outputs = int(shape.outputs), own = plan.own_groups, row = int(plan.row);
    const T* const bias = a.weights.top + nodes * top_row(shape);
#pragma unroll 1
    for (int item = block.thread(); item < outputs * plan.quads.count; item += block.threads()) {
      const int c = plan.quads.of(item), b = (item - c * plan.quads.count) * 4;
      const int64_t at = int64_t{c} * row + b;
      T sum[4], r[4];
      load(r, residual + at);
      const T constant = rule.bias ? bias[c] : T(0);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = constant;
#pragma unroll 1
      for (int rank = 0; rank < int(plan.ranks); ++rank) {
        const T* group = outputs_of(rank) + at;
#pragma unroll 4
        for (int count = own; count > 0; --count) {
          T part[4];
          load(part, group);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[i] += part[i];
          group += int64_t{outputs} * row;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = b + i < samples ? r[i] - sum[i] : T(0);
      store(residual + at, r);
      a.squares[item] = (r[0] * r[0] + r[1] * r[1]) + (r[2] * r[2] + r[3] * r[3]);
    }
  }

  // By the threads that have least else to do.
  FASTSPEC_HD void sum_squares() const {
    const int count = int(shape.outputs) * plan.quads.count;
#pragma unroll 1
    for (int slot = block.threads() - 1 - block.thread(); slot < loss_slots; slot += block.threads()) {
      T sum = 0;
#pragma unroll 4
      for (int i = slot; i < count; i += loss_slots) sum += a.squares[i];
      a.loss[slot] = double(sum);
    }
  }

  // Called by one thread.
  FASTSPEC_HD void judge(const Part& part) const {
    double sums[4] = {part.first ? 0 : a.loss[loss_slots]};
#pragma unroll
    for (int slot = 0; slot < loss_slots; ++slot) sums[slot % 4] += a.loss[slot];
    const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    a.loss[loss_slots] = sum;
    if (part.last) *a.bad = !(sum <= *a.limit);
  }

  // Divides each node's fan-in, without its bias, by its norm; a node of zeros stays.
  FASTSPEC_HD void normalize() const {
    const int64_t row = first_row(plan);
#pragma unroll 1
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
    const int wide = int(plan.wide), row = int(plan.row), slices = int(plan.slices);
    const int inputs = int(shape.inputs), outputs = int(shape.outputs), own = plan.own_groups;
    const int in_row = int(first_row(plan)), out_row = int(top_row(shape));
    const T* const x = a.x.of(part.odd);
    T* const residual = a.residual.of(part.odd);
    const Network<T>& w = a.weights;

    product<tile / 2>(
        block, node, slices, nodes, wide, {w.first, in_row, 1}, x, row,
        [&](int slice) { return part_of(inputs, slice, plan.slices_log); }, a.partial);
    next.choose();
    block.sync();

    activate(slices, nodes, a.partial, a.hidden,
             [&](int j) { return rule.bias ? w.first[int64_t{inputs} * in_row + j] : T(0); });
    next.fetch();
    block.sync();

    const int first_group = block.rank() * own, before = part_of(int(shape.nodes), first_group, plan.groups_log).begin;
    product<tile / 2>(
        block, output, own, outputs, wide, {w.top, out_row, 1}, a.hidden, row,
        [&](int group) {
          const Range of_all = part_of(int(shape.nodes), first_group + group, plan.groups_log);
          return Range{of_all.begin - before, of_all.end - before};
        },
        a.partial);
    block.sync_all();

    residuals(residual, part.samples);
    block.sync_all();

    if (rule.train_first) {
      product<tile / 2>(
          block, node, slices, nodes, wide, {w.top, 1, out_row}, residual, row,
          [&](int slice) { return part_of(outputs, slice, plan.slices_log); }, a.partial);
    }
    sum_squares();
    block.sync();

    if (rule.train_first) {
      combine(block, slices, nodes, plan.quads, a.partial, row, [&](int j, int b, T(&g)[4]) {
        T hidden[4];
        load(hidden, a.hidden + int64_t{j} * row + b);
#pragma unroll
        for (int i = 0; i < 4; ++i) g[i] *= hidden[i] > 0 ? scale : rule.slope * scale;
        store(a.partial + int64_t{j} * row + b, g);
      });
      block.sync();
    }

    plan.sums ? learn_all<true>(x, residual, scale, u) : learn_all<false>(x, residual, scale, u);
    if (block.thread() == block.threads() - 1) judge(part);
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
