// Pictures made of characters: bars, and graphs of a value over time.

#pragma once

#include <string>
#include <vector>

namespace kvd::kvctl {

// `ratio` of `cells` columns filled. Plain ASCII where not `utf8`.
std::string Bar(double ratio, int cells, bool utf8);

// The last values, oldest first, as filled columns; `rows` lines from the top, each of at most
// `cells` columns. Each value is 0 to 1; one that is not a number leaves its place empty, others
// show at least one dot. In UTF-8 a column of text has two values and four steps a row (braille),
// else one and one. The newest is at the right edge.
std::vector<std::string> Graph(const std::vector<double>& values, int cells, int rows, bool utf8);

// How many of the newest values Graph() can show.
inline size_t GraphValues(int cells, bool utf8) {
  return static_cast<size_t>(cells) * (utf8 ? 2 : 1);
}

}  // namespace kvd::kvctl
