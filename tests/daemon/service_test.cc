// The engine-facing service with a real gRPC client over a socket: what only the front end can get
// wrong. What calls mean is in control_test.cc, what malformed ones get in tests/e2e/.

#include "daemon/service.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "daemon/call_log.h"
#include "proto/kvd.grpc.pb.h"
#include "tests/testing/control_harness.h"
#include "tests/testing/on_control.h"

namespace kvd {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

class ServiceTest : public testing::Test {
 protected:
  explicit ServiceTest(Service::Options options = {}) {
    char name[] = "/tmp/kvd-service-XXXXXX";
    folder_ = mkdtemp(name);
    logger_->set_pattern("%l %v");
    logger_->set_level(spdlog::level::debug);
    options.path = folder_ + "/kvd";
    options.log = &log_;
    auto service = Service::Start(h_.control, h_.clock, options);
    KVD_CHECK(service.ok()) << service.status();
    service_ = *std::move(service);
    h_.inbox.SetWake([this] { service_->Wake(); });
    thread_ = std::thread([this] { service_->Run(); });
    for (uint32_t serial : {1, 2, 3}) {
      SessionToken token{};
      token[0] = static_cast<uint8_t>(serial);
      tokens_[serial - 1].assign(token.begin(), token.end());
      const DomainId domain = serial < 3 ? 1 : 2;
      h_.inbox.Post(SessionOpened{.serial = serial, .token = token, .domain = domain});
    }
    OnControl([this](Control& control) {
      const auto registered = control.RegisterNamespace(tokens_[0], ControlHarness::Descriptor());
      if (registered.ok()) ns_ = registered->id;
    });
    stub_ = v1::Engine::NewStub(
        grpc::CreateChannel("unix:" + folder_ + "/kvd", grpc::InsecureChannelCredentials()));
  }
  ~ServiceTest() override {
    service_->Shutdown();
    thread_.join();
    h_.inbox.SetWake(nullptr);
    service_.reset();
    std::filesystem::remove_all(folder_);
  }

  // Runs `look` on the control thread.
  void OnControl(const std::function<void(Control&)>& look) { RunOnControl(h_.inbox, look); }
  // Whether `holds` becomes true on the control thread.
  bool Eventually(const std::function<bool(Control&)>& holds) {
    return EventuallyOnControl(h_.inbox, kPatience, holds);
  }
  // Of a block that is not there, in the first session.
  grpc::Status Lookup() {
    grpc::ClientContext context;
    v1::LookupRequest request;
    v1::LookupReply reply;
    request.set_session(tokens_[0]);
    request.set_namespace_id(ns_);
    request.set_keys(PackKeys({1}));
    return stub_->Lookup(&context, request, &reply);
  }
  v1::ReserveRequest ReserveRequest(const std::string& session, const Keys& keys,
                                    uint32_t wait_ms = 0) const {
    v1::ReserveRequest request;
    request.set_session(session);
    request.set_namespace_id(ns_);
    request.set_keys(PackKeys(keys));
    request.set_wait_ms(wait_ms);
    return request;
  }

  std::string folder_;
  std::ostringstream logged_;  // By the control thread: look on it.
  std::shared_ptr<spdlog::logger> logger_ = std::make_shared<spdlog::logger>(
      "call", std::make_shared<spdlog::sinks::ostream_sink_mt>(logged_));
  CallLog log_{logger_};
  ControlHarness h_;  // Its Control belongs to the service's thread; its verbs are not for us.
  std::array<std::string, 3> tokens_;  // Of two sessions of one domain, and one of another.
  NamespaceId ns_ = 0;
  std::unique_ptr<Service> service_;
  std::thread thread_;
  std::unique_ptr<v1::Engine::Stub> stub_;
};

// gRPC answers what is no message by itself, and keeps what it has read of it.
TEST_F(ServiceTest, WhatIsLeftOfAMessageThatIsNoneCanBeFreed) {
  const auto forget = [this] {
    size_t bytes = 0;
    OnControl([&](Control&) { bytes = service_->ForgetUnparsed(); });
    return bytes;
  };
  EXPECT_EQ(forget(), 0u);
  constexpr size_t kBytes = 1u << 20;
  std::string message("\x0a\x80\x80\x40", 4);  // The session, of a mebibyte; then no field.
  message.append(kBytes, 'x');
  message += '\x07';
  grpc::Slice slice(message);
  grpc::GenericStub stub(
      grpc::CreateChannel("unix:" + folder_ + "/kvd", grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::ByteBuffer reply;
  grpc::Status status;
  const auto call =
      stub.PrepareUnaryCall(&context, "/kvd.v1.Engine/Lookup", grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  call->Finish(&reply, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL) << status.error_message();
  EXPECT_GE(forget(), kBytes);
  EXPECT_EQ(forget(), 0u);
  // The method goes on.
  EXPECT_TRUE(Lookup().ok());
}

// Between a call's arrival and its handling the control thread runs what was posted to it.
TEST_F(ServiceTest, AMessageThatHasArrivedIsNotTakenForTheRestOfOneThatIsNone) {
  std::atomic<bool> over{false};
  std::function<void(Control&)> forget = [&](Control&) {
    EXPECT_EQ(service_->ForgetUnparsed(), 0u);
    if (!over) h_.inbox.Post(Task{forget});  // In the next Poll, and so in each.
  };
  OnControl(forget);
  for (int i = 0; i < 10; ++i) {
    const grpc::Status status = Lookup();
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  over = true;
  OnControl([](Control&) {});  // After the last of them.
  OnControl([](Control&) {});
}

TEST_F(ServiceTest, WhatAnAnswerGaveIsTakenBackWhenItCannotBeSent) {
  v1::ReserveReply reserved;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Reserve(&context, ReserveRequest(tokens_[0], {100}), &reserved).ok());
    ASSERT_EQ(reserved.granted(), 1u);
  }
  // Another session waits for that block, and its caller gives up.
  grpc::ClientContext waiting;
  grpc::Status status;
  std::thread waiter([&] {
    v1::ReserveReply reply;
    status = stub_->Reserve(&waiting, ReserveRequest(tokens_[1], {100, 101}, 600'000), &reply);
  });
  EXPECT_TRUE(Eventually([](Control& control) { return control.counters().reserve_waits == 1; }));
  waiting.TryCancel();
  waiter.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);

  // The producer gives up: both blocks are granted to a caller who does not hear it.
  {
    grpc::ClientContext context;
    v1::AbortRequest request;
    v1::AbortReply reply;
    request.set_session(tokens_[0]);
    request.set_reservation_id(reserved.reservation_id());
    ASSERT_TRUE(stub_->Abort(&context, request, &reply).ok());
  }
  EXPECT_TRUE(Eventually([](Control& control) {
    return control.counters().reserve_granted_blocks == 3 && control.reservations() == 0;
  }));
}

TEST_F(ServiceTest, WhatAnAnswerGaveIsTakenBackWhenItComesAfterItsDeadline) {
  v1::ReserveReply reserved;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Reserve(&context, ReserveRequest(tokens_[0], {100}), &reserved).ok());
  }
  // The daemon's clock stands still, so it waits for longer than the caller does.
  grpc::ClientContext waiting;
  waiting.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(200)));
  v1::ReserveReply ignored;
  const auto late =
      stub_->Reserve(&waiting, ReserveRequest(tokens_[1], {100, 101}, 600'000), &ignored);
  EXPECT_EQ(late.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);

  grpc::ClientContext context;
  v1::AbortRequest request;
  v1::AbortReply reply;
  request.set_session(tokens_[0]);
  request.set_reservation_id(reserved.reservation_id());
  ASSERT_TRUE(stub_->Abort(&context, request, &reply).ok());

  EXPECT_TRUE(Eventually([](Control& control) { return control.reservations() == 0; }));
}

// gRPC's own listener would never accept again after this.
TEST_F(ServiceTest, ConnectionsAreAcceptedAgainAfterDescriptorsRanOut) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  sockaddr_un address{.sun_family = AF_UNIX};
  (folder_ + "/kvd").copy(address.sun_path, sizeof address.sun_path - 1);
  std::vector<int> sockets;
  for (int i = 0; i < 2; ++i) sockets.push_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // These had the lowest numbers that were free, so there are no others below the limit.
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(sockets.back()) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(connect(sockets[static_cast<size_t>(i)], reinterpret_cast<const sockaddr*>(&address),
                      sizeof address),
              0);
  }
  for (int i = 0; i < 100; ++i) OnControl([](Control&) {});  // The daemon goes on meanwhile.

  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  for (const int fd : sockets) close(fd);
  grpc::ClientContext context;
  v1::ReserveReply reply;
  EXPECT_TRUE(stub_->Reserve(&context, ReserveRequest(tokens_[0], {100}), &reply).ok());
}

class BoundedServiceTest : public ServiceTest {
 protected:
  BoundedServiceTest() : BoundedServiceTest({.max_domain_calls = 2, .endless_call_ms = 10'000}) {}
  explicit BoundedServiceTest(const Service::Options& options) : ServiceTest(options) {}

  // Reserves a block for the first session, and lets a call of the second wait for it.
  std::thread WaitForABlock(uint64_t waits, grpc::ClientContext& context, grpc::Status& status,
                            v1::ReserveReply& reply) {
    std::thread waiter([&context, &status, &reply, this] {
      status = stub_->Reserve(&context, ReserveRequest(tokens_[1], {100}, 600'000), &reply);
    });
    EXPECT_TRUE(Eventually(
        [waits](Control& control) { return control.counters().reserve_waits == waits; }));
    return waiter;
  }
  grpc::Status Register(const std::string& session) {
    v1::RegisterNamespaceRequest request;
    v1::RegisterNamespaceReply reply;
    request.set_session(session);
    grpc::ClientContext context;
    return stub_->RegisterNamespace(&context, request, &reply);
  }
  void ReserveTheBlock() {
    grpc::ClientContext context;
    v1::ReserveReply reply;
    ASSERT_TRUE(stub_->Reserve(&context, ReserveRequest(tokens_[0], {100}), &reply).ok());
  }
};

TEST_F(BoundedServiceTest, CallsUnderWayOfOneDomainLeaveRoomForOthers) {
  ReserveTheBlock();
  std::array<grpc::ClientContext, 2> contexts;
  std::array<grpc::Status, 2> statuses;
  std::array<v1::ReserveReply, 2> replies;
  std::thread first = WaitForABlock(1, contexts[0], statuses[0], replies[0]);
  EXPECT_EQ(Register(tokens_[0]).error_code(), grpc::StatusCode::INVALID_ARGUMENT);  // Served.
  std::thread second = WaitForABlock(2, contexts[1], statuses[1], replies[1]);

  const grpc::Status refused = Register(tokens_[0]);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.error_message().find("calls:"), std::string::npos);
  EXPECT_EQ(Register(tokens_[2]).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Register("nobody").error_code(), grpc::StatusCode::UNAUTHENTICATED);

  for (grpc::ClientContext& context : contexts) context.TryCancel();
  first.join();
  second.join();
  // What a client has left still waits here for its block, until that is told.
  OnControl([this](Control&) { h_.clock.Advance(11 * kSecond); });
  EXPECT_TRUE(
      Eventually([this](Control& control) { return control.CallsUnderWay(tokens_[0]) == 0; }));
  EXPECT_EQ(Register(tokens_[0]).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

class BoundedSessionTest : public BoundedServiceTest {
 protected:
  BoundedSessionTest() : BoundedServiceTest({.max_session_calls = 1, .endless_call_ms = 10'000}) {}
};

TEST_F(BoundedSessionTest, CallsUnderWayOfOneSessionLeaveRoomForOthersOfItsDomain) {
  ReserveTheBlock();
  grpc::ClientContext context;
  grpc::Status status;
  v1::ReserveReply reply;
  std::thread waiter = WaitForABlock(1, context, status, reply);  // Of the second session.

  const grpc::Status refused = Register(tokens_[1]);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.error_message().find("this session"), std::string::npos);
  EXPECT_EQ(Register(tokens_[0]).error_code(), grpc::StatusCode::INVALID_ARGUMENT);  // Served.

  OnControl([this](Control&) { h_.clock.Advance(11 * kSecond); });
  waiter.join();
  EXPECT_TRUE(
      Eventually([this](Control& control) { return control.CallsUnderWay(tokens_[1]) == 0; }));
  EXPECT_EQ(Register(tokens_[1]).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(BoundedServiceTest, ACallWithoutADeadlineDoesNotWaitForEver) {
  ReserveTheBlock();
  grpc::ClientContext context;
  grpc::Status status;
  v1::ReserveReply reply;
  std::thread waiter = WaitForABlock(1, context, status, reply);

  OnControl([this](Control&) { h_.clock.Advance(11 * kSecond); });
  EXPECT_TRUE(Eventually([](Control& control) { return control.reservations() == 1; }));
  waiter.join();

  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.states(), std::string(1, static_cast<char>(ReserveState::kInProduction)));
}

TEST_F(ServiceTest, ListsBeyondTheirBoundAreRefused) {
  const auto refused = [](const grpc::Status& status, const std::string& field) {
    return status.error_code() == grpc::StatusCode::INVALID_ARGUMENT &&
           status.error_message().find(field) != std::string::npos;
  };
  v1::ReleaseRequest release;
  release.set_session(tokens_[0]);
  for (int i = 0; i < 100'000; ++i) release.mutable_releases()->add_damaged();
  v1::ReleaseReply released;
  grpc::ClientContext first;
  EXPECT_TRUE(refused(stub_->Release(&first, release, &released), "releases:"));

  v1::RegisterNamespaceRequest request;
  request.set_session(tokens_[0]);
  v1::NamespaceDescriptor& descriptor = *request.mutable_describes();
  descriptor.set_model("m");
  descriptor.set_hash_bytes(16);
  descriptor.set_tensor_parallel(1);
  descriptor.set_pipeline_parallel(1);
  descriptor.set_context_parallel(1);
  for (int i = 0; i < 100'000; ++i) descriptor.add_groups();
  v1::RegisterNamespaceReply reply;
  grpc::ClientContext second;
  EXPECT_TRUE(refused(stub_->RegisterNamespace(&second, request, &reply), "descriptor.groups:"));
  descriptor.clear_groups();
  v1::Group& group = *descriptor.add_groups();
  group.set_kind(v1::GROUP_KIND_FULL);
  group.set_shards(1);
  group.set_block_tokens(16);
  group.set_part_bytes(4096);
  for (int i = 0; i < 50'000; ++i) (*descriptor.mutable_extra())[absl::StrCat(i)].clear();
  grpc::ClientContext third;
  EXPECT_TRUE(refused(stub_->RegisterNamespace(&third, request, &reply), "descriptor.extra:"));
}

TEST_F(ServiceTest, TheTraceContextOfACallIsLoggedWithIt) {
  const auto lookup = [this](const std::string& session, std::vector<std::string> traceparents) {
    grpc::ClientContext context;
    for (const std::string& value : traceparents) context.AddMetadata("traceparent", value);
    v1::LookupRequest request;
    request.set_session(session);
    request.set_namespace_id(ns_);
    request.set_keys(PackKeys({1}));
    v1::LookupReply reply;
    return stub_->Lookup(&context, request, &reply).error_code();
  };
  const std::string good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const std::string other = "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  EXPECT_EQ(lookup(tokens_[0], {good}), grpc::StatusCode::OK);
  EXPECT_EQ(lookup("nobody", {good}), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(lookup(tokens_[0], {}), grpc::StatusCode::OK);
  EXPECT_EQ(lookup(tokens_[0], {good, other}), grpc::StatusCode::OK);
  EXPECT_EQ(lookup(tokens_[0], {"rubbish"}), grpc::StatusCode::OK);
  std::string logged;
  // The line is written after the answer; the next turn sees it.
  OnControl([&](Control&) { logged = logged_.str(); });
  const std::string trace = " trace_id=4bf92f3577b34da6a3ce929d0e0e4736 parent_id=00f067aa0ba902b7";
  EXPECT_THAT(logged, testing::HasSubstr("debug call.answered op=lookup code=OK"));
  EXPECT_THAT(logged, testing::HasSubstr("info call.refused op=lookup code=UNAUTHENTICATED"));
  size_t traces = 0;
  for (size_t at = 0; (at = logged.find(trace, at)) != std::string::npos; ++at) ++traces;
  EXPECT_EQ(traces, 2u) << logged;
  EXPECT_EQ(std::count(logged.begin(), logged.end(), '\n'), 2) << logged;
}

TEST_F(ServiceTest, CallsAreCountedByTheirAnswerAndTimed) {
  grpc::ClientContext context;
  v1::LookupRequest request;
  request.set_session(tokens_[0]);
  request.set_namespace_id(ns_);
  request.set_keys(PackKeys({1}));
  v1::LookupReply reply;
  ASSERT_TRUE(stub_->Lookup(&context, request, &reply).ok());
  EXPECT_TRUE(Eventually([this](Control&) { return service_->metrics().calls == 0; }));
  const ServiceMetrics::OfOp& lookups = service_->metrics().ops[static_cast<size_t>(Op::kLookup)];
  EXPECT_EQ(lookups.answers[0], 1u);
  uint64_t timed = 0;
  for (size_t i = 0; i < lookups.duration.kBuckets; ++i) timed += lookups.duration.count(i);
  EXPECT_EQ(timed, 1u);
}

TEST(ServiceStartTest, AServiceThatNeverRanCanBeDestroyed) {
  char folder[] = "/tmp/kvd-service-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  ControlHarness h;
  auto service = Service::Start(h.control, h.clock, {.path = std::string(folder) + "/kvd"});
  ASSERT_TRUE(service.ok());
  service->reset();
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace kvd
