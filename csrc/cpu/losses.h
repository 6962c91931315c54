// Losses of the outputs above the activations that the pass has at hand (fastspec/ops/moments_and_loss/README.md).
#pragma once

#include "columns.h"
#include "workspace.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class Losses {
  using Sums = typename Workspace<T>::Sums;
  using Scratch = typename Workspace<T>::Scratch;

  const MomentsProblem& problem_;
  const Plan<T>& plan_;
  const Workspace<T>& work_;
  const OutputLayer<T> teacher_, student_;

  // Of a chunk in the round, [rows, columns].
  T* answers(int64_t at) const { return work_.answers + at * plan_.rows * teacher_.columns(); }

  void add_one(int64_t network, const T* activations, int64_t at, int64_t rows, Sums& sums) const {
    const T* const layer = work_.student_top + network * student_.packed_size();
    sums.loss[network] += student_.squares(activations, rows, layer, answers(at));
  }

  void pack_layer(const OutputLayer<T>& layer, const void* weight, const void* bias, int64_t nodes, int64_t network,
                  T* out) const {
    const int64_t outputs = problem_.top.outputs;
    layer.pack(static_cast<const T*>(weight) + network * outputs * nodes,
               bias ? static_cast<const T*>(bias) + network * outputs : nullptr, out + network * layer.packed_size());
  }

 public:
  Losses(const MomentsProblem& problem, const Plan<T>& plan, const Workspace<T>& work)
      : problem_(problem),
        plan_(plan),
        work_(work),
        teacher_(problem.teacher.nodes, problem.top.outputs),
        student_(problem.student.nodes, problem.top.outputs) {}

  // Packs the layers of the teacher and of a part's students, of whose losses nothing is known.
  void begin(int part, int parts) const {
    const Outputs& top = problem_.top;
    if (part == 0) {
      pack_layer(teacher_, top.teacher_weight, top.teacher_bias, problem_.teacher.nodes, 0, work_.teacher_top);
    }
    const int64_t networks = problem_.student.networks;
    for (int64_t k = networks * part / parts; k < networks * (part + 1) / parts; ++k) {
      pack_layer(student_, top.student_weight, top.student_bias, problem_.student.nodes, k, work_.student_top);
      for (int64_t slot = 0; slot < plan_.slots; ++slot) work_.sums[slot].loss[k] = 0;
    }
  }

  // The teacher's outputs of a chunk, whose activations the scratch has.
  void answer(int64_t at, int64_t rows, const Scratch& scratch) const {
    teacher_.outputs(scratch.activations, rows, work_.teacher_top, answers(at));
  }

  // Of students whose last nodes are in the panel, the losses of a chunk.
  void add(const PanelColumns<T>& c, int64_t at, int64_t rows, Sums& sums, const Scratch& scratch) const {
    const int64_t nodes = problem_.student.nodes;
    const auto kept = [&](int64_t network) { return scratch.activations + network % plan_.kept() * rows * nodes; };
    c.copy_out(scratch.panel, rows, nodes, kept);
    for (int i = 0; i < c.width; ++i) {
      if (c.node[i] == nodes - 1) add_one(c.network[i], kept(c.network[i]), at, rows, sums);
    }
  }

  // Of students without nodes, which are in no panel.
  void add_without_nodes(int64_t at, int64_t rows) const {
    if (problem_.student.nodes) return;
    for (int64_t k = 0; k < problem_.student.networks; ++k) add_one(k, nullptr, at, rows, work_.sums[0]);
  }

  void write() const {
    for (int64_t k = 0; k < problem_.student.networks; ++k) {
      double sum = 0;
      for (int64_t slot = 0; slot < plan_.slots; ++slot) sum += work_.sums[slot].loss[k];
      problem_.top.loss[k] = sum / 2;
    }
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
