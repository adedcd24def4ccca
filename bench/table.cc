#include "bench/table.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr std::string_view kGap = "  ";

// Takes one code point off the front of `text`; a byte that is no UTF-8 counts as one.
uint32_t TakeCodePoint(std::string_view& text) {
  const uint8_t first = static_cast<uint8_t>(text[0]);
  const size_t size = first < 0xc2 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 1;
  uint32_t point = size == 1 ? first : first & (0x7fu >> size);
  for (size_t i = 1; i < size; ++i) {
    const bool continues = i < text.size() && (static_cast<uint8_t>(text[i]) & 0xc0) == 0x80;
    if (!continues) {
      text.remove_prefix(1);
      return first;
    }
    point = point << 6 | (static_cast<uint8_t>(text[i]) & 0x3f);
  }
  text.remove_prefix(size);
  return point;
}

size_t Width(uint32_t point) {
  const auto within = [point](uint32_t low, uint32_t high) {
    return low <= point && point <= high;
  };
  if (within(0x300, 0x36f) || within(0x200b, 0x200f) || within(0xfe00, 0xfe0f)) return 0;
  if (within(0x1100, 0x115f) || within(0x2e80, 0xa4cf) || within(0xac00, 0xd7a3) ||
      within(0xf900, 0xfaff) || within(0xfe30, 0xfe6f) || within(0xff00, 0xff60) ||
      within(0x1f300, 0x1f64f) || within(0x1f900, 0x1f9ff) || within(0x20000, 0x3fffd)) {
    return 2;
  }
  return 1;
}

bool LooksLikeNumber(std::string_view cell) {
  if (cell.empty() || cell == "-" || cell == "n/a") return true;
  const size_t sign = cell[0] == '-' || cell[0] == '+' ? 1 : 0;
  return cell.size() > sign && absl::ascii_isdigit(static_cast<unsigned char>(cell[sign]));
}

}  // namespace

void Table::AddRow(std::vector<std::string> cells) {
  KVD_CHECK(cells.size() <= header_.size());
  cells.resize(header_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::ToString() const {
  std::vector<size_t> widths;
  std::vector<bool> numbers;
  for (size_t column = 0; column < header_.size(); ++column) {
    widths.push_back(DisplayWidth(header_[column]));
    numbers.push_back(!rows_.empty());
    for (const std::vector<std::string>& row : rows_) {
      widths[column] = std::max(widths[column], DisplayWidth(row[column]));
      numbers[column] = numbers[column] && LooksLikeNumber(row[column]);
    }
  }

  std::string text;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t column = 0; column < cells.size(); ++column) {
      if (column > 0) line += kGap;
      const std::string blanks(widths[column] - DisplayWidth(cells[column]), ' ');
      line += numbers[column] ? blanks + cells[column] : cells[column] + blanks;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  };
  std::vector<std::string> rule;
  for (const size_t width : widths) rule.emplace_back(width, '-');
  add_line(header_);
  add_line(rule);
  for (const std::vector<std::string>& row : rows_) add_line(row);
  return text;
}

size_t DisplayWidth(std::string_view text) {
  size_t width = 0;
  while (!text.empty()) width += Width(TakeCodePoint(text));
  return width;
}

std::string WithCommas(uint64_t value) {
  std::string digits = std::to_string(value);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

}  // namespace kvd
