// Where copiers and the control thread meet: which parts of which reservation may be filled, where
// their room is, and which are full. A copier is told offsets by a client, so everything it does is
// checked here first; the address of the room never leaves the daemon.
//
// Threads: Open, Close and the readers are the control thread's; Begin and End any copier's. One
// mutex, held for a few instructions and never while bytes move.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "proto/types/session_wire.h"

namespace kvd {

class FillBoard {
 public:
  // The room of one part. `length` 0: nothing may be filled there.
  struct Room {
    std::byte* address = nullptr;
    uint32_t length = 0;
  };
  enum class State : uint8_t { kEmpty, kCopying, kFull };
  struct Part {
    Room room;
    uint32_t sum = 0;      // Of the first `filled` bytes.
    uint32_t filled = 0;   // Bytes.
    uint32_t copying = 0;  // Bytes of the piece that is being copied.
    State state = State::kEmpty;
  };

  explicit FillBoard(uint32_t max_reservations);

  // Opens a reservation of `session` without parts; 0 when the board is full.
  uint64_t Open(uint32_t session);
  // Appends parts. Their numbers count from 0 in the order of appending.
  void Append(uint64_t id, absl::Span<const Room> rooms);
  // What became of part `index`. Requires: open, and the index was appended.
  Part Get(uint64_t id, uint32_t index) const;
  // Ends the reservation; no Begin() succeeds any more. False when copies are under way: the id and
  // its rooms stay until Idle(id), then call Close() again.
  bool Close(uint64_t id);
  bool Idle(uint64_t id) const;
  // How many parts of the reservation may be filled, full ones included. Requires: open.
  uint32_t fillable(uint64_t id) const;
  // Whether `parts` parts of the reservation are full. If not, the End() that makes it true says
  // that somebody waits; a later call of this takes the place of an earlier one. Requires: open.
  bool Await(uint64_t id, uint32_t parts);
  // Copies that have not ended, of all reservations.
  uint32_t copying() const;

  // A copier asks to fill the next bytes of a part.
  struct Piece {
    uint32_t index = 0;   // Of the part.
    uint32_t offset = 0;  // Bytes into it.
    uint32_t length = 0;  // Bytes.
    bool whole = false;   // They must be all that the part has.
  };
  struct Ticket {
    FillStatus status = FillStatus::kGone;
    std::byte* address = nullptr;
  };
  Ticket Begin(uint32_t session, uint64_t id, const Piece& piece);
  // The bytes are there, and `sum` is theirs. True when somebody waits for that: for the
  // reservation to become idle, or for so many full parts.
  bool End(uint64_t id, uint32_t index, uint32_t sum);

 private:
  struct Reservation {
    uint32_t sequence = 0;
    uint32_t session = 0;
    uint32_t copying = 0;
    uint32_t fillable = 0;  // Parts with room.
    uint32_t full = 0;      // Of them.
    uint32_t awaited = 0;   // Somebody waits for so many full ones; 0: nobody.
    bool open = false;
    bool closing = false;
    std::vector<Part> parts;  // Keeps its memory from one use to the next.
  };

  Reservation* Find(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  const Reservation* Find(uint64_t id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  std::vector<Reservation> reservations_ ABSL_GUARDED_BY(mu_);  // [0] is unused.
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mu_);
  uint32_t copying_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kvd
