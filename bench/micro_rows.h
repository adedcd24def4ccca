// The rows of `kvd-bench micro`: what is measured, against which floor, and the bar that it must
// meet. Bars are ratios taken in one run, because absolute figures drift and differ between CPUs.
//
// Threads: all functions are pure.

#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvd {

// What a row must reach. A row without a bar is only reported.
struct MicroBar {
  enum class Of : uint8_t { kRatio, kValue };
  enum class Sense : uint8_t { kAtMost, kAtLeast };

  Of of = Of::kRatio;
  Sense sense = Sense::kAtMost;
  double limit = 0;
};

// One row as it is promised, before anything is measured.
struct MicroRowSpec {
  std::string_view name;
  std::string_view unit;  // "us", "ms", "GB/s" (10^9 bytes), "k/s" (1,000 a second) or "MiB".
  std::optional<MicroBar> bar;
};

// All rows, in the order in which they are shown.
absl::Span<const MicroRowSpec> MicroRowSpecs();

// Those that `names` has, in the order of MicroRowSpecs(); all when it is empty. kInvalidArgument
// names the first that is none.
absl::StatusOr<std::vector<std::string_view>> SelectMicroRows(
    const std::vector<std::string>& names);

// One row measured. What could not be measured is NaN, which JSON writes as null.
struct MicroRow {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  std::string name;
  double value = kNone;
  double floor = kNone;
  std::string floor_name;  // What the floor is; empty: none.
  uint32_t samples = 0;    // Each a median or a rate of its own; value and floor are their medians.
  double foreign_cpus = 0;  // The most that others used while a sample was taken.

  double ratio() const;  // NaN without value or floor.
};

// Whether the row meets its bar; empty where there is no bar or nothing to compare with it.
std::optional<bool> MeetsBar(const MicroRow& row);

// "<= 1.6x", ">= 0.88x", "<= 10 us".
std::string BarText(const MicroRowSpec& spec);

// An array of {name, value, unit, floor, floor_name, ratio, samples, bar, bar_of, bar_sense, met,
// foreign_cpus}. Requires: every row has a spec.
std::string MicroJson(absl::Span<const MicroRow> rows);

// The same for a person.
std::string MicroTable(absl::Span<const MicroRow> rows);

}  // namespace kvd
