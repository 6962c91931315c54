// Launches of the training kernel: one cluster of blocks for each student.
#include "cuda_block.h"
#include "fastspec/block/two_layer_sgd.h"
#include "launch.h"

namespace fastspec {
namespace block {
namespace {

// resident: all that a student needs lies in shared memory; otherwise anything may lie in global memory.
template <typename T, int tile, bool resident, int threads = int(most_threads(sizeof(T), resident))>
__global__ void __launch_bounds__(threads, 1) two_layer_sgd(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(16) char memory[];
  const Plan& plan = launch.plan;
  const CudaBlock<resident> block(plan.ranks);
  Pieces shared{memory, 0}, global{launch.memory + int64_t(blockIdx.x) * plan.global_bytes, 0};
  const Arrays<T> arrays = lay_out<T, resident>(launch.shape, plan, shared, global);
  Training<T, tile, CudaBlock<resident>>(block, launch, arrays, int64_t(blockIdx.x) / plan.ranks).run();
}

using Kernel = void (*)(Launch);

template <typename T, int tile>
Kernel kernel(bool resident) {
  return resident ? two_layer_sgd<T, tile, true> : two_layer_sgd<T, tile, false>;
}

}  // namespace

bool device_facts(int device, DeviceFacts& facts) {
  constexpr int beside = 64;  // bytes, more than the kernel's static shared memory
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  };
  const bool found = read(facts.multiprocessors, cudaDevAttrMultiProcessorCount) &&
                     read(facts.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor) &&
                     read(facts.block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
                     read(facts.major, cudaDevAttrComputeCapabilityMajor);
  facts.block_shared_bytes -= beside;
  return found;
}

const char* launch_two_layer_sgd(const Launch& launch, void* stream) {
  const Plan& plan = launch.plan;
  const bool resident = plan.placement == Placement::shared, wide = plan.tile == 16;
  const Kernel chosen = launch.problem.scalar == Scalar::f64 ? (wide ? kernel<double, 16> : kernel<double, 8>)(resident)
                                                             : (wide ? kernel<float, 16> : kernel<float, 8>)(resident);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(launch.count * plan.ranks)), config.blockDim = dim3(unsigned(plan.threads));
  config.dynamicSmemBytes = size_t(launch.shared_bytes), config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(plan.ranks), 1, 1};
  if (plan.ranks > 1) config.attrs = &cluster, config.numAttrs = 1;
  cudaError_t status =
      cudaFuncSetAttribute(chosen, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.shared_bytes));
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, chosen, launch);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace block
}  // namespace fastspec
