// The Philox streams of the kernels, for Python: what a kernel draws can be looked at, and tested.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>

#include "fastspec/philox.h"

namespace {

static_assert(fastspec::philox4x32({{0, 0, 0, 0}}, {{0, 0}}).word[0] == 0x6627e8d5u, "Random123's known answer");

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const auto out = fastspec::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, {{key[0], key[1]}});
  return {out.word[0], out.word[1], out.word[2], out.word[3]};
}

pybind11::array_t<int64_t> batch_indices(int64_t seed, int64_t first_step, int64_t steps, int64_t batch_size,
                                         int64_t samples) {
  if (steps < 0 || batch_size < 0) throw std::invalid_argument("steps and batch_size: takes numbers >= 0");
  if (samples < 1 || samples > int64_t{1} << 31) throw std::invalid_argument("samples: takes 1 to 2^31");
  pybind11::array_t<int64_t> indices({steps, batch_size});
  auto out = indices.mutable_unchecked<2>();
  for (int64_t t = 0; t < steps; ++t) {
    for (int64_t i = 0; i < batch_size; i += 4) {
      const auto block =
          fastspec::stream_block(seed, fastspec::StreamPurpose::batch, first_step + t, static_cast<uint32_t>(i / 4));
      for (int64_t j = 0; j < 4 && i + j < batch_size; ++j) {
        out(t, i + j) = fastspec::batch_index(block.word[j], samples);
      }
    }
  }
  return indices;
}

}  // namespace

void bind_philox(pybind11::module_& module) {
  using pybind11::arg;
  module.def("philox4x32", &philox4x32, arg("counter"), arg("key"), "Ten rounds of Philox4x32.");
  module.def("batch_indices", &batch_indices, arg("seed"), arg("first_step"), arg("steps"), arg("batch_size"),
             arg("samples"),
             "The batches of one student: int64 [steps, batch_size], as fastspec.ops.philox draws them.");
}
