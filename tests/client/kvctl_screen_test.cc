// What people see: numbers, tables, bars, graphs, and the picture of top.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "client/kvctl/graph.h"
#include "client/kvctl/table.h"
#include "client/kvctl/top_model.h"
#include "client/kvctl/top_screen.h"
#include "client/kvctl/units.h"

namespace kvd::kvctl {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// ---- units --------------------------------------------------------------------------------------

TEST(UnitsTest, NumbersAreWrittenForPeople) {
  EXPECT_EQ(Size(512), "512 B");
  EXPECT_EQ(Size(1536), "1.5 KiB");
  EXPECT_EQ(Size(64ull << 40), "64.0 TiB");
  EXPECT_EQ(Count(0), "0");
  EXPECT_EQ(Count(999), "999");
  EXPECT_EQ(Count(1'234'567), "1,234,567");
  EXPECT_EQ(Percent(0.6764), "67.6%");
  EXPECT_EQ(Percent(kNone), "-");
  EXPECT_EQ(Micros(61.2), "61 us");
  EXPECT_EQ(Micros(4210), "4.2 ms");
  EXPECT_EQ(Age(300), "300 ms");
  EXPECT_EQ(Age(2'149), "2.1 s");
  EXPECT_EQ(Age(245'000), "4m 05s");
  EXPECT_EQ(Age(274'000'000), "3d 04h");
}

TEST(UnitsTest, WhatPeopleWriteIsRead) {
  EXPECT_EQ(*ParseSize("2GiB"), 2ull << 30);
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseTime("1h30m"), absl::Minutes(90));
  EXPECT_EQ(*ParseTime("7d"), absl::Hours(7 * 24));
  EXPECT_EQ(*ParseId("4d2"), 0x4d2u);
  EXPECT_EQ(ParseKeyPrefix("7bE")->bytes, "\x7b");
  EXPECT_EQ(ParseKeyPrefix("7bE")->half, 0xe);
}

TEST(UnitsTest, WhatMakesNoSenseIsRefused) {
  for (const char* size :
       {"", "GiB", "1gib", "-1", "1.5GiB", "99999999999999999999", "17179869184TiB"}) {
    EXPECT_EQ(ParseSize(size).status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
  for (const char* time : {"", "7", "-1s", "0s", "d", "inf", "99999d"}) {
    EXPECT_EQ(ParseTime(time).status().code(), absl::StatusCode::kInvalidArgument) << time;
  }
  EXPECT_FALSE(ParseKeyPrefix("xyz").ok());
  EXPECT_FALSE(ParseKeyPrefix(std::string(65, 'a')).ok());
  EXPECT_FALSE(ParseId("-1").ok());
}

TEST(UnitsTest, ForeignTextCannotSteerATerminal) {
  EXPECT_EQ(Printable("a\x1b[2Jb\n\x7f"), "a?[2Jb??");
  EXPECT_EQ(Printable("\xc2\x9b"), "?");        // CSI as one character.
  EXPECT_EQ(Printable("\xff\xe2\x82"), "???");  // No UTF-8.
  EXPECT_EQ(Printable("modèle 模"), "modèle 模");
}

// ---- tables and graphs --------------------------------------------------------------------------

TEST(TableTest, ColumnsFitTheirContent) {
  Table table({{"NAME"}, {"N", Align::kRight}, {"LAST"}});
  table.Row({"é", "1,000", "x"});
  table.Row({"long name", "1", ""});
  EXPECT_THAT(table.Lines(false), ElementsAre("NAME           N  LAST",  //
                                              "é          1,000  x",     //
                                              "long name      1"));
}

TEST(TableTest, ANarrowScreenLosesColumnsAtTheRight) {
  Table table({{"AAAA"}, {"BBBB"}, {"CCCC"}});
  table.Row({"1", "2", "3"});
  EXPECT_THAT(table.Lines(false, 12), ElementsAre("AAAA  BBBB", "1     2"));
  EXPECT_THAT(table.Lines(false, 2), ElementsAre("AAAA", "1"));
}

TEST(TableTest, PaintTakesNoRoom) {
  Table table({{"A"}, {"B"}});
  table.Row({{"x", Tone::kBad}, "y"});
  EXPECT_EQ(table.Lines(true)[1], "\x1b[1;31mx\x1b[0m  y");
}

TEST(GraphTest, BarsFillByEighths) {
  EXPECT_EQ(Bar(0.5, 4, true), "██░░");
  EXPECT_EQ(Bar(0.53125, 4, true), "██▏░");
  EXPECT_EQ(Bar(2, 4, true), "████");
  EXPECT_EQ(Bar(kNone, 4, false), "....");
  EXPECT_EQ(Bar(0.5, 4, false), "##..");
}

TEST(GraphTest, TheNewestValueIsAtTheRightAndZeroIsNotNothing) {
  EXPECT_THAT(Graph({1, 0.5}, 2, 1, true), ElementsAre(" ⣧"));
  EXPECT_THAT(Graph({0, kNone}, 1, 1, true), ElementsAre("⡀"));
  EXPECT_THAT(Graph({1, 1, 1, 0.5}, 2, 2, true), ElementsAre("⣿⡇", "⣿⣿"));
  EXPECT_THAT(Graph({1, kNone, 0.5, 0.1}, 5, 2, false), ElementsAre(" #", " # ##"));
}

// ---- top ----------------------------------------------------------------------------------------

Sample At(int second, uint64_t lookups, uint32_t pid = 42) {
  Sample sample;
  sample.status.set_version("9.9");
  sample.status.set_pid(pid);
  sample.status.set_uptime_ms(static_cast<uint64_t>(second) * 1000);
  const std::pair<const char*, uint64_t> counters[] = {
      {"lookups", lookups}, {"lookup_blocks", lookups * 10}, {"lookup_hit_blocks", lookups * 5}};
  for (const auto& [name, value] : counters) {
    v1::Counter& counter = *sample.status.add_counters();
    counter.set_name(name);
    counter.set_value(value);
  }
  for (const char* name : {"search", "agents"}) {
    v1::DomainUse& use = *sample.status.add_domains();
    use.set_domain(name);
    use.set_lookups(name[0] == 's' ? lookups : lookups / 2);
    use.set_lookup_blocks(use.lookups());
    use.set_hit_blocks(name[0] == 's' ? 0 : use.lookups());
  }
  v1::TierStatus& dram = *sample.tiers.add_tiers();
  dram.set_name("dram");
  dram.set_state("online");
  dram.set_capacity_bytes(100);
  dram.set_reserved_bytes(50);
  return sample;
}

std::string Text(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

TEST(TopModelTest, RatesAreBetweenTwoSamples) {
  TopModel model;
  model.Add(At(1, 100));
  EXPECT_EQ(model.lookups_per_s(), 0);
  EXPECT_TRUE(std::isnan(model.hit_ratio_now()));
  model.Add(At(3, 300));
  EXPECT_DOUBLE_EQ(model.lookups_per_s(), 100);
  EXPECT_DOUBLE_EQ(model.hit_ratio_now(), 0.5);
  EXPECT_EQ(model.hit_history().size(), 1u);
}

TEST(TopModelTest, ARestartedDaemonGivesNoNegativeRates) {
  TopModel model;
  model.Add(At(5, 1000));
  model.Lose(absl::FromUnixSeconds(1'800'000'006), "away");
  EXPECT_TRUE(model.lost_since().has_value());
  model.Add(At(1, 10, 43));
  EXPECT_FALSE(model.lost_since().has_value());
  EXPECT_EQ(model.restarts(), 1);
  EXPECT_EQ(model.lookups_per_s(), 0);
  model.Add(At(2, 30, 43));
  EXPECT_DOUBLE_EQ(model.lookups_per_s(), 20);
}

TEST(TopModelTest, DomainsAreSortedAsAsked) {
  TopModel model;
  model.Add(At(1, 100));
  model.Add(At(2, 200));
  EXPECT_EQ(model.Domains(DomainOrder::kLookups, false)[0].use.domain(), "search");
  EXPECT_EQ(model.Domains(DomainOrder::kHit, false)[0].use.domain(), "agents");
  EXPECT_EQ(model.Domains(DomainOrder::kName, false)[0].use.domain(), "agents");
  EXPECT_EQ(model.Domains(DomainOrder::kName, true)[0].use.domain(), "search");
}

TEST(TopModelTest, HistoryIsBounded) {
  TopModel model;
  for (int i = 1; i < 1000; ++i) model.Add(At(i, static_cast<uint64_t>(i)));
  EXPECT_EQ(model.hit_history().size(), TopModel::kHistory);
}

TEST(TopScreenTest, NoLineIsWiderOrLowerThanTheScreen) {
  TopModel model;
  for (int i = 1; i < 40; ++i) {
    Sample sample = At(i, static_cast<uint64_t>(i * i));
    for (uint32_t s = 0; s < 100; ++s) sample.sessions.add_sessions()->set_serial(s);
    v1::Problem& problem = *sample.status.add_problems();
    problem.set_message(std::string(300, 'x'));
    model.Add(std::move(sample));
  }
  for (const int columns : {1, 20, 80, 200}) {
    for (const int rows : {2, 5, 24, 60}) {
      for (const bool utf8 : {true, false}) {
        const std::vector<std::string> lines =
            RenderTop(model, {.columns = columns, .rows = rows, .utf8 = utf8});
        EXPECT_EQ(lines.size(), static_cast<size_t>(rows));
        for (const std::string& line : lines) {
          // Titles of a table's first column are never cut.
          EXPECT_LE(Width(line), static_cast<size_t>(std::max(columns, 9))) << line;
        }
      }
    }
  }
}

TEST(TopScreenTest, EverySectionIsThereOnAnOrdinaryScreen) {
  TopModel model;
  model.Add(At(1, 100));
  Sample sample = At(2, 300);
  v1::SessionStatus& session = *sample.sessions.add_sessions();
  session.set_serial(17);
  session.set_pid(4411);
  v1::OpLatency& latency = *sample.status.add_latencies();
  latency.set_op("lookup");
  latency.set_p99_us(240);
  model.Add(std::move(sample));
  const std::string text = Text(RenderTop(model, {.columns = 100, .rows = 40}));
  EXPECT_THAT(text,
              AllOf(HasSubstr("kvd 9.9   HEALTHY"), HasSubstr("50.0% of 100 B"),
                    HasSubstr("50.0% now"), HasSubstr("lookups 200/s"), HasSubstr("240 us"),
                    HasSubstr("search"), HasSubstr("4411"), HasSubstr("q quit"), HasSubstr("⢸")));
}

TEST(TopScreenTest, ALostDaemonIsSaidAndSinceWhen) {
  TopModel model;
  TopView view{.now = absl::FromUnixSeconds(1'800'000'010), .endpoint = "unix:/run/kvd.sock"};
  model.Lose(absl::FromUnixSeconds(1'800'000'006), "no socket");
  EXPECT_THAT(Text(RenderTop(model, view)), HasSubstr("(4.0 s): no socket"));
  model.Add(At(1, 1));
  EXPECT_THAT(Text(RenderTop(model, view)), Not(HasSubstr("UNREACHABLE")));
  model.Lose(absl::FromUnixSeconds(1'800'000'008), "went away");
  const std::string text = Text(RenderTop(model, view));
  EXPECT_THAT(text, HasSubstr("UNREACHABLE since"));
  EXPECT_THAT(text, Not(HasSubstr("HEALTHY")));
  EXPECT_THAT(text, HasSubstr("dram"));  // What was last known stays.
}

}  // namespace
}  // namespace kvd::kvctl
