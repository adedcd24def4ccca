// The few statistics that results are told in. All ignore the order of the values.
//
// Threads: all functions are pure. Of no values every answer is NaN, which JSON writes as null.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "proto/types/check.h"

namespace kvd {

// The value below which `percent` of the values lie, interpolated between neighbours: rank
// percent / 100 * (n - 1) from 0. Takes its own copy: a partial sort is linear in its length.
// Requires: 0 <= percent <= 100; no value is NaN.
inline double Percentile(std::vector<double> values, double percent) {
  KVD_CHECK(percent >= 0 && percent <= 100) << percent;
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = percent / 100 * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(rank);
  const auto lower = values.begin() + static_cast<std::ptrdiff_t>(below);
  std::nth_element(values.begin(), lower, values.end());
  if (lower + 1 == values.end()) return *lower;
  const double upper = *std::min_element(lower + 1, values.end());
  return *lower + (rank - static_cast<double>(below)) * (upper - *lower);
}

inline double Median(std::vector<double> values) { return Percentile(std::move(values), 50); }

inline double Min(absl::Span<const double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  return *std::min_element(values.begin(), values.end());
}

inline double Max(absl::Span<const double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  return *std::max_element(values.begin(), values.end());
}

}  // namespace kvd
