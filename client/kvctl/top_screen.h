// One picture of top: from the model and the size of the screen to lines of text. Pure, so that a
// test can look at it.

#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/kvctl/top_model.h"

namespace kvd::kvctl {

struct TopView {
  int columns = 80;
  int rows = 24;  // At most so many lines.
  bool color = false;
  bool utf8 = true;
  bool keys = true;  // Somebody can press them: the last line says which.
  bool paused = false;
  bool reverse = false;
  DomainOrder order = DomainOrder::kLookups;
  absl::Duration interval = absl::Seconds(1);
  absl::Time now;
  std::string endpoint;
};

// No line is wider than the screen. What does not fit is left out from the least important up:
// sessions, domains, graphs, latencies; head, problems and tiers stay.
std::vector<std::string> RenderTop(const TopModel& model, const TopView& view);

}  // namespace kvd::kvctl
