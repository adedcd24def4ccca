// Confinement to a thread, checked by Clang where it compiles and by an assertion where it runs.
//
//   ThreadRole control_;
//   int moves_ ABSL_GUARDED_BY(control_);
//   void Poll() { control_.AssertHeld(); ... }

#pragma once

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "proto/types/check.h"

namespace kvd {

class ABSL_LOCKABLE ThreadRole {
 public:
  // The first thread that asserts becomes the owner.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {
    std::thread::id none;
    const std::thread::id self = std::this_thread::get_id();
    // Relaxed: only the value matters; ownership is passed on by whatever starts the thread.
    if (!owner_.compare_exchange_strong(none, self, std::memory_order_relaxed)) {
      KVD_CHECK(none == self) << "called on a thread that does not own this object";
    }
  }
  // Gives the role up, so that the next thread that asserts becomes the owner.
  void Release() { owner_.store(std::thread::id(), std::memory_order_relaxed); }

 private:
  mutable std::atomic<std::thread::id> owner_{};
};

}  // namespace kvd
