// The daemon's decisions without its threads and sockets: a Control over a small arena, a manual
// clock and a fake mover, and the calls of a client in one line each.
//
// Blocks are named by numbers. The bytes of a part are a function of its key and its id, so that
// any reader can check any extent.
//
// Threads: one, the test's.

#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/control.h"
#include "policy/admissions.h"
#include "policy/lru.h"
#include "proto/types/packed.h"
#include "tests/testing/fake_mover.h"
#include "tests/testing/fake_nvme_tier.h"
#include "tiers/arena.h"

namespace kvd {

using Keys = std::vector<uint64_t>;

constexpr uint32_t kTestHashBytes = 16;

inline std::string PackKeys(const Keys& keys) {
  std::string packed(keys.size() * kTestHashBytes, '\0');
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint64_t words[2] = {keys[i], keys[i] * 0x9e3779b97f4a7c15u + 1};
    std::memcpy(packed.data() + i * kTestHashBytes, words, kTestHashBytes);
  }
  return packed;
}

// first, first + 1, ...
inline Keys KeysFrom(uint64_t first, size_t size) {
  Keys keys(size);
  for (size_t i = 0; i < size; ++i) keys[i] = first + i;
  return keys;
}

// Byte `i` of part `id` of block `key`. `salt` tells namespaces apart.
inline std::byte PayloadByte(uint64_t salt, uint64_t key, PartId id, size_t i) {
  uint64_t x = salt * 31 + key * 0x9e3779b97f4a7c15u + id.group * 977u + id.shard * 131u + i / 8;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 32;
  return static_cast<std::byte>(x >> (i % 8 * 8));
}

class MemoryStaging final : public StagedBytes {
 public:
  explicit MemoryStaging(size_t size) : memory_(size) {}
  absl::Span<const std::byte> bytes() const override { return memory_; }
  absl::Span<std::byte> writable() { return absl::MakeSpan(memory_); }

 private:
  std::vector<std::byte> memory_;
};

// Notes that it was asked to go on.
class TestResumable final : public Resumable {
 public:
  void Resume() override { ++resumed; }
  int resumed = 0;
};

class ControlHarness {
 public:
  struct Options {
    uint64_t arena_bytes = 256u << 10;
    uint64_t region_bytes = 64u << 10;
    uint32_t max_blocks = 4096;
    uint64_t max_parts = 8192;
    uint64_t nvme_bytes = 0;  // Of live records; 0: there is no NVMe.
    bool fake_nvme = true;    // False: the test attaches a tier of its own.
    std::string admission = "all";
    Control::Options control;
  };
  struct Session {
    uint32_t serial = 0;
    DomainId domain = 0;
    pid_t pid = 0;
    SessionToken bytes{};
    std::string token;
    std::shared_ptr<MemoryStaging> staging;
  };

  explicit ControlHarness(const Options& options)
      : arena(*Arena::Open(directory, {.bytes = options.arena_bytes,
                                       .region_bytes = options.region_bytes,
                                       .pages = PageKind::kSmall})),
        policy(options.max_blocks),
        cold_policy(options.max_blocks),
        nvme(options.nvme_bytes),
        admission(MakeAdmission(options.admission, options.max_blocks)),
        board(options.control.max_reservations),
        mover(board, inbox),
        store(
            policy, *arena,
            {.max_blocks = options.max_blocks,
             .max_parts = options.max_parts,
             .max_cold_parts = options.nvme_bytes / kNvmePageBytes,
             .secret = 7},
            [this](uint32_t region, uint64_t bytes) { mover.MakeRegion(region, bytes); },
            options.nvme_bytes > 0 ? &cold_policy : nullptr),
        control(store, board, mover, inbox, clock, options.control) {
    if (options.nvme_bytes == 0 || !options.fake_nvme) return;
    control.AttachNvme(nvme, *admission,
                       [](DomainId domain) { return "domain" + std::to_string(domain); });
    nvme.SetOwner(&control.movement()->owner());
  }
  ControlHarness() : ControlHarness(Options{}) {}

  // --- sessions ----------------------------------------------------------------------------------

  Session Open(DomainId domain, pid_t pid = 0, size_t staging_bytes = 64u << 10,
               const SessionToken& finished = {}) {
    Session session{.serial = ++serials_, .domain = domain};
    session.pid = pid != 0 ? pid : static_cast<pid_t>(10'000 + serials_);
    std::memcpy(session.bytes.data(), &session.serial, sizeof session.serial);
    session.bytes[15] = 1;
    session.token.assign(session.bytes.begin(), session.bytes.end());
    session.staging = std::make_shared<MemoryStaging>(staging_bytes);
    inbox.Post(SessionOpened{.serial = session.serial,
                             .token = session.bytes,
                             .domain = domain,
                             .pid = session.pid,
                             .finished = finished});
    inbox.Post(StagingOpened{.serial = session.serial, .staging = session.staging});
    control.Poll();
    return session;
  }
  void End(const Session& session) {
    inbox.Post(SessionEnded{.serial = session.serial});
    control.Poll();
  }
  void Exit(const Session& session) {
    inbox.Post(ProcessExited{.serial = session.serial});
    control.Poll();
  }

  static NamespaceDescriptor Descriptor(std::string model = "model",
                                        std::vector<GroupDescriptor> groups = {
                                            {.block_tokens = 16, .part_bytes = 4096}}) {
    NamespaceDescriptor descriptor;
    descriptor.model = std::move(model);
    descriptor.hash_bytes = kTestHashBytes;
    descriptor.groups = std::move(groups);
    return descriptor;
  }
  NamespaceId Register(const Session& session, const NamespaceDescriptor& descriptor) {
    const auto registered = control.RegisterNamespace(session.token, descriptor);
    EXPECT_TRUE(registered.ok()) << registered.status();
    return registered.ok() ? registered->id : 0;
  }

  // --- calls -------------------------------------------------------------------------------------

  // A call and the bytes that it borrows.
  template <typename Call>
  struct Held {
    Call call;
    std::string token;
    std::string keys;
    std::string parent;
    std::string parts;
    std::string staged;
    TestResumable resumable;
    absl::StatusOr<Step> step = absl::UnknownError("not called yet");

    bool done() const { return step.ok() && *step == Step::kDone; }
    bool waits() const { return step.ok() && *step == Step::kWait; }
  };
  template <typename Call>
  using CallPtr = std::unique_ptr<Held<Call>>;

  template <typename Call>
  static CallPtr<Call> Make(const Session& session, NamespaceId ns, const Keys& keys,
                            const Keys& parent = {}) {
    auto held = std::make_unique<Held<Call>>();
    held->keys = PackKeys(keys);
    held->parent = PackKeys(parent);
    held->token = session.token;
    held->call.header.session = held->token;
    held->call.header.ns = ns;
    held->call.header.keys = held->keys;
    held->call.header.parent = held->parent;
    if constexpr (requires { held->call.resumable; }) held->call.resumable = &held->resumable;
    return held;
  }

  absl::StatusOr<Step> Dispatch(LookupCall& call) { return control.Lookup(call); }
  absl::StatusOr<Step> Dispatch(LoadCall& call) { return control.Load(call); }
  absl::StatusOr<Step> Dispatch(ReserveCall& call) { return control.Reserve(call); }
  absl::StatusOr<Step> Dispatch(CommitCall& call) { return control.Commit(call); }

  // Runs a call until it ends or waits.
  template <typename Call>
  void Run(Held<Call>& held) {
    do {
      held.step = Dispatch(held.call);
    } while (held.step.ok() && *held.step == Step::kMore);
  }
  // Polls, and runs again the calls that can go on. `held` is one that waits.
  template <typename Call>
  void PollAndResume(Held<Call>& held) {
    control.Poll();
    while (Resumable* ready = control.NextReady()) ready->Resume();
    if (held.resumable.resumed > 0) {
      held.resumable.resumed = 0;
      Run(held);
    }
  }

  CallPtr<LookupCall> Lookup(const Session& session, NamespaceId ns, const Keys& keys,
                             uint32_t lease_ms = 0, uint32_t extent_blocks = 0,
                             const Keys& parent = {}) {
    auto held = Make<LookupCall>(session, ns, keys, parent);
    held->call.lease_ms = lease_ms;
    held->call.extent_blocks = extent_blocks;
    Run(*held);
    return held;
  }
  uint32_t Hits(const Session& session, NamespaceId ns, const Keys& keys) {
    return Lookup(session, ns, keys)->call.hit_blocks;
  }
  CallPtr<LoadCall> Load(const Session& session, NamespaceId ns, const Keys& keys,
                         const Keys& parent = {}) {
    auto held = Make<LoadCall>(session, ns, keys, parent);
    Run(*held);
    return held;
  }
  CallPtr<ReserveCall> Reserve(const Session& session, NamespaceId ns, const Keys& keys,
                               const Keys& parent = {}, uint32_t wait_ms = 0,
                               std::string parts = {}) {
    auto held = Make<ReserveCall>(session, ns, keys, parent);
    held->parts = std::move(parts);
    held->call.header.parts = held->parts;
    held->call.wait_ms = wait_ms;
    Run(*held);
    return held;
  }
  CallPtr<CommitCall> Commit(const Session& session, uint64_t reservation_id,
                             uint32_t first_block = 0, uint32_t blocks = 0) {
    auto held = Make<CommitCall>(session, 0, {});
    held->call.reservation_id = reservation_id;
    held->call.first_block = first_block;
    held->call.blocks = blocks;
    Run(*held);
    return held;
  }
  bool ReleaseHold(const Session& session, HoldId hold) {
    const uint64_t ids[] = {hold};
    const auto released = control.Release(session.token, {.holds = ids});
    return released.ok() && *released == 1;
  }
  bool ReleaseLease(const Session& session, LeaseId lease) {
    const uint64_t ids[] = {lease};
    const auto released = control.Release(session.token, {.leases = ids});
    return released.ok() && *released == 1;
  }
  void ReportDamage(const Session& session, HoldId hold, std::vector<uint32_t> extents) {
    ReleaseList releases;
    releases.damaged.push_back({hold, extents});
    EXPECT_TRUE(control.Release(session.token, releases).ok());
  }

  // --- bytes -------------------------------------------------------------------------------------

  static void WritePayload(absl::Span<std::byte> target, uint64_t salt, uint64_t key, PartId id) {
    for (size_t i = 0; i < target.size(); ++i) target[i] = PayloadByte(salt, key, id, i);
  }
  // Puts the bytes of a part at the start of the staging memory and fills part `index` with them.
  FillStatus Fill(const Session& session, uint64_t reservation_id, uint32_t index, uint64_t salt,
                  uint64_t key, PartId id, uint32_t length) {
    WritePayload(session.staging->writable().first(length), salt, key, id);
    return mover.CopyNow(session.serial, *session.staging,
                         {.reservation_id = reservation_id, .index = index, .length = length});
  }
  // Fills the granted blocks of a reservation of a namespace of one part.
  void FillGranted(const Session& session, const ReserveCall& call, const Keys& keys,
                   uint32_t part_bytes = 4096) {
    for (uint32_t i = 0; i < call.states.size(); ++i) {
      if (static_cast<ReserveState>(call.states[i]) != ReserveState::kGranted) continue;
      EXPECT_EQ(Fill(session, call.reservation_id, i, call.header.ns, keys[i], {}, part_bytes),
                FillStatus::kOk);
    }
  }
  // Reserve, fill, commit; returns the results of the commit, one character a block.
  std::string Put(const Session& session, NamespaceId ns, const Keys& keys,
                  const Keys& parent = {}) {
    const auto reserve = Reserve(session, ns, keys, parent);
    EXPECT_TRUE(reserve->done()) << reserve->step.status();
    if (reserve->call.reservation_id == 0) return {};
    FillGranted(session, reserve->call, keys);
    const uint64_t id = reserve->call.reservation_id;
    const auto commit = Commit(session, id);
    EXPECT_TRUE(commit->done()) << commit->step.status();
    (void)control.Abort(session.token, id);  // What did not get room.
    return commit->call.results;
  }
  // The bytes that an extent names, as a client would read them; empty: no such memory.
  absl::Span<const std::byte> Bytes(const PackedExtent& extent) const {
    const std::optional<uint32_t> region = arena->IndexOf(extent.region);
    if (!region.has_value()) return {};
    return {arena->Address(*region, 0) + extent.offset, extent.stored_length};
  }
  bool IsPayload(const PackedExtent& extent, uint64_t salt, uint64_t key, PartId id = {}) const {
    const absl::Span<const std::byte> bytes = Bytes(extent);
    if (bytes.empty() || Crc32c(bytes) != extent.sum) return false;
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != PayloadByte(salt, key, id, i)) return false;
    }
    return true;
  }
  // Turns one byte of an extent around, as failing memory would.
  void Damage(const PackedExtent& extent) {
    const uint32_t region = *arena->IndexOf(extent.region);
    *(arena->Address(region, 0) + extent.offset + extent.stored_length / 2) ^= std::byte{0x40};
  }

  // What nothing may ever break: no stranded block, no count that does not add up.
  void Audit() const {
    const Residency& index = store.residency();
    const Residency::AuditResult audit = index.Audit(1, index.max_blocks());
    ASSERT_EQ(audit.errors, 0u) << audit.first_error;
    ASSERT_EQ(audit.stranded, 0u);
    ASSERT_EQ(audit.blocks, index.counts().visible);
    ASSERT_LE(arena->reserved_bytes(), arena->capacity_bytes());
  }
  const Residency::Counts& counts() const { return store.residency().counts(); }
  const Block* FindBlock(NamespaceId ns, uint64_t key) const {
    const std::string packed = PackKeys({key});
    const BlockRef ref = store.residency().Find(ns, KeyList(packed, kTestHashBytes)[0]);
    return ref == 0 ? nullptr : &store.residency().block(ref);
  }

  ManualClock clock;
  RegionDirectory directory;
  std::unique_ptr<Arena> arena;
  LruPolicy policy;
  LruPolicy cold_policy;
  FakeNvmeTier nvme;
  std::unique_ptr<AdmissionPolicy> admission;
  FillBoard board;
  Inbox inbox;
  FakeMover mover;
  Store store;
  Control control;

 private:
  uint32_t serials_ = 0;
};

inline std::string States(std::initializer_list<ReserveState> states) {
  std::string packed;
  for (const ReserveState state : states) packed.push_back(static_cast<char>(state));
  return packed;
}
inline std::string Results(std::initializer_list<CommitResult> results) {
  std::string packed;
  for (const CommitResult result : results) packed.push_back(static_cast<char>(result));
  return packed;
}

}  // namespace kvd
