// A CUDA block, as the bodies of kernels see it (fastspec/block/block.h).
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline.h>

#include "fastspec/block/block.h"

namespace fastspec {
namespace block {

// in_shared: whether fetched values go to shared memory.
template <bool in_shared>
class CudaBlock {
  int ranks_;

 public:
  __device__ __forceinline__ explicit CudaBlock(int64_t ranks) : ranks_(int(ranks)) {}

  __device__ __forceinline__ int thread() const { return int(threadIdx.x); }
  __device__ __forceinline__ int threads() const { return int(blockDim.x); }
  __device__ __forceinline__ int ranks() const { return ranks_; }
  __device__ __forceinline__ int rank() const { return ranks_ == 1 ? 0 : int(blockIdx.x) % ranks_; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_all() const {
#if __CUDA_ARCH__ >= 900
    if (ranks_ > 1) return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }

  __device__ __forceinline__ bool any(bool mine) const {
    const bool here = __syncthreads_or(mine);
#if __CUDA_ARCH__ >= 900
    if (ranks_ > 1) {
      __shared__ int said;
      if (thread() == 0) said = here;
      sync_all();
      bool anywhere = false;
      for (int rank = 0; rank < ranks_; ++rank) anywhere |= *of_rank(&said, rank) != 0;
      sync_all();
      return anywhere;
    }
#endif
    return here;
  }

  template <typename T>
  __device__ __forceinline__ const T* of_rank(const T* pointer, int rank) const {
#if __CUDA_ARCH__ >= 900
    return cooperative_groups::this_cluster().map_shared_rank(pointer, rank);
#else
    return pointer;
#endif
  }

  template <typename T>
  __device__ __forceinline__ void fetch(T* to, const T* from) const {
    if constexpr (in_shared) {
      __pipeline_memcpy_async(to, from, sizeof(T));
    } else {
      *to = *from;
    }
  }
  __device__ __forceinline__ void fetched() const {
    if constexpr (in_shared) {
      __pipeline_commit();
      __pipeline_wait_prior(0);
    }
  }
};

}  // namespace block
}  // namespace fastspec
