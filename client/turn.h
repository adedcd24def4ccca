// A mutex whose Lock() gives up at a deadline: absl::Mutex has none, because its timed waits still
// queue for the lock itself. For what is held across system calls or copies.
//
//   TurnLock lock(turn, deadline);
//   if (!lock.held()) return absl::DeadlineExceededError(...);

#pragma once

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvd {

class Turn {
 public:
  bool Take(absl::Time deadline) {
    absl::MutexLock lock(&mu_);
    if (!mu_.AwaitWithDeadline(absl::Condition(&Turn::IsFree, this), deadline)) return false;
    taken_ = true;
    return true;
  }
  void Give() {
    absl::MutexLock lock(&mu_);
    taken_ = false;
  }

 private:
  static bool IsFree(Turn* turn) ABSL_EXCLUSIVE_LOCKS_REQUIRED(turn->mu_) { return !turn->taken_; }

  absl::Mutex mu_;  // Held for a few instructions only.
  bool taken_ ABSL_GUARDED_BY(mu_) = false;
};

class TurnLock {
 public:
  TurnLock(Turn& turn, absl::Time deadline) : turn_(turn), held_(turn.Take(deadline)) {}
  ~TurnLock() {
    if (held_) turn_.Give();
  }
  TurnLock(const TurnLock&) = delete;
  TurnLock& operator=(const TurnLock&) = delete;

  bool held() const { return held_; }

 private:
  Turn& turn_;
  const bool held_;
};

}  // namespace kvd
