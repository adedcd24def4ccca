// What other threads tell the control thread. Posting wakes it; it drains the box before it looks
// at the next call, so that a session is known before its first call is.
//
// Threads: Post() any thread; Drain() the control thread. The number of entries is bounded by what
// posts them: sessions, jobs in flight, admin threads.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/mover.h"
#include "proto/types/block.h"
#include "proto/types/session_wire.h"
#include "tiers/memory_region.h"

namespace kvd {

class Control;

struct SessionOpened {
  uint32_t serial = 0;  // Of the session; never used again.
  SessionToken token{};
  DomainId domain = 0;
  uid_t uid = 0;
  pid_t pid = 0;            // 0: no process of this machine; its bytes are streamed.
  SessionToken finished{};  // A session of the same process whose holds end now.
  uint64_t started = 0;     // When the process began (process_identity.h); 0: as pid.
};
struct StagingOpened {
  uint32_t serial = 0;
  std::shared_ptr<const StagedBytes> staging;
};
struct SessionEnded {  // Its socket is closed.
  uint32_t serial = 0;
};
struct ProcessExited {  // Nobody reads under its holds any more.
  uint32_t serial = 0;
};
struct FillsDone {  // A FillJob is done, or a closing reservation is idle.
  uint64_t reservation_id = 0;
};
struct Verified {
  uint32_t part = 0;
  bool intact = false;
};
struct RegionMade {
  uint32_t region = 0;
  absl::StatusOr<MemoryRegion> memory;
};
struct Task {  // Of the admin service.
  std::function<void(Control&)> run;
};
using InboxEvent = std::variant<SessionOpened, StagingOpened, SessionEnded, ProcessExited,
                                FillsDone, Verified, RegionMade, Task>;

class Inbox {
 public:
  // `wake` makes the control thread drain the box soon. It may run on any thread.
  void SetWake(std::function<void()> wake) {
    absl::MutexLock lock(&mu_);
    wake_ = std::move(wake);
  }

  void Post(InboxEvent event) {
    std::function<void()> wake;
    {
      absl::MutexLock lock(&mu_);
      const bool was_empty = events_.empty();
      events_.push_back(std::move(event));
      if (was_empty) wake = wake_;
    }
    if (wake) wake();  // Not under the mutex.
  }

  // Swaps the events into `events` (cleared first), so that memory is used again.
  void Drain(std::vector<InboxEvent>& events) {
    events.clear();
    absl::MutexLock lock(&mu_);
    events_.swap(events);
  }

 private:
  absl::Mutex mu_;
  std::vector<InboxEvent> events_ ABSL_GUARDED_BY(mu_);
  std::function<void()> wake_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
