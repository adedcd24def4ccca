// The names under which numbers are scraped: an interface that dashboards and alerts rely on.

#include "daemon/exposition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::Not;

class ExpositionTest : public testing::Test {
 protected:
  MetricsSource Source() {
    return {.control = &h_.control,
            .service = &service_,
            .gateway = &gateway_,
            .strangers = &strangers_,
            .tenant_name = [](DomainId domain) { return absl::StrCat("uid:", domain); },
            .version = "1.2.3"};
  }

  ControlHarness h_;
  ServiceMetrics service_;
  GatewayMetrics gateway_;
  StrangerCounts strangers_;
};

TEST_F(ExpositionTest, LookupsAreAttributedToTiersAndMisses) {
  const auto session = h_.Open(7);
  const NamespaceId ns = h_.Register(session, ControlHarness::Descriptor());
  h_.Put(session, ns, {1, 2});
  h_.Hits(session, ns, {1, 2, 3});
  const std::string text = MetricsText(Source());
  EXPECT_THAT(text, HasSubstr("\nkvd_lookup_blocks_total{tenant=\"uid:7\",tier=\"dram\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_lookup_blocks_total{tenant=\"uid:7\",tier=\"miss\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_lookup_tokens_total{tenant=\"uid:7\",tier=\"dram\"} 32\n"));
  EXPECT_THAT(text,
              HasSubstr("\nkvd_lookup_requests_total{tenant=\"uid:7\",outcome=\"partial\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_request_prompt_tokens_bucket{le=\"64\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_prefix_match_ratio_bucket{le=\"0.5\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_prefix_match_ratio_bucket{le=\"0.75\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_sessions{transport=\"shm\",tenant=\"uid:7\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_build_info{version=\"1.2.3\",protocol=\"2\"} 1\n"));
}

TEST_F(ExpositionTest, TheStatesOfATierAreItsCapacity) {
  const auto session = h_.Open(7);
  const NamespaceId ns = h_.Register(session, ControlHarness::Descriptor());
  h_.Put(session, ns, {1, 2});
  const auto reserve = h_.Reserve(session, ns, {10, 11, 12});
  ASSERT_EQ(reserve->call.granted, 3u);
  const std::string text = MetricsText(Source());
  EXPECT_THAT(text, HasSubstr("\nkvd_tier_used_bytes{tier=\"dram\",state=\"committed\"} 8192\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_tier_used_bytes{tier=\"dram\",state=\"writing\"} 12288\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_tier_used_bytes{tier=\"dram\",state=\"quarantine\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_tier_used_bytes{tier=\"dram\",state=\"free\"} 241664\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_tier_capacity_bytes{tier=\"dram\"} 262144\n"));
}

TEST_F(ExpositionTest, DurationsAreSecondsAndBucketsAddUp) {
  auto& lookups = service_.ops[static_cast<size_t>(Op::kLookup)].duration;
  lookups.Observe(2'000);
  lookups.Observe(30'000);
  const std::string text = MetricsText(Source());
  const std::string name =
      "\nkvd_op_duration_seconds_bucket{op=\"lookup\",tier=\"dram\",transport=\"shm\",le=\"";
  EXPECT_THAT(text, HasSubstr(name + "1e-06\"} 0\n"));
  EXPECT_THAT(text, HasSubstr(name + "2.5e-06\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(name + "5e-05\"} 2\n"));
  EXPECT_THAT(text, HasSubstr(name + "10\"} 2\n"));
  EXPECT_THAT(text, HasSubstr(name + "+Inf\"} 2\n"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "\nkvd_op_duration_seconds_sum{op=\"lookup\",tier=\"dram\",transport=\"shm\"} 3.2"));
}

TEST_F(ExpositionTest, EventsHaveTheirFamiliesWhereSomebodyPublishes) {
  EXPECT_THAT(MetricsText(Source()), HasSubstr("\nkvd_announced_bytes 0\n"));
  EXPECT_THAT(MetricsText(Source()), Not(HasSubstr("kvd_events_")));
  EventMetrics events;
  events.stored = 5;
  events.dropped_messages = 2;
  events.snapshots = 3;
  MetricsSource source = Source();
  source.events = &events;
  const std::string text = MetricsText(source);
  EXPECT_THAT(text, HasSubstr("\nkvd_events_published_total{type=\"stored\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_events_dropped_messages_total 2\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_events_requests_total{outcome=\"snapshot\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_event_gaps_total 0\n"));
}

TEST_F(ExpositionTest, CallsAreToldApartByTheirWayIn) {
  const Nanos took = 20'000'000;
  gateway_.Answered(Op::kGet, 0, &took);
  gateway_.Answered(Op::kLookup, 8, nullptr);
  gateway_.Late(Op::kPin);
  ++service_.ops[static_cast<size_t>(Op::kLookup)].answers[0];
  const std::string text = MetricsText(Source());
  const auto answers = [](const char* op, const char* code, const char* transport, int count) {
    return absl::StrCat("\nkvd_op_answers_total{op=\"", op, "\",code=\"", code, "\",transport=\"",
                        transport, "\"} ", count, "\n");
  };
  EXPECT_THAT(text, HasSubstr(answers("get", "OK", "stream", 1)));
  EXPECT_THAT(text, HasSubstr(answers("lookup", "OK", "stream", 0)));
  EXPECT_THAT(text, HasSubstr(answers("lookup", "RESOURCE_EXHAUSTED", "stream", 1)));
  EXPECT_THAT(text, HasSubstr(answers("lookup", "OK", "shm", 1)));
  EXPECT_THAT(text, HasSubstr("\nkvd_op_duration_seconds_sum{op=\"get\",tier=\"dram\",transport="
                              "\"stream\"} 0.02\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_op_duration_seconds_count{op=\"lookup\",tier=\"dram\","
                              "transport=\"stream\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_deadline_exceeded_total{op=\"pin\",stage=\"arrival\","
                              "transport=\"stream\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("{op=\"put\",code=\"OK\",transport=\"shm\"}")));
}

TEST_F(ExpositionTest, StrangersAreCountedByWhatTheyLack) {
  strangers_.Count(Stranger::kSession);
  strangers_.Count(Stranger::kIdentity);
  strangers_.Count(Stranger::kIdentity);
  EXPECT_FALSE(h_.control.CheckSession("nobody's").ok());
  const std::string text = MetricsText(Source());
  EXPECT_THAT(text, HasSubstr("\nkvd_auth_failures_total{reason=\"session\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_auth_failures_total{reason=\"user\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_auth_failures_total{reason=\"certificate\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_auth_failures_total{reason=\"identity\"} 2\n"));
}

TEST_F(ExpositionTest, WhatIsNotCountedIsNotShown) {
  MetricsSource source = Source();
  source.count_operations = false;
  const std::string text = MetricsText(source);
  EXPECT_THAT(text, Not(HasSubstr("kvd_lookup_blocks_total")));
  EXPECT_THAT(text, Not(HasSubstr("kvd_op_duration_seconds")));
  EXPECT_THAT(text, HasSubstr("kvd_tier_capacity_bytes"));
}

TEST_F(ExpositionTest, NoSeriesIsThereTwice) {
  for (DomainId domain = 1; domain < 40; ++domain) h_.Open(domain);
  MetricsSource source = Source();
  // Whatever domains are called: a rule may take the name that stands for all others.
  source.tenant_name = [](DomainId domain) { return domain < 3 ? "_other" : "same"; };
  std::set<std::string> seen;
  for (const auto& family : CollectMetrics(source)) {
    EXPECT_TRUE(seen.insert(family.name).second) << family.name;
    for (const auto& metric : family.metric) {
      std::string series = family.name;
      for (const auto& label : metric.label) absl::StrAppend(&series, "|", label.value);
      EXPECT_TRUE(seen.insert(series + "{").second) << series;
    }
  }
}

TEST_F(ExpositionTest, LabelsAreNeitherKeysNorProcesses) {
  h_.Open(7);
  for (const auto& family : CollectMetrics(Source())) {
    for (const auto& metric : family.metric) {
      for (const auto& label : metric.label) {
        EXPECT_THAT(label.name, testing::AnyOf("tenant", "tier", "state", "outcome", "op", "code",
                                               "reason", "kind", "queue", "stage", "transport",
                                               "from", "to", "version", "protocol"));
      }
    }
  }
}

}  // namespace
}  // namespace kvd
