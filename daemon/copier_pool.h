// The copier threads: the only writers of the arena. They take bytes out of staging memory, sum
// them and store them in one pass while they are in cache, on behalf of clients (fill channels) and
// of the control thread (jobs); and they sum again what a reader called damaged.
//
// A session's channels belong to one copier. Each turn serves one message of each channel that has
// any, so a session that fills without pause cannot starve another.
//
// Threads: everything is safe from any thread.

#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "daemon/fill_board.h"
#include "daemon/inbox.h"
#include "daemon/mover.h"
#include "proto/types/clock.h"
#include "proto/types/limits.h"
#include "proto/types/verified_copy.h"

namespace kvd {

class CopierPool final : public Mover {
 public:
  struct Options {
    uint32_t threads = 1;
    uint32_t max_jobs = 1024;  // Waiting, for each thread.
    PageKind pages = PageKind::kHugetlb;
    // Makes regions; empty: without a name.
    std::function<absl::StatusOr<MemoryRegion>(uint64_t bytes)> make_region;
  };

  // Collaborators must outlive this.
  CopierPool(FillBoard& board, Inbox& inbox, const Copier& copier, const Options& options);
  ~CopierPool() override;  // Ends the threads; jobs that wait are dropped.

  // Serves fills that arrive on `fd` (which becomes the pool's) until the other end closes, or
  // EndChannels().
  void AddChannel(uint32_t session, int fd, std::shared_ptr<const StagedBytes> staging,
                  uint32_t protocol = kProtocolVersion);

  // Hangs up on the channels of `session`, if it has any. Soon, not now.
  void EndChannels(uint32_t session);

  bool Fill(FillJob job) override;
  bool Verify(VerifyJob job) override;
  void MakeRegion(uint32_t region, uint64_t bytes) override;

  uint64_t filled_bytes() const { return filled_bytes_.load(std::memory_order_relaxed); }
  uint64_t refused_fills() const { return refused_fills_.load(std::memory_order_relaxed); }

 private:
  struct Channel {
    uint32_t session = 0;
    int fd = -1;
    std::shared_ptr<const StagedBytes> staging;
    uint32_t protocol = 0;
  };
  struct MakeRegionJob {
    uint32_t region = 0;
    uint64_t bytes = 0;
  };
  struct EndChannelsJob {
    uint32_t session = 0;
  };
  using Job = std::variant<FillJob, VerifyJob, MakeRegionJob, Channel, EndChannelsJob>;

  struct Worker {
    int epoll = -1;
    int wake = -1;  // eventfd
    absl::Mutex mu;
    std::deque<Job> jobs ABSL_GUARDED_BY(mu);
    bool stop ABSL_GUARDED_BY(mu) = false;
    std::thread thread;
    // The worker's own.
    absl::flat_hash_map<int, Channel> channels;
  };

  bool Enqueue(Worker& worker, Job job, bool bounded);
  void Run(Worker& worker);
  bool ServeChannel(const Channel& channel);
  FillReply FillOne(uint32_t session, const StagedBytes& staging, const FillRequest& request);
  void RunJob(Worker& worker, Job& job);

  FillBoard& board_;
  Inbox& inbox_;
  const Copier& copier_;
  const Options options_;
  const SystemClock clock_;
  std::vector<std::unique_ptr<Worker>> workers_;  // The last one makes regions.
  std::atomic<uint64_t> filled_bytes_{0};         // A counter.
  std::atomic<uint64_t> refused_fills_{0};        // A counter.
  std::atomic<uint32_t> next_{0};                 // Spreads verify jobs.
};

}  // namespace kvd
