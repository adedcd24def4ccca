#include "client/kvctl/table.h"

#include <algorithm>
#include <utility>

#include "client/kvctl/units.h"
#include "proto/types/check.h"

namespace kvd::kvctl {

std::string Paint(const std::string& text, Tone tone, bool color) {
  if (!color || tone == Tone::kPlain || text.empty()) return text;
  const char* code = "0";
  switch (tone) {
    case Tone::kPlain:
      break;
    case Tone::kBold:
      code = "1";
      break;
    case Tone::kDim:
      code = "2";
      break;
    case Tone::kGood:
      code = "32";
      break;
    case Tone::kWarn:
      code = "33";
      break;
    case Tone::kBad:
      code = "1;31";
      break;
    case Tone::kAccent:
      code = "36";
      break;
  }
  return std::string("\x1b[") + code + "m" + text + "\x1b[0m";
}

void Table::Row(std::vector<Cell> cells) {
  KVD_CHECK(cells.size() == columns_.size());
  rows_.push_back(std::move(cells));
}

std::vector<std::string> Table::Lines(bool color, int width) const {
  std::vector<Cell> titles;
  std::vector<size_t> widths;
  for (const Column& column : columns_) {
    titles.emplace_back(column.title, Tone::kBold);
    widths.push_back(Width(column.title));
  }
  for (const std::vector<Cell>& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i].text));
  }
  size_t shown = 0;
  for (size_t end = 0; shown < columns_.size(); ++shown) {
    end += widths[shown] + (shown > 0 ? 2 : 0);
    if (width > 0 && end > static_cast<size_t>(width) && shown > 0) break;
  }
  const auto line = [&](const std::vector<Cell>& row) {
    std::string text;
    size_t owed = 0;  // Spaces that are only wanted if something follows.
    for (size_t i = 0; i < shown; ++i) {
      const size_t padding = widths[i] - Width(row[i].text);
      if (columns_[i].align == Align::kRight) owed += padding;
      if (!row[i].text.empty()) {
        text += std::string(owed, ' ') + Paint(row[i].text, row[i].tone, color);
        owed = 0;
      }
      owed += (columns_[i].align == Align::kLeft ? padding : 0) + 2;
    }
    return text;
  };
  std::vector<std::string> lines = {line(titles)};
  for (const std::vector<Cell>& row : rows_) lines.push_back(line(row));
  return lines;
}

void Table::Print(std::ostream& out, bool color) const {
  for (const std::string& line : Lines(color)) out << line << "\n";
}

}  // namespace kvd::kvctl
