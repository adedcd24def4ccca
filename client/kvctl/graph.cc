#include "client/kvctl/graph.h"

#include <algorithm>
#include <cmath>

namespace kvd::kvctl {
namespace {

// U+2800 plus `dots`, in UTF-8.
std::string Braille(unsigned dots) {
  return {'\xe2', static_cast<char>(0xa0 | (dots >> 6)), static_cast<char>(0x80 | (dots & 0x3f))};
}

// The dots of one column of a braille character, from its foot up.
constexpr unsigned kDots[2][4] = {{0x40, 0x04, 0x02, 0x01}, {0x80, 0x20, 0x10, 0x08}};

}  // namespace

std::string Bar(double ratio, int cells, bool utf8) {
  // The last cell is filled by eighths.
  constexpr const char* kPartial[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const double clamped = std::isfinite(ratio) ? std::clamp(ratio, 0.0, 1.0) : 0;
  const int eighths = static_cast<int>(std::lround(clamped * cells * 8));
  std::string bar;
  int used = eighths / 8;
  for (int i = 0; i < used; ++i) bar += utf8 ? "█" : "#";
  if (utf8 && eighths % 8 != 0) {
    bar += kPartial[eighths % 8];
    ++used;
  }
  for (; used < cells; ++used) bar += utf8 ? "░" : ".";
  return bar;
}

std::vector<std::string> Graph(const std::vector<double>& values, int cells, int rows, bool utf8) {
  const int steps = utf8 ? 4 : 1;  // Of one row.
  const size_t columns = GraphValues(cells, utf8);
  // How high each column is, in steps; the newest value in the last.
  std::vector<int> heights(columns, 0);
  for (size_t i = 0; i < std::min(columns, values.size()); ++i) {
    const double value = values[values.size() - 1 - i];
    if (!std::isfinite(value)) continue;
    const double height = std::clamp(value, 0.0, 1.0) * rows * steps;
    heights[columns - 1 - i] = std::max(1, static_cast<int>(std::lround(height)));
  }
  std::vector<std::string> lines;
  for (int row = rows - 1; row >= 0; --row) {
    std::string line;
    const int floor = row * steps;
    for (int cell = 0; cell < cells; ++cell) {
      if (!utf8) {
        line += heights[static_cast<size_t>(cell)] > floor ? '#' : ' ';
        continue;
      }
      unsigned dots = 0;
      for (int side = 0; side < 2; ++side) {
        const size_t at = 2 * static_cast<size_t>(cell) + static_cast<size_t>(side);
        const int filled = heights[at] - floor;
        for (int dot = 0; dot < std::min(4, filled); ++dot) dots |= kDots[side][dot];
      }
      line += dots == 0 ? std::string(" ") : Braille(dots);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace kvd::kvctl
