// What devices and maintenance have ended, for the thread that polls: a queue between any thread
// and one.
//
// Threads: Push() and Post() from any thread; the rest from the one that polls.

#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tiers/nvme_device.h"

namespace kvd {

class NvmeCompletions {
 public:
  struct Entry {
    uint32_t device = 0;
    NvmeDone done;
  };
  // Bounded by what is in flight.
  struct Batch {
    std::vector<Entry> entries;
    std::vector<std::function<void()>> tasks;
    bool empty() const { return entries.empty() && tasks.empty(); }
  };

  // `wake`, where there is one, runs on the pushing thread, once for each time the queue stops
  // being empty.
  explicit NvmeCompletions(std::function<void()> wake = nullptr) : wake_(std::move(wake)) {}

  void Push(uint32_t device, const NvmeDone& done) {
    bool was_empty = false;
    {
      absl::MutexLock lock(&mu_);
      was_empty = waiting_.empty();
      waiting_.entries.push_back({device, done});
    }
    if (was_empty && wake_) wake_();
  }
  // Runs `task` on the polling thread.
  void Post(std::function<void()> task) {
    bool was_empty = false;
    {
      absl::MutexLock lock(&mu_);
      was_empty = waiting_.empty();
      waiting_.tasks.push_back(std::move(task));
    }
    if (was_empty && wake_) wake_();
  }

  // What has come since. `batch` gives its memory back to the queue.
  void Take(Batch& batch) {
    batch.entries.clear();
    batch.tasks.clear();
    absl::MutexLock lock(&mu_);
    std::swap(batch, waiting_);
  }
  // Sleeps until something is there, at most `timeout`. False: nothing is.
  bool Wait(absl::Duration timeout) {
    absl::MutexLock lock(&mu_);
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !waiting_.empty(); };
    return mu_.AwaitWithTimeout(absl::Condition(&any), timeout);
  }

 private:
  const std::function<void()> wake_;
  absl::Mutex mu_;
  Batch waiting_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
