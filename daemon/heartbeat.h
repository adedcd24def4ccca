// Whether the control thread still takes its turns. It sleeps while nothing arrives, so the only
// way to know is to ask.
//
// Threads: any.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "daemon/inbox.h"

namespace kvd {

class Heartbeat {
 public:
  explicit Heartbeat(Inbox& inbox) : inbox_(inbox) {}

  // True when the control thread has had a turn since this was called; false when it has not after
  // `patience`. However often this is called, one question at a time waits in the inbox.
  bool Beats(absl::Duration patience) {
    bool ask = false;
    uint64_t before = 0;
    {
      absl::MutexLock lock(&shared_->mu);
      before = shared_->beats;
      ask = !std::exchange(shared_->asked, true);
    }
    if (ask) {
      inbox_.Post(Task{[shared = shared_](Control&) {
        absl::MutexLock lock(&shared->mu);
        shared->asked = false;
        ++shared->beats;
      }});
    }
    absl::MutexLock lock(&shared_->mu);
    const auto beat = [this, before]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu) {
      return shared_->beats > before;
    };
    return shared_->mu.AwaitWithTimeout(absl::Condition(&beat), patience);
  }

 private:
  struct Shared {  // Lives on in a question that was given up.
    absl::Mutex mu;
    bool asked ABSL_GUARDED_BY(mu) = false;
    uint64_t beats ABSL_GUARDED_BY(mu) = 0;
  };

  Inbox& inbox_;
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace kvd
