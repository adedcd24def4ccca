// What happened, in order: a bounded ring of fixed-size entries that the control thread writes and
// others follow. An operator reads it (kvctl events), and whoever must know which blocks can be
// found: every block that becomes findable is kStored, every block that stops being so is kEvicted
// or kDamaged, and one that enters or leaves a tier in between is kMoved. Each says in which tiers
// the block is from then on, so the last event of a block is all that counts. A block that was
// damaged, reclaimed or stored in mid-chain speaks for what hangs below it as well: those are not
// named again.
//
// The n-th event has the sequence number n. The ring forgets the oldest, so who reads too slowly
// sees a gap and holds nobody up.
//
// Threads: the control thread, but for what waits. Add() costs a copy of an
// entry; Publish() takes the mutex only while somebody waits. All memory is set aside by the
// constructor.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/types/block.h"
#include "proto/types/clock.h"

namespace kvd {

inline constexpr DomainId kNoDomain = 0xffffffff;  // Of what concerns nobody in particular.

enum class EventKind : uint8_t {
  kStored = 1,       // A block became findable.
  kEvicted = 2,      // A block that was findable left.
  kDamaged = 3,      // The bytes of a block were damaged; it is found no more.
  kPartDamaged = 4,  // A part of a window or a state was damaged; its block is still found.
  kSessionOpened = 5,
  kSessionEnded = 6,
  kNamespaceRegistered = 7,
  kNamespaceDropped = 8,
  kLeaseExpired = 9,  // Nobody had given it back.
  kPinGranted = 10,
  kPinEnded = 11,
  kReservationExpired = 12,
  kDrainBegan = 13,
  kDrainEnded = 14,
  kConfigReloaded = 15,
  kMoved = 16,      // A block that is found entered a tier, or left one.
  kAnnounced = 17,  // What a block that is found is announced by came after its bytes.
};
std::string_view EventKindName(EventKind kind);  // "stored", "session-opened"
// Whether it says in which tiers a block is from then on.
bool TellsTiers(EventKind kind);

// Why a block was evicted, or a pin ended.
enum class EventReason : uint8_t {
  kNone = 0,
  kPressure = 1,  // Somebody needed the room.
  kAdmin = 2,     // An operator said so.
  kPurge = 3,     // Its namespace is dropped.
  kExpired = 4,   // Its time to live is over.
  kGivenBack = 5,
  kReclaim = 6,  // NVMe had no room to copy it to.
};
std::string_view EventReasonName(EventReason reason);  // "pressure"; kNone is empty

// Tiers as bits. A block is in a tier when that one alone can serve all its full groups; what only
// both together can serve counts as in the slower.
using TierSet = uint8_t;
inline constexpr TierSet kDramTier = 1;
inline constexpr TierSet kNvmeTier = 2;

struct Event {
  Nanos time = 0;  // Of the control thread's clock; Add() writes it.
  // A session's serial number, a lease, pin or reservation; of a block its depth, 1 for a root.
  uint64_t number = 0;
  NamespaceId ns = 0;
  DomainId domain = kNoDomain;
  EventKind kind = EventKind::kStored;
  EventReason reason = EventReason::kNone;
  bool has_parent = false;
  TierSet tiers : 4 = 0;   // Of a block: where it is from now on; none: it is not found.
  TierSet where : 4 = 0;   // Of a block: what it entered or left, or where the damage was.
  ChainHash key;           // Of a block; of a lease or pin the deepest block of its chain.
  ChainHash parent;        // Of a block, where has_parent.
  uint32_t block_ref = 0;  // Of a block: its number in the index, which may be another's by now.
};
static_assert(sizeof(Event) == 96);

class EventRing {
 public:
  static constexpr uint32_t kDefaultCapacity = 1u << 16;

  // Requires: a power of two.
  explicit EventRing(uint32_t capacity = kDefaultCapacity);

  // What time the events to come have.
  void SetTime(Nanos now) { now_ = now; }
  void Add(const Event& event);
  // Tells those who wait. Cheap when nobody does, or nothing was added.
  void Publish();

  // The sequence number of the next event; the first is 1.
  uint64_t next() const { return next_; }
  uint64_t oldest() const { return next_ > capacity_ ? next_ - capacity_ : 1; }

  struct Batch {
    uint64_t first = 0;  // Sequence number of the first; beyond what was asked for: a gap.
    size_t size = 0;
  };
  // Copies events from `from` on, or from the oldest, as far as there are any and `out` has room.
  Batch Read(uint64_t from, absl::Span<Event> out) const;

  // --- any thread --------------------------------------------------------------------------------

  // Returns when an event numbered `sequence` has been published, or the time is up. Not at all
  // after EndWaits().
  void WaitFor(uint64_t sequence, absl::Duration patience);
  void EndWaits();
  // How many there were, since start.
  uint64_t published() const { return published_.load() - 1; }
  // A reader was too slow: some were forgotten before it read them.
  void CountGap() { gaps_.fetch_add(1, std::memory_order_relaxed); }
  uint64_t gaps() const { return gaps_.load(std::memory_order_relaxed); }

  // For one who waits for something else as well: `wake`, which only signals, is called by the
  // control thread, once, when an event numbered `sequence` is published after WakeAt(sequence) has
  // said true. False: it is published already. An empty `wake` ends that; after it none is called.
  void SetWake(std::function<void()> wake);
  bool WakeAt(uint64_t sequence);

 private:
  const uint64_t capacity_;
  std::atomic<uint64_t> gaps_{0};  // A counter.

  // Control thread only.
  std::vector<Event> events_;
  uint64_t next_ = 1;
  Nanos now_ = 0;

  // Publish() stores published_ and then looks at waiting_; WaitFor() adds to waiting_ and then
  // looks at published_. Both are sequentially consistent, so one of the two sees the other.
  std::atomic<uint64_t> published_{1};  // next_ of the last Publish().
  std::atomic<uint32_t> waiting_{0};
  std::atomic<uint64_t> wake_at_{UINT64_MAX};  // In the same order: stored, then published_ read.
  absl::Mutex mu_;
  absl::CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void()> wake_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
