// The samples of each step's batch: all of them, those of `indices`, or drawn with replacement from a Philox stream.
#pragma once

#include <cstring>

#include "fastspec/philox.h"
#include "fastspec/two_layer_sgd.h"
#include "student.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// The batches of one student. Those that are drawn or looked up are known a step ahead, so that their rows are on their
// way while the step before is computed.
template <typename T>
class BatchReader {
  const TrainingProblem& problem_;
  const Sizes& sizes_;
  const Activations<T>& part_;
  const int64_t student_, seed_;
  int64_t *rows_, *next_;  // [batch]

  bool all() const { return problem_.batches.indices == nullptr && problem_.batches.size == 0; }

  const T* x_row(int64_t row) const { return static_cast<const T*>(problem_.x.data) + row * problem_.x.row_stride; }
  const T* y_row(int64_t row) const { return static_cast<const T*>(problem_.y.data) + row * problem_.y.row_stride; }

  void choose(int64_t step, int64_t* rows) const {
    const Batches& b = problem_.batches;
    if (b.indices) {
      std::memcpy(rows, b.indices + student_ * b.student_stride + step * b.step_stride, sizes_.batch * sizeof *rows);
    } else {
      for (int64_t i = 0; i < sizes_.batch; i += 4) {
        const PhiloxBlock block = stream_block(seed_, StreamPurpose::batch, b.first + step, uint32_t(i / 4));
        for (int64_t j = 0; j < 4 && i + j < sizes_.batch; ++j) {
          rows[i + j] = batch_index(block.word[j], problem_.samples);
        }
      }
    }
    const int64_t line = 64 / sizeof(T), few = sizes_.batch < part_samples ? sizes_.batch : part_samples;
    for (int64_t i = 0; i < few; ++i) {
      for (int64_t c = 0; c < sizes_.inputs; c += line) __builtin_prefetch(x_row(rows[i]) + c);
      for (int64_t c = 0; c < sizes_.outputs; c += line) __builtin_prefetch(y_row(rows[i]) + c);
    }
  }

 public:
  BatchReader(const TrainingProblem& problem, const Sizes& sizes, const Activations<T>& part, int64_t student,
              int64_t* rows)
      : problem_(problem),
        sizes_(sizes),
        part_(part),
        student_(student),
        seed_(problem.seeds[student]),
        rows_(rows),
        next_(rows + sizes.batch) {}

  // Numbers that a reader keeps.
  static int64_t kept(const Sizes& sizes) { return 2 * sizes.batch; }

  // Steps follow each other; the first of a series is announced by `begin`.
  void begin(int64_t step) {
    if (!all()) choose(step, next_);
  }
  void advance(int64_t step) {
    if (all()) return;
    int64_t* const now = next_;
    next_ = rows_, rows_ = now;
    if (step + 1 < problem_.steps) choose(step + 1, next_);
  }

  void read(int64_t first, int64_t samples) const {
    for (int64_t b = 0; b < samples; ++b) {
      const int64_t row = all() ? first + b : rows_[first + b];
      std::memcpy(part_.x + b * sizes_.fan_in, x_row(row), sizes_.inputs * sizeof(T));
      T* const target = part_.residual + b * sizes_.fan_out;
      std::memcpy(target, y_row(row), sizes_.outputs * sizeof(T));
      std::memset(target + sizes_.outputs, 0, (sizes_.fan_out - sizes_.outputs) * sizeof(T));
    }
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
