// Memory of the caller that the daemon maps too, so that a put from there moves each byte once: the
// daemon's copier reads it where it lies. OwnMemory is what was adopted, for the life of a client;
// OwnFills are its fills in one session.
//
// Threads: everything is safe from any thread. Fills of one put, then the next one's.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/session.h"
#include "client/turn.h"
#include "proto/types/session_wire.h"

namespace kvd {

// Constant after construction.
class OwnMemory {
 public:
  // `fd` stays the caller's. kInvalidArgument says what is wrong with it, or that `memory` is not
  // where its first bytes are mapped; a byte elsewhere would be stored for another.
  static absl::StatusOr<std::shared_ptr<const OwnMemory>> Open(int fd,
                                                               absl::Span<const std::byte> memory);

  int fd() const { return fd_.get(); }
  uint64_t size() const { return memory_.size(); }
  // Where `bytes` begin in it; nothing when not all of them lie in it.
  std::optional<uint64_t> OffsetOf(absl::Span<const std::byte> bytes) const;

 private:
  OwnMemory(UniqueFd fd, absl::Span<const std::byte> memory)
      : fd_(std::move(fd)), memory_(memory) {}

  const UniqueFd fd_;
  const absl::Span<const std::byte> memory_;
};

class OwnFills {
 public:
  // A longer part goes in pieces of this size: a copier serves others between them.
  static constexpr uint32_t kPieceBytes = 2u << 20;

  explicit OwnFills(UniqueFd channel) : channel_(std::move(channel)) {}

  // A whole part of a reservation, and where its bytes lie.
  struct Part {
    uint32_t index = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  // Has the copier store `parts`; returns when it has read and stored the last byte. After an error
  // it may still read, for a reservation that must not be committed then.
  absl::Status Store(uint64_t reservation_id, absl::Span<const Part> parts, absl::Time deadline);

  // Whether the channel hung up or answered nonsense: the session must end.
  bool broken() const { return broken_.load(std::memory_order_relaxed); }

 private:
  // A fill that the copier has not answered.
  struct InFlight {
    uint64_t reservation_id;
    uint32_t index;
  };

  absl::Status Send(absl::Span<const FillRequest> fills, absl::Time deadline);
  absl::Status Receive(uint64_t reservation_id, absl::Time deadline);
  absl::Status Broken(absl::Status status);

  const UniqueFd channel_;
  Turn turn_;
  std::deque<InFlight> in_flight_;   // Guarded by turn_; in the order sent.
  std::atomic<bool> broken_{false};  // A stop flag.
};

}  // namespace kvd
