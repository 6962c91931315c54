// Cores that work on one student together: who takes which rows, and how they wait for each other.
#pragma once

#include <sched.h>

#include <cstdint>

namespace fastspec {
namespace FASTSPEC_ISA {

// Of some cores that all come to it, none leaves before the last has come.
class Barrier {
  int64_t members_ = 1, arrived_ = 0, turn_ = 0;

 public:
  explicit Barrier(int64_t members) : members_(members) {}

  void wait() {
    if (members_ == 1) return;
    const int64_t turn = __atomic_load_n(&turn_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == members_) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&turn_, turn + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int64_t spins = 0; __atomic_load_n(&turn_, __ATOMIC_ACQUIRE) == turn; ++spins) {
      if (spins > 256) sched_yield();  // the others may be waiting for this very core
    }
  }
};

struct Range {
  int64_t first, count;
};

// One core of a team.
struct Member {
  int64_t number, members;
  Barrier* barrier;

  // Its share of `count` things, in pieces of `unit`.
  Range share(int64_t count, int64_t unit = 1) const {
    const int64_t units = (count + unit - 1) / unit;
    const int64_t first = units * number / members * unit, last = units * (number + 1) / members * unit;
    return {first < count ? first : count, (last < count ? last : count) - (first < count ? first : count)};
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
