#include "client/kvctl/top_screen.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/kvctl/graph.h"
#include "client/kvctl/summary.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"

namespace kvd::kvctl {
namespace {

constexpr int kMinBar = 8;
constexpr int kMaxBar = 40;
constexpr int kGraphLabel = 12;   // "hit    100% "
constexpr int kGraphRowsMin = 3;  // Of both graphs together.
constexpr int kGraphRowsMax = 10;
constexpr size_t kFewRows = 3;  // What a table has at least, where it is shown at all.

// A line of pieces that are cut at the right edge: escapes take no room, and none is cut in half.
class Line {
 public:
  Line(int columns, bool color) : room_(static_cast<size_t>(std::max(0, columns))), color_(color) {}

  Line& Add(const std::string& text, Tone tone = Tone::kPlain) {
    std::string fits;
    for (size_t at = 0; at < text.size() && room_ > 0;) {
      size_t end = at + 1;
      while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;
      fits += text.substr(at, end - at);
      at = end;
      --room_;
    }
    text_ += Paint(fits, tone, color_);
    return *this;
  }
  std::string text() const { return text_; }

 private:
  size_t room_;
  const bool color_;
  std::string text_;
};

class Picture {
 public:
  Picture(const TopModel& model, const TopView& view) : model_(model), view_(view) {}

  std::vector<std::string> Render() {
    Head();
    if (!model_.has_sample()) return std::move(lines_);
    Tiers();
    // The rest by importance: each section says how much it needs and takes what is left.
    const size_t foot = view_.keys ? 1 : 0;
    Latencies(foot);
    Graphs(foot);
    Domains(foot);
    Sessions(foot);
    while (lines_.size() > static_cast<size_t>(view_.rows) - foot) lines_.pop_back();
    return std::move(lines_);
  }

 private:
  Line New() const { return {view_.columns, view_.color}; }
  void Push(const Line& line) { lines_.push_back(line.text()); }
  size_t Left(size_t foot) const {
    const size_t taken = lines_.size() + foot;
    return static_cast<size_t>(view_.rows) > taken ? static_cast<size_t>(view_.rows) - taken : 0;
  }

  void Head() {
    Line line = New();
    if (!model_.has_sample()) {
      line.Add("kvctl top", Tone::kBold).Add(absl::StrCat("   ", Printable(view_.endpoint)));
    } else {
      const v1::StatusReply& s = model_.last().status;
      const Health health = HealthOf(s);
      line.Add(absl::StrCat("kvd ", Printable(s.version())), Tone::kBold);
      if (!model_.lost_since().has_value()) line.Add("   ").Add(health.word, health.tone);
      line.Add(absl::StrCat("   up ", Age(s.uptime_ms()), "   pid ", s.pid(), "   ",
                            Printable(s.endpoint())));
      if (model_.restarts() > 0) line.Add(absl::StrCat("   restarts seen ", model_.restarts()));
    }
    line.Add(absl::FormatTime("   %H:%M:%S", view_.now, absl::LocalTimeZone()), Tone::kDim);
    if (view_.paused) line.Add("  ").Add("PAUSED", Tone::kWarn);
    Push(line);
    if (model_.lost_since().has_value()) {
      const auto ago = absl::ToInt64Milliseconds(view_.now - *model_.lost_since());
      Push(New()
               .Add(absl::FormatTime("UNREACHABLE since %H:%M:%S", *model_.lost_since(),
                                     absl::LocalTimeZone()),
                    Tone::kBad)
               .Add(absl::StrCat(" (", Age(static_cast<uint64_t>(std::max<int64_t>(0, ago))),
                                 "): ", Printable(model_.why_lost()))));
      return;
    }
    if (!model_.has_sample()) {
      Push(New().Add("asking ..."));
      return;
    }
    // More than a few problems would push everything else off the screen: status has them all.
    const auto& problems = model_.last().status.problems();
    const int most = std::max(1, view_.rows / 6);
    for (int i = 0; i < std::min(most, problems.size()); ++i) {
      Push(New()
               .Add(absl::StrCat("  ", Printable(problems[i].code()), " "), ToneOf(problems[i]))
               .Add(Printable(problems[i].message())));
    }
    if (problems.size() > most) {
      Push(New().Add(absl::StrCat("  and ", problems.size() - most, " more: kvctl status")));
    }
  }

  void Tiers() {
    lines_.emplace_back();
    for (const v1::TierStatus& tier : model_.last().tiers.tiers()) {
      const double full = tier.capacity_bytes() > 0 ? static_cast<double>(tier.reserved_bytes()) /
                                                          static_cast<double>(tier.capacity_bytes())
                                                    : 0;
      std::string after = absl::StrCat(" ", Percent(full), " of ", Size(tier.capacity_bytes()),
                                       "  ", Count(tier.blocks()), " blocks  evicted ",
                                       Rate(model_.evicted_per_s(tier.name())), "/s");
      const double share = ShareOf(model_.last().status, tier.name());
      if (!std::isnan(share)) absl::StrAppend(&after, "  hit share ", Percent(share));
      std::string name = Printable(tier.name());
      name.resize(std::max<size_t>(5, name.size()), ' ');
      const int room = view_.columns - static_cast<int>(Width(name) + Width(after)) - 3;
      const int cells = std::clamp(room, kMinBar, kMaxBar);
      const bool online = tier.state() == "online";
      Line line = New();
      line.Add(name, Tone::kBold).Add(" [");
      line.Add(Bar(full, cells, view_.utf8), online ? Tone::kAccent : Tone::kDim).Add("]");
      if (!online) line.Add(absl::StrCat(" ", Printable(tier.state())), Tone::kWarn);
      Push(line.Add(after));
    }
    const v1::StatusReply& s = model_.last().status;
    Push(New()
             .Add("hit   ", Tone::kBold)
             .Add(absl::StrCat(Percent(model_.hit_ratio_now()), " now, ", Percent(HitRatio(s)),
                               " since start   lookups ", Rate(model_.lookups_per_s()),
                               "/s   blocks asked ", Rate(model_.blocks_per_s()), "/s")));
    Push(
        New()
            .Add("now   ", Tone::kBold)
            .Add(absl::StrCat("sessions ", Count(s.sessions()), "   leases ", Count(s.leases()),
                              "   pins ", Count(s.pins()), "   holds ", Count(s.holds()), " (",
                              Size(s.held_bytes()), ")   reservations ", Count(s.reservations()))));
  }

  void Latencies(size_t foot) {
    const auto& latencies = model_.last().status.latencies();
    if (latencies.empty() || Left(foot) < static_cast<size_t>(latencies.size()) + 2) return;
    Table table({{"OPERATION"},
                 {"CALLS/s", Align::kRight},
                 {"P50", Align::kRight},
                 {"P99", Align::kRight},
                 {"CALLS", Align::kRight}});
    for (const v1::OpLatency& latency : latencies) {
      table.Row({Printable(latency.op()), Rate(model_.calls_per_s(latency.op())),
                 Micros(latency.p50_us()), Micros(latency.p99_us()), Count(latency.calls())});
    }
    lines_.emplace_back();
    Append(table, table.rows());
  }

  void Graphs(size_t foot) {
    // As tall as what the tables leave, which have at least a few rows each.
    const auto wants = [](int rows) {
      return rows == 0 ? 0 : 2 + std::min(static_cast<size_t>(rows), kFewRows);
    };
    const size_t tables =
        wants(model_.last().status.domains_size()) + wants(model_.last().sessions.sessions_size());
    if (Left(foot) < tables + 1 + kGraphRowsMin) return;
    const auto both = static_cast<int>(std::min(Left(foot) - tables - 1, size_t{kGraphRowsMax}));
    const int rows = (both * 3 + 2) / 5;
    const int cells = std::max(1, view_.columns - kGraphLabel);
    lines_.emplace_back();
    OneGraph("hit", "100%", "0%", model_.hit_history(), 1, rows, cells, Tone::kGood);
    double most = 0;
    for (const double value : Newest(model_.lookups_history(), cells)) {
      if (std::isfinite(value)) most = std::max(most, value);
    }
    OneGraph("look", Rate(most), "0/s", model_.lookups_history(), most, both - rows, cells,
             Tone::kAccent);
  }

  std::vector<double> Newest(const std::deque<double>& history, int cells) const {
    const size_t count = std::min(history.size(), GraphValues(cells, view_.utf8));
    return {history.end() - static_cast<std::ptrdiff_t>(count), history.end()};
  }

  void OneGraph(const std::string& name, const std::string& top, const std::string& bottom,
                const std::deque<double>& history, double most, int rows, int cells, Tone tone) {
    std::vector<double> values = Newest(history, cells);
    if (most > 0) {
      for (double& value : values) value /= most;
    }
    const std::vector<std::string> graph = Graph(values, cells, rows, view_.utf8);
    for (int row = 0; row < rows; ++row) {
      std::string label = row == 0 ? name : "";
      const std::string mark = row == 0 ? top : row == rows - 1 ? bottom : "";
      label.resize(std::max(label.size(), kGraphLabel - 1 - std::min<size_t>(mark.size(), 7)), ' ');
      Push(New()
               .Add(absl::StrCat(label, mark, " "), Tone::kDim)
               .Add(graph[static_cast<size_t>(row)], tone));
    }
  }

  void Domains(size_t foot) {
    const std::vector<DomainRow> rows = model_.Domains(view_.order, view_.reverse);
    if (rows.empty() || Left(foot) < 3) return;
    Table table({{"DOMAIN"},
                 {"LOOKUPS/s", Align::kRight},
                 {"HIT", Align::kRight},
                 {"BLOCKS/s", Align::kRight},
                 {"USED", Align::kRight},
                 {"HELD", Align::kRight},
                 {"SESSIONS", Align::kRight},
                 {"LEASES", Align::kRight},
                 {"PINS", Align::kRight},
                 {"PUT/s", Align::kRight},
                 {"NO ROOM/s", Align::kRight}});
    for (const DomainRow& row : rows) {
      table.Row({Printable(row.use.domain()),
                 Rate(row.lookups_per_s),
                 Percent(row.hit),
                 Rate(row.blocks_per_s),
                 Size(row.use.used_bytes()),
                 Size(row.use.held_bytes()),
                 Count(row.use.sessions()),
                 Count(row.use.leases()),
                 Count(row.use.pins()),
                 Rate(row.committed_per_s),
                 {Rate(row.rejected_per_s), row.rejected_per_s > 0 ? Tone::kWarn : Tone::kPlain}});
    }
    lines_.emplace_back();
    // Half of the room is for the sessions, if they need it.
    const size_t room = Left(foot) - 1;
    const auto sessions = static_cast<size_t>(model_.last().sessions.sessions_size());
    const size_t wanted = sessions == 0 ? 0 : sessions + 2;
    Append(table, std::max(room > wanted ? room - wanted : 0, room / 2));
  }

  void Sessions(size_t foot) {
    const auto& sessions = model_.last().sessions.sessions();
    if (sessions.empty() || Left(foot) < 3) return;
    Table table({{"SESSION", Align::kRight},
                 {"DOMAIN"},
                 {"TRANSPORT"},
                 {"PID", Align::kRight},
                 {"AGE", Align::kRight},
                 {"LEASES", Align::kRight},
                 {"HOLDS", Align::kRight},
                 {"HELD", Align::kRight},
                 {"RESERVED", Align::kRight},
                 {"STAGING", Align::kRight}});
    // Those that hold the most first.
    std::vector<const v1::SessionStatus*> order;
    for (const v1::SessionStatus& session : sessions) order.push_back(&session);
    std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
      return std::make_pair(b->held_bytes(), a->serial()) <
             std::make_pair(a->held_bytes(), b->serial());
    });
    for (const v1::SessionStatus* s : order) {
      table.Row({{absl::StrCat(s->serial()), s->ended() ? Tone::kWarn : Tone::kPlain},
                 Printable(s->domain()),
                 s->ended() ? "ended" : Printable(s->transport()),
                 s->pid() == 0 ? "-" : absl::StrCat(s->pid()),
                 Age(s->age_ms()),
                 Count(s->leases()),
                 Count(s->holds()),
                 Size(s->held_bytes()),
                 Count(s->reservations()),
                 Size(s->staging_bytes())});
    }
    lines_.emplace_back();
    Append(table, Left(foot) - 1);
  }

  // The titles and at most `most` lines below them; the last says how many more there are.
  void Append(const Table& table, size_t most) {
    const std::vector<std::string> lines = table.Lines(view_.color, view_.columns);
    const size_t rows = lines.size() - 1;
    const size_t shown = rows <= most ? rows : most > 0 ? most - 1 : 0;
    for (size_t i = 0; i <= shown; ++i) lines_.push_back(lines[i]);
    if (shown < rows && most > 0) {
      Push(New().Add(absl::StrCat("  and ", rows - shown, " more"), Tone::kDim));
    }
  }

  const TopModel& model_;
  const TopView& view_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> RenderTop(const TopModel& model, const TopView& view) {
  std::vector<std::string> lines = Picture(model, view).Render();
  if (!view.keys) return lines;
  const auto rows = static_cast<size_t>(std::max(2, view.rows));
  lines.resize(rows - 1);  // The keys are on the last line of the screen, wherever the rest ends.
  lines.push_back(
      Line(view.columns, view.color)
          .Add(absl::StrCat("q quit  p ", view.paused ? "go on" : "pause", "  s sort by ",
                            NameOf(view.order), view.reverse ? " (reversed)" : "",
                            "  r reverse  + - every ", absl::FormatDuration(view.interval)),
               Tone::kDim)
          .text());
  return lines;
}

}  // namespace kvd::kvctl
