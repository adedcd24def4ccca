// What top shows, worked out from what the daemon said over time: rates between two samples, and a
// history for the graphs. No I/O and no clock: samples bring their time.

#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/kvctl/tree.h"
#include "proto/admin.grpc.pb.h"

namespace kvd::kvctl {

// Everything asked at one time.
struct Sample {
  v1::StatusReply status;
  v1::TiersReply tiers;
  v1::SessionsReply sessions;
};

// By what the table of domains is sorted, the most first.
enum class DomainOrder { kLookups, kHit, kUsed, kHeld, kSessions, kName };
inline constexpr int kDomainOrders = 6;
const char* NameOf(DomainOrder order);

struct DomainRow {
  v1::DomainUse use;
  double lookups_per_s = 0;
  double blocks_per_s = 0;  // Asked for.
  double hit = 0;           // In this interval, or since start if nothing was asked; may be NaN.
  double committed_per_s = 0;
  double rejected_per_s = 0;
};

class TopModel {
 public:
  // A newer sample. One from another daemon than the last (it was restarted) begins anew, but for
  // the history.
  void Add(Sample sample);
  // Nobody answered.
  void Lose(absl::Time time, std::string why);

  // Requires for all below: has_sample().
  bool has_sample() const { return last_.has_value(); }
  const Sample& last() const { return *last_; }
  // Since when nobody answers, and why; nothing while the daemon answers.
  const std::optional<absl::Time>& lost_since() const { return lost_since_; }
  const std::string& why_lost() const { return why_lost_; }
  int restarts() const { return restarts_; }  // That were seen.

  double hit_ratio_now() const;  // Of the last interval; NaN if nothing was asked.
  double lookups_per_s() const;
  double blocks_per_s() const;
  double evicted_per_s(const std::string& tier) const;
  double calls_per_s(const std::string& op) const;
  std::vector<DomainRow> Domains(DomainOrder order, bool reverse) const;

  // One value for each interval, oldest first, at most kHistory. NaN: nothing asked, or nobody
  // answered.
  static constexpr size_t kHistory = 600;
  const std::deque<double>& hit_history() const { return hit_history_; }
  const std::deque<double>& lookups_history() const { return lookups_history_; }

  // The snapshot that `top -o json` prints.
  Tree ToTree() const;

 private:
  double Seconds() const;  // Of the last interval; 0 without one.
  double CounterRate(const char* name) const;
  void Remember(double hit, double lookups);

  std::optional<Sample> before_;  // Of the same daemon as last_.
  std::optional<Sample> last_;
  std::optional<absl::Time> lost_since_;
  std::string why_lost_;
  int restarts_ = 0;
  std::deque<double> hit_history_;
  std::deque<double> lookups_history_;
};

}  // namespace kvd::kvctl
