#include "client/release_queue.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

// A hold with thousands of damaged extents is told about the first ones; the daemon checks the rest
// when somebody reads them.
constexpr size_t kMaxDamagedOfOneHold = kMaxReleasesPerCall / 4;

// Moves the first `count` elements of `from` to the end of `to`.
template <typename T>
void MoveFront(std::vector<T>& from, size_t count, std::vector<T>& to) {
  to.insert(to.end(), std::make_move_iterator(from.begin()),
            std::make_move_iterator(from.begin() + count));
  from.erase(from.begin(), from.begin() + count);
}

}  // namespace

void ReleaseQueue::StartSession(uint64_t session) {
  absl::MutexLock lock(&mu_);
  session_ = session;
  owed_ = {};
  aborts_.clear();
  oldest_ = absl::InfiniteFuture();
}

void ReleaseQueue::EndSession(uint64_t session) {
  absl::MutexLock lock(&mu_);
  if (session != session_) return;
  session_ = 0;
  owed_ = {};
  aborts_.clear();
  oldest_ = absl::InfiniteFuture();
}

void ReleaseQueue::AddHold(uint64_t session, uint64_t hold_id, std::vector<uint32_t> damaged) {
  if (hold_id == 0) return;
  absl::MutexLock lock(&mu_);
  if (session != session_) return;
  if (owed_.hold_ids.size() >= kMaxQueued) {
    ++dropped_;
    return;
  }
  owed_.hold_ids.push_back(hold_id);
  if (!damaged.empty()) {
    damaged.resize(std::min(damaged.size(), kMaxDamagedOfOneHold));
    owed_.damaged.push_back({hold_id, std::move(damaged)});
  }
  Added();
}

void ReleaseQueue::AddLease(uint64_t lease_id) {
  absl::MutexLock lock(&mu_);
  if (lease_id == 0 || session_ == 0) return;
  if (owed_.lease_ids.size() >= kMaxQueued) {
    ++dropped_;
    return;
  }
  owed_.lease_ids.push_back(lease_id);
  Added();
}

void ReleaseQueue::AddAbort(uint64_t session, uint64_t reservation_id) {
  absl::MutexLock lock(&mu_);
  if (session != session_ || reservation_id == 0) return;
  if (aborts_.size() >= kMaxQueued) {
    ++dropped_;
    return;
  }
  aborts_.push_back(reservation_id);
  Added();
  wake_.Signal();  // Somebody else may be waiting for these blocks.
}

Owed ReleaseQueue::Take(uint64_t session) {
  Owed taken;
  absl::MutexLock lock(&mu_);
  if (session != session_ || owed_.empty()) return taken;
  // Reports go with their holds or before them, since the daemon looks at the extents of a hold.
  size_t room = kMaxReleasesPerCall;
  size_t reports = 0;
  while (reports < owed_.damaged.size() && 1 + owed_.damaged[reports].extents.size() <= room) {
    room -= 1 + owed_.damaged[reports++].extents.size();
  }
  const bool all_reports = reports == owed_.damaged.size();
  MoveFront(owed_.damaged, reports, taken.damaged);
  if (all_reports) {
    const size_t holds = std::min(owed_.hold_ids.size(), room);
    MoveFront(owed_.hold_ids, holds, taken.hold_ids);
    room -= holds;
  }
  const size_t leases = std::min(owed_.lease_ids.size(), room);
  MoveFront(owed_.lease_ids, leases, taken.lease_ids);
  if (EmptyLocked()) oldest_ = absl::InfiniteFuture();
  return taken;
}

std::vector<uint64_t> ReleaseQueue::TakeAborts(uint64_t session) {
  absl::MutexLock lock(&mu_);
  if (session != session_) return {};
  std::vector<uint64_t> taken = std::exchange(aborts_, {});
  if (EmptyLocked()) oldest_ = absl::InfiniteFuture();
  return taken;
}

void ReleaseQueue::GiveBack(uint64_t session, Owed owed) {
  absl::MutexLock lock(&mu_);
  if (owed.empty() || session != session_) return;
  MoveFront(owed.hold_ids, owed.hold_ids.size(), owed_.hold_ids);
  MoveFront(owed.lease_ids, owed.lease_ids.size(), owed_.lease_ids);
  MoveFront(owed.damaged, owed.damaged.size(), owed_.damaged);
  Added();
}

bool ReleaseQueue::empty() const {
  absl::MutexLock lock(&mu_);
  return EmptyLocked();
}

uint64_t ReleaseQueue::dropped() const {
  absl::MutexLock lock(&mu_);
  return dropped_;
}

bool ReleaseQueue::WaitUntilDue() {
  absl::MutexLock lock(&mu_);
  while (!stopped_) {
    const absl::Time now = absl::Now();
    if (DueLocked(now)) return true;
    if (EmptyLocked() && !std::exchange(busy_, false)) {
      sleeping_ = true;
      wake_.Wait(&mu_);
      sleeping_ = false;
    } else {
      wake_.WaitWithDeadline(&mu_, EmptyLocked() ? now + kFlushAfter : oldest_ + kFlushAfter);
    }
  }
  return false;
}

void ReleaseQueue::Stop() {
  absl::MutexLock lock(&mu_);
  stopped_ = true;
  wake_.SignalAll();
}

bool ReleaseQueue::EmptyLocked() const { return owed_.empty() && aborts_.empty(); }

bool ReleaseQueue::DueLocked(absl::Time now) const {
  return !aborts_.empty() || oldest_ + kFlushAfter <= now;
}

void ReleaseQueue::Added() {
  busy_ = true;
  if (oldest_ == absl::InfiniteFuture()) oldest_ = absl::Now();
  if (sleeping_) wake_.Signal();
}

}  // namespace kvd
