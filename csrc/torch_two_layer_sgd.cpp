// Registers `two_layer_sgd` with torch's dispatcher.
#include "fastspec/two_layer_sgd.h"

#include <optional>
#include <tuple>

#include "torch_tensors.h"

namespace fastspec {
namespace {

using Trained = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Weights {  // copies, and what points into them
  Tensor w1, b1, w2, b2;

  Weights(const Tensor& first, const Tensor& first_bias, const Tensor& top, const Tensor& top_bias)
      : w1(copy(first)), b1(copy(first_bias)), w2(copy(top)), b2(copy(top_bias)) {}

  Packed packed() const { return {w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), b2.data_ptr()}; }

  void check(int64_t nodes, int64_t inputs, int64_t outputs, int64_t networks, const Tensor& x) const {
    for (const Tensor* tensor : {&w1, &b1, &w2, &b2}) check_alike(*tensor, x);
    STD_TORCH_CHECK(w1.dim() == 2 && w1.size(0) == nodes && w1.size(1) == inputs && b1.numel() == nodes &&
                        w2.dim() == 2 && w2.size(0) == nodes && w2.size(1) == outputs &&
                        b2.numel() == networks * outputs,
                    "fastspec::two_layer_sgd: weights are w1 [nodes, d], b1 [nodes], w2 [nodes, C], b2 [networks, C]");
  }
};

Tensor table(const Tensor& tensor, ScalarType type, int64_t count, const char* message) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type && tensor.numel() == count, message);
  return in_one_piece(tensor);
}

// Rows whose columns are adjacent, as the kernel reads them.
Tensor rows(const Tensor& tensor, int64_t columns) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) == columns, "fastspec::two_layer_sgd: x is [N, d], y is [N, C]");
  return columns <= 1 || tensor.stride(1) == 1 ? tensor : in_one_piece(tensor);
}

Trained two_layer_sgd(const Tensor& x, const Tensor& y, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                      const Tensor& b2, const Tensor& offsets, const Tensor& lr, const Tensor& seeds,
                      const Tensor& diverged_step, const std::optional<Tensor>& w1_buffer,
                      const std::optional<Tensor>& b1_buffer, const std::optional<Tensor>& w2_buffer,
                      const std::optional<Tensor>& b2_buffer, const std::optional<Tensor>& indices,
                      const std::optional<Tensor>& multipliers, const std::optional<Tensor>& teacher_w1,
                      const std::optional<Tensor>& teacher_b1, const std::optional<Tensor>& teacher_w2,
                      const std::optional<Tensor>& teacher_b2, double fresh_std, int64_t batch_size, int64_t first_step,
                      int64_t steps, double momentum, double weight_decay, double negative_slope, double loss_limit,
                      bool bias, bool normalize, bool fixed_first, bool fixed_top) {
  STD_TORCH_CHECK(w1.dim() == 2 && w2.dim() == 2 && b2.dim() == 2 && x.dim() == 2,
                  "fastspec::two_layer_sgd: x, w1, w2 and b2 have two axes");
  TrainingProblem p{};
  p.scalar = scalar_of(x);
  STD_TORCH_CHECK(p.scalar == Scalar::f32 || p.scalar == Scalar::f64,
                  "fastspec::two_layer_sgd takes float32 or float64");
  p.samples = x.size(0), p.inputs = w1.size(1), p.outputs = w2.size(1), p.students = b2.size(0), p.steps = steps;
  const int64_t nodes = w1.size(0);
  check_alike(y, x);
  const Tensor x_rows = rows(x, p.inputs), y_rows = rows(y, p.outputs);
  STD_TORCH_CHECK(y.size(0) == p.samples, "fastspec::two_layer_sgd: x and y differ in samples");
  p.x = {x_rows.data_ptr(), x_rows.stride(0)}, p.y = {y_rows.data_ptr(), y_rows.stride(0)};

  const Weights out(w1, b1, w2, b2);
  out.check(nodes, p.inputs, p.outputs, p.students, x);
  p.weights = out.packed();
  std::optional<Weights> buffers;
  if (momentum != 0) {
    STD_TORCH_CHECK(w1_buffer && b1_buffer && w2_buffer && b2_buffer,
                    "fastspec::two_layer_sgd: momentum needs buffers");
    buffers.emplace(*w1_buffer, *b1_buffer, *w2_buffer, *b2_buffer);
    buffers->check(nodes, p.inputs, p.outputs, p.students, x);
    p.buffers = buffers->packed();
  }

  const Tensor edges = table(offsets, ScalarType::Long, p.students + 1, "fastspec::two_layer_sgd: offsets [P + 1]");
  const Tensor rates = table(lr, ScalarType::Double, p.students, "fastspec::two_layer_sgd: lr float64 [P]");
  const Tensor streams = table(seeds, ScalarType::Long, p.students, "fastspec::two_layer_sgd: seeds int64 [P]");
  const Tensor diverged =
      copy(table(diverged_step, ScalarType::Long, p.students, "fastspec::two_layer_sgd: diverged_step int64 [P]"));
  p.offsets = static_cast<const int64_t*>(edges.data_ptr());
  STD_TORCH_CHECK(p.offsets[0] == 0 && p.offsets[p.students] == nodes,
                  "fastspec::two_layer_sgd: offsets span the nodes");
  for (int64_t k = 0; k < p.students; ++k) {
    STD_TORCH_CHECK(p.offsets[k] <= p.offsets[k + 1], "fastspec::two_layer_sgd: offsets grow");
  }
  p.lr = static_cast<const double*>(rates.data_ptr());
  p.seeds = static_cast<const int64_t*>(streams.data_ptr());
  p.diverged_step = static_cast<int64_t*>(diverged.data_ptr());
  std::optional<Tensor> factors, batches;
  if (multipliers) {
    factors = table(*multipliers, ScalarType::Double, steps, "fastspec::two_layer_sgd: multipliers float64 [steps]");
    p.multipliers = static_cast<const double*>(factors->data_ptr());
  }

  p.rule = {momentum, weight_decay, negative_slope, loss_limit, bias, normalize, fixed_first, fixed_top};
  p.batches = {nullptr, 0, 0, batch_size, first_step, fresh_std};
  if (indices) {
    const bool own = indices->dim() == 3;
    STD_TORCH_CHECK(indices->is_cpu() && indices->scalar_type() == ScalarType::Long && indices->dim() >= 2 &&
                        indices->size(own) == steps && (!own || indices->size(0) == p.students),
                    "fastspec::two_layer_sgd: indices are int64 [steps, batch] or [P, steps, batch]");
    batches = in_one_piece(*indices);
    const auto* const rows_of = static_cast<const int64_t*>(batches->data_ptr());
    for (int64_t i = 0; i < batches->numel(); ++i) {
      STD_TORCH_CHECK(rows_of[i] >= 0 && rows_of[i] < p.samples, "fastspec::two_layer_sgd: indices within the samples");
    }
    const int64_t size = indices->size(own + 1);
    p.batches.indices = rows_of, p.batches.size = size;
    p.batches.step_stride = size, p.batches.student_stride = own ? steps * size : 0;
  }
  std::optional<Weights> teacher;
  if (fresh_std > 0) {
    STD_TORCH_CHECK(teacher_w1 && teacher_b1 && teacher_w2 && teacher_b2 && batch_size > 0 && !indices,
                    "fastspec::two_layer_sgd: fresh inputs need a teacher and a batch size");
    teacher.emplace(*teacher_w1, *teacher_b1, *teacher_w2, *teacher_b2);
    p.teacher_nodes = teacher_w1->size(0);
    teacher->check(p.teacher_nodes, p.inputs, p.outputs, 1, x);
    p.teacher = teacher->packed();
  } else {
    STD_TORCH_CHECK(p.samples > 0, "fastspec::two_layer_sgd: one sample or more");
  }

  const double work = double(steps) * double(nodes) * double(p.batches.size ? p.batches.size : p.samples) *
                      double(p.inputs + p.outputs);
  const int64_t threads = work < 1e6 ? 1 : torch::stable::get_num_threads();
  train_two_layer(p, {int(std::max<int64_t>(1, std::min(threads, p.students))), run_parts});
  const auto buffer = [&](Tensor Weights::* part) { return buffers ? (*buffers).*part : empty({{0}, 1}, type_of(x)); };
  return {out.w1,
          out.b1,
          out.w2,
          out.b2,
          buffer(&Weights::w1),
          buffer(&Weights::b1),
          buffer(&Weights::w2),
          buffer(&Weights::b2),
          diverged};
}

}  // namespace
}  // namespace fastspec

STABLE_TORCH_LIBRARY_IMPL(fastspec, CPU, library) {
  library.impl("two_layer_sgd", TORCH_BOX(&fastspec::two_layer_sgd));
}
