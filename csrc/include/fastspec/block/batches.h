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

  FASTSPEC_HD bool fresh() const { return shape.teacher_nodes > 0; }
  FASTSPEC_HD int64_t parts() const { return ceil_div(shape.batch, plan.part); }
  FASTSPEC_HD int64_t samples(int64_t part) const {
    return smaller(plan.part, shape.batch - part % parts() * plan.part);
  }

  // Which samples part `part` has; parts are counted over all steps.
  FASTSPEC_HD void choose(int64_t part) const {
    if (fresh() || part >= problem.steps * parts()) return;
    const Batches& b = problem.batches;
    const int64_t step = part / parts(), first = part % parts() * plan.part;
    for (int64_t i = 4 * block.thread(); i < samples(part); i += 4 * block.threads()) {
      const int64_t size = smaller(4, samples(part) - i);
      if (b.indices) {
        const int64_t* const from = b.indices + student * b.student_stride + step * b.step_stride + first + i;
        for (int64_t j = 0; j < size; ++j) a.rows[i + j] = from[j];
      } else if (b.size) {
        const PhiloxBlock words =
            stream_block(problem.seeds[student], StreamPurpose::batch, b.first + step, uint32_t((first + i) / 4));
        for (int j = 0; j < size; ++j) a.rows[i + j] = batch_index(words.word[j], problem.samples);
      } else {
        for (int64_t j = 0; j < size; ++j) a.rows[i + j] = first + i + j;
      }
    }
  }

  FASTSPEC_HD void fetch(int64_t part) const {
    if (fresh() || part >= problem.steps * parts()) return;
    const T* const x = static_cast<const T*>(problem.x.data);
    const T* const y = static_cast<const T*>(problem.y.data);
    T *const to_x = a.x.of(part), *const to_y = a.residual.of(part);
    const int64_t count = samples(part);
    for (int64_t column = block.thread(); column < shape.inputs + shape.outputs; column += block.threads()) {
      const int64_t c = column - shape.inputs;
      const bool input = c < 0;
      const T* const from = input ? x + column : y + c;
      const int64_t stride = input ? problem.x.row_stride : problem.y.row_stride;
      T* const to = input ? to_x + column * plan.row : to_y + c * plan.row;
      for (int64_t i = 0; i < count; ++i) block.fetch(to + i, from + a.rows[i] * stride);
    }
  }

  // New inputs of part `part`, and the teacher's answers to them.
  FASTSPEC_HD void draw(const Step<T, tile, Block>& step, int64_t part) const {
    if (!fresh()) return;
    const int64_t d = shape.inputs, first = part % parts() * plan.part, values = samples(part) * d;
    const T std = T(problem.batches.fresh_std);
    for (int64_t i = 4 * block.thread(); i < values; i += 4 * block.threads()) {
      const PhiloxBlock words = stream_block(problem.seeds[student], StreamPurpose::fresh,
                                             problem.batches.first + part / parts(), uint32_t((first * d + i) / 4));
      for (int j = 0; j < 4 && i + j < values; ++j) {
        const int64_t sample = (i + j) / d, k = (i + j) % d;
        a.x.first[k * plan.row + sample] = T(standard_normal(words.word[j])) * std;
      }
    }
    block.sync();
    const Packed& t = problem.teacher;
    const T* const bias = static_cast<const T*>(t.b1);
    step.hidden_layer({static_cast<const T*>(t.w1), 1, d}, int(shape.teacher_nodes), d, a.x.first, a.teacher_hidden,
                      [&](int j) { return bias[j]; });
    block.sync();
    const T* const top_bias = static_cast<const T*>(t.b2);
    product<tile / 2>(
        block, 1, int(shape.outputs), int(plan.wide), {static_cast<const T*>(t.w2), shape.outputs, 1}, a.teacher_hidden,
        plan.row, [&](int) { return Depth{0, shape.teacher_nodes}; },
        [&](int, int c, int b, T(&y)[tile / 2]) {
          for (int i = 0; i < tile / 2; ++i) y[i] += top_bias[c];
          store(a.residual.first + int64_t{c} * plan.row + b, y);
        });
  }

  // What a step does for the part after its own.
  struct Next {
    const BatchReader& batches;
    int64_t part;
    FASTSPEC_HD void choose() const { batches.choose(part); }
    FASTSPEC_HD void fetch() const { batches.fetch(part); }
    FASTSPEC_HD void wait() const { batches.block.fetched(); }
  };

  // Makes part `part` the first of a series, once a barrier has followed.
  FASTSPEC_HD void begin(int64_t part) const {
    choose(part);
    block.sync();
    fetch(part);
    block.fetched();
  }
};

}  // namespace block
}  // namespace fastspec
