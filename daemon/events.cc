#include "daemon/events.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/time/clock.h"
#include "proto/types/check.h"

namespace kvd {

std::string_view EventKindName(EventKind kind) {
  switch (kind) {
    case EventKind::kStored:
      return "stored";
    case EventKind::kEvicted:
      return "evicted";
    case EventKind::kDamaged:
      return "damaged";
    case EventKind::kPartDamaged:
      return "part-damaged";
    case EventKind::kSessionOpened:
      return "session-opened";
    case EventKind::kSessionEnded:
      return "session-ended";
    case EventKind::kNamespaceRegistered:
      return "namespace-registered";
    case EventKind::kNamespaceDropped:
      return "namespace-dropped";
    case EventKind::kLeaseExpired:
      return "lease-expired";
    case EventKind::kPinGranted:
      return "pin-granted";
    case EventKind::kPinEnded:
      return "pin-ended";
    case EventKind::kReservationExpired:
      return "reservation-expired";
    case EventKind::kDrainBegan:
      return "drain-began";
    case EventKind::kDrainEnded:
      return "drain-ended";
    case EventKind::kConfigReloaded:
      return "config-reloaded";
    case EventKind::kMoved:
      return "moved";
    case EventKind::kAnnounced:
      return "announced";
  }
  return "unknown";
}

bool TellsTiers(EventKind kind) {
  switch (kind) {
    case EventKind::kStored:
    case EventKind::kEvicted:
    case EventKind::kDamaged:
    case EventKind::kMoved:
    case EventKind::kAnnounced:
      return true;
    default:
      return false;
  }
}

std::string_view EventReasonName(EventReason reason) {
  switch (reason) {
    case EventReason::kNone:
      return "";
    case EventReason::kPressure:
      return "pressure";
    case EventReason::kAdmin:
      return "admin";
    case EventReason::kPurge:
      return "purge";
    case EventReason::kExpired:
      return "expired";
    case EventReason::kGivenBack:
      return "given back";
    case EventReason::kReclaim:
      return "reclaim";
  }
  return "unknown";
}

EventRing::EventRing(uint32_t capacity) : capacity_(capacity), events_(capacity) {
  KVD_CHECK(std::has_single_bit(capacity)) << capacity;
}

void EventRing::Add(const Event& event) {
  Event& entry = events_[next_ & (capacity_ - 1)];
  entry = event;
  entry.time = now_;
  ++next_;
}

void EventRing::Publish() {
  if (published_.load(std::memory_order_relaxed) == next_) return;
  published_.store(next_);
  if (wake_at_.load() < next_ && wake_at_.exchange(UINT64_MAX) != UINT64_MAX) {
    absl::MutexLock lock(&mu_);
    if (wake_) wake_();
  }
  if (waiting_.load() == 0) return;
  absl::MutexLock lock(&mu_);  // Who has looked in vain sleeps before we signal.
  changed_.SignalAll();
}

EventRing::Batch EventRing::Read(uint64_t from, absl::Span<Event> out) const {
  const uint64_t first = std::min(std::max(from, oldest()), next_);
  const size_t size = std::min<uint64_t>(next_ - first, out.size());
  for (size_t i = 0; i < size; ++i) out[i] = events_[(first + i) & (capacity_ - 1)];
  return {first, size};
}

void EventRing::WaitFor(uint64_t sequence, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  waiting_.fetch_add(1);
  {
    absl::MutexLock lock(&mu_);
    while (published_.load() <= sequence && !ended_ && !changed_.WaitWithDeadline(&mu_, deadline)) {
    }
  }
  waiting_.fetch_sub(1);
}

void EventRing::SetWake(std::function<void()> wake) {
  absl::MutexLock lock(&mu_);
  wake_ = std::move(wake);
}

bool EventRing::WakeAt(uint64_t sequence) {
  wake_at_.store(sequence);
  if (published_.load() <= sequence) return true;
  wake_at_.store(UINT64_MAX);
  return false;
}

void EventRing::EndWaits() {
  absl::MutexLock lock(&mu_);
  ended_ = true;
  changed_.SignalAll();
}

}  // namespace kvd
