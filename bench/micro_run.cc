#include "bench/micro_run.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/time/clock.h"
#include "bench/machine.h"
#include "bench/stats.h"
#include "proto/types/check.h"

namespace kvd {

double Rounds::MedianOf(size_t column) const { return Median(columns[column]); }

size_t Rounds::LargestOf(size_t first, size_t last) const {
  size_t best = first;
  for (size_t i = first + 1; i < last; ++i) {
    if (MedianOf(i) > MedianOf(best)) best = i;
  }
  return best;
}

size_t Rounds::SmallestOf(size_t first, size_t last) const {
  size_t best = first;
  for (size_t i = first + 1; i < last; ++i) {
    if (MedianOf(i) < MedianOf(best)) best = i;
  }
  return best;
}

MicroRun::MicroRun(const MicroOptions& options, std::vector<std::string_view> selected)
    : options_(options),
      selected_(std::move(selected)),
      progress_(clock_, ProgressBar::OnStandardError("micro", selected_.size(), options.quiet)) {
  AllowedCpus();  // Before anything is pinned.
}

bool MicroRun::Wanted(std::string_view name) const {
  return std::find(selected_.begin(), selected_.end(), name) != selected_.end();
}

bool MicroRun::WantedAny(absl::Span<const std::string_view> names) const {
  return std::any_of(names.begin(), names.end(), [this](auto name) { return Wanted(name); });
}

void MicroRun::RemoveServer(pid_t process) {
  servers_.erase(std::remove(servers_.begin(), servers_.end(), process), servers_.end());
}

void MicroRun::Place(Placement placement) const {
  const std::vector<int>& all = AllowedCpus();
  const std::vector<int> first = {all.front()};
  const std::vector<int> second = {all[all.size() > 1 ? 1 : 0]};
  PinProcess(getpid(), placement == Placement::kAnywhere ? all : first);
  for (pid_t server : servers_) {
    PinProcess(server, placement == Placement::kAnywhere ? all
                       : placement == Placement::kOneCpu ? first
                                                         : second);
  }
}

absl::StatusOr<Rounds> MicroRun::Take(const Round& round) const {
  struct Taken {
    double foreign_cpus;
    std::vector<double> figures;
  };
  std::vector<Taken> taken;
  if (absl::StatusOr<std::vector<double>> warm = round(); !warm.ok()) return warm.status();
  const absl::Time enough = absl::Now() + kRowTime;
  for (uint32_t quiet = 0; quiet < options_.samples;) {
    if (taken.size() >= kLeastRounds && absl::Now() > enough) break;
    const ForeignLoad foreign(servers_);
    absl::StatusOr<std::vector<double>> figures = round();
    if (!figures.ok()) return figures.status();
    taken.push_back({foreign.cpus(), *std::move(figures)});
    quiet += taken.back().foreign_cpus <= kQuietCpus;
  }
  std::stable_sort(taken.begin(), taken.end(),
                   [](const Taken& a, const Taken& b) { return a.foreign_cpus < b.foreign_cpus; });
  taken.resize(std::min<size_t>(taken.size(), options_.samples));

  Rounds rounds;
  rounds.count = static_cast<uint32_t>(taken.size());
  rounds.foreign_cpus = taken.back().foreign_cpus;
  rounds.columns.resize(taken.front().figures.size());
  for (const Taken& one : taken) {
    KVD_CHECK(one.figures.size() == rounds.columns.size()) << one.figures.size();
    for (size_t i = 0; i < one.figures.size(); ++i) rounds.columns[i].push_back(one.figures[i]);
  }
  return rounds;
}

void MicroRun::Add(MicroRow row) {
  if (!Wanted(row.name)) return;
  rows_.push_back(std::move(row));
  progress_.Add();
}

void MicroRun::Add(std::string_view name, const Rounds& rounds, size_t value, size_t floor,
                   std::string floor_name) {
  Add({.name = std::string(name),
       .value = rounds.MedianOf(value),
       .floor = rounds.MedianOf(floor),
       .floor_name = std::move(floor_name),
       .samples = rounds.count,
       .foreign_cpus = rounds.foreign_cpus});
}

std::vector<MicroRow> MicroRun::Rows() const {
  std::vector<MicroRow> rows;
  for (std::string_view name : selected_) {
    const auto measured = std::find_if(rows_.begin(), rows_.end(),
                                       [name](const MicroRow& row) { return row.name == name; });
    rows.push_back(measured != rows_.end() ? *measured : MicroRow{.name = std::string(name)});
  }
  return rows;
}

}  // namespace kvd
