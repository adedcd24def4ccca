// An NvmeDevice in memory that may lie, fail, hang and lose power, by seed.
//
// It has two images. The volatile one is what reads see; a write gets there when it completes. The
// durable one is what a power loss leaves: a write gets there when a sync covers it. What lies
// between, and what was in flight, is kept, dropped or torn at a power loss, in any order.
//
// Time is a clock's: a job ends some random latency after it began, so jobs overtake each other,
// and nothing ends but inside Run(). At most Options::parallel jobs run at a time; those that wait
// begin reads before writes, and by deadline, and are dropped when it has passed.
//
// Threads: all functions from any thread; the sink runs on the thread that calls Run().

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/types/clock.h"
#include "tests/sim/media_image.h"
#include "tiers/nvme_device.h"

namespace kvd {

// What may befall a job. The first five are told to the caller, or keep it waiting; of the last
// three a write says that all is well.
enum class SimFault : uint8_t {
  kReadError,    // EIO; the target holds garbage.
  kWriteError,   // EIO; some pages of it were written.
  kNoSpace,      // ENOSPC; nothing was written.
  kShort,        // EIO, after a part was moved.
  kHang,         // Not before ReleaseHung().
  kMisdirected,  // Written elsewhere, over what is there.
  kLost,         // Not written: what was there before stays, stale.
  kFlipped,      // One bit of it differs.
};
inline constexpr size_t kSimFaults = 8;

// What a power loss did.
struct PowerLoss {
  uint32_t kept = 0;  // Of the writes that no sync covered.
  uint32_t dropped = 0;
  uint32_t torn = 0;
};

class SimDevice final : public NvmeDevice {
 public:
  struct Options {
    uint64_t bytes = 64u << 20;
    uint64_t seed = 1;
    std::string name = "simulated";
    Nanos latency_min = 20'000;
    Nanos latency_max = 2 * kMillisecond;
    uint32_t parallel = 8;   // Jobs that run at a time.
    uint32_t max_jobs = 64;  // Bounds of Submit().
    uint64_t max_bytes = 64u << 20;
  };

  SimDevice(const Clock& clock, Options options);
  // A device that holds `image`, all of it durable.
  SimDevice(const Clock& clock, Options options, MediaImage image);

  // --- NvmeDevice --------------------------------------------------------------------------------
  void SetSink(Sink sink) override;
  bool Submit(NvmeJob job) override;
  uint64_t size_bytes() const override { return options_.bytes; }
  std::string_view name() const override { return options_.name; }
  std::string_view engine() const override { return "simulated"; }
  absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) override;
  absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) override;
  absl::Status SyncNow() override;

  // --- the one who simulates ---------------------------------------------------------------------

  // Ends every job that is due by the clock, in the order in which they are due. How many.
  uint32_t Run();
  // When Run() has something to do; nothing: no job runs, but for those that hang.
  std::optional<Nanos> NextDue() const;
  uint32_t in_flight() const;

  // Of a million jobs that it can befall, how many `fault` befalls from now on.
  void SetRate(SimFault fault, uint32_t per_million);
  // It befalls the next `jobs` jobs that it can befall.
  void Force(SimFault fault, uint32_t jobs = 1);
  uint64_t count(SimFault fault) const;  // That befell a job.
  void ReleaseHung();                    // They end as if nothing had been.

  // What the media would hold if the power failed now. Another seed, another image.
  MediaImage ImageAfterPowerLoss(uint64_t seed, PowerLoss* what = nullptr) const;
  // What the media would hold if the process were killed now: the kernel ends what it was given,
  // so of each write in flight all or nothing is there, and all that completed.
  MediaImage ImageAfterKill(uint64_t seed) const;

 private:
  // A write that reads see and no sync has covered.
  struct Cached {
    uint64_t ended = 0;  // Its number in the order in which writes ended.
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };
  struct Running {
    NvmeJob job;
    Nanos submitted = 0;
    Nanos due = 0;  // kHung: not before it is released.
    uint64_t order = 0;
    uint64_t covers = 0;  // Of a sync: writes that ended up to this one.
    std::optional<SimFault> fault;
  };
  static constexpr Nanos kHung = INT64_MAX;

  uint64_t Dice(uint64_t sides) { return random_() % sides; }
  static uint64_t BytesOf(const NvmeJob& job);
  // The fault that befalls it, if any.
  std::optional<SimFault> FaultFor(const NvmeJob& job);
  void BeginSome(std::vector<NvmeDone>& over);
  void Begin(Running running);
  NvmeDone End(Running& running);
  void EndRead(Running& running, NvmeDone& done);
  void EndWrite(Running& running, NvmeDone& done);
  uint64_t Elsewhere(uint64_t offset, uint64_t bytes);
  void Store(uint64_t offset, std::vector<std::byte> bytes);
  void Flush(uint64_t up_to);

  const Clock& clock_;
  const Options options_;
  Sink sink_;

  mutable std::mutex mu_;  // Guards the rest.
  std::mt19937_64 random_;
  MediaImage volatile_;
  MediaImage durable_;
  std::deque<Cached> cached_;
  uint64_t writes_ended_ = 0;
  uint64_t next_order_ = 0;
  std::vector<Running> waiting_;
  std::vector<Running> running_;
  uint64_t bytes_in_flight_ = 0;
  uint32_t rates_[kSimFaults] = {};
  uint32_t forced_[kSimFaults] = {};
  uint64_t counts_[kSimFaults] = {};
};

}  // namespace kvd
