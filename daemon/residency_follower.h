// Follows which blocks can be found and where they are, for a thread that is not the control
// thread: first everything that is there, then every event, and everything anew where events were
// forgotten before they were read.
//
// What is there is read a turn at a time while it changes, and then all events since the walk began
// are read again: each says where its block is from then on, so the last word on every block is
// right. Whoever applies the turns in order has the truth whenever a turn says `synced`, and after
// every later one.
//
// Threads: one, the caller's, which waits for the control thread in Next(). The control thread runs
// as long as anybody is in there.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/control.h"
#include "daemon/inbox.h"

namespace kvd {

class ResidencyFollower {
 public:
  static constexpr size_t kEventsPerTurn = 512;

  // Goes on with the event numbered `from`, if that is still known; 0: with everything that is
  // there.
  explicit ResidencyFollower(Inbox& inbox, uint64_t from = 0) : inbox_(inbox), next_(from) {}

  struct Turn {
    bool cleared = false;  // Forget what was given: everything follows.
    bool lost = false;     // Of those: events were forgotten before they were read.
    // Of blocks and of anything else. `first` is the number of the first; 0: they have none, being
    // what is there.
    std::vector<Control::FollowedEvent> events;
    uint64_t first = 0;
    bool synced = false;  // What was given so far is all, up to next().
    bool idle = false;    // There is nothing more now.
    Nanos now = 0;        // Of the clock that events were timed by.
  };
  // kDeadlineExceeded: the control thread did not answer in time; asking again goes on where this
  // was.
  absl::Status Next(Turn& turn);

  // The number of the next event; events before it were given.
  uint64_t next() const { return next_; }

  // The model that a namespace was registered with, also when it is dropped by now.
  absl::StatusOr<std::string> ModelOf(NamespaceId ns);

 private:
  enum class State : uint8_t { kStart, kWalk, kEvents };

  absl::Status OnControl(std::function<void(Control&)> look);

  Inbox& inbox_;
  State state_ = State::kStart;
  uint64_t next_;
  uint64_t walk_began_ = 0;  // The next event of then.
  uint64_t synced_at_ = 0;   // The next event when the walk had ended; 0: synced.
  uint32_t slot_ = 1;        // Where the walk goes on.
};

}  // namespace kvd
