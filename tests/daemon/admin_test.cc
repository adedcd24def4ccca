// The operator's service through a real gRPC client: that turns become whole answers, that cursors
// page, and what streams of events promise. What verbs do to blocks is in control_admin_test.cc.

#include "daemon/admin.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "proto/admin.grpc.pb.h"
#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;
using Stub = v1::Admin::Stub;

constexpr absl::Duration kPatience = absl::Seconds(20);

// A control thread without a service: it polls when it is woken, and does what a test asks.
class ControlThread {
 public:
  explicit ControlThread(const ControlHarness::Options& options) {
    absl::Notification ready;
    thread_ = std::thread([&, this] { Run(options, ready); });
    ready.WaitForNotification();
  }
  ~ControlThread() {
    Post(nullptr);
    thread_.join();
  }

  // Runs `act` on the control thread, between two polls.
  void Do(const std::function<void(ControlHarness&)>& act) {
    absl::Notification done;
    Post([&](ControlHarness& h) {
      act(h);
      done.Notify();
    });
    done.WaitForNotification();
  }
  Inbox& inbox() { return harness_->inbox; }
  EventRing& events() { return harness_->control.events(); }

 private:
  using Act = std::function<void(ControlHarness&)>;

  void Post(Act act) {
    absl::MutexLock lock(&mu_);
    acts_.push_back(std::move(act));
  }
  void Run(const ControlHarness::Options& options, absl::Notification& ready) {
    ControlHarness harness(options);
    harness_ = &harness;
    harness.inbox.SetWake([this] {
      absl::MutexLock lock(&mu_);
      woken_ = true;
    });
    ready.Notify();
    while (true) {
      std::vector<Act> acts;
      {
        absl::MutexLock lock(&mu_, absl::Condition(this, &ControlThread::HasWork));
        woken_ = false;
        acts.swap(acts_);
      }
      harness.control.Poll();
      for (const Act& act : acts) {
        if (act == nullptr) {
          harness.inbox.SetWake(nullptr);
          return;
        }
        act(harness);
        harness.control.Poll();
      }
    }
  }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return woken_ || !acts_.empty(); }

  absl::Mutex mu_;
  std::vector<Act> acts_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  ControlHarness* harness_ = nullptr;
  std::thread thread_;
};

class AdminTest : public testing::Test {
 protected:
  explicit AdminTest(const ControlHarness::Options& options = {}) : control_(options) {
    char name[] = "/tmp/kvd-admin-XXXXXX";
    folder_ = mkdtemp(name);
    WriteConfig("log_level = \"info\"\n");
    config_ = std::make_unique<ConfigReloader>(
        LoadConfig(folder_ + "/kvd.toml", {}, MemoryLimit{}).config, [this](const Config&) {
          control_.Do([](ControlHarness& h) { h.control.ConfigReloaded(); });
        });
    auto server = AdminServer::Start(
        control_.inbox(), control_.events(),
        {.path = folder_ + "/admin", .endpoint = "unix:/test", .config = config_.get()});
    KVD_CHECK(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::Admin::NewStub(
        grpc::CreateChannel("unix:" + folder_ + "/admin", grpc::InsecureChannelCredentials()));
    control_.Do([this](ControlHarness& h) {
      session_ = h.Open(1);
      ns_ = h.Register(session_, ControlHarness::Descriptor());
    });
  }
  ~AdminTest() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  template <typename Request, typename Reply>
  grpc::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                    const Request& request, Reply* reply) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
    return (stub_.get()->*method)(&context, request, reply);
  }
  template <typename Request, typename Reply>
  Reply Ask(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
            const Request& request = {}) {
    Reply reply;
    const grpc::Status status = Call(method, request, &reply);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return reply;
  }
  void Put(const Keys& keys) {
    control_.Do([&](ControlHarness& h) { h.Put(session_, ns_, keys); });
  }
  void WriteConfig(const std::string& text) { std::ofstream(folder_ + "/kvd.toml") << text; }
  static std::string Key(uint64_t key) { return PackKeys({key}); }

  std::string folder_;
  ControlThread control_;
  std::unique_ptr<ConfigReloader> config_;
  std::unique_ptr<AdminServer> server_;
  std::unique_ptr<Stub> stub_;
  ControlHarness::Session session_;
  NamespaceId ns_ = 0;
};

TEST_F(AdminTest, TellsTheConfigurationAndReadsItAgain) {
  const auto value = [this](const std::string& name) {
    const auto reply = Ask(&Stub::GetConfig, v1::GetConfigRequest());
    EXPECT_EQ(reply.file(), folder_ + "/kvd.toml");
    for (const v1::ConfigEntry& entry : reply.entries()) {
      if (entry.name() != name) continue;
      return entry.value() + " " + entry.source() + (entry.live() ? " live" : "");
    }
    return std::string("no such option");
  };
  EXPECT_EQ(value("log_level"), "info file live");
  EXPECT_EQ(value("dram"), "1GiB default");

  WriteConfig("log_level = \"warn\"\ndram = \"2GiB\"\n");
  const auto reply = Ask(&Stub::ReloadConfig, v1::ReloadConfigRequest());
  EXPECT_THAT(reply.changed(), testing::ElementsAre("log_level"));
  EXPECT_THAT(reply.needs_restart(), testing::ElementsAre("dram"));
  EXPECT_EQ(value("log_level"), "warn file live");
  EXPECT_EQ(value("dram"), "1GiB default");

  WriteConfig("log_level = \"shout\"\n");
  v1::ReloadConfigReply refused;
  const grpc::Status status = Call(&Stub::ReloadConfig, v1::ReloadConfigRequest(), &refused);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("kvd.toml:1:13: log_level: "));
  EXPECT_EQ(value("log_level"), "warn file live");
}

TEST_F(AdminTest, StatusTellsTrafficDomainsAndProblems) {
  Put(KeysFrom(100, 3));
  control_.Do([&](ControlHarness& h) { h.Hits(session_, ns_, KeysFrom(100, 5)); });
  v1::StatusReply status = Ask(&Stub::Status);
  EXPECT_EQ(status.blocks(), 3u);
  EXPECT_EQ(status.namespaces(), 1u);
  EXPECT_EQ(status.problems_size(), 0);
  ASSERT_EQ(status.traffic_size(), 2);
  EXPECT_EQ(status.traffic(0).tier(), "dram");
  EXPECT_EQ(status.traffic(0).lookup_blocks(), 3u);
  EXPECT_EQ(status.traffic(1).tier(), "miss");
  EXPECT_EQ(status.traffic(1).lookup_blocks(), 2u);
  ASSERT_EQ(status.domains_size(), 1);
  EXPECT_EQ(status.domains(0).domain(), "uid:1");
  EXPECT_EQ(status.domains(0).lookups(), 1u);
  EXPECT_EQ(status.domains(0).hit_blocks(), 3u);
  EXPECT_EQ(status.domains(0).used_bytes(), 3 * 4096u);

  Ask(&Stub::Drain, v1::DrainRequest());
  status = Ask(&Stub::Status);
  EXPECT_TRUE(status.draining());
  ASSERT_EQ(status.problems_size(), 1);
  EXPECT_EQ(status.problems(0).code(), "KVD1001");
  EXPECT_EQ(status.problems(0).severity(), "warn");
  EXPECT_THAT(status.problems(0).message(), HasSubstr("undrain"));
  Ask(&Stub::Undrain, v1::UndrainRequest());
  EXPECT_FALSE(Ask(&Stub::Status).draining());
}

TEST_F(AdminTest, DamageIsAProblem) {
  Put(KeysFrom(100, 2));
  control_.Do([&](ControlHarness& h) {
    const auto load = h.Load(session_, ns_, {100});
    h.Damage(UnpackAt<PackedExtent>(load->call.extents, 0));
    h.ReportDamage(session_, load->call.cursor.hold, {0});
    h.mover.CompleteVerify();
  });
  const v1::StatusReply status = Ask(&Stub::Status);
  ASSERT_GE(status.problems_size(), 1);
  EXPECT_EQ(status.problems(0).code(), "KVD1002");
  EXPECT_EQ(status.problems(0).severity(), "error");
}

TEST_F(AdminTest, AWalkFindsDamageAndTheListTellsIt) {
  Put(KeysFrom(100, 3));
  control_.Do([&](ControlHarness& h) {
    const auto load = h.Load(session_, ns_, KeysFrom(100, 3));
    h.Damage(UnpackAt<PackedExtent>(load->call.extents, 1));
  });
  v1::VerifyRequest request;
  request.set_namespace_id(ns_);
  v1::VerifyReply reply = Ask(&Stub::Verify, request);
  EXPECT_FALSE(reply.done()) << "no copier has looked yet";
  EXPECT_EQ(reply.blocks(), 3u);
  control_.Do([](ControlHarness& h) { h.mover.CompleteAll(); });
  request.set_run(reply.run());
  reply = Ask(&Stub::Verify, request);
  EXPECT_TRUE(reply.done());
  EXPECT_EQ(reply.parts(), 3u);
  EXPECT_EQ(reply.damaged(), 1u);
  EXPECT_EQ(Call(&Stub::Verify, request, &reply).error_code(), StatusCode::NOT_FOUND);

  const v1::QuarantineReply list = Ask(&Stub::Quarantine);
  EXPECT_EQ(list.total(), 1u);
  ASSERT_EQ(list.entries_size(), 1);
  EXPECT_EQ(list.entries(0).key(), Key(101));
  EXPECT_EQ(list.entries(0).tier(), "dram");
  EXPECT_EQ(list.entries(0).found_by(), "scrubber");
  EXPECT_EQ(list.entries(0).depth(), 2u);
  EXPECT_GT(list.entries(0).unix_ms(), 0u);

  v1::VerifyRequest unknown;
  unknown.set_namespace_id(ns_);
  unknown.set_key(Key(4711));
  EXPECT_EQ(Call(&Stub::Verify, unknown, &reply).error_code(), StatusCode::NOT_FOUND);
}

TEST_F(AdminTest, ListsAreWhole) {
  Put(KeysFrom(100, 5));
  control_.Do([&](ControlHarness& h) {
    for (uint32_t n = 1; n <= 5; ++n) h.Lookup(session_, ns_, KeysFrom(100, n), 60'000);
    for (int i = 0; i < 200; ++i) h.Open(2);
  });
  const v1::SessionsReply sessions = Ask(&Stub::Sessions);
  ASSERT_EQ(sessions.sessions_size(), 201);
  EXPECT_EQ(sessions.sessions(0).transport(), "shm");
  EXPECT_EQ(sessions.sessions(0).leases(), 5u);
  EXPECT_EQ(sessions.sessions(200).domain(), "uid:2");

  const v1::NamespacesReply namespaces = Ask(&Stub::Namespaces);
  ASSERT_EQ(namespaces.namespaces_size(), 1);
  EXPECT_EQ(namespaces.namespaces(0).describes().model(), "model");
  EXPECT_EQ(namespaces.namespaces(0).fingerprint().size(), 16u);
  EXPECT_EQ(namespaces.namespaces(0).blocks(), 5u);

  v1::LeasesRequest page;
  page.set_limit(2);
  std::set<uint64_t> leases;
  do {
    const v1::LeasesReply reply = Ask(&Stub::Leases, page);
    EXPECT_LE(reply.leases_size(), 2);
    for (const v1::LeaseStatus& lease : reply.leases()) {
      EXPECT_EQ(lease.kind(), "lease");
      EXPECT_EQ(lease.session(), session_.serial);
      EXPECT_TRUE(leases.insert(lease.lease_id()).second);
    }
    page.set_cursor(reply.next_cursor());
  } while (page.cursor() != 0);
  EXPECT_EQ(leases.size(), 5u);
}

TEST_F(AdminTest, BlocksArePagedByCursor) {
  Put(KeysFrom(100, 20));
  v1::BlocksRequest page;
  page.set_limit(6);
  std::set<std::string> keys;
  int pages = 0;
  do {
    const v1::BlocksReply reply = Ask(&Stub::Blocks, page);
    EXPECT_LE(reply.blocks_size(), 6);
    for (const v1::BlockStatus& block : reply.blocks()) {
      EXPECT_EQ(block.state(), "visible");
      EXPECT_TRUE(keys.insert(block.key()).second);
    }
    page.set_cursor(reply.next_cursor());
    ++pages;
  } while (page.cursor() != 0);
  EXPECT_EQ(keys.size(), 20u);
  EXPECT_GE(pages, 4);
  page.set_cursor(uint64_t{1} << 40);
  v1::BlocksReply reply;
  EXPECT_EQ(Call(&Stub::Blocks, page, &reply).error_code(), StatusCode::INVALID_ARGUMENT);
  page.set_cursor(0);
  page.set_key_prefix(std::string(33, 'x'));
  EXPECT_EQ(Call(&Stub::Blocks, page, &reply).error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(AdminTest, InspectTakesTheBeginningOfAKey) {
  Put(KeysFrom(0x0101, 20));  // Keys are little-endian: these begin with 01 01 ... 14 01.
  v1::InspectRequest request;
  request.set_key_prefix(Key(0x0102));
  v1::InspectReply reply = Ask(&Stub::Inspect, request);
  ASSERT_EQ(reply.blocks_size(), 1);
  EXPECT_EQ(reply.blocks(0).parent(), Key(0x0101));
  ASSERT_EQ(reply.blocks(0).parts_size(), 1);
  EXPECT_EQ(reply.blocks(0).parts(0).tier(), "dram");
  EXPECT_EQ(reply.blocks(0).parts(0).state(), "committed");
  EXPECT_EQ(reply.blocks(0).parts(0).length(), 4096u);

  request.set_key_prefix(std::string("\x03\x01", 2));
  reply = Ask(&Stub::Inspect, request);
  ASSERT_EQ(reply.blocks_size(), 1);
  EXPECT_EQ(reply.blocks(0).key(), Key(0x0103));
  request.set_key_prefix(std::string("\x03\x02", 2));
  EXPECT_EQ(Call(&Stub::Inspect, request, &reply).error_code(), StatusCode::NOT_FOUND);
  request.set_key_prefix("x");
  EXPECT_EQ(Call(&Stub::Inspect, request, &reply).error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(AdminTest, InspectSaysWhenThereAreMore) {
  control_.Do([&](ControlHarness& h) {
    for (int i = 0; i < 17; ++i) {
      const NamespaceId ns =
          h.Register(session_, ControlHarness::Descriptor("model" + std::to_string(i)));
      h.Put(session_, ns, {0x0101});
    }
  });
  v1::InspectRequest request;
  for (const std::string& prefix : {Key(0x0101), Key(0x0101).substr(0, 4)}) {
    request.set_key_prefix(prefix);
    const v1::InspectReply reply = Ask(&Stub::Inspect, request);
    EXPECT_EQ(reply.blocks_size(), 16);
    EXPECT_TRUE(reply.more());
  }
}

TEST_F(AdminTest, BlocksArePinnedEvictedFlushedAndDropped) {
  Put(KeysFrom(100, 6));
  v1::PinChainRequest pin;
  pin.set_namespace_id(ns_);
  pin.set_key(Key(101));
  pin.set_owner("ops");
  pin.set_ttl_ms(60'000);
  const v1::PinChainReply pinned = Ask(&Stub::PinChain, pin);
  EXPECT_EQ(pinned.blocks(), 2u);

  v1::EvictRequest evict;
  evict.set_namespace_id(ns_);
  evict.set_key(Key(104));
  v1::EvictReply evicted = Ask(&Stub::Evict, evict);
  EXPECT_EQ(evicted.evicted_blocks(), 2u);
  EXPECT_EQ(evicted.kept_blocks(), 0u);
  v1::EvictReply none;
  EXPECT_EQ(Call(&Stub::Evict, evict, &none).error_code(), StatusCode::NOT_FOUND);

  v1::FlushRequest flush;
  flush.set_tier("dram");
  const v1::FlushReply flushed = Ask(&Stub::Flush, flush);
  EXPECT_EQ(flushed.evicted_blocks(), 2u);
  EXPECT_EQ(flushed.kept_blocks(), 2u);
  EXPECT_EQ(flushed.moved_blocks(), 0u);
  v1::FlushReply unknown;
  flush.set_tier("tape");
  EXPECT_EQ(Call(&Stub::Flush, flush, &unknown).error_code(), StatusCode::INVALID_ARGUMENT);
  flush.set_tier("nvme");
  EXPECT_EQ(Call(&Stub::Flush, flush, &unknown).error_code(), StatusCode::NOT_FOUND);

  v1::DropNamespaceRequest drop;
  drop.set_namespace_id(ns_);
  EXPECT_FALSE(Ask(&Stub::DropNamespace, drop).dropped());
  v1::UnpinChainRequest unpin;
  unpin.set_pin_id(pinned.pin_id());
  Ask(&Stub::UnpinChain, unpin);
  v1::UnpinChainReply gone;
  EXPECT_EQ(Call(&Stub::UnpinChain, unpin, &gone).error_code(), StatusCode::NOT_FOUND);
  const v1::DropNamespaceReply dropped = Ask(&Stub::DropNamespace, drop);
  EXPECT_TRUE(dropped.dropped());
  EXPECT_EQ(dropped.evicted_blocks(), 2u);
  EXPECT_EQ(Ask(&Stub::Namespaces).namespaces_size(), 0);
  v1::DropNamespaceReply nothing;
  EXPECT_EQ(Call(&Stub::DropNamespace, drop, &nothing).error_code(), StatusCode::NOT_FOUND);
}

// ---- events -------------------------------------------------------------------------------------

class EventsTest : public AdminTest {
 protected:
  static ControlHarness::Options Small() {
    ControlHarness::Options options;
    options.control.events = 64;
    return options;
  }
  EventsTest() : AdminTest(Small()) {}

  // A stream that is read; cancelled when it goes.
  struct Stream {
    Stream(Stub& stub, bool follow, uint64_t from = 0, uint64_t last = 0) {
      v1::EventsRequest request;
      request.set_follow(follow);
      request.set_from_sequence(from);
      request.set_last(last);
      context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
      reader = stub.Events(&context, request);
    }
    ~Stream() {
      context.TryCancel();
      if (reader != nullptr) End();
    }
    // The next event; its sequence is 0 when there is none any more.
    v1::Event Next() {
      v1::Event event;
      return reader->Read(&event) ? event : v1::Event();
    }
    grpc::Status End() {
      v1::Event event;
      while (reader->Read(&event)) {
      }
      const grpc::Status status = reader->Finish();
      reader.reset();
      return status;
    }
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::Event>> reader;
  };
};

TEST_F(EventsTest, WhatIsRememberedIsToldOnce) {
  Put({100, 101});
  Stream stream(*stub_, /*follow=*/false);
  v1::Event event = stream.Next();
  EXPECT_EQ(event.sequence(), 1u);
  EXPECT_EQ(event.kind(), "session-opened");
  EXPECT_EQ(event.domain(), "uid:1");
  EXPECT_EQ(event.number(), session_.serial);
  EXPECT_EQ(event.key(), "");
  EXPECT_EQ(stream.Next().kind(), "namespace-registered");
  EXPECT_EQ(stream.Next().kind(), "stored");
  event = stream.Next();
  EXPECT_EQ(event.sequence(), 4u);
  EXPECT_EQ(event.kind(), "stored");
  EXPECT_EQ(event.namespace_id(), ns_);
  EXPECT_EQ(event.key(), Key(101));
  EXPECT_EQ(event.parent(), Key(100));
  EXPECT_EQ(event.tier(), "dram");
  EXPECT_EQ(stream.Next().sequence(), 0u);
  EXPECT_TRUE(stream.End().ok());
}

TEST_F(EventsTest, AStreamBeginsWhereItIsAskedTo) {
  Put(KeysFrom(100, 8));
  EXPECT_EQ(Stream(*stub_, false, /*from=*/5).Next().sequence(), 5u);
  EXPECT_EQ(Stream(*stub_, false, /*from=*/0, /*last=*/2).Next().sequence(), 9u);
  EXPECT_EQ(Stream(*stub_, false, /*from=*/10, /*last=*/5).Next().sequence(), 10u);
  EXPECT_EQ(Stream(*stub_, true, /*from=*/0, /*last=*/3).Next().sequence(), 8u);
}

TEST_F(EventsTest, WhoFollowsIsToldWhatComes) {
  Stream stream(*stub_, /*follow=*/true);
  EXPECT_EQ(stream.Next().sequence(), 1u);
  EXPECT_EQ(stream.Next().sequence(), 2u);
  for (uint64_t i = 0; i < 20; ++i) {
    Put({100 + i});
    const v1::Event event = stream.Next();
    EXPECT_EQ(event.sequence(), 3 + i);
    EXPECT_EQ(event.key(), Key(100 + i));
  }
}

TEST_F(EventsTest, AReloadThatChangesSomethingIsAnEvent) {
  Ask(&Stub::ReloadConfig, v1::ReloadConfigRequest());  // Nothing is different.
  WriteConfig("log_level = \"warn\"\n");
  Ask(&Stub::ReloadConfig, v1::ReloadConfigRequest());
  Stream stream(*stub_, /*follow=*/false);
  EXPECT_EQ(stream.Next().kind(), "session-opened");
  EXPECT_EQ(stream.Next().kind(), "namespace-registered");
  EXPECT_EQ(stream.Next().kind(), "config-reloaded");
  EXPECT_EQ(stream.Next().sequence(), 0u);
}

TEST_F(EventsTest, WhatWasForgottenIsAGapInTheSequence) {
  for (int i = 0; i < 10; ++i) Put(KeysFrom(100 + 10 * static_cast<uint64_t>(i), 10));
  Stream stream(*stub_, /*follow=*/false);
  uint64_t first = stream.Next().sequence();
  EXPECT_GT(first, 3u);
  uint64_t events = 1;
  while (stream.Next().sequence() != 0) ++events;
  EXPECT_EQ(events, 64u);
}

TEST_F(EventsTest, AReaderWhoDoesNotReadHoldsNobodyUp) {
  Stream silent(*stub_, /*follow=*/true);
  for (uint64_t i = 0; i < 3000; ++i) {
    control_.Do([&](ControlHarness& h) { h.Put(session_, ns_, {1000 + i}); });
  }
  EXPECT_EQ(Ask(&Stub::Tiers).tiers_size(), 1);
}

TEST_F(EventsTest, ReadersAreBounded) {
  std::vector<std::unique_ptr<Stream>> readers;
  for (int i = 0; i < 8; ++i) {
    readers.push_back(std::make_unique<Stream>(*stub_, true));
    EXPECT_EQ(readers.back()->Next().sequence(), 1u);
  }
  // A connection of its own: one has at most eight streams.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto another = v1::Admin::NewStub(grpc::CreateCustomChannel(
      "unix:" + folder_ + "/admin", grpc::InsecureChannelCredentials(), arguments));
  Stream refused(*another, true);
  const grpc::Status status = refused.End();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("events"));
  v1::TiersReply tiers;
  grpc::ClientContext context;
  EXPECT_TRUE(another->Tiers(&context, {}, &tiers).ok());  // Others are served.

  readers.clear();  // Their threads come back, a little later.
  const absl::Time deadline = absl::Now() + kPatience;
  uint64_t first = 0;
  while (first == 0 && absl::Now() < deadline) first = Stream(*another, true).Next().sequence();
  EXPECT_EQ(first, 1u);
}

TEST_F(EventsTest, TheServerEndsAtOnceUnderReaders) {
  Stream stream(*stub_, /*follow=*/true);
  EXPECT_EQ(stream.Next().sequence(), 1u);
  const absl::Time start = absl::Now();
  server_.reset();
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
}

}  // namespace
}  // namespace kvd
