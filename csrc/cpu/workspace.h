// The memory of the pass: one block, laid out once.
#pragma once

#include <new>

#include "output_layer.h"
#include "panels.h"
#include "plan.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
struct Workspace {
  struct Sums {  // of one slot, panel-major
    double *cross, *sum, *square, *loss;
    int64_t *active, *coactive;
  };
  struct Scratch {  // of one part
    T *panel, *inputs;
    T* activations;  // of the teacher, or of the networks that a panel has nodes of, [rows, nodes] each
    int64_t* rows_at;
    uint64_t* gates;
    PanelStatistics<T> statistics;
  };

  Arena arena;
  // Packed layers; inputs and teacher activations of a round's chunks, packed for tiles.
  T *teacher_weights, *teacher_bias, *teacher_inputs, *teacher, *student_weights, *student_bias, *student_inputs;
  uint64_t* teacher_gates;
  TileMoments* tiles;                              // [chunk in round, tile]
  double *chunk_shift, *chunk_sum, *chunk_square;  // [chunk in round, padded]
  int64_t* chunk_active;
  double *teacher_reference, *teacher_sum, *teacher_square, *student_reference;
  int64_t* teacher_active;
  T *teacher_top, *student_top, *answers;  // packed layers of outputs; [chunk in round, rows, columns]
  Sums* sums;                              // [slot]
  Scratch* scratch;                        // [part]

  Workspace(const MomentsProblem& problem, const Plan<T>& plan, int parts) {
    lay_out(problem, plan, parts);
    arena = {static_cast<char*>(::operator new(arena.used, std::align_val_t(64))), 0};
    lay_out(problem, plan, parts);
  }
  ~Workspace() { ::operator delete(arena.base, std::align_val_t(64)); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

 private:
  void lay_out(const MomentsProblem& problem, const Plan<T>& p, int parts) {
    const int64_t wide = p.slab * p.columns, padded = p.round * p.padded;
    const int64_t networks = p.loss ? problem.student.networks : 0;
    teacher_weights = arena.template take<T>(p.teacher_panels * p.columns * p.teacher_depth);
    teacher_bias = arena.template take<T>(p.teacher_panels * p.columns);
    teacher_inputs = arena.template take<T>(p.round * p.tiled_rows * p.teacher_depth);
    teacher = arena.template take<T>(padded * p.rows);
    student_weights = arena.template take<T>(wide * p.student_depth);
    student_bias = arena.template take<T>(wide);
    student_inputs = p.same_inputs
                         ? teacher_inputs
                         : arena.template take<T>(p.own_inputs ? 0 : p.round * p.tiled_rows * p.student_depth);
    teacher_gates = arena.template take<uint64_t>(p.coactive ? padded * p.words : 0);
    tiles = arena.template take<TileMoments>(p.round * p.teacher_tiles);
    chunk_shift = arena.template take<double>(padded);
    chunk_sum = arena.template take<double>(padded);
    chunk_square = arena.template take<double>(padded);
    chunk_active = arena.template take<int64_t>(padded);
    teacher_reference = arena.template take<double>(p.padded);
    teacher_sum = arena.template take<double>(p.padded);
    teacher_square = arena.template take<double>(p.padded);
    teacher_active = arena.template take<int64_t>(p.padded);
    student_reference = arena.template take<double>(wide);
    const OutputLayer<T> of_teacher(problem.teacher.nodes, problem.top.outputs);
    const OutputLayer<T> of_student(problem.student.nodes, problem.top.outputs);
    teacher_top = arena.template take<T>(p.loss ? of_teacher.packed_size() : 0);
    student_top = arena.template take<T>(networks * of_student.packed_size());
    answers = arena.template take<T>(p.loss ? p.round * p.rows * of_teacher.columns() : 0);
    sums = arena.template take<Sums>(p.slots);
    for (int64_t slot = 0; slot < p.slots; ++slot) {
      const Sums at{arena.template take<double>(wide * p.teacher_tiles * p.tile_rows),
                    arena.template take<double>(wide),
                    arena.template take<double>(wide),
                    arena.template take<double>(networks),
                    arena.template take<int64_t>(wide),
                    arena.template take<int64_t>(p.coactive ? wide * p.teacher_nodes : 0)};
      if (arena.base) sums[slot] = at;
    }
    scratch = arena.template take<Scratch>(parts);
    for (int part = 0; part < parts; ++part) {
      const Scratch at{arena.template take<T>(p.tiled_rows * p.columns),
                       arena.template take<T>(p.own_inputs ? p.tiled_rows * p.student_depth : 0),
                       arena.template take<T>(p.loss ? p.rows * p.kept_nodes() : 0),
                       arena.template take<int64_t>(p.rows),
                       arena.template take<uint64_t>(p.coactive ? p.columns * p.words : 0),
                       {}};
      if (arena.base) scratch[part] = at;
    }
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
