// Text for people: colours, and tables whose columns fit what is in them.

#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace kvd::kvctl {

enum class Tone { kPlain, kBold, kDim, kGood, kWarn, kBad, kAccent };

// `text` in that tone where `color`, else as it is.
std::string Paint(const std::string& text, Tone tone, bool color);

// A cell may be painted; its width is that of its text.
struct Cell {
  Cell(std::string text, Tone tone = Tone::kPlain) : text(std::move(text)), tone(tone) {}
  Cell(const char* text) : text(text) {}
  std::string text;
  Tone tone = Tone::kPlain;
};

enum class Align { kLeft, kRight };

struct Column {
  std::string title;
  Align align = Align::kLeft;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // Requires: as many cells as there are columns.
  void Row(std::vector<Cell> cells);
  bool empty() const { return rows_.empty(); }
  size_t rows() const { return rows_.size(); }
  // The titles and the rows, a line each. Columns at the right that would go beyond `width` columns
  // of the screen are left out; 0: none is.
  std::vector<std::string> Lines(bool color, int width = 0) const;
  void Print(std::ostream& out, bool color) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

}  // namespace kvd::kvctl
