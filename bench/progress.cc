#include "bench/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/table.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr Nanos kDrawInterval = 100 * kMillisecond;
constexpr size_t kBarColumns = 20;
constexpr double kEtaMaxS = 100 * 3600;  // Beyond, an estimate says nothing.

std::string FormatSeconds(int64_t seconds) {
  if (seconds < 3600) return absl::StrFormat("%d:%02d", seconds / 60, seconds % 60);
  return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

void WriteToStandardError(std::string_view text) {
  // Best effort: a bar that cannot be drawn is no reason to fail.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace

ProgressBar::Options ProgressBar::OnStandardError(std::string label, uint64_t total, bool quiet) {
  Options options{.label = std::move(label), .total = total};
  options.enabled = !quiet && isatty(STDERR_FILENO) == 1;
  winsize window{};
  if (options.enabled && ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) {
    options.columns = window.ws_col;
  }
  options.write = &WriteToStandardError;
  return options;
}

ProgressBar::ProgressBar(const Clock& clock, Options options)
    : clock_(clock),
      options_(std::move(options)),
      start_(clock_.Now()),
      next_draw_(start_ + kDrawInterval) {
  KVD_CHECK(!options_.enabled || options_.write);
}

void ProgressBar::Add(uint64_t steps) {
  const uint64_t done = done_.fetch_add(steps, std::memory_order_relaxed) + steps;
  if (!options_.enabled) return;
  const Nanos now = clock_.Now();
  Nanos due = next_draw_.load(std::memory_order_relaxed);
  if (now < due) return;
  if (!next_draw_.compare_exchange_strong(due, now + kDrawInterval, std::memory_order_relaxed)) {
    return;  // Another thread draws.
  }
  drawn_.store(true, std::memory_order_relaxed);
  options_.write(absl::StrCat("\r\x1b[K", Line(done, now)));
}

void ProgressBar::Finish() {
  if (drawn_.exchange(false, std::memory_order_relaxed)) options_.write("\r\x1b[K");
}

std::string ProgressBar::Line(uint64_t done, Nanos now) const {
  const double elapsed_s = static_cast<double>(std::max<Nanos>(1, now - start_)) / kSecond;
  const double rate = static_cast<double>(done) / elapsed_s;
  std::string line = absl::StrCat(options_.label, "  ");
  if (options_.total > 0) {
    const double fraction =
        std::min(1.0, static_cast<double>(done) / static_cast<double>(options_.total));
    const size_t filled = static_cast<size_t>(fraction * kBarColumns);
    absl::StrAppendFormat(&line, "[%s%s] %5.1f %%  %s of %s", std::string(filled, '#'),
                          std::string(kBarColumns - filled, '-'), 100 * fraction, WithCommas(done),
                          WithCommas(options_.total));
  } else {
    line += WithCommas(done);
  }
  absl::StrAppend(&line, "  ", WithCommas(static_cast<uint64_t>(rate)), "/s");
  if (done > 0 && done < options_.total) {
    const double left_s = std::ceil(static_cast<double>(options_.total - done) / rate);
    if (left_s < kEtaMaxS) {
      absl::StrAppend(&line, "  ETA ", FormatSeconds(static_cast<int64_t>(left_s)));
    }
  }
  // A line that wraps could not be drawn over. The label alone may hold more than ASCII.
  while (DisplayWidth(line) >= options_.columns && !line.empty()) line.pop_back();
  return line;
}

}  // namespace kvd
