// The real daemon and its clients, in processes of their own: what two clients do to each other,
// what bad input gets, what another user can reach, and how a daemon starts and ends.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "client/convert.h"
#include "proto/types/announcement.h"
#include "proto/types/limits.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

using grpc::StatusCode;
using testing::Each;
using testing::HasSubstr;
using testing::Not;
using Stub = v1::Engine::Stub;

constexpr uint32_t kPartBytes = 64 << 10;
constexpr int64_t kSomebody = 65534;  // Users without privileges.
constexpr int64_t kSomebodyElse = 65533;

std::string Bytes(size_t size) { return std::string(size, 'x'); }

class E2eTest : public testing::Test {
 protected:
  void Start(DaemonProcess::Options options = {}) {
    auto daemon = DaemonProcess::Start(std::move(options));
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }
  std::unique_ptr<ChildProcess> Peer(uint32_t part_bytes, int first, int count,
                                     std::vector<std::string> errand, int64_t uid = -1) {
    std::vector<std::string> arguments = {daemon_->path(), absl::StrCat(part_bytes),
                                          absl::StrCat(first), absl::StrCat(count)};
    arguments.insert(arguments.end(), errand.begin(), errand.end());
    return std::make_unique<ChildProcess>(KVD_PEER_PROGRAM, arguments, uid);
  }
  // Runs a peer to its end; what it said.
  std::string RunPeer(int first, int count, std::vector<std::string> errand, int64_t uid = -1) {
    const auto peer = Peer(kPartBytes, first, count, std::move(errand), uid);
    const std::string said = peer->ReadToEnd();
    EXPECT_EQ(peer->Wait(), 0) << said << peer->Errors();
    return said;
  }
  std::unique_ptr<RawSession> Open() {
    auto session = RawSession::Open(daemon_->path());
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *std::move(session) : nullptr;
  }
  void ExpectClean() {
    const v1::AuditReply audit = daemon_->Audit();
    EXPECT_EQ(audit.errors(), 0u) << audit.first_error();
    EXPECT_EQ(audit.stranded_blocks(), 0u);
  }

  std::unique_ptr<DaemonProcess> daemon_;
};

v1::ReserveRequest ReserveOf(uint32_t ns, const std::string& keys, const std::string& parent = "",
                             uint32_t wait_ms = 0) {
  v1::ReserveRequest request;
  request.set_namespace_id(ns);
  request.set_keys(keys);
  request.set_parent(parent);
  request.set_wait_ms(wait_ms);
  return request;
}

v1::LookupRequest LookupOf(uint32_t ns, const std::string& keys) {
  v1::LookupRequest request;
  request.set_namespace_id(ns);
  request.set_keys(keys);
  return request;
}

uint32_t Hits(RawSession& session, uint32_t ns, const std::string& keys) {
  v1::LookupReply reply;
  const grpc::Status status = session.Call(&Stub::Lookup, LookupOf(ns, keys), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return reply.hit_blocks();
}

// Fills blocks [0, count) of a reservation with what their keys call for.
void Fill(RawStaging& staging, uint64_t reservation, int first, int count) {
  for (int i = 0; i < count; ++i) {
    const auto bytes = TestBytes(TestKey(first + i), kPartBytes);
    std::copy(bytes.begin(), bytes.end(), staging.data());
    ASSERT_TRUE(staging.Send({{reservation, 0, static_cast<uint32_t>(i), kPartBytes}}));
    const auto replies = staging.Receive(1);
    ASSERT_EQ(replies.size(), 1u);
    ASSERT_EQ(replies[0].status, FillStatus::kOk);
  }
}

v1::CommitReply CommitAll(RawSession& session, uint64_t reservation) {
  v1::CommitRequest request;
  request.set_reservation_id(reservation);
  v1::CommitReply reply;
  const grpc::Status status = session.Call(&Stub::Commit, request, &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return reply;
}

// ---- two processes ------------------------------------------------------------------------------

TEST_F(E2eTest, OneProcessPutsAndAnotherGets) {
  Start();
  EXPECT_EQ(RunPeer(0, 32, {"put"}), "stored 32 present 0\n");
  EXPECT_EQ(RunPeer(0, 32, {"get"}), "blocks 32 wrong 0\n");
  EXPECT_EQ(RunPeer(0, 40, {"get"}), "blocks 32 wrong 0\n");
  EXPECT_EQ(RunPeer(500, 4, {"get"}), "blocks 0 wrong 0\n");
  ExpectClean();
}

TEST_F(E2eTest, TheSecondToPutSendsOnlyWhatIsMissing) {
  Start();
  EXPECT_EQ(RunPeer(0, 16, {"put"}), "stored 16 present 0\n");
  EXPECT_EQ(RunPeer(0, 24, {"put"}), "stored 8 present 16\n");
  EXPECT_EQ(daemon_->Status().blocks(), 24u);
}

TEST_F(E2eTest, ASchedulerLeasesAndAWorkerInAnotherProcessLoads) {
  Start();
  ASSERT_EQ(RunPeer(0, 8, {"put"}), "stored 8 present 0\n");
  Client scheduler({.endpoint = daemon_->endpoint(), .timeout = kPatience});
  const auto ns = scheduler.RegisterNamespace(TestModel(kPartBytes));
  ASSERT_TRUE(ns.ok());
  const LookupResult found = scheduler.Lookup(*ns, TestKeys(0, 8), {.lease = absl::Minutes(5)});
  ASSERT_EQ(found.hit_blocks, 8u);
  ASSERT_NE(found.lease_id, 0u);
  // Twice as much as there is room for: only what is leased stays.
  for (int first = 1000; first < 3000; first += 100) RunPeer(first, 100, {"put"});
  EXPECT_EQ(RunPeer(0, 8, {"load"}), "blocks 8 wrong 0\n");
  scheduler.ReleaseLease(found.lease_id);
  EXPECT_TRUE(scheduler.Flush().ok());
  EXPECT_EQ(daemon_->Status().leases(), 0u);
}

TEST_F(E2eTest, AWaiterIsToldWhenTheProducerCommits) {
  Start();
  const auto producer = Peer(kPartBytes, 0, 4, {"reserve"});
  ASSERT_EQ(producer->ReadLine(), "granted 4") << producer->Errors();
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  v1::ReserveReply reply;
  ASSERT_TRUE(session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(0, 4)), &reply).ok());
  EXPECT_EQ(reply.states(), std::string(4, static_cast<char>(ReserveState::kInProduction)));
  EXPECT_EQ(reply.reservation_id(), 0u);

  auto waiting = std::async(std::launch::async, [&] {
    v1::ReserveReply waited;
    const auto status =
        session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(0, 4), "", 15'000), &waited);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return waited;
  });
  ASSERT_TRUE(daemon_->WaitFor([&](const auto& status) { return status.reservations() == 2; }));
  producer->WriteLine("commit");
  EXPECT_EQ(producer->ReadLine(), "stored 4");
  EXPECT_EQ(waiting.get().states(), std::string(4, static_cast<char>(ReserveState::kPresent)));
}

TEST_F(E2eTest, AWaiterIsGrantedWhatADeadProducerLeft) {
  Start();
  const auto producer = Peer(kPartBytes, 0, 4, {"reserve"});
  ASSERT_EQ(producer->ReadLine(), "granted 4") << producer->Errors();
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  auto waiting = std::async(std::launch::async, [&] {
    v1::ReserveReply waited;
    const auto status =
        session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(0, 4), "", 15'000), &waited);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return waited;
  });
  ASSERT_TRUE(daemon_->WaitFor([&](const auto& status) { return status.reservations() == 2; }));
  producer->Signal(SIGKILL);
  const v1::ReserveReply granted = waiting.get();
  EXPECT_EQ(granted.states(), std::string(4, static_cast<char>(ReserveState::kGranted)));
  auto staging = RawStaging::Open(*session, kPartBytes);
  ASSERT_TRUE(staging.ok());
  Fill(**staging, granted.reservation_id(), 0, 4);
  EXPECT_EQ(CommitAll(*session, granted.reservation_id()).stored(), 4u);
  EXPECT_EQ(RunPeer(0, 4, {"get"}), "blocks 4 wrong 0\n");
}

TEST_F(E2eTest, ACommitBelowAParentInProductionIsParkedUntilThatIsCommitted) {
  Start();
  const auto producer = Peer(kPartBytes, 0, 4, {"reserve"});
  ASSERT_EQ(producer->ReadLine(), "granted 4") << producer->Errors();
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  v1::ReserveReply reply;
  ASSERT_TRUE(
      session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(4, 2), TestKey(3)), &reply).ok());
  ASSERT_EQ(reply.granted(), 2u);
  auto staging = RawStaging::Open(*session, kPartBytes);
  ASSERT_TRUE(staging.ok());
  Fill(**staging, reply.reservation_id(), 4, 2);
  const v1::CommitReply parked = CommitAll(*session, reply.reservation_id());
  EXPECT_EQ(parked.stored(), 0u);
  EXPECT_EQ(parked.results(), std::string(2, static_cast<char>(CommitResult::kParked)));
  EXPECT_EQ(daemon_->Status().blocks(), 0u);
  producer->WriteLine("commit");
  EXPECT_EQ(producer->ReadLine(), "stored 6");
  EXPECT_EQ(RunPeer(0, 6, {"get"}), "blocks 6 wrong 0\n");
}

TEST_F(E2eTest, WhatIsParkedBelowADeadProducerIsDroppedAndCounted) {
  Start();
  const auto producer = Peer(kPartBytes, 0, 4, {"reserve"});
  ASSERT_EQ(producer->ReadLine(), "granted 4") << producer->Errors();
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  v1::ReserveReply reply;
  ASSERT_TRUE(
      session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(4, 2), TestKey(3)), &reply).ok());
  auto staging = RawStaging::Open(*session, kPartBytes);
  ASSERT_TRUE(staging.ok());
  Fill(**staging, reply.reservation_id(), 4, 2);
  CommitAll(*session, reply.reservation_id());
  producer->Signal(SIGKILL);
  EXPECT_TRUE(daemon_->WaitFor([](const auto& status) { return status.reservations() == 0; }));
  EXPECT_EQ(daemon_->Counter("parked_blocks_dropped"), 2u);
  EXPECT_EQ(daemon_->Tiers().tiers(0).reserved_bytes(), 0u);
  ExpectClean();
}

// ---- namespaces ---------------------------------------------------------------------------------

TEST_F(E2eTest, ANamespaceThatDiffersInAnyFieldIsAnother) {
  Start();
  const auto session = Open();
  const v1::NamespaceDescriptor model = ToProto(TestModel(kPartBytes));
  std::vector<v1::NamespaceDescriptor> variants(17, model);
  variants[0].set_model("other");
  variants[1].set_weights_revision("other");
  variants[2].set_kv_dtype("other");
  variants[3].set_quantization("other");
  variants[4].set_page_layout("other");
  variants[5].set_engine_family("other");
  variants[6].set_draft_model("other");
  variants[7].set_hash_algorithm("other");
  variants[8].set_hash_seed("other");
  variants[9].set_hash_bytes(kE2eHashBytes + 1);
  variants[10].set_tensor_parallel(2);
  variants[11].set_pipeline_parallel(2);
  variants[12].set_context_parallel(2);
  variants[13].mutable_groups(0)->set_shards(2);
  variants[14].mutable_groups(0)->set_block_tokens(32);
  variants[15].mutable_groups(0)->set_part_bytes(kPartBytes - 1);
  (*variants[16].mutable_extra())["any"] = "thing";
  variants.push_back(model);  // The same again is the same.
  ASSERT_EQ(RunPeer(0, 2, {"put"}), "stored 2 present 0\n");

  std::map<uint32_t, std::string> ids;
  for (size_t i = 0; i < variants.size(); ++i) {
    v1::RegisterNamespaceRequest request;
    *request.mutable_describes() = variants[i];
    v1::RegisterNamespaceReply reply;
    ASSERT_TRUE(session->Call(&Stub::RegisterNamespace, request, &reply).ok()) << i;
    EXPECT_TRUE(ids.emplace(reply.namespace_id(), reply.fingerprint()).second) << i;
    const bool same = i + 1 == variants.size();
    EXPECT_EQ(reply.created(), !same) << i;
    if (i == 9) continue;  // Its keys have another length.
    EXPECT_EQ(Hits(*session, reply.namespace_id(), TestKeys(0, 2)), same ? 2u : 0u) << i;
    v1::LoadRequest load;
    load.set_namespace_id(reply.namespace_id());
    load.set_keys(TestKeys(0, 2));
    v1::LoadReply loaded;
    ASSERT_TRUE(session->Call(&Stub::Load, load, &loaded).ok()) << i;
    EXPECT_EQ(loaded.blocks(), same ? 2u : 0u) << i;
    EXPECT_EQ(loaded.outcome(), same ? v1::LOAD_COMPLETE : v1::LOAD_MISS) << i;
    EXPECT_EQ(loaded.hold_id() != 0, same) << i;
  }
}

// ---- staging ------------------------------------------------------------------------------------

UniqueFd MakeMemfd(uint64_t size, int seals, unsigned flags = 0) {
  UniqueFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

TEST_F(E2eTest, AClientBringsItsOwnMemoryToStageIn) {
  Start();
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  const UniqueFd memory = MakeMemfd(2 * kPartBytes, F_SEAL_SHRINK);
  auto answer = session->AskForStaging(2 * kPartBytes, memory.get());
  ASSERT_TRUE(answer.ok());
  ASSERT_EQ(answer->status, SessionStatus::kOk);
  auto mapped = Mapping::Map(memory.get(), 2 * kPartBytes, Mapping::Access::kReadWrite);
  ASSERT_TRUE(mapped.ok());
  v1::CommitRequest commit;
  commit.set_namespace_id(ns);
  commit.set_keys(TestKeys(0, 2));
  for (int i = 0; i < 2; ++i) {
    const auto bytes = TestBytes(TestKey(i), kPartBytes);
    std::copy(bytes.begin(), bytes.end(), mapped->data() + i * kPartBytes);
    const PackedStaged staged{uint64_t{kPartBytes} * i, kPartBytes, 0};
    commit.mutable_staged()->append(reinterpret_cast<const char*>(&staged), sizeof staged);
  }
  v1::CommitReply reply;
  ASSERT_TRUE(session->Call(&Stub::Commit, commit, &reply).ok());
  EXPECT_EQ(reply.stored(), 2u);
  EXPECT_EQ(RunPeer(0, 2, {"get"}), "blocks 2 wrong 0\n");
}

TEST_F(E2eTest, MemoryThatCouldKillACopierIsRefusedAsStaging) {
  Start();
  const uint64_t size = 1 << 20;
  const UniqueFd sealed = MakeMemfd(size, F_SEAL_SHRINK);
  const UniqueFd unsealed = MakeMemfd(size, 0);
  const UniqueFd huge = MakeMemfd(2 << 20, F_SEAL_SHRINK, MFD_HUGETLB);
  const UniqueFd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const UniqueFd regular(open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_EQ(ftruncate(regular.get(), size), 0);
  int pipes[2];
  ASSERT_EQ(pipe2(pipes, O_CLOEXEC), 0);
  const UniqueFd reader(pipes[0]);
  const UniqueFd writer(pipes[1]);
  struct Case {
    const char* name;
    int fd;
    uint64_t size;
    bool fine = false;
  };
  for (const Case& c :
       {Case{"unsealed", unsealed.get(), size}, Case{"larger than it is", sealed.get(), size + 1},
        Case{"no size", sealed.get(), 0}, Case{"beyond any size", sealed.get(), UINT64_MAX},
        Case{"too big", sealed.get(), kMaxOwnStagingBytes + 1},
        Case{"huge pages that may go", huge.get(), 2 << 20}, Case{"a program", file.get(), 4096},
        Case{"a regular file", regular.get(), size}, Case{"a pipe", reader.get(), 4096},
        Case{"as it should be", sealed.get(), size, true}}) {
    const auto session = Open();
    const auto answer = session->AskForStaging(c.size, c.fd);
    ASSERT_TRUE(answer.ok()) << c.name;
    EXPECT_EQ(answer->status, c.fine ? SessionStatus::kOk : SessionStatus::kInvalid) << c.name;
    EXPECT_NE(session->Register(TestModel(kPartBytes)), 0u) << c.name;  // It lives on.
  }
}

// Adopts memory of `blocks` parts that hold what their keys call for, and puts from there.
class AdoptingClient {
 public:
  AdoptingClient(const std::string& endpoint, int blocks)
      : size_(size_t{kPartBytes} * static_cast<size_t>(blocks)),
        memory_(MakeMemfd(size_, F_SEAL_SHRINK)),
        mapping_(*Mapping::Map(memory_.get(), size_, Mapping::Access::kReadWrite)),
        client_({.endpoint = endpoint, .timeout = kPatience}) {
    for (int i = 0; i < blocks; ++i) {
      const auto bytes = TestBytes(TestKey(i), kPartBytes);
      std::copy(bytes.begin(), bytes.end(), mapping_.data() + size_t{kPartBytes} * i);
      sources_.emplace_back(mapping_.data() + size_t{kPartBytes} * i, kPartBytes);
    }
    auto ns = client_.RegisterNamespace(TestModel(kPartBytes));
    EXPECT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    const absl::Status adopted = client_.AdoptMemory(memory_.get(), bytes());
    EXPECT_TRUE(adopted.ok()) << adopted;
  }
  absl::Span<std::byte> bytes() const { return {mapping_.data(), size_}; }
  PutResult Put(absl::Duration timeout = kPatience) {
    const int blocks = static_cast<int>(sources_.size());
    return client_.Put(ns_, TestKeys(0, blocks), sources_, {.timeout = timeout});
  }
  uint64_t own_bytes() const { return client_.stats().own_bytes; }

 private:
  const size_t size_;
  const UniqueFd memory_;
  const Mapping mapping_;
  Client client_;
  Namespace ns_;
  std::vector<absl::Span<const std::byte>> sources_;
};

TEST_F(E2eTest, APutFromAdoptedMemoryIsReadWhereItLiesAndGotElsewhere) {
  Start();
  AdoptingClient client(daemon_->endpoint(), 32);
  const PutResult put = client.Put();
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(put.stored, 32u);
  EXPECT_EQ(client.own_bytes(), 32u * kPartBytes);
  EXPECT_EQ(RunPeer(0, 32, {"get"}), "blocks 32 wrong 0\n");
  ExpectClean();
}

// What a put left behind that timed out must not become visible with what the caller wrote later.
TEST_F(E2eTest, AdoptedMemoryThatChangesAfterAPutTimedOutIsNotStored) {
  Start();
  AdoptingClient client(daemon_->endpoint(), 32);
  daemon_->child().Signal(SIGSTOP);
  const PutResult put = client.Put(absl::Milliseconds(200));
  EXPECT_FALSE(put.status.ok());
  std::fill(client.bytes().begin(), client.bytes().end(), std::byte{0x11});
  daemon_->child().Signal(SIGCONT);
  ASSERT_TRUE(daemon_->WaitFor([](const auto& status) { return status.reservations() == 0; }));
  EXPECT_EQ(RunPeer(0, 32, {"get"}), "blocks 0 wrong 0\n");
  ExpectClean();
}

// Against the contract: the bytes change while they are read. Every byte is one that was there, and
// all readers see the same; nothing fails its sum.
TEST_F(E2eTest, AdoptedMemoryThatChangesDuringAPutIsStoredAsItWasRead) {
  Start();
  constexpr int kBlocks = 64;
  AdoptingClient client(daemon_->endpoint(), kBlocks);
  std::fill(client.bytes().begin(), client.bytes().end(), std::byte{1});
  std::atomic<bool> over{false};
  std::thread writer([&] {
    for (int value = 2; !over; value = 3 - value) {
      std::fill(client.bytes().begin(), client.bytes().end(), static_cast<std::byte>(value));
    }
  });
  const PutResult put = client.Put();
  over = true;
  writer.join();
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(put.stored, uint32_t{kBlocks});

  Client reader({.endpoint = daemon_->endpoint(), .timeout = kPatience});
  const auto ns = reader.RegisterNamespace(TestModel(kPartBytes));
  ASSERT_TRUE(ns.ok());
  std::vector<std::vector<std::byte>> seen;
  for (int i = 0; i < 2; ++i) {
    std::vector<std::byte>& all = seen.emplace_back(size_t{kBlocks} * kPartBytes);
    std::vector<absl::Span<std::byte>> targets;
    for (size_t at = 0; at < all.size(); at += kPartBytes) {
      targets.push_back(absl::MakeSpan(all).subspan(at, kPartBytes));
    }
    const GetResult got = reader.Get(*ns, TestKeys(0, kBlocks), targets);
    EXPECT_EQ(got.blocks, uint32_t{kBlocks});
    EXPECT_EQ(got.damaged, 0u);
  }
  EXPECT_EQ(seen[0], seen[1]);
  EXPECT_TRUE(std::all_of(seen[0].begin(), seen[0].end(), [](std::byte byte) {
    return byte == std::byte{1} || byte == std::byte{2};
  }));
  ExpectClean();
}

TEST_F(E2eTest, StagingIsGivenOnceAndUpTo16MiB) {
  Start();
  for (const uint64_t size : {kMaxStagingBytes - 1, kMaxStagingBytes, kMaxStagingBytes + 1}) {
    const auto session = Open();
    auto answer = session->AskForStaging(size);
    ASSERT_TRUE(answer.ok());
    EXPECT_EQ(answer->status, SessionStatus::kOk);
    EXPECT_EQ(answer->size_bytes, std::min<uint64_t>(size, kMaxStagingBytes));
    auto again = session->AskForStaging(size);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again->status, SessionStatus::kInvalid);
  }
}

TEST_F(E2eTest, StagingGoesWithTheSessionThoughItsChannelIsKept) {
  Start();
  std::vector<UniqueFd> kept;
  for (int i = 0; i < 4; ++i) {
    const auto session = Open();
    auto answer = session->AskForStaging(1 << 20);
    ASSERT_TRUE(answer.ok());
    kept.push_back(std::move(answer->channel));
  }
  for (const UniqueFd& channel : kept) EXPECT_TRUE(HangsUp(channel.get()));
}

TEST_F(E2eTest, AFillThatDoesNotFitItsReservationMovesNoByte) {
  Start();
  const auto session = Open();
  const auto other = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  v1::ReserveReply mine;
  v1::ReserveReply theirs;
  ASSERT_TRUE(session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(0, 2)), &mine).ok());
  ASSERT_TRUE(other->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(9, 2)), &theirs).ok());
  auto staging = RawStaging::Open(*session, 2 * kPartBytes);
  ASSERT_TRUE(staging.ok());
  const uint64_t id = mine.reservation_id();
  const std::pair<FillRequest, FillStatus> cases[] = {
      {{id, 0, 2, kPartBytes}, FillStatus::kInvalid},
      {{id, 0, UINT32_MAX, kPartBytes}, FillStatus::kInvalid},
      {{id, 0, 0, kPartBytes - 1, 1}, FillStatus::kInvalid},  // Not the next bytes of the part.
      {{id, 0, 0, kPartBytes + 1}, FillStatus::kInvalid},
      {{id, 0, 0, 0}, FillStatus::kInvalid},
      {{id, kPartBytes + 1, 0, kPartBytes}, FillStatus::kInvalid},
      {{id, UINT64_MAX, 0, kPartBytes}, FillStatus::kInvalid},
      {{id, UINT64_MAX - kPartBytes + 1, 0, kPartBytes}, FillStatus::kInvalid},
      {{theirs.reservation_id(), 0, 0, kPartBytes}, FillStatus::kGone},
      {{0, 0, 0, kPartBytes}, FillStatus::kGone},
      {{UINT64_MAX, 0, 0, kPartBytes}, FillStatus::kGone},
      {{id, kPartBytes, 0, kPartBytes}, FillStatus::kOk},
      {{id, 0, 0, kPartBytes}, FillStatus::kInvalid},  // Filled before.
  };
  for (const auto& [request, status] : cases) {
    ASSERT_TRUE((*staging)->Send({request}));
    const auto replies = (*staging)->Receive(1);
    ASSERT_EQ(replies.size(), 1u);
    EXPECT_EQ(replies[0].status, status) << request.index << " " << request.length;
  }
  const v1::CommitReply committed = CommitAll(*session, id);
  EXPECT_EQ(committed.stored(), 1u);
  EXPECT_EQ(committed.results()[1], static_cast<char>(CommitResult::kNotFilled));
}

TEST_F(E2eTest, NonsenseOnTheFillChannelEndsIt) {
  Start();
  for (const size_t size : {size_t{1}, sizeof(FillRequest) - 1, sizeof(FillRequest) + 1,
                            (kMaxFillsPerMessage + 1) * sizeof(FillRequest)}) {
    const auto session = Open();
    auto staging = RawStaging::Open(*session, 1 << 20);
    ASSERT_TRUE(staging.ok());
    const std::string junk = Bytes(size);
    ASSERT_TRUE(SendMessage((*staging)->channel(), junk.data(), junk.size(), absl::Now()).ok());
    EXPECT_TRUE(HangsUp((*staging)->channel())) << size;
    EXPECT_NE(session->Register(TestModel(kPartBytes)), 0u);  // The session lives on.
  }
}

TEST_F(E2eTest, NonsenseOnTheSessionSocketEndsTheSessionAndNothingElse) {
  Start();
  const auto bystander = Open();
  const SessionHello hello{.version_min = 1, .version_max = 1};
  SessionHello no_magic = hello;
  no_magic.magic = 0;
  SessionHello other_kind = hello;
  other_kind.kind = SessionMessage::kRegionRequest;
  const RegionRequest region;
  const auto bytes = [](const auto& message) {
    return std::string(reinterpret_cast<const char*>(&message), sizeof message);
  };
  for (const std::string& first : {bytes(no_magic), bytes(other_kind), bytes(region), Bytes(1),
                                   Bytes(31), Bytes(33), Bytes(4096), bytes(hello) + "x"}) {
    auto socket = RawSession::Connect(daemon_->path());
    ASSERT_TRUE(socket.ok());
    ASSERT_TRUE(SendMessage(socket->get(), first.data(), first.size(), absl::Now()).ok());
    EXPECT_TRUE(HangsUp(socket->get())) << absl::BytesToHexString(first);
  }
  for (const std::string& later : {bytes(hello), Bytes(8), Bytes(16), Bytes(64), Bytes(65)}) {
    const auto session = Open();
    ASSERT_TRUE(SendMessage(session->socket(), later.data(), later.size(), absl::Now()).ok());
    EXPECT_TRUE(HangsUp(session->socket())) << absl::BytesToHexString(later);
    EXPECT_TRUE(daemon_->WaitFor([](const auto& status) { return status.sessions() == 1; }));
  }
  EXPECT_NE(bystander->Register(TestModel(kPartBytes)), 0u);
}

TEST_F(E2eTest, AClientOfAnotherProtocolVersionIsTold) {
  Start();
  for (const auto& [low, high, fine] : {std::tuple<uint32_t, uint32_t, bool>{0, 0, false},
                                        {3, 9, false},
                                        {0, 9, true},
                                        {1, 1, true}}) {
    auto socket = RawSession::Connect(daemon_->path());
    ASSERT_TRUE(socket.ok());
    const SessionHello hello{.version_min = low, .version_max = high};
    ASSERT_TRUE(SendMessage(socket->get(), &hello, sizeof hello, absl::Now()).ok());
    SessionWelcome welcome;
    std::vector<UniqueFd> none;
    const auto size =
        ReceiveMessage(socket->get(), &welcome, sizeof welcome, none, absl::Now() + kPatience);
    ASSERT_TRUE(size.ok());
    EXPECT_EQ(welcome.status, fine ? SessionStatus::kOk : SessionStatus::kVersion);
    EXPECT_EQ(welcome.version, fine ? std::min(high, kProtocolVersion) : kProtocolVersion);
  }
}

// ---- what bad input gets ------------------------------------------------------------------------

class BadInputTest : public E2eTest {
 protected:
  void SetUp() override {
    Start();
    session_ = Open();
    ns_ = session_->Register(TestModel(kPartBytes));
    ASSERT_NE(ns_, 0u);
  }
  // Expects `code` and `field` in the message, and that nothing else came of it.
  template <typename Request, typename Reply>
  void Refused(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
               const Request& request, StatusCode code, const std::string& field) {
    Reply reply;
    const grpc::Status status = session_->Call(method, request, &reply);
    EXPECT_EQ(status.error_code(), code) << status.error_message() << request.ShortDebugString();
    EXPECT_THAT(status.error_message(), HasSubstr(field));
    EXPECT_EQ(Hits(*session_, ns_, TestKeys(0, 2)), 0u);  // The session lives on.
  }
  void TearDown() override {
    const v1::StatusReply status = daemon_->Status();
    EXPECT_EQ(status.blocks(), 0u);
    EXPECT_EQ(status.sessions(), 1u);
    EXPECT_EQ(status.leases() + status.holds() + status.reservations() + status.pins(), 0u)
        << status.ShortDebugString();
    EXPECT_EQ(daemon_->Tiers().tiers(0).reserved_bytes(), 0u);
    ExpectClean();
    session_.reset();  // An idle connection would delay the end by the grace that calls get.
    EXPECT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
  }

  std::unique_ptr<RawSession> session_;
  uint32_t ns_ = 0;
};

TEST_F(BadInputTest, KeysParentAndParts) {
  const auto each = [&](const std::string& keys, const std::string& parent,
                        const std::string& parts, StatusCode code, const std::string& field) {
    v1::LookupRequest lookup = LookupOf(ns_, keys);
    lookup.set_parent(parent);
    lookup.set_parts(parts);
    lookup.set_extent_blocks(1);
    Refused(&Stub::Lookup, lookup, code, field);
    v1::ReserveRequest reserve = ReserveOf(ns_, keys, parent);
    reserve.set_parts(parts);
    Refused(&Stub::Reserve, reserve, code, field);
    v1::CommitRequest commit;
    commit.set_namespace_id(ns_);
    commit.set_keys(keys);
    commit.set_parent(parent);
    commit.set_parts(parts);
    Refused(&Stub::Commit, commit, code, field);
    if (!parent.empty()) return;
    v1::LoadRequest load;
    load.set_namespace_id(ns_);
    load.set_keys(keys);
    load.set_parts(parts);
    Refused(&Stub::Load, load, code, field);
  };
  const std::string keys = TestKeys(0, 2);
  each("", "", "", StatusCode::INVALID_ARGUMENT, "keys");
  each(keys.substr(1), "", "", StatusCode::INVALID_ARGUMENT, "keys");
  each(keys + "x", "", "", StatusCode::INVALID_ARGUMENT, "keys");
  each(keys, "x", "", StatusCode::INVALID_ARGUMENT, "parent");
  each(keys, keys, "", StatusCode::INVALID_ARGUMENT, "parent");
  each(keys, "", std::string(1, '\0'), StatusCode::INVALID_ARGUMENT, "parts");
  each(keys, "", std::string("\0\1", 2), StatusCode::INVALID_ARGUMENT, "parts");
  each(keys, "", std::string("\1\0", 2), StatusCode::INVALID_ARGUMENT, "parts");
  each(keys, "", std::string(4, '\0'), StatusCode::INVALID_ARGUMENT, "parts");
  ns_ += 1;
  v1::LoadRequest load;
  load.set_namespace_id(ns_);
  load.set_keys(keys);
  v1::LoadReply loaded;
  EXPECT_EQ(session_->Call(&Stub::Load, load, &loaded).error_code(), StatusCode::NOT_FOUND);
  v1::LookupReply found;
  for (const uint32_t ns : {ns_, 0u, UINT32_MAX}) {
    const grpc::Status status = session_->Call(&Stub::Lookup, LookupOf(ns, keys), &found);
    EXPECT_EQ(status.error_code(), StatusCode::NOT_FOUND);
    EXPECT_THAT(status.error_message(), HasSubstr("namespace_id"));
  }
}

TEST_F(BadInputTest, EveryCallOfAnUnknownSession) {
  const auto refused = [&](auto method, auto request, auto reply) {
    for (const std::string& token : {std::string(), std::string(16, '\0'), Bytes(17)}) {
      request.set_session(token);
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
      const grpc::Status status = (session_->stub().*method)(&context, request, &reply);
      EXPECT_EQ(status.error_code(), StatusCode::UNAUTHENTICATED) << request.GetTypeName();
      EXPECT_THAT(status.error_message(), HasSubstr("session"));
    }
  };
  refused(&Stub::RegisterNamespace, v1::RegisterNamespaceRequest(), v1::RegisterNamespaceReply());
  refused(&Stub::Lookup, v1::LookupRequest(), v1::LookupReply());
  refused(&Stub::Load, v1::LoadRequest(), v1::LoadReply());
  refused(&Stub::Release, v1::ReleaseRequest(), v1::ReleaseReply());
  refused(&Stub::Reserve, v1::ReserveRequest(), v1::ReserveReply());
  refused(&Stub::Commit, v1::CommitRequest(), v1::CommitReply());
  refused(&Stub::Abort, v1::AbortRequest(), v1::AbortReply());
  refused(&Stub::Pin, v1::PinRequest(), v1::PinReply());
  refused(&Stub::Unpin, v1::UnpinRequest(), v1::UnpinReply());
  refused(&Stub::Prefetch, v1::PrefetchRequest(), v1::PrefetchReply());
  refused(&Stub::Hint, v1::HintRequest(), v1::HintReply());
  refused(&Stub::Retain, v1::RetainRequest(), v1::RetainReply());
}

TEST_F(BadInputTest, EachFieldOfADescriptor) {
  const v1::NamespaceDescriptor model = ToProto(TestModel(kPartBytes));
  const auto refused = [&](const std::string& field,
                           const std::function<void(v1::NamespaceDescriptor&)>& spoil) {
    v1::RegisterNamespaceRequest request;
    *request.mutable_describes() = model;
    spoil(*request.mutable_describes());
    Refused(&Stub::RegisterNamespace, request, StatusCode::INVALID_ARGUMENT, field);
  };
  using D = v1::NamespaceDescriptor;
  const std::string long_name = Bytes(kMaxNameBytes + 1);
  refused("model", [](D& d) { d.clear_model(); });
  refused("model", [&](D& d) { d.set_model(long_name); });
  refused("weights_revision", [&](D& d) { d.set_weights_revision(long_name); });
  refused("kv_dtype", [&](D& d) { d.set_kv_dtype(long_name); });
  refused("quantization", [&](D& d) { d.set_quantization(long_name); });
  refused("page_layout", [&](D& d) { d.set_page_layout(long_name); });
  refused("engine_family", [&](D& d) { d.set_engine_family(long_name); });
  refused("draft_model", [&](D& d) { d.set_draft_model(long_name); });
  refused("hash_algorithm", [&](D& d) { d.set_hash_algorithm(long_name); });
  refused("hash_seed", [&](D& d) { d.set_hash_seed(long_name); });
  refused("hash_bytes", [](D& d) { d.set_hash_bytes(kMinHashBytes - 1); });
  refused("hash_bytes", [](D& d) { d.set_hash_bytes(kMaxHashBytes + 1); });
  refused("tensor_parallel", [](D& d) { d.clear_tensor_parallel(); });
  refused("pipeline_parallel", [](D& d) { d.clear_pipeline_parallel(); });
  refused("context_parallel", [](D& d) { d.clear_context_parallel(); });
  refused("groups", [](D& d) { d.clear_groups(); });
  refused("groups", [](D& d) {
    while (d.groups_size() <= static_cast<int>(kMaxGroups)) *d.add_groups() = d.groups(0);
  });
  refused("groups", [](D& d) {
    d.mutable_groups(0)->set_shards(kMaxPartsPerBlock);
    *d.add_groups() = d.groups(0);
  });
  refused("groups", [](D& d) { d.mutable_groups(0)->set_kind(v1::GROUP_KIND_STATE); });
  // 257 and -255 are 1, a full group, in a byte.
  for (const int kind : {0, 4, 257, -255}) {
    refused("groups[0].kind",
            [kind](D& d) { d.mutable_groups(0)->set_kind(static_cast<v1::GroupKind>(kind)); });
  }
  refused("groups[0].window_tokens", [](D& d) { d.mutable_groups(0)->set_window_tokens(1); });
  refused("groups[0].window_tokens",
          [](D& d) { d.mutable_groups(0)->set_kind(v1::GROUP_KIND_WINDOW); });
  refused("groups[0].shards", [](D& d) { d.mutable_groups(0)->set_shards(0); });
  refused("groups[0].shards", [](D& d) { d.mutable_groups(0)->set_shards(UINT32_MAX); });
  refused("groups[0].block_tokens", [](D& d) { d.mutable_groups(0)->set_block_tokens(0); });
  refused("groups[1].block_tokens", [](D& d) {
    *d.add_groups() = d.groups(0);
    d.mutable_groups(1)->set_block_tokens(32);
  });
  refused("groups[0].part_bytes", [](D& d) { d.mutable_groups(0)->set_part_bytes(0); });
  refused("groups[0].part_bytes",
          [](D& d) { d.mutable_groups(0)->set_part_bytes(kMaxPartBytes + 1); });
  // Fine by itself, but larger than a region of this daemon.
  refused("groups[0].part_bytes", [](D& d) { d.mutable_groups(0)->set_part_bytes(kMaxPartBytes); });
  refused("extra", [](D& d) { d.mutable_extra()->insert({"", "x"}); });
  refused("extra", [&](D& d) { (*d.mutable_extra())["x"] = long_name; });
  refused("extra", [](D& d) {
    for (int i = 0; i <= 64; ++i) d.mutable_extra()->insert({absl::StrCat(i), "x"});
  });
  EXPECT_EQ(daemon_->Status().namespaces(), 1u);
}

TEST_F(BadInputTest, NumbersOfEachCall) {
  v1::LookupRequest lookup = LookupOf(ns_, TestKeys(0, 2));
  lookup.set_lease_ms(kMaxLeaseMs + 1);
  Refused(&Stub::Lookup, lookup, StatusCode::INVALID_ARGUMENT, "lease_ms");

  v1::LoadRequest load;
  load.set_namespace_id(ns_);
  load.set_keys(TestKeys(0, 2));
  load.set_range_offset(kPartBytes);
  Refused(&Stub::Load, load, StatusCode::INVALID_ARGUMENT, "range_offset");

  v1::ReserveRequest reserve = ReserveOf(ns_, TestKeys(0, 2), "", kMaxLeaseMs + 1);
  Refused(&Stub::Reserve, reserve, StatusCode::INVALID_ARGUMENT, "wait_ms");

  v1::CommitRequest commit;
  for (const uint64_t id : {uint64_t{1}, uint64_t{1} << 32 | 1, UINT64_MAX}) {
    commit.set_reservation_id(id);
    Refused(&Stub::Commit, commit, StatusCode::NOT_FOUND, "reservation_id");
    v1::AbortRequest abort;
    abort.set_reservation_id(id);
    Refused(&Stub::Abort, abort, StatusCode::NOT_FOUND, "reservation_id");
  }
  commit.set_keys(TestKeys(0, 2));
  Refused(&Stub::Commit, commit, StatusCode::INVALID_ARGUMENT, "keys");
  commit.clear_reservation_id();
  commit.set_namespace_id(ns_);
  for (const size_t size : {0, 16, 31, 33, 48}) {
    commit.set_staged(Bytes(size));
    Refused(&Stub::Commit, commit, StatusCode::INVALID_ARGUMENT, "staged");
  }
  const PackedStaged nowhere[2] = {{0, kPartBytes, 0}, {0, kPartBytes, 0}};  // No staging yet.
  commit.set_staged(std::string(reinterpret_cast<const char*>(nowhere), sizeof nowhere));
  Refused(&Stub::Commit, commit, StatusCode::INVALID_ARGUMENT, "staged[0]");

  v1::PinRequest pin;
  pin.set_namespace_id(ns_);
  pin.set_key(TestKey(0));
  pin.set_owner("me");
  pin.set_ttl_ms(1);
  Refused(&Stub::Pin, pin, StatusCode::NOT_FOUND, "key");
  pin.set_ttl_ms(0);
  Refused(&Stub::Pin, pin, StatusCode::INVALID_ARGUMENT, "ttl_ms");
  pin.set_ttl_ms(kMaxPinMs + 1ull);
  Refused(&Stub::Pin, pin, StatusCode::INVALID_ARGUMENT, "ttl_ms");
  pin.set_ttl_ms(1);
  for (const size_t size : {size_t{0}, size_t{kMaxNameBytes} + 1}) {
    pin.set_owner(Bytes(size));
    Refused(&Stub::Pin, pin, StatusCode::INVALID_ARGUMENT, "owner");
  }
  pin.set_owner("me");
  pin.set_key(TestKeys(0, 2));
  Refused(&Stub::Pin, pin, StatusCode::INVALID_ARGUMENT, "key");
  v1::UnpinRequest unpin;
  unpin.set_pin_id(7);
  Refused(&Stub::Unpin, unpin, StatusCode::NOT_FOUND, "pin_id");
}

TEST_F(BadInputTest, AReservationOfAnotherSessionIsNotThere) {
  const auto other = Open();
  v1::ReserveReply theirs;
  ASSERT_TRUE(other->Call(&Stub::Reserve, ReserveOf(ns_, TestKeys(0, 2)), &theirs).ok());
  v1::CommitRequest commit;
  commit.set_reservation_id(theirs.reservation_id());
  Refused(&Stub::Commit, commit, StatusCode::NOT_FOUND, "reservation_id");
  v1::AbortRequest abort;
  abort.set_reservation_id(theirs.reservation_id());
  Refused(&Stub::Abort, abort, StatusCode::NOT_FOUND, "reservation_id");
  other->CloseSocket();
  EXPECT_TRUE(daemon_->WaitFor([](const auto& s) { return s.sessions() == 1; }));
}

TEST_F(BadInputTest, AnUnknownHintIsRefusedAndAKnownOneIsNotYetThere) {
  v1::HintRequest hint;
  hint.set_namespace_id(ns_);
  for (const int kind : {0, 7, 1000, -1}) {
    hint.set_kind(static_cast<v1::HintKind>(kind));
    Refused(&Stub::Hint, hint, StatusCode::INVALID_ARGUMENT, "kind");
  }
  for (int kind = 1; kind <= 6; ++kind) {
    hint.set_kind(static_cast<v1::HintKind>(kind));
    Refused(&Stub::Hint, hint, StatusCode::UNIMPLEMENTED, "");
  }
}

TEST_F(BadInputTest, WhatIsNotInThisVersionSaysSo) {
  Refused(&Stub::Prefetch, v1::PrefetchRequest(), StatusCode::UNIMPLEMENTED, "");
  Refused(&Stub::Retain, v1::RetainRequest(), StatusCode::UNIMPLEMENTED, "");
  grpc::ClientContext context;
  const auto opening = session_->stub().OpenSession(&context, {});
  v1::OpenSessionReply opened;
  EXPECT_FALSE(opening->Read(&opened));
  const grpc::Status refused = opening->Finish();
  EXPECT_EQ(refused.error_code(), StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("PATH.stream"));
  grpc::ClientContext watching;
  v1::WatchRequest watch;
  watch.set_session(session_->token());
  const auto reader = session_->stub().Watch(&watching, watch);
  v1::WatchEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::UNIMPLEMENTED);
}

// The least that routers are told of a root of 16 tokens, with a name that makes it longer.
std::string AnnouncementOf(uint64_t hash, const std::string& lora_name) {
  const std::vector<uint64_t> hashes = {hash};
  const std::vector<uint32_t> tokens(16, 1);
  return WriteAnnouncement(
      {.hashes = hashes, .tokens = tokens, .block_tokens = 16, .lora_name = lora_name});
}

TEST_F(BadInputTest, OneBelowAtAndOneAboveEachLimit) {
  // The length of a chain.
  for (const auto& [count, fine] : {std::pair{kMaxLookupBlocks - 1, true},
                                    {kMaxLookupBlocks, true},
                                    {kMaxLookupBlocks + 1, false}}) {
    const auto request = LookupOf(ns_, Bytes(size_t{count} * kE2eHashBytes));
    v1::LookupReply reply;
    EXPECT_EQ(session_->Call(&Stub::Lookup, request, &reply).ok(), fine) << count;
    if (!fine) Refused(&Stub::Lookup, request, StatusCode::INVALID_ARGUMENT, "keys");
  }
  for (const auto& [count, fine] :
       {std::pair{kMaxPageBlocks - 1, true}, {kMaxPageBlocks, true}, {kMaxPageBlocks + 1, false}}) {
    const std::string keys = Bytes(size_t{count} * kE2eHashBytes);
    v1::LoadRequest load;
    load.set_namespace_id(ns_);
    load.set_keys(keys);
    v1::LoadReply loaded;
    EXPECT_EQ(session_->Call(&Stub::Load, load, &loaded).ok(), fine) << count;
    v1::ReserveReply reserved;  // Below a parent that is not there: granted nothing.
    const auto reserve = ReserveOf(ns_, keys, TestKey(77));
    EXPECT_EQ(session_->Call(&Stub::Reserve, reserve, &reserved).ok(), fine) << count;
    auto lookup = LookupOf(ns_, TestKeys(0, 1));
    lookup.set_extent_blocks(count);
    v1::LookupReply found;
    EXPECT_EQ(session_->Call(&Stub::Lookup, lookup, &found).ok(), fine) << count;
    if (fine) continue;
    Refused(&Stub::Load, load, StatusCode::INVALID_ARGUMENT, "keys");
    Refused(&Stub::Reserve, reserve, StatusCode::INVALID_ARGUMENT, "keys");
    Refused(&Stub::Lookup, lookup, StatusCode::INVALID_ARGUMENT, "extent_blocks");
  }
  // Blocks times parts.
  NamespaceDescriptor wide = TestModel(4096, "wide");
  wide.groups[0].shards = 16;
  const uint32_t wide_ns = session_->Register(wide);
  ASSERT_NE(wide_ns, 0u);
  for (const auto& [count, fine] : {std::pair{kMaxPageExtents / 16 - 1, true},
                                    {kMaxPageExtents / 16, true},
                                    {kMaxPageExtents / 16 + 1, false}}) {
    v1::LoadRequest load;
    load.set_namespace_id(wide_ns);
    load.set_keys(Bytes(size_t{count} * kE2eHashBytes));
    v1::LoadReply loaded;
    EXPECT_EQ(session_->Call(&Stub::Load, load, &loaded).ok(), fine) << count;
  }
  // Releases: ids, and what is damaged, all together.
  for (const auto& [count, fine] : {std::pair{kMaxReleasesPerCall - 1, true},
                                    {kMaxReleasesPerCall, true},
                                    {kMaxReleasesPerCall + 1, false}}) {
    v1::ReleaseRequest release;
    for (uint32_t i = 0; i + 3 < count; ++i) {
      if (i % 2 == 0) {
        release.mutable_releases()->add_hold_ids(i);
      } else {
        release.mutable_releases()->add_lease_ids(i);
      }
    }
    v1::Damage& damage = *release.mutable_releases()->add_damaged();
    damage.set_hold_id(1);
    damage.add_extents(0);
    damage.add_extents(1);
    v1::ReleaseReply released;
    EXPECT_EQ(session_->Call(&Stub::Release, release, &released).ok(), fine) << count;
    auto lookup = LookupOf(ns_, TestKeys(0, 1));
    *lookup.mutable_releases() = release.releases();
    v1::LookupReply found;
    EXPECT_EQ(session_->Call(&Stub::Lookup, lookup, &found).ok(), fine) << count;
    if (fine) continue;
    Refused(&Stub::Release, release, StatusCode::INVALID_ARGUMENT, "releases");
    Refused(&Stub::Lookup, lookup, StatusCode::INVALID_ARGUMENT, "releases");
  }
  // What routers are told: bounded, and of a form.
  for (const uint32_t size : {kMaxAnnounceBytes - 1, kMaxAnnounceBytes, kMaxAnnounceBytes + 1}) {
    auto reserve = ReserveOf(ns_, TestKeys(700, 1));
    const std::string least = AnnouncementOf(700, "");
    reserve.add_announce(AnnouncementOf(700, std::string(size - least.size() - 2, 'x')));
    ASSERT_EQ(reserve.announce(0).size(), size);
    v1::ReserveReply reply;
    const grpc::Status status = session_->Call(&Stub::Reserve, reserve, &reply);
    EXPECT_EQ(status.ok(), size <= kMaxAnnounceBytes) << size << " " << status.error_message();
    if (!status.ok()) {
      Refused(&Stub::Reserve, reserve, StatusCode::INVALID_ARGUMENT, "announce[0]");
      continue;
    }
    v1::AbortRequest abort;
    abort.set_reservation_id(reply.reservation_id());
    v1::AbortReply aborted;
    EXPECT_TRUE(session_->Call(&Stub::Abort, abort, &aborted).ok());
  }
  auto reserve = ReserveOf(ns_, TestKeys(700, 1));
  reserve.add_announce(Bytes(100));
  Refused(&Stub::Reserve, reserve, StatusCode::INVALID_ARGUMENT, "announce[0]");
  reserve.set_announce(0, "");
  reserve.add_announce("");
  reserve.add_announce("");
  Refused(&Stub::Reserve, reserve, StatusCode::INVALID_ARGUMENT, "announce");
  // A message.
  const size_t around = LookupOf(ns_, Bytes(kMaxMessageBytes)).ByteSizeLong() +
                        (2 + session_->token().size()) - kMaxMessageBytes;
  for (const auto& [size, code] : {std::pair{kMaxMessageBytes - 1, StatusCode::INVALID_ARGUMENT},
                                   {kMaxMessageBytes, StatusCode::INVALID_ARGUMENT},
                                   {kMaxMessageBytes + 1, StatusCode::RESOURCE_EXHAUSTED}}) {
    const auto request = LookupOf(ns_, Bytes(size - around));
    Refused(&Stub::Lookup, request, code, "");
  }
}

TEST_F(BadInputTest, AMessageThatDoesNotParseFailsAlone) {
  const auto channel = grpc::CreateChannel(daemon_->endpoint(), grpc::InsecureChannelCredentials());
  for (const char* method : {"RegisterNamespace", "Lookup", "Load", "Release", "Reserve", "Commit",
                             "Abort", "Pin", "Unpin", "Prefetch", "Hint", "Retain"}) {
    // A first field of 100 bytes, of which three come.
    const std::string name = absl::StrCat("/kvd.v1.Engine/", method);
    const grpc::Slice slice(
        std::string("\x0a\x64"
                    "abc"));
    const grpc::ByteBuffer bytes(&slice, 1);
    grpc::ByteBuffer answer;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
    const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer>(
        channel.get(),
        grpc::internal::RpcMethod(name.c_str(), grpc::internal::RpcMethod::NORMAL_RPC), &context,
        bytes, &answer);
    EXPECT_FALSE(status.ok()) << name;
    EXPECT_NE(status.error_code(), StatusCode::DEADLINE_EXCEEDED) << name;
  }
  v1::RegisterNamespaceRequest request;
  *request.mutable_describes() = ToProto(TestModel(kPartBytes));
  request.mutable_describes()->set_model("\xff\xfe");  // No UTF-8.
  v1::RegisterNamespaceReply registered;
  EXPECT_FALSE(session_->Call(&Stub::RegisterNamespace, request, &registered).ok());
  EXPECT_EQ(Hits(*session_, ns_, TestKeys(0, 1)), 0u);
}

// The client refuses the same, before anything travels.
TEST_F(BadInputTest, TheClientKeepsTheLimitsToo) {
  Client client({.endpoint = daemon_->endpoint(), .timeout = kPatience});
  const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
  ASSERT_TRUE(ns.ok());
  for (const auto& [count, fine] : {std::pair{kMaxLookupBlocks - 1, true},
                                    {kMaxLookupBlocks, true},
                                    {kMaxLookupBlocks + 1, false}}) {
    const LookupResult found = client.Lookup(*ns, Bytes(size_t{count} * kE2eHashBytes));
    EXPECT_EQ(found.status.ok(), fine) << found.status;
  }
  for (const auto& [count, fine] :
       {std::pair{kMaxPageBlocks - 1, true}, {kMaxPageBlocks, true}, {kMaxPageBlocks + 1, false}}) {
    EXPECT_EQ(client.Load(*ns, Bytes(size_t{count} * kE2eHashBytes)).status.ok(), fine) << count;
  }
}

// ---- another user, and the same -----------------------------------------------------------------

class OtherUserTest : public E2eTest {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "only root can be somebody else";
  }
};

TEST_F(OtherUserTest, CannotConnectUnlessTheSocketSaysSo) {
  Start();
  EXPECT_EQ(RunPeer(0, 1, {"stranger", "1", "00"}, kSomebody), "session PERMISSION_DENIED\n");
}

TEST_F(OtherUserTest, IsAnotherDomain) {
  Start({.arguments = {"--dram", "64MiB", "--socket-mode", "0666"}});
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  ASSERT_EQ(RunPeer(0, 4, {"put"}), "stored 4 present 0\n");
  v1::LoadRequest load;
  load.set_namespace_id(ns);
  load.set_keys(TestKeys(0, 4));
  v1::LoadReply loaded;
  ASSERT_TRUE(session->Call(&Stub::Load, load, &loaded).ok());
  ASSERT_EQ(loaded.blocks(), 4u);
  const uint32_t region = UnpackAt<PackedExtent>(loaded.extents(), 0).region;

  EXPECT_EQ(
      RunPeer(0, 4, {"stranger", absl::StrCat(region), absl::BytesToHexString(session->token())},
              kSomebody),
      absl::StrCat("session OK\nhits 0\nregion ", static_cast<int>(SessionStatus::kNotFound),
                   " fd -1\nnamespace ", static_cast<int>(StatusCode::NOT_FOUND), "\ntoken ",
                   static_cast<int>(StatusCode::UNAUTHENTICATED), "\n"));
  // Each keeps what is its own under the same keys.
  EXPECT_EQ(RunPeer(0, 4, {"put"}, kSomebody), "stored 4 present 0\n");
  EXPECT_EQ(RunPeer(0, 4, {"get"}, kSomebody), "blocks 4 wrong 0\n");
  EXPECT_EQ(RunPeer(0, 4, {"get"}, kSomebodyElse), "blocks 0 wrong 0\n");
  EXPECT_EQ(daemon_->Status().blocks(), 8u);
}

class ArenaTest : public E2eTest {
 protected:
  // Lets a client of user `attacker` try everything against the daemon of user `owner`.
  void Attack(int64_t owner, int64_t attacker) {
    Start({.arguments = {"--dram", "16MiB", "--socket-mode", "0666"}, .uid = owner});
    ASSERT_EQ(RunPeer(0, 4, {"put"}, attacker), "stored 4 present 0\n");
    const std::string said = RunPeer(0, 4, {"attack", absl::StrCat(daemon_->pid())}, attacker);
    EXPECT_THAT(said, HasSubstr("descriptor mmap denied"));
    EXPECT_THAT(said, Not(HasSubstr("ALLOWED"))) << said;
    EXPECT_THAT(said, HasSubstr("intact"));
    EXPECT_EQ(RunPeer(0, 4, {"get"}, attacker), "blocks 4 wrong 0\n");
    ExpectClean();
  }
};

TEST_F(ArenaTest, CannotBeWrittenByTheSameUser) {
  Attack(geteuid() == 0 ? kSomebody : -1, geteuid() == 0 ? kSomebody : -1);
}

TEST_F(ArenaTest, CannotBeWrittenByAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can be somebody else";
  Attack(-1, kSomebody);
}

TEST_F(ArenaTest, CannotBeWrittenThroughItsDescriptorEvenByRoot) {
  if (geteuid() != 0) GTEST_SKIP() << "this is about root";
  Attack(-1, -1);
}

// ---- how a daemon starts and ends ---------------------------------------------------------------

TEST_F(E2eTest, ASecondDaemonOnOneSocketSaysSoAndExits) {
  Start();
  const auto second = DaemonProcess::Start({.path = daemon_->path()});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another kvd serves"));
  ChildProcess third(KVD_PROGRAM, {"--listen", daemon_->endpoint(), "--dram", "16MiB"});
  EXPECT_EQ(third.Wait(), 1);
  EXPECT_EQ(RunPeer(0, 2, {"put"}), "stored 2 present 0\n");  // The first one serves on.
}

TEST_F(E2eTest, AStaleSocketFileIsReplaced) {
  TestFolder folder;
  Start({.path = folder.path() + "/kvd"});
  daemon_->Kill();
  for (const char* suffix : {"", ".session", ".admin"}) {
    struct stat info;
    EXPECT_EQ(stat((daemon_->path() + suffix).c_str(), &info), 0) << suffix;
  }
  Start({.path = folder.path() + "/kvd"});
  EXPECT_EQ(RunPeer(0, 2, {"put"}), "stored 2 present 0\n");
  EXPECT_EQ(daemon_->Stop(), 0);
  for (const char* suffix : {"", ".session", ".admin"}) {
    struct stat info;
    EXPECT_NE(stat((daemon_->path() + suffix).c_str(), &info), 0) << suffix;
  }
}

TEST_F(E2eTest, SocketsHaveTheModeThatWasAskedFor) {
  Start({.arguments = {"--dram", "16MiB", "--socket-mode", "0660"}});
  const auto mode = [&](const char* suffix) {
    struct stat info {};
    EXPECT_EQ(stat((daemon_->path() + suffix).c_str(), &info), 0);
    return info.st_mode & 0777;
  };
  EXPECT_EQ(mode(""), 0660u);
  EXPECT_EQ(mode(".session"), 0660u);
  EXPECT_EQ(mode(".admin"), 0600u);
}

TEST_F(E2eTest, SigtermEndsCallsThatWaitAndExitsZero) {
  Start();
  const auto producer = Peer(kPartBytes, 0, 4, {"reserve"});
  ASSERT_EQ(producer->ReadLine(), "granted 4") << producer->Errors();
  const auto session = Open();
  const uint32_t ns = session->Register(TestModel(kPartBytes));
  auto waiting = std::async(std::launch::async, [&] {
    v1::ReserveReply waited;
    const auto status =
        session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(0, 4), "", kMaxLeaseMs), &waited);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return waited.states();
  });
  ASSERT_TRUE(daemon_->WaitFor([](const auto& status) { return status.reservations() == 2; }));
  EXPECT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
  EXPECT_THAT(waiting.get(), Each(static_cast<char>(ReserveState::kInProduction)));
}

TEST_F(E2eTest, SigtermUnderLoadExitsZero) {
  for (int round = 0; round < 3; ++round) {
    Start();
    std::atomic<bool> stop{false};
    std::vector<std::thread> callers;
    std::atomic<int> answered{0};
    for (int i = 0; i < 4; ++i) {
      callers.emplace_back([&, i] {
        const auto session = Open();
        const uint32_t ns = session->Register(TestModel(kPartBytes));
        while (!stop) {
          v1::ReserveReply reply;
          if (!session->Call(&Stub::Reserve, ReserveOf(ns, TestKeys(i * 100, 64)), &reply).ok()) {
            return;
          }
          ++answered;
        }
      });
    }
    while (answered < 50) std::this_thread::yield();
    EXPECT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
    stop = true;
    for (std::thread& caller : callers) caller.join();
  }
}

TEST_F(E2eTest, AClientGoesOnAfterTheDaemonRestarted) {
  TestFolder folder;
  const std::string path = folder.path() + "/kvd";
  Start({.path = path});
  Client client({.endpoint = daemon_->endpoint(),
                 .timeout = kPatience,
                 .reconnect_interval = absl::ZeroDuration()});
  const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
  ASSERT_TRUE(ns.ok());
  ASSERT_EQ(RunPeer(0, 4, {"put"}), "stored 4 present 0\n");
  EXPECT_EQ(client.Lookup(*ns, TestKeys(0, 4)).hit_blocks, 4u);
  LoadResult loaded = client.Load(*ns, TestKeys(0, 4));
  ASSERT_EQ(loaded.chain.blocks(), 4u);

  daemon_->Kill();
  // A miss, and at once: the time-out of a call is kPatience.
  const absl::Time start = absl::Now();
  const LookupResult away = client.Lookup(*ns, TestKeys(0, 4));
  EXPECT_EQ(away.hit_blocks, 0u);
  EXPECT_EQ(away.status.code(), absl::StatusCode::kUnavailable) << away.status;
  EXPECT_LT(absl::Now() - start, kPatience / 2);
  for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(loaded.chain.Verify(i, 0));

  Start({.path = path});
  EXPECT_EQ(client.Lookup(*ns, TestKeys(0, 4)).hit_blocks, 0u);
  ASSERT_EQ(RunPeer(0, 4, {"put"}), "stored 4 present 0\n");
  const LookupResult back = client.Lookup(*ns, TestKeys(0, 4));
  EXPECT_EQ(back.hit_blocks, 4u) << back.status;
  EXPECT_GE(client.stats().reconnects, 1u);
}

TEST_F(E2eTest, BadOptionsAreNamedAndEndWithTwo) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"--listen", "tcp:1.2.3.4"}, "--listen"},
      {{"--listen", "unix:relative"}, "--listen"},
      {{"--listen", "unix:/" + Bytes(200)}, "--listen"},
      {{"--dram", "lots"}, "--dram"},
      {{"--dram", "1KiB"}, "--dram"},
      {{"--blocks", "0"}, "--blocks"},
      {{"--policy", "magic"}, "--policy"},
      {{"--socket-mode", "rw"}, "--socket-mode"},
      {{"--socket-mode", "7777"}, "--socket-mode"},
      {{"--socket-group", "nobody-has-this-name"}, "--socket-group"},
      {{"--copiers", "0"}, "--copiers"},
      {{"--no-such-option"}, "--no-such-option"}};
  for (const auto& [arguments, named] : cases) {
    ChildProcess daemon(KVD_PROGRAM, arguments);
    EXPECT_EQ(daemon.Wait(), 2) << named;
    EXPECT_THAT(daemon.Errors(), HasSubstr(named));
  }
}

// ---- kvctl --------------------------------------------------------------------------------------

TEST_F(E2eTest, KvctlPrintsJsonThatParses) {
  Start();
  RunPeer(0, 4, {"put"});
  ChildProcess status(KVDCTL_PROGRAM, {"--endpoint", daemon_->endpoint(), "status", "-o", "json"});
  const auto page = nlohmann::json::parse(status.ReadToEnd(), nullptr, false);
  EXPECT_EQ(status.Wait(), 0) << status.Errors();
  ASSERT_TRUE(page.is_object());
  EXPECT_EQ(page["schema_version"], 1);
  EXPECT_EQ(page["blocks"], 4);
  EXPECT_EQ(page["pid"], daemon_->pid());
  EXPECT_EQ(page["endpoint"], daemon_->endpoint());
  EXPECT_EQ(page["counters"]["committed_blocks"], 4);

  ChildProcess tiers(KVDCTL_PROGRAM, {"tiers", "-o", "json", "--endpoint", daemon_->endpoint()});
  const auto rows = nlohmann::json::parse(tiers.ReadToEnd(), nullptr, false);
  EXPECT_EQ(tiers.Wait(), 0) << tiers.Errors();
  ASSERT_TRUE(rows.is_object());
  EXPECT_EQ(rows["tiers"][0]["name"], "dram");
  EXPECT_EQ(rows["tiers"][0]["reserved_bytes"], 4 * kPartBytes);
  EXPECT_EQ(rows["tiers"][0]["capacity_bytes"], 64 << 20);
}

TEST_F(E2eTest, KvctlTellsScriptsWhatWentWrong) {
  TestFolder folder;
  const std::string nobody = "unix:" + folder.path() + "/nobody";
  const std::pair<std::vector<std::string>, int> cases[] = {
      {{"--help"}, 0},
      {{}, 2},
      {{"explode"}, 2},
      {{"status", "-o", "xml"}, 2},
      {{"--endpoint", "localhost:1", "status"}, 2},
      {{"--endpoint", nobody, "status"}, 4},
      {{"--endpoint", nobody, "tiers", "-o", "json"}, 4}};
  for (const auto& [arguments, code] : cases) {
    ChildProcess kvctl(KVDCTL_PROGRAM, arguments);
    const std::string said = kvctl.ReadToEnd();
    EXPECT_EQ(kvctl.Wait(), code) << testing::PrintToString(arguments);
    EXPECT_EQ(said.empty(), code != 0) << said;
    EXPECT_EQ(kvctl.Errors().empty(), code == 0) << kvctl.Errors();
  }
}

}  // namespace
}  // namespace kvd
