// The jobs of one device: those that wait and those that have begun, within bounds. It decides
// which is next; the engines (uring_device.h, thread_device.h) only carry out.
//
// Order: a sync first (one at a time; it costs little and somebody may wait for many writes), then
// reads, then writes; within each by deadline, then as they came. While reads keep coming, one job
// in kReadsPerWrite + 1 is a write, so that writing is slow then, but goes on.
//
// Threads: none of its own; the engine has a lock. Time comes as an argument.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "proto/types/clock.h"
#include "tiers/nvme_device.h"

namespace kvd {

struct NvmeLimits {
  // With the kernel at a time. A job begins while it has less than this, so the last may go beyond:
  // four records of 2 MiB and a header fill 8 MiB. More than a disk needs to be busy makes each job
  // slower and nothing faster: reads of 2 MiB fill a virtual disk with two, a real one with some
  // more.
  uint32_t depth_jobs = 64;
  uint64_t depth_bytes = 8u << 20;
  // Waiting or with the kernel. Writes may take half of it, so that a read finds room. A job larger
  // than a bound in bytes is let through when there is no other.
  uint32_t accepted_jobs = 1024;
  uint64_t accepted_bytes = 256u << 20;
};

class NvmeQueue {
 public:
  static constexpr uint32_t kReadsPerWrite = 7;
  static constexpr size_t kPiecesMax = 1024;  // Of one job; the kernel's.

  struct Entry {
    NvmeJob job;
    uint64_t bytes = 0;
    Nanos submitted = 0;
  };

  explicit NvmeQueue(const NvmeLimits& limits) : limits_(limits) {}

  // False: a bound is reached; nothing happened.
  bool Push(NvmeJob job, Nanos now);

  // One whose deadline is over and that has not begun; call until it is empty.
  std::optional<Entry> TakeExpired(Nanos now);
  // One that has not begun, whichever; for the end.
  std::optional<Entry> TakeWaiting();

  // The next to begin; empty: there is none, or enough has begun. It counts until End().
  std::optional<Entry> Begin();
  bool MayBegin() const { return !full() && NextKind().has_value(); }
  void End(const Entry& entry);

  bool waiting() const { return waiting_ > 0; }
  uint32_t begun() const { return begun_.jobs; }
  // Nothing begins before something has ended, whatever it is.
  bool full() const {
    return begun_.jobs >= limits_.depth_jobs || begun_.bytes >= limits_.depth_bytes;
  }

 private:
  struct Load {
    uint32_t jobs = 0;
    uint64_t bytes = 0;

    bool Fits(uint64_t more, uint32_t jobs_max, uint64_t bytes_max) const {
      return jobs == 0 || (jobs < jobs_max && bytes + more <= bytes_max);
    }
    void Add(uint64_t more) { ++jobs, bytes += more; }
    void Remove(uint64_t less) { --jobs, bytes -= less; }
  };
  using Waiting = std::map<std::pair<Nanos, uint64_t>, Entry>;  // By deadline and arrival.

  Waiting& Of(NvmeJob::Kind kind) { return kinds_[static_cast<size_t>(kind)]; }
  const Waiting& Of(NvmeJob::Kind kind) const { return kinds_[static_cast<size_t>(kind)]; }
  std::optional<NvmeJob::Kind> NextKind() const;
  Entry Pop(Waiting& from);
  void Forget(const Entry& entry);

  const NvmeLimits limits_;
  std::array<Waiting, 3> kinds_;  // By NvmeJob::Kind.
  uint32_t waiting_ = 0;
  uint64_t arrivals_ = 0;
  Load accepted_;
  Load accepted_writes_;
  Load begun_;
  bool sync_begun_ = false;
  uint32_t reads_in_a_row_ = 0;
};

// Whether the device can be asked for this job at all: whole pages of it, as many pieces as there
// may be, and a sum for each piece or none.
bool IsValidJob(const NvmeJob& job, uint64_t device_bytes);

// What to tell of a job whose transfers have ended with `error` (0: well): a read is summed here,
// on the calling thread.
NvmeDone EndJob(const NvmeQueue::Entry& entry, int error, const Clock& clock);

}  // namespace kvd
