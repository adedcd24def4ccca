// A table of text for a person to read, columns aligned: numbers to the right, words to the left.
//
//   policy  capacity  hit ratio
//   ------  --------  ---------
//   lru       18,279     0.2789
//
// Threads: one at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvd {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}

  // Cells are UTF-8 without line breaks. Requires: no more cells than the header has; missing ones
  // are empty.
  void AddRow(std::vector<std::string> cells);

  // Every line ends with a newline and has no blanks before it. A column is of numbers when each of
  // its cells starts like one ("-3.5", "1.2x", "12 us") or is empty, "-" or "n/a".
  std::string ToString() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// Columns that `text` takes on a terminal: combining marks take none, CJK and emoji two. A byte
// that is no UTF-8 takes one.
size_t DisplayWidth(std::string_view text);

// 12031 as "12,031".
std::string WithCommas(uint64_t value);

}  // namespace kvd
