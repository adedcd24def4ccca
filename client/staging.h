// The way in: the staging memory of one session, and its fill channel. A put copies a part into a
// slot, asks the daemon's copier to take it, and goes on with the next one while the copier works.
//
// Slots are handed out as a ring, and a slot is used again only after the copier answered for it,
// also when the put that filled it has long given up. The ring keeps to its first kWindowBytes
// where parts are smaller: memory that was just read by the copier is still in cache.
//
// Threads: who fills has the turn (a Staging::Filling); slots may be freed from any thread.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/session.h"
#include "client/turn.h"
#include "proto/types/session_wire.h"
#include "proto/types/verified_copy.h"

namespace kvd {

// Room in staging memory: a plain value that its owner gives back.
struct StagingSlot {
  uint64_t number = 0;  // Of all slots ever handed out.
  uint64_t offset = 0;  // Bytes from the start of the staging memory.
};

// First in, first out over `size` bytes. Arithmetic only.
class StagingRing {
 public:
  // `window_bytes`: how much of it is used while that is enough.
  StagingRing(uint64_t size_bytes, uint64_t window_bytes)
      : size_(size_bytes), window_(std::min(size_bytes, window_bytes)) {}

  // Nothing when there is no room now. Requires: 0 < length <= size().
  std::optional<StagingSlot> Allocate(uint64_t length);
  // In any order; room is used again in the order in which it was handed out.
  void Free(uint64_t number);

  uint64_t size() const { return size_; }
  bool empty() const { return slots_.empty(); }

 private:
  struct Slot {
    uint64_t offset;
    uint64_t length;
    bool freed;
  };

  const uint64_t size_;
  const uint64_t window_;
  uint64_t span_ = 0;          // Bytes in use as a ring, until it is empty again.
  uint64_t next_ = 0;          // Where the next slot would start.
  uint64_t first_number_ = 0;  // Of slots_.front().
  std::deque<Slot> slots_;
};

// Takes the answers of one message, at most `replies.size()`, and says how many they are. A copier
// at work answers in a moment: for `look_on` it looks again and again, as long as nobody else wants
// this CPU, which costs less than to sleep and be woken. kDeadlineExceeded: none by `deadline`.
absl::StatusOr<size_t> ReceiveFillReplies(int channel, absl::Span<FillReply> replies,
                                          absl::Time deadline, absl::Duration look_on);

class Staging {
 public:
  // Bytes of staging in use at a time, unless a part is larger. Enough to keep a copier busy while
  // this side is scheduled out, few enough to stay in cache.
  static constexpr uint64_t kWindowBytes = 6u << 20;
  // A message goes to the copier when it names so many bytes: it should start early on large parts,
  // and a message for each small one would cost more than its copy.
  static constexpr uint64_t kMessageBytes = 1u << 20;

  Staging(StagingMemory memory, const Copier& copier);

  uint64_t size() const { return memory_.size(); }

  // Parts are staged in pieces of at most so many bytes, and at the start and the end of a put in
  // smaller ones: the copier is idle while the first piece is staged, this side while the last one
  // is copied.
  static constexpr uint64_t kPieceBytes = 2u << 20;
  static constexpr uint64_t kSmallPieceBytes = 256u << 10;
  static constexpr uint64_t kRampBytes = 1u << 20;
  // Staged at most before the daemon has said what it wants: all of it may be for nothing.
  static constexpr uint64_t kAheadBytes = 2u << 20;

  // The turn to fill, given up at `turn_by`. Fills of one put, then the next one's.
  class Filling {
   public:
    Filling(Staging& staging, absl::Time deadline, absl::Time turn_by)
        : staging_(staging), deadline_(deadline), lock_(staging.turn_, turn_by) {}
    ~Filling() { DropPending(); }

    bool held() const { return lock_.held(); }

    // Copies the first bytes of `parts` into slots, before there is a reservation, until `enough`
    // or until kAheadBytes lie there. `sums` as in Fill().
    void StageAhead(absl::Span<const absl::Span<const std::byte>> parts, uint64_t total_bytes,
                    std::string& sums, absl::FunctionRef<bool()> enough);
    // What is filled from now on, `bytes` in all, belongs to this reservation; so does what was
    // staged ahead, but for the parts that are not `wanted`.
    void Begin(uint64_t reservation_id, uint64_t bytes, absl::FunctionRef<bool(uint32_t)> wanted);
    // Copies the rest of `part` into slots and asks the copier to store it as part `index` of the
    // reservation. Waits for free slots. Packs the CRC32C of the whole part into `sums`, 4 bytes
    // each. An error of an earlier fill is told here too.
    // Requires: parts come in order, each once.
    absl::Status Fill(uint32_t index, absl::Span<const std::byte> part, std::string& sums);
    // Asks the copier for what it was not asked yet.
    absl::Status Send();
    // Waits until the copier has answered for all; the first error, if any.
    absl::Status Finish();
    // Copies `sources`, back to back, into one slot and leaves them there for a Commit; appends
    // their sums to `sums`. The caller frees the slot.
    // Requires: 0 < total_bytes <= size(), the sum of their sizes.
    absl::StatusOr<StagingSlot> Stage(absl::Span<const absl::Span<const std::byte>> sources,
                                      uint64_t total_bytes, std::vector<uint32_t>& sums);

   private:
    // A piece that was copied and not sent.
    struct Pending {
      FillRequest request;
      uint32_t sum;
      uint64_t slot;
    };

    uint32_t PieceBytes(uint64_t left_of_part) const;
    void Stage(uint32_t index, absl::Span<const std::byte> part, uint64_t bytes,
               const StagingSlot& slot, std::string& sums);
    absl::StatusOr<StagingSlot> Allocate(uint64_t length);
    void DropPending();
    absl::Status ReceiveReplies(absl::Time deadline);

    Staging& staging_;
    const absl::Time deadline_;
    const TurnLock lock_;
    std::vector<Pending> pending_;
    uint64_t pending_bytes_ = 0;
    uint64_t reservation_id_ = 0;
    uint64_t done_bytes_ = 0;  // Staged for this put.
    uint64_t left_bytes_ = 0;  // To be staged.
    uint32_t part_ = 0;        // The last one that was begun, ...
    uint64_t part_bytes_ = 0;  // ... and how much of it was staged.
    absl::Status failed_;      // The first error of a fill.
  };

  void Free(const StagingSlot& slot);

  // Whether the fill channel hung up or answered nonsense: the session must end.
  bool broken() const { return broken_.load(std::memory_order_relaxed); }

 private:
  // A fill that the copier has not answered.
  struct InFlight {
    uint64_t reservation_id;
    uint32_t index;
    uint32_t sum;  // CRC32C of what was staged.
    uint64_t slot;
  };

  // Constant after construction.
  const Mapping memory_;
  const UniqueFd channel_;
  const Copier& copier_;

  Turn turn_;
  std::deque<InFlight> in_flight_;  // Guarded by turn_; in the order sent.

  std::atomic<bool> broken_{false};  // A stop flag.
  absl::Mutex mu_;
  absl::CondVar freed_;
  StagingRing ring_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
