// One run of `micro`: what was asked for, how samples are taken, and the rows so far.
//
// A figure of a shared machine means something only beside its floor, taken in the same moment and
// undisturbed. So everything is measured in rounds: each runs the case and its floor once, in turn,
// and a round during which others used the CPUs is taken again while there is time.
//
// Threads: one, the main one.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "bench/micro_rows.h"
#include "bench/progress.h"
#include "proto/types/clock.h"

namespace kvd {

struct MicroOptions {
  std::vector<std::string> only;  // Rows; empty: all.
  uint32_t samples = 7;           // Of each row.
  bool quiet = false;             // No progress bar.
};

// Where processes run. Each case of a round is at the same place as its floor.
enum class Placement : uint8_t { kOneCpu, kTwoCpus, kAnywhere };

// Figures of the rounds that were kept: columns[i][k] is the i-th figure of round k.
struct Rounds {
  std::vector<std::vector<double>> columns;
  uint32_t count = 0;
  double foreign_cpus = 0;  // The most of any round kept.

  double MedianOf(size_t column) const;
  // The column in [first, last) with the best median.
  size_t LargestOf(size_t first, size_t last) const;
  size_t SmallestOf(size_t first, size_t last) const;
};

class MicroRun {
 public:
  // What one round measured: always as many figures. An error ends the row.
  using Round = std::function<absl::StatusOr<std::vector<double>>()>;

  explicit MicroRun(const MicroOptions& options, std::vector<std::string_view> selected);

  bool Wanted(std::string_view name) const;
  bool WantedAny(absl::Span<const std::string_view> names) const;

  // Processes whose CPU time is ours, and that Place() puts beside this one.
  void AddServer(pid_t process) { servers_.push_back(process); }
  void RemoveServer(pid_t process);

  // kOneCpu: this process and all servers on one CPU. kTwoCpus: this one on one, the servers on
  // another. kAnywhere: on all.
  void Place(Placement placement) const;

  // Takes rounds until options.samples of them were undisturbed, or the time of one row is over,
  // and keeps those with the least foreign load. The first round only warms up.
  absl::StatusOr<Rounds> Take(const Round& round) const;

  // Adds the row, if it is wanted.
  void Add(MicroRow row);
  // Adds what Take() gave: `value` and `floor` are column numbers.
  void Add(std::string_view name, const Rounds& rounds, size_t value, size_t floor,
           std::string floor_name);

  // The rows measured, then those that are wanted and were not.
  std::vector<MicroRow> Rows() const;

 private:
  static constexpr double kQuietCpus = 0.15;
  static constexpr absl::Duration kRowTime = absl::Seconds(7);
  static constexpr uint32_t kLeastRounds = 3;  // Whatever the time.

  const MicroOptions options_;
  const std::vector<std::string_view> selected_;
  std::vector<pid_t> servers_;
  std::vector<MicroRow> rows_;
  const SystemClock clock_;
  mutable ProgressBar progress_;
};

// The groups of rows. Each starts what it needs and ends it.
absl::Status MeasureLookups(MicroRun& run);    // bench/micro_lookup.cc
absl::Status MeasurePayload(MicroRun& run);    // bench/micro_payload.cc
absl::Status MeasureStream(MicroRun& run);     // bench/micro_stream.cc
absl::Status MeasureNvme(MicroRun& run);       // bench/micro_nvme.cc
absl::Status MeasureRecovery(MicroRun& run);   // bench/micro_recovery.cc
absl::Status MeasureIndex(MicroRun& run);      // bench/micro_index.cc
absl::Status MeasureManyParts(MicroRun& run);  // bench/micro_index.cc

// Scrapes of a daemon whose metrics are at `address`, beside 100 more sessions; `lookup` is one of
// its lookups, in microseconds. bench/micro_metrics.cc
absl::Status MeasureScrapes(MicroRun& run, const std::string& endpoint, const std::string& address,
                            const std::function<absl::StatusOr<double>()>& lookup);

// Microseconds between two readings of a clock.
inline double Microseconds(Nanos from, Nanos to) { return static_cast<double>(to - from) * 1e-3; }

}  // namespace kvd
