// Registers `mlp_sgd_step` with torch's dispatcher.
#include "fastspec/mlp_sgd_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include "torch_tensors.h"

namespace fastspec {
namespace {

using Stepped = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Threads of their own, which run at the same time whatever torch's pool does.
void run_at_once(int parts, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  int state = 0;  // 0 wait, 1 go, 2 leave
  const auto part_of = [&](int part) {
    int seen;
    while ((seen = __atomic_load_n(&state, __ATOMIC_ACQUIRE)) == 0) std::this_thread::yield();
    if (seen == 1) body(context, part);
  };
  try {
    for (int part = 1; part < parts; ++part) threads.emplace_back(part_of, part);
  } catch (...) {  // too few of them, and they would wait for each other
    __atomic_store_n(&state, 2, __ATOMIC_RELEASE);
    for (std::thread& thread : threads) thread.join();
    throw;
  }
  __atomic_store_n(&state, 1, __ATOMIC_RELEASE);
  body(context, 0);
  for (std::thread& thread : threads) thread.join();
}

// Rows whose columns are adjacent, as the kernel reads them.
Tensor rows(const Tensor& tensor, int64_t columns) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) == columns, "fastspec::mlp_sgd_step: x is [N, d], y is [N, C]");
  return columns <= 1 || tensor.stride(1) == 1 ? tensor : in_one_piece(tensor);
}

Tensor table(const Tensor& tensor, ScalarType type, int64_t count, const char* message) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type && tensor.numel() == count, message);
  return in_one_piece(tensor);
}

// float64, of which nothing is known yet.
Tensor unknown(std::vector<int64_t> population, std::initializer_list<int64_t> more, int32_t type) {
  Shape shape{{1, 1, 1}, 0};
  for (const int64_t size : population) shape.size[shape.axes++] = size;
  for (const int64_t size : more) shape.size[shape.axes++] = size;
  Tensor out = empty(shape, type);
  double* const values = static_cast<double*>(out.data_ptr());
  std::fill(values, values + out.numel(), std::nan(""));
  return out;
}

Stepped mlp_sgd_step(const Tensor& x, const Tensor& y, const Tensor& parameters, const std::optional<Tensor>& buffers,
                     const Tensor& indices, const Tensor& lr, const Tensor& diverged_step, std::vector<int64_t> widths,
                     std::vector<bool> bias, int64_t first_step, double momentum, double weight_decay,
                     double negative_slope, double loss_limit, bool normalize, bool gradient_norms,
                     StringHandle precision) {
  check_precision(precision, x);
  DeepProblem p{};
  p.scalar = scalar_of(x);
  STD_TORCH_CHECK(p.scalar == Scalar::f32 || p.scalar == Scalar::f64,
                  "fastspec::mlp_sgd_step takes float32 or float64");
  STD_TORCH_CHECK(widths.size() >= 2 && bias.size() + 1 == widths.size(),
                  "fastspec::mlp_sgd_step: widths are inputs, hidden nodes, outputs; bias says who has one");
  const std::unique_ptr<bool[]> has_bias(new bool[bias.size()]);
  p.layers = int64_t(bias.size());
  for (int64_t l = 0; l < p.layers; ++l) {
    STD_TORCH_CHECK(widths[l] > 0 && widths[l + 1] > 0, "fastspec::mlp_sgd_step: widths are positive");
    has_bias[l] = bias[l];
    p.count += widths[l + 1] * (widths[l] + int64_t(bias[l]));
  }
  p.widths = widths.data(), p.bias = has_bias.get();
  const bool many = parameters.dim() == 2;
  STD_TORCH_CHECK((many || parameters.dim() == 1) && parameters.size(many) == p.count,
                  "fastspec::mlp_sgd_step: parameters are [K] or [P, K]");
  check_alike(parameters, x);
  p.students = many ? parameters.size(0) : 1;
  const std::vector<int64_t> population = many ? std::vector<int64_t>{p.students} : std::vector<int64_t>{};

  const bool own = indices.dim() == 3, labels = y.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(indices.is_cpu() && indices.scalar_type() == ScalarType::Long && indices.dim() >= 2 &&
                      (!own || indices.size(0) == p.students) && indices.size(own + 1) > 0,
                  "fastspec::mlp_sgd_step: indices are int64 [steps, batch] or [P, steps, batch]");
  p.samples = x.size(0), p.steps = indices.size(own), p.batch = indices.size(own + 1);
  const Tensor batches = in_one_piece(indices);
  p.indices = static_cast<const int64_t*>(batches.data_ptr()), p.indices_stride = own ? p.steps * p.batch : 0;
  for (int64_t i = 0; i < batches.numel(); ++i) {
    STD_TORCH_CHECK(p.indices[i] >= 0 && p.indices[i] < p.samples,
                    "fastspec::mlp_sgd_step: indices within the samples");
  }
  const Tensor x_rows = rows(x, widths[0]);
  p.x = x_rows.data_ptr(), p.x_stride = x_rows.stride(0);
  STD_TORCH_CHECK(y.size(0) == p.samples, "fastspec::mlp_sgd_step: x and y differ in samples");
  if (!labels) check_alike(y, x);
  const Tensor answers = labels ? table(y, ScalarType::Long, p.samples, "fastspec::mlp_sgd_step: labels are [N]")
                                : rows(y, widths[p.layers]);
  if (labels) {
    p.labels = static_cast<const int64_t*>(answers.data_ptr());
    for (int64_t i = 0; i < p.samples; ++i) {
      STD_TORCH_CHECK(p.labels[i] >= 0 && p.labels[i] < widths[p.layers],
                      "fastspec::mlp_sgd_step: labels within the outputs");
    }
  } else {
    p.y = answers.data_ptr(), p.y_stride = answers.stride(0);
  }

  const Tensor moved = copy(parameters), none = unknown({}, {0}, type_of(lr));
  p.parameters = moved.data_ptr();
  Tensor kept = empty({{0, 1, 1}, 1}, type_of(x));
  if (momentum != 0) {
    if (buffers) {
      check_alike(*buffers, x);
      STD_TORCH_CHECK(buffers->numel() == parameters.numel(), "fastspec::mlp_sgd_step: buffers are as parameters");
      kept = copy(*buffers);
    } else {
      kept = copy(parameters);
      std::memset(kept.data_ptr(), 0, kept.numel() * (p.scalar == Scalar::f64 ? sizeof(double) : sizeof(float)));
    }
    p.buffers = kept.data_ptr();
  }
  const Tensor rates = table(lr, ScalarType::Double, p.steps, "fastspec::mlp_sgd_step: lr is float64 [steps]");
  const Tensor diverged =
      copy(table(diverged_step, ScalarType::Long, p.students, "fastspec::mlp_sgd_step: diverged_step is int64 [*P]"));
  const Tensor loss = unknown(population, {p.steps}, type_of(lr));
  const Tensor norms = gradient_norms ? unknown(population, {p.steps, p.layers}, type_of(lr)) : none;
  p.lr = static_cast<const double*>(rates.data_ptr());
  p.diverged_step = static_cast<int64_t*>(diverged.data_ptr());
  p.loss = static_cast<double*>(loss.data_ptr());
  p.gradient_norm = gradient_norms ? static_cast<double*>(norms.data_ptr()) : nullptr;
  p.first_step = first_step;
  p.rule = {momentum, weight_decay, negative_slope, loss_limit, normalize};

  const double step = double(p.students) * double(p.batch) * double(p.count);  // multiplications, a third of them
  const int64_t threads = step * double(p.steps) < 1e5 ? 1 : int64_t(torch::stable::get_num_threads());
  // A core that takes part in a step of few operations waits for the others longer than it works.
  const int64_t most = std::max<int64_t>(p.students, int64_t(step / double(std::max<int64_t>(1, p.students)) / 1e5));
  train_deep(p, {int(std::max<int64_t>(1, std::min(threads, most))), run_at_once});
  return {moved, kept, loss, norms, diverged};
}

}  // namespace
}  // namespace fastspec

STABLE_TORCH_LIBRARY_IMPL(fastspec, CPU, library) { library.impl("mlp_sgd_step", TORCH_BOX(&fastspec::mlp_sgd_step)); }
