#include "client/kvctl/top_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "client/kvctl/summary.h"

namespace kvd::kvctl {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

double Ratio(double part, double whole) { return whole > 0 ? part / whole : kNone; }

double PerSecond(uint64_t now, uint64_t before, double seconds) {
  return seconds > 0 && now >= before ? static_cast<double>(now - before) / seconds : 0;
}

// JSON has no NaN.
Tree Number(double value) { return std::isfinite(value) ? Tree(value) : Tree(nullptr); }

bool SameDaemon(const v1::StatusReply& a, const v1::StatusReply& b) {
  return a.pid() == b.pid() && b.uptime_ms() >= a.uptime_ms();
}

const v1::DomainUse* Find(const v1::StatusReply& status, const std::string& domain) {
  for (const v1::DomainUse& use : status.domains()) {
    if (use.domain() == domain) return &use;
  }
  return nullptr;
}

const v1::OpLatency* FindOp(const v1::StatusReply& status, const std::string& op) {
  for (const v1::OpLatency& latency : status.latencies()) {
    if (latency.op() == op) return &latency;
  }
  return nullptr;
}

}  // namespace

const char* NameOf(DomainOrder order) {
  switch (order) {
    case DomainOrder::kLookups:
      return "lookups";
    case DomainOrder::kHit:
      return "hit";
    case DomainOrder::kUsed:
      return "used";
    case DomainOrder::kHeld:
      return "held";
    case DomainOrder::kSessions:
      return "sessions";
    case DomainOrder::kName:
      return "name";
  }
  return "";
}

void TopModel::Add(Sample sample) {
  const bool same = last_.has_value() && SameDaemon(last_->status, sample.status);
  if (last_.has_value() && !same) ++restarts_;
  before_ = same ? std::move(last_) : std::nullopt;
  last_ = std::move(sample);
  lost_since_.reset();
  if (before_.has_value()) Remember(hit_ratio_now(), lookups_per_s());
}

void TopModel::Lose(absl::Time time, std::string why) {
  if (!lost_since_.has_value()) lost_since_ = time;
  why_lost_ = std::move(why);
  if (last_.has_value()) Remember(kNone, kNone);
}

void TopModel::Remember(double hit, double lookups) {
  hit_history_.push_back(hit);
  lookups_history_.push_back(lookups);
  if (hit_history_.size() > kHistory) {
    hit_history_.pop_front();
    lookups_history_.pop_front();
  }
}

double TopModel::Seconds() const {
  if (!before_.has_value()) return 0;
  // By the daemon's clock: an answer that was late here was not late there.
  return static_cast<double>(last_->status.uptime_ms() - before_->status.uptime_ms()) / 1e3;
}

double TopModel::CounterRate(const char* name) const {
  if (!before_.has_value()) return 0;
  return PerSecond(CounterOf(last_->status, name), CounterOf(before_->status, name), Seconds());
}

double TopModel::hit_ratio_now() const {
  return Ratio(CounterRate("lookup_hit_blocks"), CounterRate("lookup_blocks"));
}

double TopModel::lookups_per_s() const { return CounterRate("lookups"); }
double TopModel::blocks_per_s() const { return CounterRate("lookup_blocks"); }

double TopModel::evicted_per_s(const std::string& tier) const {
  if (!before_.has_value()) return 0;
  const v1::TierTraffic* now = TrafficOf(last_->status, tier);
  const v1::TierTraffic* before = TrafficOf(before_->status, tier);
  if (now == nullptr || before == nullptr) return CounterRate("evicted_blocks");
  return PerSecond(now->evicted_blocks(), before->evicted_blocks(), Seconds());
}

double TopModel::calls_per_s(const std::string& op) const {
  if (!before_.has_value()) return 0;
  const v1::OpLatency* now = FindOp(last_->status, op);
  const v1::OpLatency* before = FindOp(before_->status, op);
  if (now == nullptr || before == nullptr) return 0;
  return PerSecond(now->calls(), before->calls(), Seconds());
}

std::vector<DomainRow> TopModel::Domains(DomainOrder order, bool reverse) const {
  std::vector<DomainRow> rows;
  for (const v1::DomainUse& use : last_->status.domains()) {
    DomainRow row{.use = use};
    row.hit =
        Ratio(static_cast<double>(use.hit_blocks()), static_cast<double>(use.lookup_blocks()));
    const v1::DomainUse* before =
        before_.has_value() ? Find(before_->status, use.domain()) : nullptr;
    if (before != nullptr) {
      const double s = Seconds();
      row.lookups_per_s = PerSecond(use.lookups(), before->lookups(), s);
      row.blocks_per_s = PerSecond(use.lookup_blocks(), before->lookup_blocks(), s);
      row.committed_per_s = PerSecond(use.committed_blocks(), before->committed_blocks(), s);
      row.rejected_per_s = PerSecond(use.rejected_blocks(), before->rejected_blocks(), s);
      const double now =
          Ratio(PerSecond(use.hit_blocks(), before->hit_blocks(), s), row.blocks_per_s);
      if (!std::isnan(now)) row.hit = now;
    }
    rows.push_back(std::move(row));
  }
  const auto key = [order](const DomainRow& row) -> double {
    switch (order) {
      case DomainOrder::kLookups:
        return row.lookups_per_s;
      case DomainOrder::kHit:
        return std::isnan(row.hit) ? -1 : row.hit;
      case DomainOrder::kUsed:
        return static_cast<double>(row.use.used_bytes());
      case DomainOrder::kHeld:
        return static_cast<double>(row.use.held_bytes());
      case DomainOrder::kSessions:
        return static_cast<double>(row.use.sessions());
      case DomainOrder::kName:
        return 0;
    }
    return 0;
  };
  // By name where nothing else tells them apart, so that rows do not jump.
  std::sort(rows.begin(), rows.end(), [&key](const DomainRow& a, const DomainRow& b) {
    return std::make_tuple(-key(a), a.use.domain()) < std::make_tuple(-key(b), b.use.domain());
  });
  if (reverse) std::reverse(rows.begin(), rows.end());
  return rows;
}

Tree TopModel::ToTree() const {
  const v1::StatusReply& status = last_->status;
  Tree tree = {{"interval_ms", Seconds() * 1e3},           {"healthy", status.problems().empty()},
               {"hit_ratio_now", Number(hit_ratio_now())}, {"hit_ratio", Number(HitRatio(status))},
               {"lookups_per_s", lookups_per_s()},         {"lookup_blocks_per_s", blocks_per_s()}};
  tree["tiers"] = Tree::array();
  for (const v1::TierStatus& tier : last_->tiers.tiers()) {
    Tree row = kvctl::ToTree(tier);
    row["evicted_blocks_per_s"] = evicted_per_s(tier.name());
    tree["tiers"].push_back(std::move(row));
  }
  tree["operations"] = Tree::array();
  for (const v1::OpLatency& latency : status.latencies()) {
    Tree row = kvctl::ToTree(latency);
    row["calls_per_s"] = calls_per_s(latency.op());
    tree["operations"].push_back(std::move(row));
  }
  tree["domains"] = Tree::array();
  for (const DomainRow& row : Domains(DomainOrder::kLookups, false)) {
    Tree domain = kvctl::ToTree(row.use);
    domain["lookups_per_s"] = row.lookups_per_s;
    domain["lookup_blocks_per_s"] = row.blocks_per_s;
    domain["hit_ratio_now"] = Number(row.hit);
    domain["committed_blocks_per_s"] = row.committed_per_s;
    domain["rejected_blocks_per_s"] = row.rejected_per_s;
    tree["domains"].push_back(std::move(domain));
  }
  tree["sessions"] = kvctl::ToTree(last_->sessions)["sessions"];
  tree["problems"] = kvctl::ToTree(status)["problems"];
  return tree;
}

}  // namespace kvd::kvctl
