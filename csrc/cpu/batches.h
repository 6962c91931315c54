// The samples of each step's batch: all of them, those of `indices`, drawn with replacement from a Philox stream, or
// fresh Gaussian inputs that the teacher answers.
#pragma once

#include <cstring>

#include "fastspec/philox.h"
#include "fastspec/two_layer_sgd.h"
#include "fresh.h"
#include "student.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// What a core keeps for the batches of the student it trains.
template <typename T>
struct BatchMemory {
  int64_t *rows, *next_rows;  // [batch], of this step and of the next
  uint32_t* words;            // [part * d], fresh inputs before they are numbers
  float* normals;             // the same
  T* hidden;                  // [teacher nodes, wide]
  const Network<T>* teacher;  // packed once for all
  int64_t teacher_nodes;
};

// Copies a row, which is too short for a call: by vectors, of which the last two may overlap.
template <typename T>
inline void copy_row(const T* from, T* to, int64_t count) {
  using S = Simd<T>;
  if (count < S::lanes) {
    for (int64_t c = 0; c < count; ++c) to[c] = from[c];
    return;
  }
  for (int64_t c = 0; c + S::lanes < count; c += S::lanes) S::store(to + c, S::load(from + c));
  S::store(to + count - S::lanes, S::load(from + count - S::lanes));
}

// Asks for a row that is needed a step later. Not for the first-level cache: few lines can be on their way to it at a
// time, and weights come through it meanwhile.
template <typename T>
inline void prefetch_row(const T* row, int64_t count) {
  for (int64_t c = 0; c < count; c += 64 / sizeof(T)) __builtin_prefetch(row + c, 0, 2);
}

// The batches of one student. Rows that are drawn or looked up are known a step ahead, so that they are on their way
// while the step before is computed: few at a time, as few lines can be.
template <typename T>
class BatchReader {
  enum class Kind { all, indices, drawn, fresh };

  const TrainingProblem& problem_;
  const Sizes& sizes_;
  const Activations<T>& part_;
  BatchMemory<T> memory_;
  int64_t student_, seed_, step_ = 0, asked_ = 0;
  Kind kind_;

  const T* x_row(int64_t row) const { return static_cast<const T*>(problem_.x.data) + row * problem_.x.row_stride; }
  const T* y_row(int64_t row) const { return static_cast<const T*>(problem_.y.data) + row * problem_.y.row_stride; }
  int64_t row(int64_t position) const { return kind_ == Kind::all ? position : memory_.rows[position]; }

  void choose_next(int64_t step) {
    const Batches& b = problem_.batches;
    int64_t* const rows = memory_.next_rows;
    if (kind_ == Kind::indices) {
      std::memcpy(rows, b.indices + student_ * b.student_stride + step * b.step_stride, sizes_.batch * sizeof *rows);
    } else {
      for (int64_t i = 0; i < sizes_.batch; i += 4) {
        const PhiloxBlock block = stream_block(seed_, StreamPurpose::batch, b.first + step, uint32_t(i / 4));
        for (int64_t j = 0; j < 4 && i + j < sizes_.batch; ++j) {
          rows[i + j] = batch_index(block.word[j], problem_.samples);
        }
      }
    }
    asked_ = 0;
  }

 public:
  BatchReader(const TrainingProblem& problem, const Sizes& sizes, const Activations<T>& part,
              const BatchMemory<T>& memory, int64_t student)
      : problem_(problem),
        sizes_(sizes),
        part_(part),
        memory_(memory),
        student_(student),
        seed_(problem.seeds[student]),
        kind_(problem.batches.fresh_std > 0 ? Kind::fresh
              : problem.batches.indices     ? Kind::indices
              : problem.batches.size        ? Kind::drawn
                                            : Kind::all) {}

  // Steps follow each other; the first of a series is announced by `begin`.
  void begin(int64_t step) {
    if (kind_ == Kind::indices || kind_ == Kind::drawn) choose_next(step);
  }
  void advance(int64_t step) {
    step_ = step;
    int64_t* const now = memory_.next_rows;
    memory_.next_rows = memory_.rows, memory_.rows = now;
    if (step + 1 < problem_.steps) {
      begin(step + 1);
    } else {
      asked_ = sizes_.part;
    }
  }

  // Asks for the next of the samples that the coming step begins with.
  void ask() {
    if (kind_ == Kind::all || kind_ == Kind::fresh || asked_ == sizes_.part) return;
    const int64_t row = memory_.next_rows[asked_++];
    prefetch_row(x_row(row), sizes_.inputs), prefetch_row(y_row(row), sizes_.outputs);
  }

  // Fills part_.x with samples first .. first + samples - 1 of the batch.
  void inputs(int64_t first, int64_t samples) const {
    const int64_t d = sizes_.inputs;
    if (kind_ != Kind::fresh) {
      for (int64_t b = 0; b < samples; ++b) {
        copy_row(x_row(row(first + b)), part_.x + b * sizes_.fan_in, d);
      }
      return;
    }
    static_assert(part_samples % 4 == 0, "a part begins with a whole Philox block");
    fresh_normals(seed_, problem_.batches.first + step_, first * d / 4, ceil_div(samples * d, 4), memory_.words,
                  memory_.normals);
    const T std = T(problem_.batches.fresh_std);
    for (int64_t b = 0; b < samples; ++b) {
      for (int64_t k = 0; k < d; ++k) part_.x[b * sizes_.fan_in + k] = T(memory_.normals[b * d + k]) * std;
    }
  }

  // Fills part_.residual with the targets of the same samples, once part_.x_t is there.
  void targets(int64_t first, int64_t samples) const {
    for (int64_t b = 0; b < samples; ++b) {  // columns beyond the outputs stay zero
      T* const target = part_.residual + b * sizes_.fan_out;
      Simd<T>::store(target + sizes_.fan_out - Simd<T>::lanes, typename Simd<T>::Vector{});
      if (kind_ != Kind::fresh) copy_row(y_row(row(first + b)), target, sizes_.outputs);
    }
    if (kind_ != Kind::fresh) return;
    const Network<T>& teacher = *memory_.teacher;
    const T* const bias = teacher.top + memory_.teacher_nodes * sizes_.fan_out;
    Activations<T> own = part_;
    own.hidden = memory_.hidden;
    // The students' inputs may end without a 1; the teacher has biases.
    for (int64_t b = 0; b < samples; ++b) part_.x_t[sizes_.inputs * sizes_.wide + b] = 1;
    hidden_layer(sizes_, teacher, memory_.teacher_nodes, own, samples, T(problem_.rule.negative_slope), true);
    top_layer(sizes_, teacher, memory_.teacher_nodes, own, samples, [&](auto v, int64_t b, int64_t c, auto sums) {
      v.store(part_.residual + b * sizes_.fan_out + c, v.load(bias + c) + sums);
    });
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
