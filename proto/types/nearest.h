// What somebody may have meant who wrote a name that there is not.

#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace kvd {

// Whichever of `known` is nearest to `name` by letters; empty: none is near.
inline std::string_view Nearest(std::string_view name, absl::Span<const std::string_view> known) {
  std::string_view nearest;
  size_t best = std::max<size_t>(2, name.size() / 3) + 1;  // Farther is another word.
  for (const std::string_view candidate : known) {
    // Levenshtein's distance, a row at a time.
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t changed = diagonal + (name[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, changed}));
      }
    }
    if (row.back() < best) {
      best = row.back();
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace kvd
