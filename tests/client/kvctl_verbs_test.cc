// Every verb against a real gRPC server with answers of our own: what is printed, what is asked of
// the daemon, and the exit status.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "client/kvctl/verbs.h"
#include "tests/client/fake_admin.h"

namespace kvd::kvctl {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

long Lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

class KvctlTest : public testing::Test {
 protected:
  KvctlTest() {
    char name[] = "/tmp/kvctl-test-XXXXXX";
    folder_ = mkdtemp(name);
    path_ = folder_ + "/kvd.sock";
    daemon_ = std::make_unique<FakeAdmin>(path_);
    daemon_->status.set_version("9.9");
    daemon_->status.set_pid(42);
    daemon_->status.set_uptime_ms(274'000'000);
    daemon_->status.set_endpoint("unix:" + path_);
    daemon_->status.set_page_kind("hugetlb 2 MiB");
    SetCounter("lookups", 10);
    SetCounter("lookup_blocks", 1000);
    SetCounter("lookup_hit_blocks", 676);
    v1::TierStatus& dram = *daemon_->tiers.add_tiers();
    dram.set_name("dram");
    dram.set_state("online");
    dram.set_capacity_bytes(4u << 20);
    dram.set_reserved_bytes(1u << 20);
    dram.set_blocks(12'345);
  }
  ~KvctlTest() override {
    daemon_.reset();
    std::filesystem::remove_all(folder_);
  }

  void SetCounter(const std::string& name, uint64_t value) {
    v1::Counter& counter = *daemon_->status.add_counters();
    counter.set_name(name);
    counter.set_value(value);
  }
  v1::BlockStatus& AddBlock(const std::string& key, uint32_t space = 1) {
    v1::BlockStatus& block = daemon_->blocks.emplace_back();
    block.set_key(key);
    block.set_namespace_id(space);
    block.set_domain("uid:1000");
    block.set_state("visible");
    block.set_depth(37);
    block.set_bytes(2u << 20);
    return block;
  }

  // One run; what it said is in out_ and err_.
  int Run(std::vector<std::string> arguments) {
    out_.str("");
    err_.str("");
    Environment environment{.out = out_,
                            .err = err_,
                            .in = in_,
                            .in_is_terminal = terminal_,
                            .out_is_terminal = terminal_,
                            .no_color = no_color_,
                            .default_endpoint = "unix:" + path_,
                            .pause = [this](absl::Duration) { return pauses_-- > 0; }};
    return RunKvctl(environment, std::move(arguments));
  }
  std::string out() const { return out_.str(); }
  std::string err() const { return err_.str(); }
  json Json() const { return json::parse(out(), nullptr, /*allow_exceptions=*/false); }

  std::string folder_;
  std::string path_;
  std::unique_ptr<FakeAdmin> daemon_;
  bool terminal_ = false;
  bool no_color_ = false;
  int pauses_ = 100;
  std::istringstream in_;
  std::ostringstream out_;
  std::ostringstream err_;
};

// ---- status, tiers, version ---------------------------------------------------------------------

TEST_F(KvctlTest, StatusIsOnePage) {
  EXPECT_EQ(Run({"status"}), kOk) << err();
  EXPECT_THAT(out(), StartsWith("kvd 9.9   pid 42   up 3d 04h"));
  EXPECT_THAT(out(), HasSubstr("HEALTHY"));
  EXPECT_THAT(out(), HasSubstr("67.6% of the blocks asked for since start (10 lookups)"));
  EXPECT_THAT(out(), HasSubstr("dram  online  1.0 MiB   4.0 MiB  25.0%  12,345"));
  EXPECT_LE(Lines(out()), 24);
}

TEST_F(KvctlTest, StatusWithProblemsSaysThemAndExitsThree) {
  v1::Problem& problem = *daemon_->status.add_problems();
  problem.set_code("KVD1001");
  problem.set_severity("warn");
  problem.set_message("the arena has small pages");
  EXPECT_EQ(Run({"status"}), kDegraded);
  EXPECT_THAT(out(), HasSubstr("WARNING (1)"));
  EXPECT_THAT(out(), HasSubstr("WARN KVD1001 the arena has small pages"));
  EXPECT_EQ(Run({"status", "-o", "json"}), kDegraded);
  EXPECT_EQ(Json()["healthy"], false);
  EXPECT_EQ(Json()["problems"][0]["code"], "KVD1001");
}

TEST_F(KvctlTest, StatusShowsTenantsAndLatencies) {
  v1::DomainUse& use = *daemon_->status.add_domains();
  use.set_domain("search");
  use.set_lookup_blocks(200);
  use.set_hit_blocks(100);
  v1::OpLatency& lookup = *daemon_->status.add_latencies();
  lookup.set_op("lookup");
  lookup.set_calls(4812);
  lookup.set_p50_us(61);
  lookup.set_p99_us(4200);
  EXPECT_EQ(Run({"status"}), kOk);
  EXPECT_THAT(out(), HasSubstr("lookup     4,812  61 us  4.2 ms"));
  EXPECT_THAT(out(), testing::ContainsRegex("search +0 +0 +50.0%"));
}

// The keys of version 1. A key that goes or changes its meaning needs a new schema_version.
TEST_F(KvctlTest, StatusJsonKeepsItsKeys) {
  EXPECT_EQ(Run({"status", "-o", "json"}), kOk);
  const json page = Json();
  ASSERT_TRUE(page.is_object()) << out();
  std::vector<std::string> keys;
  for (const auto& [key, value] : page.items()) keys.push_back(key);
  EXPECT_THAT(keys, testing::IsSupersetOf({"schema_version",
                                           "version",
                                           "protocol_version",
                                           "pid",
                                           "uptime_ms",
                                           "endpoint",
                                           "policy",
                                           "page_kind",
                                           "copy_loops",
                                           "blocks",
                                           "blocks_capacity",
                                           "stubs",
                                           "sessions",
                                           "namespaces",
                                           "leases",
                                           "pins",
                                           "holds",
                                           "held_bytes",
                                           "reservations",
                                           "quarantined_bytes",
                                           "memory_beside_arena_bytes",
                                           "counters",
                                           "metrics",
                                           "tcp",
                                           "draining",
                                           "problems",
                                           "traffic",
                                           "latencies",
                                           "domains",
                                           "hit_ratio",
                                           "healthy"}));
  EXPECT_EQ(page["schema_version"], 1);
  EXPECT_DOUBLE_EQ(page["hit_ratio"], 0.676);
  EXPECT_EQ(page["counters"]["lookups"], 10);
}

TEST_F(KvctlTest, TiersJsonIsExactlyThis) {
  EXPECT_EQ(Run({"tiers", "-o", "json"}), kOk);
  EXPECT_EQ(out(), R"({
  "schema_version": 1,
  "tiers": [
    {
      "name": "dram",
      "state": "online",
      "capacity_bytes": 4194304,
      "reserved_bytes": 1048576,
      "blocks": 12345,
      "regions": 0,
      "regions_free": 0,
      "region_bytes": 0
    }
  ],
  "moves_in_flight": 0
}
)");
}

TEST_F(KvctlTest, YamlHoldsWhatJsonHolds) {
  daemon_->tiers.mutable_tiers(0)->set_state("no: \"1e3\"\n");  // A trap for both.
  EXPECT_EQ(Run({"tiers", "-o", "yaml"}), kOk);
  const YAML::Node page = YAML::Load(out());
  EXPECT_EQ(page["schema_version"].as<int>(), 1);
  EXPECT_EQ(page["tiers"][0]["state"].as<std::string>(), "no: \"1e3\"\n");
  EXPECT_EQ(page["tiers"][0]["capacity_bytes"].as<uint64_t>(), 4u << 20);
}

TEST_F(KvctlTest, VersionNamesBothPrograms) {
  EXPECT_EQ(Run({"version"}), kOk);
  EXPECT_THAT(out(), HasSubstr("kvd   9.9"));
  daemon_->Stop();
  EXPECT_EQ(Run({"version", "-o", "json"}), kUnreachable);
  EXPECT_TRUE(Json()["daemon"].is_null()) << out();
  EXPECT_EQ(Run({"version", "--client"}), kOk);
}

// ---- blocks -------------------------------------------------------------------------------------

TEST_F(KvctlTest, LsGoesThroughAllPages) {
  for (const char* key : {"aaaaaaaaaa", "abbbbbbbbb", "bbbbbbbbbb", "acccccccc"}) AddBlock(key);
  EXPECT_EQ(Run({"ls", "-o", "json"}), kOk);
  EXPECT_EQ(Json()["blocks"].size(), 4);
  EXPECT_EQ(Json()["more"], false);
  EXPECT_EQ(Json()["blocks"][0]["key"], "61616161616161616161");
}

TEST_F(KvctlTest, LsMatchesHalfAByte) {
  AddBlock("\x61\x1f");
  AddBlock("\x61\x2f");
  EXPECT_EQ(Run({"ls", "612", "-o", "json"}), kOk);
  ASSERT_EQ(Json()["blocks"].size(), 1);
  EXPECT_EQ(Json()["blocks"][0]["key"], "612f");
}

TEST_F(KvctlTest, LsSaysWhenItLeavesOut) {
  for (const char* key : {"a", "b", "c"}) AddBlock(key);
  EXPECT_EQ(Run({"ls", "--limit", "2"}), kOk);
  EXPECT_THAT(err(), HasSubstr("the first 2"));
  EXPECT_EQ(Run({"ls", "--limit", "0"}), kOk);
  EXPECT_EQ(err(), "");
}

TEST_F(KvctlTest, InspectShowsEveryPart) {
  v1::PartStatus& part = *AddBlock("\x7b\xe1\xc0\x9d").add_parts();
  part.set_tier("dram");
  part.set_crc32c(0xabc);
  part.set_offset(4096);
  EXPECT_EQ(Run({"inspect", "7be1c"}), kOk) << err();
  EXPECT_THAT(out(), HasSubstr("key 7be1c09d"));
  EXPECT_THAT(out(), HasSubstr("00000abc"));
}

TEST_F(KvctlTest, WhatIsNotThereExitsFive) {
  EXPECT_EQ(Run({"inspect", "7be1c09d"}), kNotFound);
  EXPECT_THAT(err(), HasSubstr("begins with 7be1c09d"));
  EXPECT_EQ(Run({"unpin", "dead"}), kNotFound);
  EXPECT_EQ(Run({"namespaces", "drop", "77", "--yes"}), kNotFound);
  EXPECT_EQ(Run({"flush", "hbm", "--yes"}), kNotFound);
  EXPECT_EQ(Run({"config", "get", "nope"}), kNotFound);
}

TEST_F(KvctlTest, PinFindsTheBlockByTheStartOfItsKey) {
  AddBlock("\x7b\xe1\xc0\x9d", 3);
  EXPECT_EQ(Run({"pin", "7be1", "--owner", "me", "--ttl", "10m", "--budget", "1GiB"}), kOk)
      << err();
  EXPECT_EQ(daemon_->pin.key(), "\x7b\xe1\xc0\x9d");
  EXPECT_EQ(daemon_->pin.namespace_id(), 3);
  EXPECT_EQ(daemon_->pin.ttl_ms(), 600'000);
  EXPECT_EQ(daemon_->pin.budget_bytes(), 1u << 30);
  EXPECT_EQ(daemon_->pin.owner(), "me");
  EXPECT_EQ(out(), "pin 00000000000004d2: 37 blocks, 37.0 MiB, for 10m\n");
  EXPECT_EQ(Run({"unpin", "00000000000004d2"}), kOk) << err();
  EXPECT_EQ(daemon_->unpin.pin_id(), 0x4d2);
}

TEST_F(KvctlTest, ABlockThatIsNotNamedWellEnoughIsLeftAlone) {
  AddBlock("\x7b\xe1\x01");
  AddBlock("\x7b\xe1\x02");
  EXPECT_EQ(Run({"evict", "7be1", "--yes"}), kUsage);
  EXPECT_THAT(err(), HasSubstr("7be101"));
  EXPECT_THAT(daemon_->calls, Not(Contains("Evict")));
  EXPECT_EQ(Run({"evict", "7be102", "--yes"}), kOk);
  EXPECT_EQ(daemon_->evict.key(), "\x7b\xe1\x02");
  EXPECT_THAT(out(), HasSubstr("evicted 3 blocks, kept 1"));
}

// ---- asking before destroying -------------------------------------------------------------------

TEST_F(KvctlTest, VerifyGoesOnUntilAllIsCheckedAndTellsDamageByItsExitCode) {
  v1::VerifyReply reply;
  reply.set_run(17);
  reply.set_blocks(3);
  daemon_->verified.push_back(reply);
  reply.set_parts(6);
  reply.set_bytes(6u << 20);
  reply.set_done(true);
  daemon_->verified.push_back(reply);
  EXPECT_EQ(Run({"verify", "--namespace", "3"}), kOk) << err();
  EXPECT_EQ(out(), "checked 6 parts (6.0 MiB) of 3 blocks: all are as they were stored\n");
  ASSERT_EQ(daemon_->verify.size(), 2u);
  EXPECT_EQ(daemon_->verify[0].run(), 0u);
  EXPECT_EQ(daemon_->verify[0].namespace_id(), 3u);
  EXPECT_EQ(daemon_->verify[1].run(), 17u);

  daemon_->verified.back().set_damaged(2);
  AddBlock("\x7b\xe1\xc0\x9d", 4);
  EXPECT_EQ(Run({"verify", "7be1"}), kDegraded);
  EXPECT_THAT(out(), HasSubstr("2 damaged"));
  EXPECT_EQ(daemon_->verify.back().key(), "\x7b\xe1\xc0\x9d");
  EXPECT_EQ(daemon_->verify.back().namespace_id(), 4u);
}

TEST_F(KvctlTest, QuarantineListsWhatWasFoundDamaged) {
  v1::QuarantineEntry& entry = *daemon_->quarantine.add_entries();
  entry.set_key("\x7b\xe1\xc0\x9d");
  entry.set_tier("nvme");
  entry.set_region(12);
  entry.set_found_by("scrubber");
  daemon_->quarantine.set_total(5);
  EXPECT_EQ(Run({"quarantine"}), kOk) << err();
  EXPECT_THAT(out(), HasSubstr("7be1c09d"));
  EXPECT_THAT(out(), HasSubstr("nvme"));
  EXPECT_THAT(err(), HasSubstr("the last of 5"));
}

TEST_F(KvctlTest, DestructiveVerbsDoNothingWithoutATerminalOrYes) {
  AddBlock("\x7b\xe1\x01");
  daemon_->namespaces.add_namespaces()->set_namespace_id(3);
  const std::vector<std::string> verbs[] = {
      {"evict", "7be1"}, {"flush", "dram"}, {"namespaces", "drop", "3"}, {"drain"}};
  for (const auto& verb : verbs) {
    EXPECT_EQ(Run(verb), kUsage) << verb[0];
    EXPECT_THAT(err(), HasSubstr("--yes"));
  }
  EXPECT_TRUE(daemon_->calls.empty()) << testing::PrintToString(daemon_->calls);
}

TEST_F(KvctlTest, OnATerminalTheyAsk) {
  terminal_ = true;
  daemon_->namespaces.add_namespaces()->set_namespace_id(3);
  in_.str("n\n");
  EXPECT_EQ(Run({"namespaces", "drop", "3"}), kError);
  EXPECT_THAT(err(), HasSubstr("Drop namespace 3"));
  EXPECT_THAT(err(), HasSubstr("nothing was done"));
  EXPECT_THAT(daemon_->calls, Not(Contains("DropNamespace")));
  in_.clear();
  in_.str("Yes\n");
  EXPECT_EQ(Run({"namespaces", "drop", "3"}), kOk);
  EXPECT_EQ(daemon_->drop.namespace_id(), 3);
  in_.clear();
  in_.str("");  // End of file is no yes.
  EXPECT_EQ(Run({"flush", "dram"}), kError);
  EXPECT_THAT(daemon_->calls, Not(Contains("Flush")));
}

// ---- tenants ------------------------------------------------------------------------------------

TEST_F(KvctlTest, LeasesCanBeFilteredAndTellPinsApart) {
  for (int i = 0; i < 5; ++i) {
    v1::LeaseStatus& lease = daemon_->leases.emplace_back();
    lease.set_lease_id(0xfeedfacecafe0000 + static_cast<uint64_t>(i));
    lease.set_kind(i == 4 ? "pin" : "lease");
    lease.set_domain(i % 2 == 0 ? "a" : "b");
    lease.set_owner(i == 4 ? "evil\x1b[31m" : "");
  }
  EXPECT_EQ(Run({"leases", "-o", "json"}), kOk);
  EXPECT_EQ(Json()["leases"].size(), 5);
  EXPECT_EQ(Json()["leases"][0]["lease_id"], "feedfacecafe0000");  // No number can hold it.
  EXPECT_EQ(Run({"leases", "--domain", "b", "-o", "json"}), kOk);
  EXPECT_EQ(Json()["leases"].size(), 2);
  EXPECT_EQ(Run({"leases", "--kind", "pin"}), kOk);
  EXPECT_THAT(out(), HasSubstr("evil?[31m"));  // A client named it; the terminal is ours.
}

TEST_F(KvctlTest, SessionsAndNamespacesAreTables) {
  v1::SessionStatus& session = *daemon_->sessions.add_sessions();
  session.set_serial(5);
  session.set_domain("uid:1000");
  session.set_pid(4411);
  session.set_age_ms(2100);
  session.set_ended(true);
  EXPECT_EQ(Run({"sessions"}), kOk);
  EXPECT_THAT(out(), HasSubstr("4411  2.1 s"));
  EXPECT_THAT(out(), HasSubstr("ended, holds"));
  v1::NamespaceStatus& space = *daemon_->namespaces.add_namespaces();
  space.mutable_describes()->set_model("qwen3-32b");
  v1::Group& group = *space.mutable_describes()->add_groups();
  group.set_kind(v1::GROUP_KIND_WINDOW);
  group.set_window_tokens(4096);
  group.set_shards(2);
  group.set_part_bytes(1u << 20);
  EXPECT_EQ(Run({"namespaces"}), kOk);
  EXPECT_THAT(out(), HasSubstr("qwen3-32b"));
  EXPECT_THAT(out(), HasSubstr("window 4096 2x1.0 MiB"));
  EXPECT_EQ(Run({"namespaces", "-o", "json"}), kOk);
  EXPECT_EQ(Json()["namespaces"][0]["describes"]["groups"][0]["kind"], "window");
}

// ---- life ---------------------------------------------------------------------------------------

TEST_F(KvctlTest, DrainWaitsUntilTheDaemonHasEnded) {
  daemon_->stop_on_drain = true;
  EXPECT_EQ(Run({"drain", "--yes", "--drain-timeout", "5s"}), kOk) << err();
  EXPECT_TRUE(daemon_->drain.exit());
  EXPECT_EQ(daemon_->drain.timeout_ms(), 5000);
  EXPECT_THAT(out(), HasSubstr("the daemon has ended"));
}

TEST_F(KvctlTest, DrainThatStaysCanBeTakenBack) {
  EXPECT_EQ(Run({"drain", "--yes", "--stay", "-o", "json"}), kOk);
  EXPECT_FALSE(daemon_->drain.exit());
  EXPECT_EQ(Json()["holds"], 2);
  EXPECT_EQ(Run({"undrain"}), kOk);
  EXPECT_THAT(daemon_->calls, ElementsAre("Drain", "Undrain"));
}

TEST_F(KvctlTest, EventsArePrintedOneByOneAndGapsAreSaid) {
  for (const uint64_t sequence : {7, 8, 12}) {
    v1::Event& event = daemon_->events.emplace_back();
    event.set_sequence(sequence);
    event.set_kind(sequence == 8 ? "stored" : "evicted");
    event.set_key("abcdefgh");
  }
  EXPECT_EQ(Run({"events", "--from", "7"}), kOk);
  EXPECT_EQ(daemon_->events_request.from_sequence(), 7);
  EXPECT_THAT(out(), HasSubstr("7 evicted key=6162636465666768"));
  EXPECT_THAT(err(), HasSubstr("3 events before this one were forgotten"));
  EXPECT_EQ(Run({"events", "--kind", "stored", "-o", "json"}), kOk);
  EXPECT_EQ(Json()["sequence"], 8);  // One document, on one line.
  EXPECT_EQ(Lines(out()), 1);
}

TEST_F(KvctlTest, ConfigTellsWhereValuesComeFromAndWhatAReloadDid) {
  v1::ConfigEntry& entry = *daemon_->config.add_entries();
  entry.set_name("dram");
  entry.set_value("64GiB");
  entry.set_source("file");
  EXPECT_EQ(Run({"config", "get", "dram"}), kOk);
  EXPECT_THAT(out(), HasSubstr("dram    64GiB  file  no"));
  daemon_->reloaded.add_changed("log_level");
  daemon_->reloaded.add_needs_restart("dram");
  EXPECT_EQ(Run({"config", "reload"}), kOk);
  EXPECT_THAT(out(), HasSubstr("now in force: log_level"));
  EXPECT_THAT(out(), HasSubstr("needs a restart: dram"));
  daemon_->reload_status = {grpc::StatusCode::INVALID_ARGUMENT, "kvd.toml:3: dram: no size"};
  EXPECT_EQ(Run({"config", "reload"}), kError);  // The file is wrong, not this command line.
  EXPECT_THAT(err(), HasSubstr("kvd.toml:3"));
}

// ---- errors, colours, repetition ----------------------------------------------------------------

TEST_F(KvctlTest, TheNearestWordIsNamed) {
  const std::pair<std::vector<std::string>, const char*> mistakes[] = {
      {{"statsu"}, "kvctl: statsu: no such verb; the nearest is status\n"},
      {{"explode"}, "kvctl: explode: no such verb; see kvctl --help\n"},
      {{"namespaces", "dorp", "3"}, "kvctl: dorp: no such verb; the nearest is drop\n"},
      {{"tiers", "--outptu=json"},
       "kvctl: --outptu=json: no such option; the nearest is --output\n"},
      {{"leases", "--knid", "pin"}, "kvctl: --knid: no such option; the nearest is --kind\n"}};
  for (const auto& [mistake, said] : mistakes) {
    EXPECT_EQ(Run(mistake), kUsage) << mistake.back();
    EXPECT_EQ(err(), said);
    EXPECT_EQ(out(), "");
  }
}

TEST_F(KvctlTest, MistakesOnTheCommandLineExitTwo) {
  const std::vector<std::string> mistakes[] = {
      {},
      {"explode"},
      {"status", "-o", "xml"},
      {"status", "--endpoint", "localhost:1"},
      {"status", "--endpoint", "unix:" + std::string(200, 'x')},
      {"status", "--watch=never"},
      {"status", "--timeout", "soon"},
      {"inspect"},
      {"inspect", "xyz"},
      {"inspect", "7b"},
      {"pin", "7be1", "--owner", "me", "--ttl", "3 parsecs"},
      {"pin", "7be1", "--owner", "me", "--budget", "much"},
      {"pin", "7be1"},
      {"unpin", "pin-7"},
      {"leases", "--kind", "wish"},
      {"config"},
      {"completion", "tcsh"},
      {"drain", "--yes", "--watch"}};
  for (const auto& mistake : mistakes) {
    EXPECT_EQ(Run(mistake), kUsage) << testing::PrintToString(mistake);
    EXPECT_EQ(out(), "") << testing::PrintToString(mistake);
    EXPECT_NE(err(), "") << testing::PrintToString(mistake);
  }
  EXPECT_TRUE(daemon_->calls.empty());
}

TEST_F(KvctlTest, NobodyThereExitsFourAndSaysWhy) {
  EXPECT_EQ(Run({"status", "--endpoint", "unix:" + folder_ + "/nobody"}), kUnreachable);
  EXPECT_THAT(err(), HasSubstr("there is no socket"));
  daemon_->Stop();
  EXPECT_EQ(Run({"status"}), kUnreachable);
  EXPECT_EQ(out(), "");
}

TEST_F(KvctlTest, ErrorsOfTheDaemonHaveTheirExitStatus) {
  daemon_->everything = {grpc::StatusCode::RESOURCE_EXHAUSTED, "pins: 4096 are all"};
  EXPECT_EQ(Run({"status"}), kError);
  EXPECT_EQ(err(), "kvctl: pins: 4096 are all\n");
  daemon_->everything = {grpc::StatusCode::UNIMPLEMENTED, ""};
  EXPECT_EQ(Run({"sessions"}), kError);
  EXPECT_THAT(err(), HasSubstr("older than this kvctl"));
}

TEST_F(KvctlTest, ColoursAreForTerminalsThatWantThem) {
  const std::string escape = "\x1b[";
  EXPECT_EQ(Run({"tiers"}), kOk);
  EXPECT_THAT(out(), Not(HasSubstr(escape)));
  EXPECT_EQ(Run({"tiers", "--color", "always"}), kOk);
  EXPECT_THAT(out(), HasSubstr(escape));
  terminal_ = true;
  EXPECT_EQ(Run({"tiers"}), kOk);
  EXPECT_THAT(out(), HasSubstr(escape));
  EXPECT_EQ(Run({"tiers", "--color", "never"}), kOk);
  EXPECT_THAT(out(), Not(HasSubstr(escape)));
  no_color_ = true;
  EXPECT_EQ(Run({"tiers"}), kOk);
  EXPECT_THAT(out(), Not(HasSubstr(escape)));
}

TEST_F(KvctlTest, WatchAsksAgainAndOutlivesTheDaemon) {
  pauses_ = 2;
  EXPECT_EQ(Run({"tiers", "--watch"}), kOk);
  EXPECT_THAT(daemon_->calls, ElementsAre("Tiers", "Tiers", "Tiers"));
  daemon_->Stop();
  pauses_ = 2;
  EXPECT_EQ(Run({"tiers", "--watch=0.5"}), kUnreachable);
  EXPECT_EQ(Lines(err()), 3);
}

TEST_F(KvctlTest, EveryVerbHasHelpWithExamples) {
  for (const char* verb : {"status", "top", "tiers", "ls", "inspect", "pin", "unpin", "evict",
                           "leases", "sessions", "namespaces", "flush", "drain", "undrain",
                           "events", "config", "version", "doctor", "completion"}) {
    EXPECT_EQ(Run({verb, "--help"}), kOk) << verb;
    EXPECT_THAT(out(), HasSubstr("Examples\n  ")) << verb;
    EXPECT_THAT(out(), HasSubstr("kvctl " + std::string(verb))) << verb;
  }
}

TEST_F(KvctlTest, TopWithoutATerminalIsOnePicture) {
  EXPECT_EQ(Run({"top"}), kOk);
  EXPECT_THAT(out(), HasSubstr("kvd 9.9   HEALTHY"));
  EXPECT_THAT(out(), HasSubstr("25.0% of 4.0 MiB"));
  EXPECT_THAT(out(), Not(HasSubstr("\x1b")));
  EXPECT_EQ(Run({"top", "-o", "json"}), kOk);
  EXPECT_EQ(Json()["tiers"][0]["name"], "dram");
  EXPECT_TRUE(Json()["hit_ratio_now"].is_null());  // Nothing was asked in between.
  daemon_->Stop();
  EXPECT_EQ(Run({"top"}), kUnreachable);
}

TEST_F(KvctlTest, DoctorLooksAtTheMachineWithoutADaemonToo) {
  EXPECT_NE(Run({"doctor", "-o", "json"}), kUsage);
  const json all = Json();
  ASSERT_TRUE(all.is_object()) << out();
  EXPECT_EQ(all["findings"].size(),
            all["ok"].get<size_t>() + all["warn"].get<size_t>() + all["fail"].get<size_t>());
  daemon_->Stop();
  EXPECT_EQ(Run({"doctor"}), kDegraded);
  EXPECT_THAT(out(), HasSubstr("FAIL  daemon"));
  EXPECT_THAT(out(), HasSubstr("seals"));
}

}  // namespace
}  // namespace kvd::kvctl
