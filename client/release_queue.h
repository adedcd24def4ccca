// What one session owes the daemon: holds and leases to give back, damage to report, reservations
// to give up. It rides on the next call, or is sent by the client's background thread once it has
// waited for kFlushAfter.
//
// Entries belong to the session in which they arose. Those of another one are dropped, because the
// daemon has ended them, or will when this process ends.
//
// Threads: everything is safe from any thread. WaitUntilDue() is for one thread.

#pragma once

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvd {

// Extents of one hold that did not verify.
struct DamagedExtents {
  uint64_t hold_id = 0;
  std::vector<uint32_t> extents;  // Positions in the answer that named the hold.
};

// What one call takes along.
struct Owed {
  std::vector<uint64_t> hold_ids;
  std::vector<uint64_t> lease_ids;
  std::vector<DamagedExtents> damaged;

  bool empty() const { return hold_ids.empty() && lease_ids.empty() && damaged.empty(); }
};

class ReleaseQueue {
 public:
  static constexpr absl::Duration kFlushAfter = absl::Milliseconds(20);
  // Entries kept at most. Holds are bounded by the daemon, leases by nobody: beyond this they are
  // dropped, and run out by themselves.
  static constexpr size_t kMaxQueued = 65536;

  // From now on `session` is the one whose entries count.
  void StartSession(uint64_t session);
  // Nothing is owed to it any more. No effect when another one has started.
  void EndSession(uint64_t session);

  // `damaged` may be empty. A `hold_id` of zero is nothing.
  void AddHold(uint64_t session, uint64_t hold_id, std::vector<uint32_t> damaged);
  void AddLease(uint64_t lease_id);
  void AddAbort(uint64_t session, uint64_t reservation_id);

  // At most kMaxReleasesPerCall entries, oldest first.
  Owed Take(uint64_t session);
  std::vector<uint64_t> TakeAborts(uint64_t session);
  // Puts back what a call that failed had taken. To end a hold twice does no harm.
  void GiveBack(uint64_t session, Owed owed);

  bool empty() const;
  uint64_t dropped() const;

  // Blocks until something has waited for kFlushAfter, or an abort is owed. False: Stop() was
  // called.
  bool WaitUntilDue();
  void Stop();

 private:
  bool EmptyLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  bool DueLocked(absl::Time now) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void Added() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  absl::CondVar wake_;
  uint64_t session_ ABSL_GUARDED_BY(mu_) = 0;
  Owed owed_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> aborts_ ABSL_GUARDED_BY(mu_);
  absl::Time oldest_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();  // Since when something waits.
  uint64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;
  // The background thread sleeps without a time-out and wants a signal. While calls come often it
  // ticks instead: a signal for each release would wake another CPU each time.
  bool sleeping_ ABSL_GUARDED_BY(mu_) = false;
  bool busy_ ABSL_GUARDED_BY(mu_) = false;  // Something was added since the last tick.
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kvd
