// Trace contexts, and what the log says of single calls.

#include "daemon/call_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "daemon/damage_log.h"
#include "daemon/trace_context.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kHeader = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceContextTest, ReadsWhatTheStandardShows) {
  const auto context = ParseTraceparent(kHeader);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(context->parent_id, "00f067aa0ba902b7");
  EXPECT_TRUE(context->sampled);
  EXPECT_FALSE(
      ParseTraceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")->sampled);
  EXPECT_TRUE(ParseTraceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0b")->sampled);
}

TEST(TraceContextTest, WhatIsNotWellFormedIsNone) {
  for (const std::string_view bad :
       {"", "00", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more"}) {
    EXPECT_FALSE(ParseTraceparent(bad).has_value()) << bad;
  }
}

TEST(TraceContextTest, OfAVersionToComeWhatIsKnownIsTaken) {
  const auto context =
      ParseTraceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more");
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
}

class CallLogTest : public testing::Test {
 protected:
  CallLogTest() { SetLevel(spdlog::level::info); }

  void SetLevel(spdlog::level::level_enum level) {
    logger_->set_pattern("%l %v");
    logger_->set_level(level);
  }
  static CallLog::Call Refused(std::string error, Nanos now = kSecond) {
    return {.op = Op::kLookup, .code = 3, .took = 14'000, .now = now, .error = std::move(error)};
  }

  std::ostringstream out_;
  std::shared_ptr<spdlog::logger> logger_ = std::make_shared<spdlog::logger>(
      "call", std::make_shared<spdlog::sinks::ostream_sink_mt>(out_));
  CallLog log_{logger_};
};

TEST_F(CallLogTest, ARefusedCallIsToldWithItsTrace) {
  CallLog::Call call = Refused("keys: at most \"many\"\n");
  call.trace = ParseTraceparent(kHeader);
  log_.Write(call);
  EXPECT_EQ(out_.str(),
            "info call.refused op=lookup code=INVALID_ARGUMENT duration_us=14 "
            "trace_id=4bf92f3577b34da6a3ce929d0e0e4736 parent_id=00f067aa0ba902b7 "
            "error=\"keys: at most \\\"many\\\"\\n\"\n");
}

TEST_F(CallLogTest, ASlowCallIsAWarningButNotAReserveThatMayWait) {
  EXPECT_TRUE(log_.Wants(Op::kCommit, 0, CallLog::kSlow));
  log_.Write({.op = Op::kCommit, .took = CallLog::kSlow, .now = kSecond});
  EXPECT_EQ(out_.str(), "warning call.slow op=commit code=OK duration_us=1000000\n");
  EXPECT_FALSE(log_.Wants(Op::kReserve, 0, CallLog::kSlow));
}

TEST_F(CallLogTest, AnOrdinaryCallIsToldOnlyAtDebugAndWithATrace) {
  CallLog::Call call{.op = Op::kLookup, .took = 21'000, .now = kSecond};
  EXPECT_FALSE(log_.Wants(call.op, call.code, call.took));
  SetLevel(spdlog::level::debug);
  EXPECT_TRUE(log_.Wants(call.op, call.code, call.took));
  log_.Write(call);
  EXPECT_THAT(out_.str(), IsEmpty());
  call.trace = ParseTraceparent(kHeader);
  log_.Write(call);
  EXPECT_THAT(out_.str(), HasSubstr("debug call.answered op=lookup code=OK duration_us=21 "
                                    "trace_id=4bf92f3577b34da6a3ce929d0e0e4736"));
}

TEST_F(CallLogTest, ManyRefusalsAreCountedInsteadOfTold) {
  for (int i = 0; i < 100; ++i) log_.Write(Refused("x", 5 * kSecond));
  const std::string first = out_.str();
  EXPECT_EQ(std::count(first.begin(), first.end(), '\n'), LineBudget::kLinesPerSecond);
  log_.Write(Refused("x", 6 * kSecond));
  EXPECT_THAT(out_.str().substr(first.size()), HasSubstr(" suppressed=90\n"));
}

TEST_F(CallLogTest, DamageIsALineThatSaysWhereItWasAndNotWhichKey) {
  DamageLog log(logger_, [](DomainId domain) { return absl::StrCat("uid:", domain); });
  Quarantined found{.number = 3,
                    .time = 5 * kSecond,
                    .domain = 7,
                    .ns = 2,
                    .id = {.group = 1, .shard = 4},
                    .on_nvme = true,
                    .region = 9,
                    .offset = 8192,
                    .length = 4096,
                    .found_by = FoundBy::kReclaim};
  found.key.bytes[0] = std::byte{0xab};
  log.Write(found);
  EXPECT_EQ(out_.str(),
            "error damage.found number=3 tier=nvme domain=uid:7 namespace=2 group=1 shard=4 "
            "segment=9 offset=8192 length=4096 found_by=reclaim "
            "action=\"it is a miss, and is computed again\"\n");
  found.on_nvme = false;
  for (int i = 0; i < 100; ++i) log.Write(found);
  const std::string all = out_.str();
  EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), 1 + LineBudget::kLinesPerSecond);
  EXPECT_THAT(all, HasSubstr("tier=dram domain=uid:7 namespace=2 group=1 shard=4 region=9"));
  found.time = 6 * kSecond;
  log.Write(found);
  EXPECT_THAT(out_.str().substr(all.size()), HasSubstr(" suppressed=90\n"));
}

TEST_F(CallLogTest, WhatAClientSentDoesNotMakeALongLine) {
  log_.Write(Refused(std::string(1u << 20, '\x01')));
  EXPECT_LT(out_.str().size(), 2048u);
}

}  // namespace
}  // namespace kvd
