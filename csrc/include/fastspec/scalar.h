// The dtypes of tensors.
#pragma once

namespace fastspec {

enum class Scalar { f64, f32, f16, bf16 };

}  // namespace fastspec
