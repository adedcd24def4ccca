#include "proto/types/kill_point.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

std::atomic<uint64_t> passes_left{0};

}  // namespace

absl::Status ArmKillPoint(std::string_view order) {
  const std::string_view name = order.substr(0, order.find(':'));
  uint64_t passes = 1;
  if (name.size() < order.size() &&
      (!absl::SimpleAtoi(View(order.substr(name.size() + 1)), &passes) || passes == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("kill point ", View(order), ": write NAME:N, with N from 1"));
  }
  const auto* const found = std::find(std::begin(kKillPoints), std::end(kKillPoints), name);
  if (found == std::end(kKillPoints)) {
    return absl::InvalidArgumentError(absl::StrCat("no kill point ", View(name)));
  }
  passes_left = passes;
  internal::armed_kill_point = static_cast<size_t>(found - std::begin(kKillPoints));
  return absl::OkStatus();
}

void internal::PassArmedKillPoint() {
  if (passes_left.fetch_sub(1, std::memory_order_relaxed) != 1) return;
  kill(getpid(), SIGKILL);
  while (true) pause();  // It takes a moment on another thread; nothing more happens on this one.
}

}  // namespace kvd
