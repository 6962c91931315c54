// The samples of each step: which they are is known a part ahead, so that they are on their way while the part before
// is computed; or new inputs, drawn when their turn comes.
#pragma once

#include "fastspec/block/step.h"
#include "fastspec/normal.h"

namespace fastspec {
namespace block {

template <typename T, int tile, typename Block>
struct BatchReader {
  Block block;
  const TrainingProblem& problem;
  const Shape& shape;
  const Plan& plan;
  Arrays<T> a;
  int64_t student;

  int parts;  // of a batch

  FASTSPEC_HD bool fresh() const { return shape.teacher_nodes > 0; }
  FASTSPEC_HD int samples(int part) const { return int(smaller(plan.part, shape.batch - part * plan.part)); }

  // Which samples part `part` of step `step` has. By the threads that have least else to do.
  FASTSPEC_HD void choose(int64_t step, int part) const {
    if (fresh() || step >= problem.steps) return;
    const Batches& b = problem.batches;
    const int64_t first = part * plan.part;
    const auto found = [&](int i, int64_t index) {
      a.rows[i] = index * problem.x.row_stride, a.rows[plan.wide + i] = index * problem.y.row_stride;
    };
#pragma unroll 1
    for (int i = 4 * (block.threads() - 1 - block.thread()); i < samples(part); i += 4 * block.threads()) {
      const int size = int(smaller(4, samples(part) - i));
      if (b.indices) {
        const int64_t* const from = b.indices + student * b.student_stride + step * b.step_stride + first + i;
#pragma unroll 1
        for (int j = 0; j < size; ++j) found(i + j, from[j]);
      } else if (b.size) {
        const PhiloxBlock words =
            stream_block(problem.seeds[student], StreamPurpose::batch, b.first + step, uint32_t((first + i) / 4));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (j < size) found(i + j, batch_index(words.word[j], problem.samples));
        }
      } else {
#pragma unroll 1
        for (int j = 0; j < size; ++j) found(i + j, first + i + j);
      }
    }
  }

  FASTSPEC_HD void fetch(bool odd, int64_t step, int part) const {
    if (fresh() || step >= problem.steps) return;
    T *const to_x = a.x.of(odd), *const to_y = a.residual.of(odd);
    const int count = samples(part), inputs = int(shape.inputs), row = int(plan.row);
#pragma unroll 1
    for (int column = block.thread(); column < inputs + int(shape.outputs); column += block.threads()) {
      const bool input = column < inputs;
      const T* const from = input ? static_cast<const T*>(problem.x.data) + column
                                  : static_cast<const T*>(problem.y.data) + (column - inputs);
      T* const to = input ? to_x + int64_t{column} * row : to_y + int64_t{column - inputs} * row;
      const int64_t* const rows = input ? a.rows : a.rows + plan.wide;
      int i = 0;
#pragma unroll 1
      for (; i + 4 <= count; i += 4) {
        int64_t begin[4];
        load(begin, rows + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) block.fetch(to + i + j, from + begin[j]);
      }
#pragma unroll 1
      for (; i < count; ++i) block.fetch(to + i, from + rows[i]);
    }
  }

  // New inputs of a part, and the teacher's answers to them.
  FASTSPEC_HD void draw(const Step<T, tile, Block>& step, int64_t t, int part) const {
    if (!fresh()) return;
    const int64_t d = shape.inputs, first = part * plan.part, values = samples(part) * d;
    const int wide = int(plan.wide), row = int(plan.row), nodes = int(shape.teacher_nodes),
              outputs = int(shape.outputs);
    const T std = T(problem.batches.fresh_std);
#pragma unroll 1
    for (int64_t i = 4 * block.thread(); i < values; i += 4 * block.threads()) {
      const PhiloxBlock words = stream_block(problem.seeds[student], StreamPurpose::fresh, problem.batches.first + t,
                                             uint32_t((first * d + i) / 4));
      for (int j = 0; j < 4 && i + j < values; ++j) {
        const int64_t sample = (i + j) / d, k = (i + j) % d;
        a.x.first[k * row + sample] = T(standard_normal(words.word[j])) * std;
      }
    }
    block.sync();
    const Packed& teacher = problem.teacher;
    product<tile / 2>(
        block, place_of<tile / 2>(block.thread(), nodes, wide), 1, nodes, wide,
        {static_cast<const T*>(teacher.w1), 1, int(d)}, a.x.first, row, [&](int) { return Range{0, int(d)}; },
        a.teacher_hidden);
    block.sync();
    const T* const bias = static_cast<const T*>(teacher.b1);
    step.activate(1, nodes, a.teacher_hidden, a.teacher_hidden, [&](int j) { return bias[j]; });
    block.sync();
    product<tile / 2>(
        block, place_of<tile / 2>(block.thread(), outputs, wide), 1, outputs, wide,
        {static_cast<const T*>(teacher.w2), outputs, 1}, a.teacher_hidden, row, [&](int) { return Range{0, nodes}; },
        a.residual.first);
    block.sync();
    const T* const top_bias = static_cast<const T*>(teacher.b2);
    combine(block, 1, outputs, plan.quads, a.residual.first, row, [&](int c, int b, T(&y)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[i] += top_bias[c];
      store(a.residual.first + int64_t{c} * row + b, y);
    });
  }

  // What a step does for the part after its own.
  struct Next {
    const BatchReader& batches;
    bool odd;
    int64_t step;
    int part;
    FASTSPEC_HD void choose() const { batches.choose(step, part); }
    FASTSPEC_HD void fetch() const { batches.fetch(odd, step, part); }
    FASTSPEC_HD void wait() const { batches.block.fetched(); }
  };
  FASTSPEC_HD Next after(bool odd, int64_t step, int part) const {
    const bool same = part + 1 < parts;
    return {*this, !odd, same ? step : step + 1, same ? part + 1 : 0};
  }

  // Makes the first part of a step the first of a series, once a barrier has followed.
  FASTSPEC_HD void begin(int64_t step) const {
    choose(step, 0);
    block.sync();
    fetch(step * parts % 2, step, 0);
    block.fetched();
  }
};

}  // namespace block
}  // namespace fastspec
