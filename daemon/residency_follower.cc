#include "daemon/residency_follower.h"

#include <memory>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace kvd {
namespace {

// A turn of the control thread takes microseconds; one that takes this long will not come.
constexpr absl::Duration kPatience = absl::Seconds(5);

}  // namespace

// What `look` fills must outlive it: it may still run after the wait was given up.
absl::Status ResidencyFollower::OnControl(std::function<void(Control&)> look) {
  const auto done = std::make_shared<absl::Notification>();
  inbox_.Post(Task{[done, look = std::move(look)](Control& control) {
    look(control);
    done->Notify();
  }});
  if (done->WaitForNotificationWithTimeout(kPatience)) return absl::OkStatus();
  return absl::DeadlineExceededError("the control thread did not answer");
}

absl::Status ResidencyFollower::Next(Turn& turn) {
  struct Answer {
    Control::FollowedBatch batch;
    bool whole = false;  // The index is read from its start.
    bool lost = false;
    uint32_t slot = 0;
    uint64_t next = 0;  // Of the ring.
    Nanos now = 0;
  };
  const auto answer = std::make_shared<Answer>();
  const absl::Status status =
      OnControl([answer, state = state_, from = next_, slot = slot_](Control& control) {
        const EventRing& ring = control.events();
        answer->now = control.now();
        if (state != State::kWalk) {
          const bool known = from >= ring.oldest() && from <= ring.next() && from > 0;
          if (known) answer->batch = control.FollowEvents(from, kEventsPerTurn);
          answer->whole = !known;
          answer->lost = !known && from > 0;
        }
        if (state == State::kWalk || answer->whole) {
          answer->slot = control.FollowBlocks(answer->whole ? 1 : slot, answer->batch.events);
        }
        answer->next = ring.next();
      });
  if (!status.ok()) return status;

  turn = {.cleared = answer->whole, .lost = answer->lost, .now = answer->now};
  turn.events = std::move(answer->batch.events);
  const bool walks = state_ == State::kWalk || answer->whole;
  if (answer->whole) {
    walk_began_ = answer->next;
    state_ = State::kWalk;
  }
  if (walks) {
    slot_ = answer->slot;
    if (slot_ != 0) return absl::OkStatus();
    next_ = walk_began_;
    synced_at_ = answer->next;
    state_ = State::kEvents;
  } else {
    turn.first = answer->batch.first;
    next_ += turn.events.size();
    state_ = State::kEvents;
    turn.idle = turn.events.size() < kEventsPerTurn;
  }
  if (synced_at_ != 0 && next_ >= synced_at_) {
    turn.synced = true;
    synced_at_ = 0;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ResidencyFollower::ModelOf(NamespaceId ns) {
  const auto model = std::make_shared<std::string>();
  const absl::Status status =
      OnControl([model, ns](Control& control) { *model = control.descriptor(ns).model; });
  if (!status.ok()) return status;
  return *model;
}

}  // namespace kvd
