// The gateway with real streams, copiers and control thread, in one process: what it owes clients
// that vanish, lie or dawdle, and what kvd::Client makes of it. What the wire looks like to other
// languages is in tests/e2e/python/.

#include "daemon/gateway.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/certificates.h"
#include "client/client.h"
#include "client/convert.h"
#include "daemon/service.h"
#include "policy/lru.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/stream.grpc.pb.h"
#include "proto/types/announcement.h"
#include "proto/types/checksum.h"
#include "proto/types/limits.h"
#include "tests/testing/on_control.h"

namespace kvd {
namespace {

using grpc::StatusCode;
using testing::Each;
using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);
constexpr uint32_t kHashBytes = 16;

NamespaceDescriptor Descriptor(uint32_t part_bytes) {
  NamespaceDescriptor descriptor;
  descriptor.model = "m";
  descriptor.hash_bytes = kHashBytes;
  descriptor.tensor_parallel = descriptor.pipeline_parallel = descriptor.context_parallel = 1;
  descriptor.groups = {
      {.kind = GroupKind::kFull, .shards = 1, .block_tokens = 16, .part_bytes = part_bytes}};
  return descriptor;
}

std::string KeysOf(uint32_t first, uint32_t count) {
  std::string keys;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string digits = absl::StrCat(first + i);
    keys += std::string(kHashBytes - digits.size(), '#') + digits;
  }
  return keys;
}

std::string BytesOf(uint32_t block, uint32_t size) {
  std::string bytes(size, '\0');
  for (uint32_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(block * 37 + i / 8 + i);
  return bytes;
}

uint32_t SumOf(const std::string& bytes) {
  return Crc32c({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
}

class GatewayTest : public testing::Test {
 protected:
  GatewayTest() {
    char name[] = "/tmp/kvd-gateway-XXXXXX";
    folder_ = mkdtemp(name);
    KVD_CHECK(MakeCertificates(folder_).ok());
    auto service = Service::Start(control_, clock_, {.path = folder_ + "/kvd"});
    KVD_CHECK(service.ok()) << service.status();
    service_ = *std::move(service);
    inbox_.SetWake([this] { service_->Wake(); });
    thread_ = std::thread([this] { service_->Run(); });
    StartGateway({});
  }
  ~GatewayTest() override {
    inbox_.Post(Task{[](Control& control) { control.EndWaits(); }});
    gateway_.reset();
    service_->Shutdown();
    thread_.join();
    inbox_.SetWake(nullptr);
    service_.reset();
    copiers_.reset();
    std::filesystem::remove_all(folder_);
  }

  void StartGateway(GatewaySessions::Options bounds) {
    gateway_.reset();
    const auto tls =
        ReadTls({folder_ + "/server.pem", folder_ + "/server.key", folder_ + "/ca.pem"});
    KVD_CHECK(tls.ok()) << tls.status();
    tls_.emplace(*tls);
    auto gateway = Gateway::Start(inbox_, control_.events(), *copiers_, copier_, domains_,
                                  {.path = folder_ + "/kvd.stream",
                                   .tcp = "127.0.0.1:0",
                                   .tls = &*tls_,
                                   .bounds = bounds,
                                   .metrics = &metrics_,
                                   .strangers = &strangers_});
    KVD_CHECK(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    gateway_->Serve();
  }

  ClientOptions Local() const {
    return {.endpoint = "stream:unix:" + folder_ + "/kvd", .timeout = kPatience};
  }
  ClientOptions Remote() const {
    return {.endpoint = "tcp:" + gateway_->tcp_address(),
            .tls = {.certificate = folder_ + "/client.pem",
                    .key = folder_ + "/client.key",
                    .authority = folder_ + "/ca.pem",
                    .server_name = kTestServerName},
            .timeout = kPatience};
  }

  uint64_t Answers(Op op, StatusCode code = StatusCode::OK) const {
    return metrics_.numbers().ops[static_cast<size_t>(op)].answers[code];
  }

  // Runs `look` on the control thread.
  void OnControl(const std::function<void(Control&)>& look) { RunOnControl(inbox_, look); }
  bool Eventually(const std::function<bool(Control&)>& holds) {
    return EventuallyOnControl(inbox_, kPatience, holds);
  }
  // Nobody has anything any more.
  bool EventuallyIdle() {
    return Eventually([](Control& control) {
      return control.sessions() == 0 && control.reservations() == 0 && control.leases() == 0 &&
             control.holds().total_extents() == 0;
    });
  }

  std::string folder_;
  SystemClock clock_;
  RegionDirectory directory_;
  std::unique_ptr<Arena> arena_ = *Arena::Open(
      directory_, {.bytes = 64 << 20, .region_bytes = 4 << 20, .pages = PageKind::kSmall});
  LruPolicy policy_{1024};
  Inbox inbox_;
  Copier copier_{{.calibration_bytes = 0}};
  FillBoard board_{1024};
  std::unique_ptr<CopierPool> copiers_ =
      std::make_unique<CopierPool>(board_, inbox_, copier_, CopierPool::Options{});
  Store store_{policy_,
               *arena_,
               {.max_blocks = 1024, .max_parts = 4096, .secret = 7},
               [this](uint32_t region, uint64_t bytes) { copiers_->MakeRegion(region, bytes); }};
  Control control_{store_, board_, *copiers_, inbox_, clock_, {}};
  Domains domains_;
  GatewayMetrics metrics_;
  StrangerCounts strangers_;
  std::unique_ptr<Service> service_;
  std::thread thread_;
  std::optional<TlsSource> tls_;
  std::unique_ptr<Gateway> gateway_;
};

// A session by bare stubs.
class BareSession {
 public:
  explicit BareSession(const std::string& path)
      : channel_(grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials())),
        engine_(v1::Engine::NewStub(channel_)),
        transfer_(v1::Transfer::NewStub(channel_)),
        life_(engine_->OpenSession(&life_context_, {})) {
    v1::OpenSessionReply reply;
    if (life_->Read(&reply)) token_ = reply.session();
  }
  ~BareSession() { End(); }

  void End() { life_context_.TryCancel(); }
  // Why it was not opened.
  grpc::Status Refusal() { return life_->Finish(); }
  const std::string& token() const { return token_; }

  uint32_t Register(uint32_t part_bytes) {
    v1::RegisterNamespaceRequest request;
    request.set_session(token_);
    *request.mutable_describes() = ToProto(Descriptor(part_bytes));
    v1::RegisterNamespaceReply reply;
    grpc::ClientContext context;
    EXPECT_TRUE(engine_->RegisterNamespace(&context, request, &reply).ok());
    return reply.namespace_id();
  }
  v1::Transfer::Stub& transfer() { return *transfer_; }
  v1::Engine::Stub& engine() { return *engine_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Engine::Stub> engine_;
  std::unique_ptr<v1::Transfer::Stub> transfer_;
  grpc::ClientContext life_context_;
  std::unique_ptr<grpc::ClientReader<v1::OpenSessionReply>> life_;
  std::string token_;
};

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
}

v1::PutChunk StartOf(const BareSession& session, uint32_t ns, const std::string& keys) {
  v1::PutChunk chunk;
  chunk.mutable_start()->set_session(session.token());
  chunk.mutable_start()->set_namespace_id(ns);
  chunk.mutable_start()->set_keys(keys);
  return chunk;
}

v1::PutChunk ChunkOf(uint32_t index, uint32_t length, uint32_t offset, const std::string& data,
                     uint32_t sum) {
  v1::PutChunk chunk;
  v1::PartBytes& bytes = *chunk.mutable_bytes();
  bytes.set_index(index);
  bytes.set_length(length);
  bytes.set_offset(offset);
  bytes.set_data(data);
  bytes.set_sum(sum);
  return chunk;
}

// Puts `blocks` and gets them back.
void RoundTrip(Client& client, uint32_t part_bytes, uint32_t first, uint32_t blocks) {
  const auto ns = client.RegisterNamespace(Descriptor(part_bytes));
  ASSERT_TRUE(ns.ok()) << ns.status();
  const std::string keys = KeysOf(first, blocks);
  std::vector<std::string> bytes;
  std::vector<absl::Span<const std::byte>> sources;
  for (uint32_t i = 0; i < blocks; ++i) bytes.push_back(BytesOf(first + i, part_bytes));
  for (const std::string& block : bytes) {
    sources.push_back({reinterpret_cast<const std::byte*>(block.data()), block.size()});
  }
  const PutResult put = client.Put(*ns, keys, sources);
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(put.stored, blocks);
  EXPECT_THAT(put.results, Each(CommitResult::kCommitted));
  EXPECT_EQ(client.Put(*ns, keys, sources).present, blocks);
  EXPECT_EQ(client.Lookup(*ns, KeysOf(first, blocks + 1)).hit_blocks, blocks);

  std::vector<std::string> got(blocks + 1, std::string(part_bytes, '?'));
  std::vector<absl::Span<std::byte>> targets;
  for (std::string& block : got) {
    targets.push_back({reinterpret_cast<std::byte*>(block.data()), block.size()});
  }
  const GetResult result =
      client.Get(*ns, KeysOf(first, blocks + 1), targets, {.lease = absl::Seconds(10)});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.hit_blocks, blocks);
  EXPECT_EQ(result.blocks, blocks);
  EXPECT_NE(result.lease_id, 0u);
  got.pop_back();
  EXPECT_EQ(got, bytes);
  client.ReleaseLease(result.lease_id);
}

TEST_F(GatewayTest, TheClientPutsAndGetsAtTheStreamSocket) {
  Client client(Local());
  RoundTrip(client, 1000, 0, 40);
  RoundTrip(client, 3 << 20, 100, 6);
}

TEST_F(GatewayTest, TheClientPutsAndGetsOverTls) {
  Client client(Remote());
  RoundTrip(client, 1000, 0, 40);
  RoundTrip(client, 3 << 20, 100, 6);
}

// A Watch from event `from` on.
class Watcher {
 public:
  Watcher(BareSession& session, uint64_t from) {
    SetDeadline(context_);
    v1::WatchRequest request;
    request.set_session(session.token());
    request.set_from_sequence(from);
    reader_ = session.engine().Watch(&context_, request);
  }
  ~Watcher() {
    context_.TryCancel();
    if (!finished_) reader_->Finish();
  }
  v1::WatchEvent Next() {
    v1::WatchEvent event;
    EXPECT_TRUE(reader_->Read(&event));
    return event;
  }
  grpc::Status Finish() {
    v1::WatchEvent event;
    while (reader_->Read(&event)) {
    }
    finished_ = true;
    return reader_->Finish();
  }

 private:
  bool finished_ = false;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::WatchEvent>> reader_;
};

TEST_F(GatewayTest, AWatcherHasWhatIsThereAndThenWhatHappens) {
  Client client(Local());
  RoundTrip(client, 1000, 0, 3);
  BareSession session(folder_ + "/kvd.stream");
  uint64_t seen = 0;
  {
    Watcher watcher(session, 0);
    EXPECT_EQ(watcher.Next().kind(), v1::WATCH_CLEARED);
    for (int i = 0; i < 3; ++i) {
      const v1::WatchEvent event = watcher.Next();
      EXPECT_EQ(event.kind(), v1::WATCH_BLOCK);
      EXPECT_EQ(event.sequence(), 0u);
      ASSERT_EQ(event.tiers_size(), 1);
      EXPECT_EQ(event.tiers(0), v1::TIER_DRAM);
      EXPECT_EQ(event.key().size(), KeysOf(0, 1).size());
      EXPECT_EQ(event.parent().empty(), event.depth() == 1);
    }
    const v1::WatchEvent synced = watcher.Next();
    EXPECT_EQ(synced.kind(), v1::WATCH_SYNCED);

    const auto ns = client.RegisterNamespace(Descriptor(1000));
    const std::string bytes = BytesOf(9, 1000);
    const absl::Span<const std::byte> source = {reinterpret_cast<const std::byte*>(bytes.data()),
                                                bytes.size()};
    const std::vector<uint64_t> hashes = {9};
    const std::vector<uint32_t> tokens = {1, 2};
    const std::vector<std::string> announced = {
        WriteAnnouncement({.hashes = hashes, .tokens = tokens, .block_tokens = 2})};
    // So small that without an announcement no reservation would be made for it.
    ASSERT_EQ(client.Put(*ns, KeysOf(9, 1), {&source, 1}, {.announce = announced}).stored, 1u);
    const v1::WatchEvent stored = watcher.Next();
    EXPECT_EQ(stored.key(), KeysOf(9, 1));
    EXPECT_EQ(stored.announce(), announced[0]);
    EXPECT_GT(stored.sequence(), synced.sequence());
    EXPECT_GT(stored.unix_ms(), 0u);
    seen = stored.sequence();
  }
  OnControl([](Control& control) {
    Sweep sweep = *control.BeginFlush(TierIndex::kDram);
    while (!control.Continue(sweep)) {
    }
  });
  Watcher later(session, seen + 1);
  for (int i = 0; i < 4; ++i) {
    const v1::WatchEvent gone = later.Next();
    EXPECT_EQ(gone.kind(), v1::WATCH_BLOCK);
    EXPECT_EQ(gone.tiers_size(), 0);
    EXPECT_EQ(gone.announce(), "");
    EXPECT_GT(gone.sequence(), seen);
  }
}

TEST_F(GatewayTest, AWatchNeedsASessionAndADeadline) {
  BareSession session(folder_ + "/kvd.stream");
  {
    grpc::ClientContext context;
    v1::WatchRequest request;
    request.set_session(session.token());
    v1::WatchEvent event;
    const auto reader = session.engine().Watch(&context, request);
    EXPECT_FALSE(reader->Read(&event));
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("deadline"));
  }
  grpc::ClientContext context;
  SetDeadline(context);
  v1::WatchEvent event;
  const auto reader = session.engine().Watch(&context, {});
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::UNAUTHENTICATED);

  // It ends with its session.
  Watcher watcher(session, 0);
  EXPECT_EQ(watcher.Next().kind(), v1::WATCH_CLEARED);
  session.End();
  EXPECT_EQ(watcher.Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(GatewayTest, AllEndsWithTheClient) {
  {
    Client client(Local());
    RoundTrip(client, 1000, 0, 3);
    const auto ns = client.RegisterNamespace(Descriptor(1000));
    EXPECT_NE(client.Lookup(*ns, KeysOf(0, 3), {.lease = absl::Minutes(5)}).lease_id, 0u);
  }
  EXPECT_TRUE(EventuallyIdle());
}

TEST_F(GatewayTest, PinsOutliveTheSession) {
  uint64_t pin_id = 0;
  {
    Client client(Local());
    RoundTrip(client, 1000, 0, 3);
    const auto ns = client.RegisterNamespace(Descriptor(1000));
    const auto pin = client.Pin(*ns, KeysOf(2, 1), {.owner = "o"});
    ASSERT_TRUE(pin.ok()) << pin.status();
    EXPECT_EQ(pin->blocks, 3u);
    pin_id = pin->pin_id;
  }
  Client another(Local());
  EXPECT_TRUE(another.Unpin(pin_id).ok());
}

TEST_F(GatewayTest, WhatNeedsSharedMemoryIsRefused) {
  Client client(Local());
  const auto ns = client.RegisterNamespace(Descriptor(1000));
  ASSERT_TRUE(ns.ok());
  const LoadResult load = client.Load(*ns, KeysOf(0, 1));
  EXPECT_EQ(load.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(load.status.message()), HasSubstr("use Get"));
}

TEST_F(GatewayTest, TheClientSaysWhichFileOfTlsIsMissing) {
  ClientOptions options = Remote();
  options.tls.key = folder_ + "/absent.key";
  Client client(options);
  const auto ns = client.RegisterNamespace(Descriptor(1000));
  EXPECT_EQ(ns.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ns.status().message()), HasSubstr("tls.key"));
}

TEST_F(GatewayTest, TheClientComesBackAfterTheGatewayWasAway) {
  ClientOptions options = Local();
  options.reconnect_interval = absl::ZeroDuration();
  Client client(options);
  RoundTrip(client, 1000, 0, 2);
  StartGateway({});
  // The call that finds out may fail; none after it does.
  const auto ns = client.RegisterNamespace(Descriptor(1000));
  client.Lookup(*ns, KeysOf(0, 2));
  EXPECT_EQ(client.Lookup(*ns, KeysOf(0, 2)).hit_blocks, 2u);
}

TEST_F(GatewayTest, AClientThatVanishesInAPutLeavesNothing) {
  BareSession session(folder_ + "/kvd.stream");
  const uint32_t ns = session.Register(1 << 20);
  const std::string bytes = BytesOf(1, 1 << 20);
  grpc::ClientContext context;
  SetDeadline(context);
  v1::PutReply reply;
  const auto writer = session.transfer().Put(&context, &reply);
  ASSERT_TRUE(writer->Write(StartOf(session, ns, KeysOf(0, 2))));
  for (const uint32_t offset : {0u, 1u << 19}) {  // One part whole, and half of another.
    ASSERT_TRUE(writer->Write(ChunkOf(0, 1 << 20, offset, bytes.substr(offset, 1 << 19),
                                      offset == 0 ? 0 : SumOf(bytes))));
  }
  ASSERT_TRUE(writer->Write(ChunkOf(1, 1 << 20, 0, bytes.substr(0, 1 << 19), 0)));
  EXPECT_TRUE(Eventually([](Control& control) { return control.reservations() == 1; }));
  context.TryCancel();
  writer->Finish();
  EXPECT_TRUE(Eventually([](Control& control) {
    return control.reservations() == 0 && control.store().residency().counts().used == 0;
  }));
  session.End();
  EXPECT_TRUE(EventuallyIdle());
}

TEST_F(GatewayTest, AReaderThatDawdlesHoldsAPageAndNoMore) {
  Client client(Local());
  RoundTrip(client, 1 << 20, 0, 40);
  BareSession session(folder_ + "/kvd.stream");
  v1::GetRequest request;
  request.set_session(session.token());
  request.set_namespace_id(session.Register(1 << 20));
  request.set_keys(KeysOf(0, 40));
  grpc::ClientContext context;
  SetDeadline(context);
  const auto reader = session.transfer().Get(&context, request);
  v1::GetChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.start().hit_blocks(), 40u);
  EXPECT_TRUE(Eventually([](Control& control) { return control.holds().total_bytes() > 0; }));
  OnControl([](Control& control) { EXPECT_LE(control.holds().total_bytes(), 16u << 20); });
  // It goes away with its session, which ends the holds although nobody read to the end.
  session.End();
  while (reader->Read(&chunk)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_TRUE(Eventually([](Control& control) { return control.holds().total_bytes() == 0; }));
}

TEST_F(GatewayTest, DamageEndsThePrefixAndIsReported) {
  Client client(Local());
  RoundTrip(client, 600'000, 0, 5);
  OnControl([&](Control& control) {  // A byte of the third block, near its end.
    const Residency& residency = control.store().residency();
    const std::string keys = KeysOf(2, 1);
    const BlockRef block = residency.Find(1, KeyList(keys, kHashBytes)[0]);
    const Part& part = residency.part(residency.FindPart(block, {0, 0}));
    control.store().Address(part)[599'000] ^= std::byte{1};
  });
  const auto ns = client.RegisterNamespace(Descriptor(600'000));
  std::vector<std::string> got(5, std::string(600'000, '?'));
  std::vector<absl::Span<std::byte>> targets;
  for (std::string& block : got) {
    targets.push_back({reinterpret_cast<std::byte*>(block.data()), block.size()});
  }
  const GetResult result = client.Get(*ns, KeysOf(0, 5), targets);
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.hit_blocks, 5u);
  EXPECT_EQ(result.blocks, 2u);
  EXPECT_EQ(result.damaged, 1u);
  EXPECT_EQ(got[1], BytesOf(1, 600'000));
  EXPECT_TRUE(
      Eventually([](Control& control) { return control.counters().damage_confirmed == 1; }));
  EXPECT_EQ(client.Lookup(*ns, KeysOf(0, 5)).hit_blocks, 2u);
}

TEST_F(GatewayTest, ChunksThatMakeNoPartAreRefusedByName) {
  BareSession session(folder_ + "/kvd.stream");
  const uint32_t ns = session.Register(1000);
  const std::string bytes = BytesOf(0, 1000);
  const auto put = [&](const std::vector<v1::PutChunk>& chunks) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::PutReply reply;
    const auto writer = session.transfer().Put(&context, &reply);
    for (const v1::PutChunk& chunk : chunks) writer->Write(chunk);
    writer->WritesDone();
    return writer->Finish();
  };
  const v1::PutChunk start = StartOf(session, ns, KeysOf(0, 2));
  const struct {
    std::vector<v1::PutChunk> chunks;
    StatusCode code;
    const char* says;
  } cases[] = {
      {{}, StatusCode::INVALID_ARGUMENT, "start"},
      {{ChunkOf(0, 1000, 0, bytes, 0)}, StatusCode::INVALID_ARGUMENT, "start"},
      {{start, start}, StatusCode::INVALID_ARGUMENT, "what"},
      {{start, ChunkOf(2, 1000, 0, bytes, SumOf(bytes))}, StatusCode::INVALID_ARGUMENT, "index"},
      {{start, ChunkOf(0, 0, 0, bytes, 0)}, StatusCode::INVALID_ARGUMENT, "length"},
      {{start, ChunkOf(0, (16 << 20) + 1, 0, bytes, 0)}, StatusCode::INVALID_ARGUMENT, "length"},
      {{start, ChunkOf(0, 1000, 1, bytes, 0)}, StatusCode::INVALID_ARGUMENT, "offset"},
      {{start, ChunkOf(0, 1000, 0, "", 0)}, StatusCode::INVALID_ARGUMENT, "data"},
      {{start, ChunkOf(0, 500, 0, bytes, 0)}, StatusCode::INVALID_ARGUMENT, "data"},
      {{start, ChunkOf(0, 1000, 0, bytes.substr(0, 9), 0), ChunkOf(1, 1000, 9, bytes, 0)},
       StatusCode::INVALID_ARGUMENT,
       "not complete"},
      {{start, ChunkOf(0, 1000, 0, bytes.substr(0, 9), 0)},
       StatusCode::INVALID_ARGUMENT,
       "ends after 9"},
      {{start, ChunkOf(0, 999, 0, bytes.substr(1), SumOf(bytes.substr(1)))},
       StatusCode::INVALID_ARGUMENT,
       "length"},
      {{start, ChunkOf(0, 1000, 0, bytes, SumOf(bytes) + 1)}, StatusCode::DATA_LOSS, "sum"},
  };
  for (const auto& [chunks, code, says] : cases) {
    const grpc::Status status = put(chunks);
    EXPECT_EQ(status.error_code(), code) << says << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(says));
  }
  EXPECT_TRUE(Eventually([](Control& control) {
    return control.reservations() == 0 && control.store().residency().counts().used == 0;
  }));
  EXPECT_TRUE(put({start, ChunkOf(1, 1000, 0, bytes, SumOf(bytes)),
                   ChunkOf(0, 1000, 0, bytes, SumOf(bytes))})
                  .ok());
}

TEST_F(GatewayTest, ADomainGetsHalfOfTheSessionsAndStreams) {
  StartGateway({.max_sessions = 4, .max_streams = 2});
  BareSession first(folder_ + "/kvd.stream");
  BareSession second(folder_ + "/kvd.stream");
  EXPECT_EQ(second.token().size(), sizeof(SessionToken));
  BareSession third(folder_ + "/kvd.stream");
  EXPECT_EQ(third.token(), "");
  const grpc::Status refusal = third.Refusal();
  EXPECT_EQ(refusal.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refusal.error_message(), HasSubstr("sessions: your domain"));
  Client other_domain(Remote());
  EXPECT_TRUE(other_domain.RegisterNamespace(Descriptor(1000)).ok());

  // A stream that says nothing counts from its beginning.
  grpc::ClientContext silent;
  SetDeadline(silent);
  v1::PutReply reply;
  const auto writer = first.transfer().Put(&silent, &reply);
  writer->Write(StartOf(first, first.Register(1000), KeysOf(0, 1)));
  EXPECT_TRUE(Eventually([](Control& control) { return control.reservations() == 1; }));
  grpc::ClientContext more;
  SetDeadline(more);
  const auto refused = second.transfer().Put(&more, &reply);
  const grpc::Status status = refused->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("streams: your domain"));
  silent.TryCancel();
  writer->Finish();
}

TEST_F(GatewayTest, WhoBelongsToNoDomainIsToldSo) {
  domains_.SetRules({.domains = {}, .unlisted = Unlisted::kRefuse});
  BareSession session(folder_ + "/kvd.stream");
  const grpc::Status refusal = session.Refusal();
  EXPECT_EQ(refusal.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(refusal.error_message(), HasSubstr(absl::StrCat("user ", getuid())));
  Client client(Remote());
  const absl::Status remote = client.RegisterNamespace(Descriptor(1000)).status();
  EXPECT_EQ(remote.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(remote.message()), HasSubstr("spiffe://kvd.test/client"));
  EXPECT_EQ(strangers_.count(Stranger::kUser), 1u);
  EXPECT_GE(strangers_.count(Stranger::kIdentity), 1u);
  EXPECT_EQ(strangers_.count(Stranger::kSession), 0u);
}

TEST_F(GatewayTest, CallsAndStreamsAreCountedAndTimed) {
  Client client(Local());
  RoundTrip(client, 1000, 0, 3);  // Puts twice.
  EXPECT_EQ(Answers(Op::kPut), 2u);
  EXPECT_EQ(Answers(Op::kGet), 1u);
  EXPECT_EQ(Answers(Op::kLookup), 1u);
  EXPECT_EQ(Answers(Op::kRegisterNamespace), 1u);
  const auto& gets = metrics_.numbers().ops[static_cast<size_t>(Op::kGet)].duration;
  uint64_t timed = 0;
  for (size_t i = 0; i < gets.kBuckets; ++i) timed += gets.count(i);
  EXPECT_EQ(timed, 1u);
  EXPECT_GT(gets.sum(), 0u);
}

TEST_F(GatewayTest, WhoNamesNoSessionIsCounted) {
  BareSession session(folder_ + "/kvd.stream");
  v1::GetRequest request;
  request.set_session(std::string(16, 'x'));
  grpc::ClientContext context;
  SetDeadline(context);
  const auto reader = session.transfer().Get(&context, request);
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(strangers_.count(Stranger::kSession), 1u);
  EXPECT_EQ(Answers(Op::kGet, StatusCode::UNAUTHENTICATED), 1u);
}

TEST_F(GatewayTest, ASessionOutlivesADrainThatIsTakenBack) {
  for (const ClientOptions& options : {Local(), Remote()}) {
    Client client(options);
    RoundTrip(client, 1000, 0, 3);
    const auto ns = client.RegisterNamespace(Descriptor(1000));
    const uint64_t lease = client.Lookup(*ns, KeysOf(0, 3), {.lease = absl::Minutes(5)}).lease_id;
    ASSERT_NE(lease, 0u);
    uint64_t opened = 0;
    OnControl([&](Control& control) {
      control.Drain(Control::DrainEnd::kStay, 0);
      opened = control.counters().sessions_opened;
    });
    std::vector<std::string> got(3, std::string(1000, '?'));
    std::vector<absl::Span<std::byte>> targets;
    std::vector<absl::Span<const std::byte>> sources;
    for (std::string& block : got) {
      targets.push_back({reinterpret_cast<std::byte*>(block.data()), block.size()});
      sources.push_back(targets.back());
    }
    for (int i = 0; i < 2; ++i) {
      for (const absl::Status& refusal : {client.Get(*ns, KeysOf(0, 3), targets).status,
                                          client.Put(*ns, KeysOf(10, 3), sources).status,
                                          client.Pin(*ns, KeysOf(2, 1), {.owner = "o"}).status()}) {
        EXPECT_TRUE(absl::IsUnavailable(refusal)) << refusal;
        EXPECT_THAT(std::string(refusal.message()), HasSubstr("draining"));
      }
      EXPECT_EQ(client.Lookup(*ns, KeysOf(0, 3)).hit_blocks, 3u);
    }
    OnControl([&](Control& control) { ASSERT_TRUE(control.Undrain().ok()); });
    EXPECT_EQ(client.Get(*ns, KeysOf(0, 3), targets).blocks, 3u);
    EXPECT_EQ(client.stats().reconnects, 0u);
    OnControl([&](Control& control) {
      EXPECT_EQ(control.counters().sessions_opened, opened);
      EXPECT_EQ(control.leases(), 1u);
    });
    client.ReleaseLease(lease);
    EXPECT_EQ(client.Put(*ns, KeysOf(20, 3), sources).status, absl::OkStatus());
  }
}

TEST_F(GatewayTest, APortInUseIsNamed) {
  const auto second =
      Gateway::Start(inbox_, control_.events(), *copiers_, copier_, domains_,
                     {.path = folder_ + "/other.stream", .tcp = gateway_->tcp_address()});
  EXPECT_THAT(std::string(second.status().message()),
              testing::AllOf(HasSubstr(gateway_->tcp_address()), HasSubstr("in use")));
}

TEST(SplitHostPort, TakesHostsAndBothKindsOfAddresses) {
  EXPECT_EQ(SplitHostPort("[::1]:7")->host, "::1");
  EXPECT_EQ(SplitHostPort("a.b:65535")->port, "65535");
  for (const char* bad : {"", "a", "a:", ":1", "::1", "a:65536", "a:x", "[]:1", "a:-1"}) {
    EXPECT_FALSE(SplitHostPort(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace kvd
