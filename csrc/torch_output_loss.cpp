// Registers `output_loss` with torch's dispatcher.
#include "fastspec/output_loss.h"

#include <optional>

#include "torch_tensors.h"

namespace fastspec {
namespace {

Tensor output_loss(const Tensor& answers, const Tensor& activations, const Tensor& weight,
                   const std::optional<Tensor>& bias) {
  const Scalar scalar = scalar_of(answers);
  STD_TORCH_CHECK(scalar == Scalar::f32 || scalar == Scalar::f64, "fastspec::output_loss takes float32 or float64");
  check_alike(activations, answers), check_alike(weight, answers);
  const int64_t axes = weight.dim();
  STD_TORCH_CHECK((axes == 2 || axes == 3) && answers.dim() == 2 && activations.dim() == axes &&
                      activations.size(axes - 2) == answers.size(0) && weight.size(axes - 2) == answers.size(1) &&
                      activations.size(axes - 1) == weight.size(axes - 1) &&
                      (axes == 2 || activations.size(0) == weight.size(0)),
                  "fastspec::output_loss: answers [samples, outputs], activations [*students, samples, nodes], weight "
                  "[*students, outputs, nodes]");
  const int64_t students = axes == 3 ? weight.size(0) : 1, nodes = weight.size(axes - 1);
  const int64_t samples = answers.size(0), outputs = answers.size(1);
  const Tensor y = in_one_piece(answers), x = in_one_piece(activations), w = in_one_piece(weight);
  std::optional<Tensor> b;
  if (bias) {
    check_alike(*bias, answers);
    STD_TORCH_CHECK(
        bias->dim() == axes - 1 && bias->size(axes - 2) == outputs && (axes == 2 || bias->size(0) == students),
        "fastspec::output_loss: a bias is [*students, outputs]");
    b = in_one_piece(*bias);
  }
  Tensor loss = empty({{students}, axes - 2}, aoti_torch_dtype_float64());
  const double work = double(students) * double(samples) * double(outputs) * double(nodes + 1);
  const int64_t threads = work < 1e6 ? 1 : torch::stable::get_num_threads();
  compute_output_loss({scalar, students, samples, nodes, outputs, y.data_ptr(), x.data_ptr(), w.data_ptr(),
                       b ? b->data_ptr() : nullptr, static_cast<double*>(loss.data_ptr())},
                      {int(std::max<int64_t>(1, threads)), run_parts});
  return loss;
}

}  // namespace
}  // namespace fastspec

STABLE_TORCH_LIBRARY_IMPL(fastspec, CPU, library) { library.impl("output_loss", TORCH_BOX(&fastspec::output_loss)); }
