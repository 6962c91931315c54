// Threads of the CPU that stand for the blocks of a cluster, so that the body of a CUDA kernel runs, and the sanitizers
// watch it, where there is no GPU. Memory starts as NaN; a fetched value arrives when it is waited for, not before.
#pragma once

#include <atomic>
#include <barrier>
#include <cstring>
#include <memory>
#include <source_location>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "fastspec/block/two_layer_sgd.h"

namespace fastspec {
namespace block {

struct EmulatedCluster {
  EmulatedCluster(int ranks, int threads, int64_t shared_bytes) : threads(threads), all(ranks * threads) {
    for (int rank = 0; rank < ranks; ++rank) {
      own.push_back(std::make_unique<std::barrier<>>(threads));
      shared.emplace_back(ceil_div(shared_bytes, sizeof(Vector<double>)));
      std::memset(static_cast<void*>(shared.back().data()), 0xff, shared_bytes);
    }
  }

  int threads;
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> own;
  std::vector<std::vector<Vector<double>>> shared;  // of each block
  std::atomic<bool> said = false;
  std::string_view without;  // the call of a barrier or of `fetched` that does nothing, "file.h:line": for tests
};

class EmulatedBlock {
  using Place = std::source_location;

  EmulatedCluster& cluster_;
  int rank_, thread_;
  mutable std::vector<std::pair<std::pair<void*, const void*>, size_t>> fetches_;

  bool dropped(const Place& place) const {
    if (cluster_.without.empty()) return false;
    const std::string_view file = place.file_name();
    const std::string call = std::string(file.substr(file.rfind('/') + 1)) + ":" + std::to_string(place.line());
    return call == cluster_.without;
  }

 public:
  EmulatedBlock(EmulatedCluster& cluster, int rank, int thread) : cluster_(cluster), rank_(rank), thread_(thread) {}

  int thread() const { return thread_; }
  int threads() const { return cluster_.threads; }
  int rank() const { return rank_; }
  int ranks() const { return int(cluster_.shared.size()); }
  char* shared() const { return reinterpret_cast<char*>(cluster_.shared[rank_].data()); }

  void sync(const Place& place = Place::current()) const {
    if (!dropped(place)) cluster_.own[rank_]->arrive_and_wait();
  }
  void sync_all(const Place& place = Place::current()) const {
    if (!dropped(place)) cluster_.all.arrive_and_wait();
  }
  bool any(bool mine) const {
    if (mine) cluster_.said = true;
    cluster_.all.arrive_and_wait();
    const bool result = cluster_.said;
    cluster_.all.arrive_and_wait();
    cluster_.said = false;
    cluster_.all.arrive_and_wait();
    return result;
  }
  template <typename T>
  const T* of_rank(const T* pointer, int rank) const {
    const char* const there = reinterpret_cast<const char*>(cluster_.shared[rank].data());
    return reinterpret_cast<const T*>(there + (reinterpret_cast<const char*>(pointer) - shared()));
  }
  template <typename T>
  void fetch(T* to, const T* from) const {
    fetches_.push_back({{to, from}, sizeof(T)});
  }
  void fetched(const Place& place = Place::current()) const {
    if (!dropped(place)) {
      for (const auto& [pair, bytes] : fetches_) std::memcpy(pair.first, pair.second, bytes);
    }
    fetches_.clear();
  }
};

template <typename T, int tile>
void emulate_tile(const Launch& launch, int threads, std::string_view without) {
  const int ranks = int(launch.plan.ranks);
  EmulatedCluster cluster(ranks, threads, launch.plan.shared_bytes);
  cluster.without = without;
  const auto body = [&](int rank, int thread) {
    const EmulatedBlock block(cluster, rank, thread);
    for (int64_t index = 0; index < launch.count; ++index) {
      Pieces shared{block.shared(), 0};
      Pieces global{launch.memory + (index * ranks + rank) * launch.plan.global_bytes, 0};
      const bool resident = launch.plan.placement == Placement::shared;
      const Arrays<T> arrays = resident ? lay_out<T, true>(launch.shape, launch.plan, shared, global)
                                        : lay_out<T, false>(launch.shape, launch.plan, shared, global);
      Training<T, tile, EmulatedBlock>(block, launch, arrays, index).run();
      cluster.all.arrive_and_wait();  // one student after the other has this memory
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < ranks * threads; ++i) others.emplace_back(body, i / threads, i % threads);
  body(0, 0);
  for (std::thread& thread : others) thread.join();
}

// Runs a launch, `threads` for each block. launch.memory is memory of the CPU.
inline void emulate(const Launch& launch, int threads, std::string_view without = {}) {
  const bool wide = launch.plan.tile == 16;
  if (launch.problem.scalar == Scalar::f64) {
    return (wide ? emulate_tile<double, 16> : emulate_tile<double, 8>)(launch, threads, without);
  }
  (wide ? emulate_tile<float, 16> : emulate_tile<float, 8>)(launch, threads, without);
}

}  // namespace block
}  // namespace fastspec
