// The names under which numbers are scraped: an interface that dashboards and alerts rely on.

#include "daemon/exposition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/nvme_stack.h"
#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::Not;

class ExpositionTest : public testing::Test {
 protected:
  explicit ExpositionTest(const ControlHarness::Options& options = {}) : h_(options) {}

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

// With a device of its own. The control harness has a tier that a test drives: what moved comes
// from there.
class NvmeExpositionTest : public ExpositionTest {
 protected:
  NvmeExpositionTest() : ExpositionTest(WithNvme()) {}
  static ControlHarness::Options WithNvme() {
    ControlHarness::Options options;
    options.nvme_bytes = 1u << 20;
    return options;
  }
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_), nullptr);
    Config config;
    config.nvme = {{.path = absl::StrCat(folder_, "/device"), .capacity_bytes = 64u << 20}};
    config.nvme_write_budget = uint64_t{1} << 30;
    auto opened = NvmeStack::Open(config, absl::StrCat(folder_, "/index"), {}, h_.clock, [] {});
    ASSERT_TRUE(opened.ok()) << opened.status();
    nvme_ = *std::move(opened);
  }
  void TearDown() override {
    nvme_.reset();
    std::filesystem::remove_all(folder_);
  }
  std::string Text() {
    MetricsSource source = Source();
    source.nvme = nvme_.get();
    return MetricsText(source);
  }

  char folder_[32] = "/tmp/kvd-exposition-XXXXXX";
  std::unique_ptr<NvmeStack> nvme_;
};

TEST_F(NvmeExpositionTest, WhatMovesIsCountedByHow) {
  const auto session = h_.Open(7);
  const NamespaceId ns = h_.Register(session, ControlHarness::Descriptor());
  for (uint64_t chain = 0; chain < 10; ++chain) {
    h_.Put(session, ns, KeysFrom(chain * 100, 8));
    do h_.control.Poll();
    while (h_.nvme.EndAll() > 0);
  }
  const MovementCounters& m = h_.control.metrics().movement;
  ASSERT_GT(m.demoted_blocks, 0u);
  const std::string text = Text();
  const auto expect = [&text](const std::string& series, uint64_t value) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("\n", series, " ", value, "\n")));
  };
  expect("kvd_demotion_blocks_total{outcome=\"written\"}", m.demoted_blocks);
  expect("kvd_demotion_blocks_total{outcome=\"clean\"}", m.clean_blocks);
  expect("kvd_demotion_blocks_total{outcome=\"lost\"}", 0);
  expect("kvd_transfer_bytes_total{from=\"dram\",to=\"nvme\",reason=\"demote\"}",
         m.written_blocks * 4096);
  expect("kvd_op_duration_seconds_count{op=\"nvme_write\",tier=\"nvme\",transport=\"device\"}",
         m.written_blocks);
  expect("kvd_evicted_blocks_total{tier=\"nvme\",reason=\"pressure\"}", 0);
  expect("kvd_load_waits_total{outcome=\"waited\"}", 0);
}

TEST_F(NvmeExpositionTest, ABudgetShowsWhatIsLeftOfIt) {
  const std::string left = "\nkvd_nvme_write_budget_remaining_bytes ";
  EXPECT_THAT(Text(), HasSubstr(absl::StrCat(left, WriteBudget::kLeastBurst, "\n")));
  ASSERT_TRUE(
      nvme_->admission().Admit({.uses = 255, .blocks = 1, .bytes = 1u << 20}, h_.clock.Now()));
  nvme_->Publish();
  EXPECT_THAT(Text(), HasSubstr(absl::StrCat(left, WriteBudget::kLeastBurst - (1u << 20), "\n")));
  EXPECT_THAT(Text(), HasSubstr("\nkvd_admission_bytes_total{outcome=\"admitted\"} 1048576\n"));
}

TEST_F(NvmeExpositionTest, AnEmptyDeviceHasRoomAndNothingLive) {
  const NvmeNumbers::Device& device = *nvme_->numbers().devices[0];
  ASSERT_GT(device.capacity_bytes, 0u);
  const std::string text = Text();
  EXPECT_THAT(text,
              HasSubstr(absl::StrCat("\nkvd_nvme_device_capacity_bytes{device=\"", device.name,
                                     "\"} ", uint64_t{device.capacity_bytes}, "\n")));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("\nkvd_nvme_device_live_bytes{device=\"", device.name,
                                           "\"} 0\n")));
  EXPECT_THAT(
      text, HasSubstr(absl::StrCat("\nkvd_segment_live_ratio{device=\"", device.name, "\"} 0\n")));
}

TEST_F(ExpositionTest, DamageIsToldApartByTierAndFinder) {
  const auto session = h_.Open(7);
  const NamespaceId ns = h_.Register(session, ControlHarness::Descriptor());
  h_.Put(session, ns, {1, 2});
  const auto load = h_.Load(session, ns, {1, 2});
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 1));
  h_.ReportDamage(session, load->call.cursor.hold, {1});
  h_.mover.CompleteAll();
  h_.control.Poll();
  std::string text = MetricsText(Source());
  EXPECT_THAT(text,
              HasSubstr("\nkvd_checksum_failures_total{tier=\"dram\",found_by=\"client\"} 1\n"));
  EXPECT_THAT(text,
              HasSubstr("\nkvd_checksum_failures_total{tier=\"dram\",found_by=\"scrubber\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_get_blocks_total{tier=\"dram\",outcome=\"checksum\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("kvd_checksum_failures_total{tier=\"nvme\"")));
  // The other one is looked at by an operator.
  const auto run = h_.control.BeginVerify(0, {});
  ASSERT_TRUE(run.ok());
  while (!h_.control.ContinueVerify(*run)->done) {
    h_.mover.CompleteAll();
    h_.control.Poll();
  }
  text = MetricsText(Source());
  EXPECT_THAT(text, HasSubstr("\nkvd_scrub_bytes_total{tier=\"dram\"} 4096\n"));
  EXPECT_THAT(text, HasSubstr("\nkvd_scrub_parts_total{tier=\"dram\",outcome=\"checked\"} 1\n"));
}

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
                                               "from", "to", "version", "protocol", "found_by"));
      }
    }
  }
}

}  // namespace
}  // namespace kvd
