// The memory plan of one student's training on a cluster of blocks: what lies where, from shapes alone
// (fastspec/ops/two_layer_sgd/README.md).
#pragma once

#include "fastspec/block/block.h"

namespace fastspec {
namespace block {

struct Shape {
  int64_t inputs, outputs, nodes, batch;
  int64_t teacher_nodes;  // that answer fresh inputs; 0 where samples are given
  int64_t value_bytes;    // 4 or 8
  bool momentum;
};

struct Limits {
  int64_t shared_bytes;  // of one block
  int64_t ranks;         // blocks of a cluster
};

// Fours of samples in a row of activations; which row an item of a block's work is in, without a division.
struct Quads {
  int count;
  uint32_t magic;  // exact as long as items * count < 2^32
  FASTSPEC_HD int of(int item) const { return int(uint64_t(uint32_t(item)) * magic >> 32); }
};

enum class Placement { shared, activations_shared, global };

struct Plan {
  int64_t groups;  // of nodes, whose outputs are summed apart, so that results do not depend on the ranks
  int64_t slices;  // of inputs, and of outputs, whose terms of a node are summed apart, so that more threads sum
  int groups_log, slices_log, own_groups;  // of one block
  int64_t ranks;                           // blocks that share the student's nodes
  int64_t most_nodes;                      // of one block
  int64_t part, wide;                      // samples that are in memory at a time, the same to whole tiles
  int64_t tile;                            // samples of a register tile
  int64_t row;                             // values between rows of activations
  Quads quads;
  int64_t threads;  // of a block
  bool sums;        // of gradients, beside the weights
  Placement placement;
  int64_t shared_bytes, global_bytes;  // of a block
};

constexpr int64_t most_part = 64, most_groups = 16, group_nodes = 32, most_slices = 16;

// Threads of a block whose registers hold a tile of these values.
FASTSPEC_HD constexpr int64_t most_threads(int64_t value_bytes, bool resident) {
  return value_bytes == 4 && resident ? 512 : 256;
}
constexpr int64_t loss_slots = 32;
constexpr int64_t narrow_nodes = 10, broad_nodes = 128;  // where more threads no longer help; where they begin to

// The first node of a group.
FASTSPEC_HD constexpr int64_t group_begin(int64_t nodes, int64_t groups, int64_t group) {
  return nodes * group / groups;
}

// Weights, or what is kept beside them: first[k * first_row + j] of input k and node j, input d being the bias;
// top[j * top_row + c] of node j and output c, the row after the last node being the bias.
template <typename T>
struct Network {
  T *first, *top;
};

// Of a part and of the next one.
template <typename T>
struct Pair {
  T* first;
  int64_t distance;
  FASTSPEC_HD T* of(bool odd) const { return odd ? first + distance : first; }
};

template <typename T>
struct Arrays {
  Network<T> weights, sums, saved, saved_sums;
  Pair<T> x;         // [d + 1, row], the last row 1
  Pair<T> residual;  // [C, row]; before, the targets
  T* hidden;         // [most_nodes + 1, row], 1 in the row after the last node
  T* partial;  // sums of each slice [slices, nodes, row] or group [groups / ranks, C, row]; gradients [nodes, row]
  T* squares;  // [C, quads] of residuals
  T* teacher_hidden;     // [teacher_nodes, row]
  int64_t* rows;         // [2, wide]: where the next samples begin in x and y
  double* loss;          // [loss_slots], then the sum over the parts of a batch
  double *limit, *rate;  // of the sum over a batch of squared residuals; of learning
  int32_t* bad;          // whether the last batch's loss was beyond the limit
};

// Hands out aligned pieces of a memory; without one it only counts.
struct Pieces {
  char* base;
  int64_t used;
  template <typename T>
  FASTSPEC_HD T* take(int64_t count) {
    T* const at = reinterpret_cast<T*>(base + used);
    used += round_up(count * int64_t(sizeof(T)), 16);
    return at;
  }
};

FASTSPEC_HD constexpr int64_t first_row(const Plan& plan) { return plan.most_nodes | 1; }  // odd: no bank conflicts
FASTSPEC_HD constexpr int64_t top_row(const Shape& shape) { return shape.outputs | 1; }

template <typename T>
FASTSPEC_HD Network<T> lay_out_network(const Shape& shape, const Plan& plan, Pieces& memory) {
  T* const first = memory.take<T>((shape.inputs + 1) * first_row(plan));
  return {first, memory.take<T>((plan.most_nodes + 1) * top_row(shape))};
}

// resident: the placement is `shared`; known at compile time, so that a kernel knows what lies in shared memory.
template <typename T, bool resident>
FASTSPEC_HD Arrays<T> lay_out(const Shape& shape, const Plan& plan, Pieces& shared, Pieces& global) {
  Arrays<T> a{};
  a.loss = shared.take<double>(loss_slots + 3), a.limit = a.loss + loss_slots + 1, a.rate = a.limit + 1;
  a.bad = shared.take<int32_t>(1);
  a.rows = shared.take<int64_t>(2 * plan.wide);
  Pieces& near = resident ? shared : global;
  a.weights = lay_out_network<T>(shape, plan, near), a.saved = lay_out_network<T>(shape, plan, global);
  if (plan.sums) a.sums = lay_out_network<T>(shape, plan, near);
  if (shape.momentum) a.saved_sums = lay_out_network<T>(shape, plan, global);
  const bool in_global = !resident && plan.placement == Placement::global, fresh = shape.teacher_nodes > 0;
  Pieces rest{in_global ? global.base : shared.base, in_global ? global.used : shared.used};
  const auto pair = [&](int64_t rows) {
    const int64_t distance = fresh ? 0 : round_up(rows * plan.row, Vector<T>::size);
    return Pair<T>{rest.take<T>(rows * plan.row + distance), distance};
  };
  a.x = pair(shape.inputs + 1), a.residual = pair(shape.outputs);
  a.hidden = rest.take<T>((plan.most_nodes + 1) * plan.row);
  const int64_t sums = larger(plan.slices * plan.most_nodes, plan.own_groups * shape.outputs);
  a.partial = rest.take<T>(sums * plan.row), a.squares = rest.take<T>(shape.outputs * plan.quads.count);
  if (fresh) a.teacher_hidden = rest.take<T>(shape.teacher_nodes * plan.row);
  if (in_global) global.used = rest.used;
  if (!in_global) shared.used = rest.used;
  return a;
}

template <typename T>
inline void count_bytes_of(const Shape& shape, Plan& plan) {
  Pieces shared{}, global{};
  if (plan.placement == Placement::shared) {
    lay_out<T, true>(shape, plan, shared, global);
  } else {
    lay_out<T, false>(shape, plan, shared, global);
  }
  plan.shared_bytes = shared.used, plan.global_bytes = global.used;
}

inline Plan plan_of(const Shape& shape, int64_t part, int64_t ranks, Placement placement) {
  Plan plan{};
  plan.groups = plan.slices = 1;
  while (plan.groups < most_groups && shape.nodes > group_nodes * plan.groups) plan.groups *= 2, ++plan.groups_log;
  plan.ranks = smaller(ranks, plan.groups);
  plan.most_nodes = ceil_div(shape.nodes, plan.ranks), plan.own_groups = int(plan.groups / plan.ranks);
  plan.part = part;
  plan.tile = ceil_div(part, 8) % 2 ? 8 : 16;
  plan.wide = round_up(part, plan.tile);
  plan.row = plan.wide + 16 / shape.value_bytes;  // rows of adjacent nodes, read together, lie in different banks
  plan.quads = {int(plan.wide / 4), uint32_t((int64_t{1} << 32) / (plan.wide / 4) + 1)};
  const int64_t wanted = shape.value_bytes == 4 && shape.nodes > broad_nodes ? 512 : 256;
  const int64_t items = ceil_div(shape.nodes, 2) * (plan.wide / (plan.tile / 2));
  while (2 * plan.slices * items <= wanted && plan.slices < most_slices) plan.slices *= 2, ++plan.slices_log;
  const int64_t most = most_threads(shape.value_bytes, placement == Placement::shared);
  plan.threads = shape.nodes > narrow_nodes ? smaller(wanted, most) : 128;
  plan.sums = shape.momentum || part < shape.batch;
  plan.placement = placement;
  shape.value_bytes == 8 ? count_bytes_of<double>(shape, plan) : count_bytes_of<float>(shape, plan);
  return plan;
}

// The plan with the fewest blocks whose memory holds the student, else one that keeps weights in global memory, which
// the second-level cache serves. `ranks` asks for at least as many blocks. The size of a part depends on the shape
// and the limits; results do not depend on the ranks that are asked for.
inline Plan make_plan(const Shape& shape, const Limits& limits, int64_t ranks) {
  const auto fits = [&](const Plan& plan) { return plan.shared_bytes <= limits.shared_bytes; };
  const int64_t largest = smaller(shape.batch, most_part);
  for (int64_t part = largest; part > 0; part = part <= 4 ? 0 : round_up(part / 2, 4)) {
    for (int64_t r = 1; r <= limits.ranks; r *= 2) {
      const Plan least = plan_of(shape, part, r, Placement::shared);
      if (!fits(least)) continue;
      return plan_of(shape, part, larger(smaller(ranks, limits.ranks), least.ranks), Placement::shared);
    }
  }
  const Plan close = plan_of(shape, smaller(largest, 16), limits.ranks, Placement::activations_shared);
  return fits(close) ? close : plan_of(shape, smaller(largest, 16), limits.ranks, Placement::global);
}

}  // namespace block
}  // namespace fastspec
