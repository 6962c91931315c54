// What the registrations of the ops share: tensors of torch's stable ABI as the kernels see them, and its threads.
// Schemas are defined in fastspec/ops; the friendly checks live there too, and those here only keep a direct call from
// reading out of bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <string>

#include "fastspec/scalar.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // as torch 2.12 and earlier call it
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastspec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Scalar scalar_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Scalar::f64;
    case ScalarType::Float: return Scalar::f32;
    case ScalarType::Half: return Scalar::f16;
    case ScalarType::BFloat16: return Scalar::bf16;
    default: STD_TORCH_CHECK(false, "fastspec takes float64, float32, float16 or bfloat16 tensors");
  }
}

inline void check_alike(const Tensor& tensor, const Tensor& first) {
  STD_TORCH_CHECK(tensor.scalar_type() == first.scalar_type(), "fastspec: tensors must share one dtype");
  STD_TORCH_CHECK(tensor.is_cpu() && first.is_cpu(), "fastspec: tensors must lie on one device");
}

// Takes `name` over, as a string handle of the C shim: the C++ layer's conversion to std::string leaks one each call.
// The kernels compute all but fp64 in float32, at least as precise as asked.
inline void check_precision(StringHandle name, const Tensor& tensor) {
  const char* text;
  size_t length;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(name, &text));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(name, &length));
  const std::string precision(text, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(name));
  const bool known =
      precision == "fp64" || precision == "fp32" || precision == "tf32x3" || precision == "tf32" || precision == "bf16";
  STD_TORCH_CHECK(known && (precision == "fp64") == (scalar_of(tensor) == Scalar::f64),
                  "fastspec: precision is fp64 for float64 tensors, and fp32, tf32x3, tf32 or bf16 for others");
}

struct Shape {  // at most [networks, nodes, nodes]
  int64_t size[3];
  int64_t axes;
};

// An uninitialised CPU tensor. By the C shim: new_empty of the C++ layer costs a boxed call more, ten times an op.
inline Tensor empty(const Shape& shape, int32_t type) {
  int64_t strides[3] = {1, 1, 1};
  for (int64_t axis = shape.axes - 1; axis > 0; --axis) {
    strides[axis - 1] = strides[axis] * (shape.size[axis] ? shape.size[axis] : 1);
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(shape.axes, shape.size, strides, type, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline int32_t type_of(const Tensor& tensor) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  return type;
}

// A copy whose elements lie one after the other.
inline Tensor copy(const Tensor& tensor) {
  Shape shape{{1, 1, 1}, tensor.dim()};
  STD_TORCH_CHECK(shape.axes <= 3, "fastspec: tensors have at most three axes");
  for (int64_t axis = 0; axis < shape.axes; ++axis) shape.size[axis] = tensor.size(axis);
  Tensor out = empty(shape, type_of(tensor));
  torch::stable::copy_(out, tensor);
  return out;
}

inline Tensor in_one_piece(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : copy(tensor); }

inline void run_parts(int parts, void (*body)(void*, int), void* context) {
  if (parts == 1) return body(context, 0);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(context, int(part));
  });
}

}  // namespace fastspec
