// Sizes of the pass, from shapes alone: never from the machine's load or its number of threads.
#pragma once

#include "arena.h"
#include "fastspec/moments.h"
#include "simd.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// Of pieces of `each` bytes (0 where a side has no nodes) that fit into `bytes`.
inline int64_t how_many(int64_t bytes, int64_t each) { return each > 0 ? bytes / each : bytes; }

template <typename T>
struct Plan {
  static constexpr int tile_rows = Tile<T>::rows, columns = Tile<T>::columns;
  static constexpr int64_t cache = 320 << 10, round_bytes = 8 << 20, slot_bytes = 16 << 20, slab_bytes = 40 << 20;

  bool layer, coactive, loss;
  bool own_inputs, same_inputs;  // every student network has inputs of its own; both sides read one array
  int64_t teacher_nodes, student_nodes, teacher_depth, student_depth, teacher_tiles, teacher_panels;
  int64_t padded;                             // teacher nodes, to whole tiles and whole panels
  int64_t group_nodes, group_panels, panels;  // a panel lies within one group of student nodes
  int64_t unit = 1;                           // panels of one core, after which all networks are complete, for losses
  int64_t slab;                               // panels whose sums and weights are held at a time
  int64_t rows, tiled_rows, words;            // of a chunk: samples, the same to whole tiles, words of gate bits
  int64_t chunks, round, slots;               // chunks in all, in a round; sums kept apart so that cores find work

  // Networks that a panel may have nodes of, at most.
  int64_t kept() const { return (columns - 1) / (student_nodes ? student_nodes : 1) + 2; }
  int64_t kept_nodes() const { return clamp(kept() * student_nodes, teacher_nodes, INT64_MAX); }

  static bool reads_same(const Side& a, const Side& b) {
    return a.array.data == b.array.data && a.array.column_stride == b.array.column_stride &&
           a.array.sample_strides[0] == b.array.sample_strides[0] && b.array.network_stride == 0 &&
           a.layer.inputs == b.layer.inputs;
  }

  explicit Plan(const MomentsProblem& p)
      : layer(p.layered),
        coactive(p.coactive != nullptr),
        loss(p.top.loss != nullptr),
        own_inputs(layer && p.student.array.network_stride != 0 && p.student.networks > 1),
        same_inputs(layer && reads_same(p.teacher, p.student)),
        teacher_nodes(p.teacher.nodes),
        student_nodes(p.student.nodes),
        teacher_depth(layer ? p.teacher.layer.inputs : 0),
        student_depth(layer ? p.student.layer.inputs : 0),
        teacher_tiles(ceil_div(teacher_nodes, tile_rows)),
        teacher_panels(ceil_div(teacher_nodes, columns)),
        padded(teacher_tiles * tile_rows > teacher_panels * columns ? teacher_tiles * tile_rows
                                                                    : teacher_panels * columns),
        group_nodes(own_inputs ? p.student.nodes : p.student.nodes * p.student.networks),
        group_panels(ceil_div(group_nodes, columns)),
        panels(group_panels * (own_inputs ? p.student.networks : 1)) {
    const int64_t row_bytes = (student_depth + teacher_tiles * tile_rows + columns) * sizeof(T);
    rows = clamp(ceil_div(p.samples, tile_rows) * tile_rows, 1, clamp(cache / row_bytes, 96, 384) / 48 * 48);
    tiled_rows = ceil_div(rows, tile_rows) * tile_rows;
    words = ceil_div(rows, 64);
    chunks = ceil_div(p.samples, rows);
    const int64_t chunk_bytes = rows * (student_depth + teacher_depth + padded) * sizeof(T);
    const int64_t sums_bytes = teacher_tiles * tile_rows * columns * sizeof(double);  // of one panel
    // From one network's shape, so that a network's result does not depend on its population.
    const int64_t own_panels = clamp(ceil_div(p.student.nodes, columns), 1, panels + 1);
    slots = clamp(ceil_div(32, own_panels), 1, clamp(how_many(slot_bytes, own_panels * sums_bytes), 1, 16));
    if (slots > chunks) slots = chunks;
    round = ceil_div(clamp(how_many(round_bytes, chunk_bytes), 1, chunks < 16 ? chunks : 16), slots) * slots;
    const int64_t weights_bytes = student_depth * columns * sizeof(T);
    if (loss) unit = own_inputs ? group_panels : student_nodes / common_divisor(student_nodes, columns);
    unit = clamp(unit, 1, panels > 0 ? panels : 1);
    const int64_t fitting = how_many(slab_bytes, slots * sums_bytes * (coactive ? 2 : 1) + weights_bytes);
    slab = clamp(fitting / unit * unit, unit, panels > 0 ? panels : 1);
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
