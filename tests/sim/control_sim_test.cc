// The daemon's decisions under seeded random load: several processes of two domains put, look up,
// load, report damage, die, while time jumps and copiers are slow. After each step an oracle knows
// what may be answered. With a second tier its jobs end late, fail, come back damaged, and its
// records move, rot and are lost. KVD_SIM_SEEDS says how many runs, KVD_SEED where they begin.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "proto/types/checksum.h"
#include "tests/testing/control_harness.h"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

using Random = std::mt19937_64;

constexpr uint32_t kFullBytes = 1000;
constexpr uint32_t kWindowBytes = 600;

class ControlSim {
 public:
  ControlSim(uint64_t seed, bool two_tiers)
      : random_(seed), two_tiers_(two_tiers), h_(OptionsOf(random_, two_tiers)) {
    for (int i = 0; i < 4; ++i) OpenProcess();
  }

  void Step() {
    const uint64_t dice = Dice(100);
    if (dice < 18) {
      StartReserve();
    } else if (dice < 30) {
      FillSome();
    } else if (dice < 42) {
      CommitSome();
    } else if (dice < 45) {
      AbortOne();
    } else if (dice < 51) {
      StartInlinePut();
    } else if (dice < 61) {
      LookUp();
    } else if (dice < 71) {
      LoadSome();
    } else if (dice < 77) {
      ReleaseSome();
    } else if (dice < 80) {
      DamageSome();
    } else if (dice < 90) {
      LetCopiersWork();
    } else if (dice < 92) {
      Die();
    } else if (dice < 95) {
      h_.clock.Advance(static_cast<Nanos>(Dice(2000)) * kMillisecond);
    } else if (dice < 96) {
      h_.clock.Advance(31 * kSecond);
    } else if (dice < 97) {
      PinSome();
    }
    if (two_tiers_) LetNvmeWork();
    if (Dice(3) != 0) Poll();
    CheckHolds();
    ASSERT_LE(h_.nvme.payloads_changed(), damage_done_) << "room was used again under a write";
    ASSERT_LE(h_.arena->reserved_bytes(), h_.arena->capacity_bytes());
  }

  void Audit() { h_.Audit(); }

  // Everybody goes; then nothing may be left but blocks that may leave, and they do.
  void Drain() {
    while (!processes_.empty()) {
      EndProcess(0);
    }
    while (!copies_.empty()) EndCopy(0);
    for (int round = 0; round < 4; ++round) {
      h_.mover.CompleteAll();
      Poll();
    }
    h_.clock.Advance(kMaxPinMs * kMillisecond);
    h_.nvme.set_readable(true);
    h_.nvme.set_writable(true);
    h_.nvme.takes_reads = h_.nvme.takes_writes = true;
    for (int round = 0; round < 20; ++round) {
      h_.nvme.EndAll();
      Poll();
    }
    if (two_tiers_) {
      ASSERT_EQ(h_.control.movement()->moves(), 0u);
    }
    ASSERT_EQ(h_.nvme.jobs(), 0u);
    for (const auto& call : calls_) ASSERT_EQ(call->ended, 1) << "a call ended not once";
    ASSERT_EQ(h_.control.sessions(), 0u);
    ASSERT_EQ(h_.control.leases(), 0u);
    ASSERT_EQ(h_.control.pins(), 0u);
    ASSERT_EQ(h_.control.reservations(), 0u);
    ASSERT_EQ(h_.control.holds().total_extents(), 0u);
    ASSERT_EQ(h_.control.holds().total_bytes(), 0u);
    ASSERT_EQ(h_.counts().quarantined_parts, 0u);
    ASSERT_EQ(h_.board.copying(), 0u);
    h_.Audit();
    while (h_.store.residency().EvictNext() || h_.store.residency().EvictNextCold()) {
    }
    ASSERT_EQ(h_.counts().cold_parts, 0u);
    ASSERT_EQ(h_.nvme.records(), 0u);
    ASSERT_EQ(h_.nvme.live_bytes(), 0u);
    ASSERT_EQ(h_.counts().used, 0u);
    ASSERT_EQ(h_.counts().parts, 0u);
    ASSERT_EQ(h_.arena->reserved_bytes(), 0u);
  }

  uint64_t committed() const { return h_.control.counters().committed_blocks; }
  uint64_t extents_checked() const { return extents_checked_; }
  const ControlCounters& counters() const { return h_.control.counters(); }
  uint64_t evicted() const { return h_.counts().evicted; }
  const MovementCounters& moved() const { return h_.control.metrics().movement; }
  uint64_t loads_waited() const { return loads_waited_; }
  uint64_t quarantined_seen() const { return quarantined_seen_; }

 private:
  // A call and how often it ended. Calls that wait are resumed by the control.
  struct Call {
    virtual ~Call() = default;
    virtual bool Finished() const = 0;
    int ended = 0;
  };
  template <typename C>
  struct CallOf final : Call, Resumable {
    explicit CallOf(ControlSim& sim) : sim(sim) {}
    void Resume() override { sim.Go(*this); }
    bool Finished() const override { return !held->waits(); }
    ControlSim& sim;
    ControlHarness::CallPtr<C> held;
    uint32_t serial = 0;
    NamespaceId ns = 0;
    Keys keys;
    size_t spoilt = SIZE_MAX;  // The block from which on a commit names wrong sums.
  };
  struct OpenReservation {
    uint64_t id = 0;
    uint32_t serial = 0;
    NamespaceId ns = 0;
    Keys keys;
    std::string parts;  // As in the request: empty, or the one that it brings.
  };
  struct HeldExtents {
    HoldId id = 0;
    uint32_t serial = 0;
    pid_t pid = 0;
    NamespaceId ns = 0;
    Keys keys;
    std::vector<PackedExtent> extents;  // Two a block.
    std::set<size_t> damaged;           // Positions whose bytes the test has turned around.
  };
  struct Process {
    ControlHarness::Session session;
    std::vector<NamespaceId> namespaces;
  };
  struct SlowCopy {
    FakeMover::Copy copy;
    std::shared_ptr<MemoryStaging> staging;
  };

  static ControlHarness::Options OptionsOf(Random& random, bool two_tiers) {
    ControlHarness::Options options;
    options.region_bytes = 16u << 10;
    options.arena_bytes = (4 + random() % 8) * options.region_bytes;
    options.max_blocks = 20 + static_cast<uint32_t>(random() % 200);
    options.max_parts = 40 + random() % 600;
    options.control.slice_blocks = 1 + static_cast<uint32_t>(random() % 8);
    options.control.max_reservations = 16;
    options.control.session_reservations = 4;
    options.control.max_waiters = 1 + static_cast<uint32_t>(random() % 8);
    options.control.max_leases = 32;
    options.control.session_leases = 8;
    options.control.holds = {.max_holds = 24, .max_extents = 128};
    options.control.session_hold_bytes = 16u << 10;
    if (!two_tiers) return options;
    options.nvme_bytes = (10 + random() % 300) * NvmeTier::RoomOf(kFullBytes);
    options.max_blocks = 100 + static_cast<uint32_t>(random() % 600);
    options.control.movement.free_share = 2 + static_cast<uint32_t>(random() % 8);
    options.admission = random() % 4 == 0 ? "second-touch" : "all";
    options.control.max_load_waiters = 1 + static_cast<uint32_t>(random() % 8);
    options.control.block_waiters = 1 + static_cast<uint32_t>(random() % 4);
    return options;
  }

  uint64_t Dice(uint64_t sides) { return random_() % sides; }
  Process& AnyProcess() { return processes_[Dice(processes_.size())]; }
  NamespaceId AnyNamespace(const Process& process) {
    return process.namespaces[Dice(process.namespaces.size())];
  }

  void OpenProcess() {
    Process process;
    const DomainId domain = 1 + static_cast<DomainId>(Dice(2));
    process.session = h_.Open(domain);
    process.namespaces.push_back(h_.Register(
        process.session,
        ControlHarness::Descriptor("plain", {{.block_tokens = 16, .part_bytes = kFullBytes},
                                             {.block_tokens = 16, .part_bytes = kFullBytes}})));
    process.namespaces.push_back(h_.Register(
        process.session,
        ControlHarness::Descriptor("hybrid", {{.block_tokens = 16, .part_bytes = kFullBytes},
                                              {.kind = GroupKind::kWindow,
                                               .window_tokens = 32,
                                               .block_tokens = 16,
                                               .part_bytes = kWindowBytes}})));
    hybrid_.insert(process.namespaces.back());
    processes_.push_back(std::move(process));
  }
  uint32_t LengthOf(NamespaceId ns, uint8_t group) const {
    return group == 1 && hybrid_.contains(ns) ? kWindowBytes : kFullBytes;
  }

  // Keys hang together as a tree: key k of depth d is d below the root of its branch; branches
  // leave the trunk at fixed depths.
  Keys AnyChain() {
    const uint64_t tree = Dice(6);
    const uint64_t branch = Dice(4);
    const size_t length = 1 + Dice(20);
    Keys keys;
    for (uint64_t depth = 0; depth < length; ++depth) {
      keys.push_back(tree * 10'000 + (depth < 4 * branch ? 0 : branch * 1000) + depth);
    }
    return keys;
  }

  // --- calls -------------------------------------------------------------------------------------

  template <typename C>
  CallOf<C>& Start(const Process& process, NamespaceId ns, const Keys& keys, const Keys& parent) {
    auto call = std::make_unique<CallOf<C>>(*this);
    call->held = ControlHarness::Make<C>(process.session, ns, keys, parent);
    if constexpr (requires { call->held->call.resumable; }) {
      call->held->call.resumable = call.get();
    }
    call->serial = process.session.serial;
    call->ns = ns;
    call->keys = keys;
    CallOf<C>& started = *call;
    calls_.push_back(std::move(call));
    return started;
  }
  template <typename C>
  void Go(CallOf<C>& call) {
    ASSERT_EQ(call.ended, 0) << "a call went on after its end";
    // One slice, so that others come in between.
    call.held->step = h_.Dispatch(call.held->call);
    if (call.held->step.ok() && *call.held->step == Step::kWait) return;
    if (call.held->step.ok() && *call.held->step == Step::kMore) {
      if (Dice(2) == 0) return Go(call);
      more_.push_back([this, &call] { Go(call); });
      return;
    }
    ++call.ended;
    Ended(call);
  }
  void Poll() {
    h_.control.Poll();
    while (Resumable* ready = h_.control.NextReady()) ready->Resume();
    while (!more_.empty()) {
      const std::function<void()> go = std::move(more_.front());
      more_.pop_front();
      go();
    }
  }

  void StartReserve() {
    const Process& process = AnyProcess();
    Keys keys = AnyChain();
    Keys parent;
    if (keys.size() > 1 && Dice(3) == 0) {
      const size_t from = 1 + Dice(keys.size() - 1);
      parent = {keys[from - 1]};
      keys.erase(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(from));
    }
    auto& call = Start<ReserveCall>(process, AnyNamespace(process), keys, parent);
    if (Dice(2) == 0) call.held->call.wait_ms = static_cast<uint32_t>(1 + Dice(3000));
    if (Dice(4) == 0) {  // A worker that has only some of the parts.
      call.held->parts = Dice(2) == 0 ? std::string("\0\0", 2) : std::string("\1\0", 2);
      call.held->call.header.parts = call.held->parts;
    }
    Go(call);
  }
  void Ended(CallOf<ReserveCall>& call) {
    if (!call.held->step.ok()) return;
    ASSERT_EQ(call.held->call.states.size(), call.keys.size());
    const uint64_t id = call.held->call.reservation_id;
    ASSERT_EQ(id == 0, call.held->call.granted == 0);
    if (id == 0) return;
    reservations_.push_back({id, call.serial, call.ns, call.keys, call.held->parts});
  }

  const Process* ProcessOf(uint32_t serial) const {
    for (const Process& process : processes_) {
      if (process.session.serial == serial) return &process;
    }
    return nullptr;
  }

  static std::vector<PartId> PartsOf(const OpenReservation& reservation) {
    if (reservation.parts.empty()) return {{0, 0}, {1, 0}};
    return {{static_cast<uint8_t>(reservation.parts[0]), 0}};
  }

  void FillSome() {
    if (reservations_.empty()) return;
    const OpenReservation& reservation = reservations_[Dice(reservations_.size())];
    const Process* process = ProcessOf(reservation.serial);
    if (process == nullptr) return;
    const std::vector<PartId> parts = PartsOf(reservation);
    const uint32_t slots = static_cast<uint32_t>(reservation.keys.size() * parts.size());
    for (uint32_t index = 0; index < slots; ++index) {
      if (Dice(8) == 0) continue;
      const PartId id = parts[index % parts.size()];
      const uint32_t length = LengthOf(reservation.ns, id.group);
      // Staging of its own, so that a slow copy keeps its bytes.
      auto staging = std::make_shared<MemoryStaging>(length);
      ControlHarness::WritePayload(staging->writable(), reservation.ns,
                                   reservation.keys[index / parts.size()], id);
      FillRequest fill{.reservation_id = reservation.id, .index = index, .length = length};
      if (Dice(4) == 0) {  // In two pieces.
        fill.length = 1 + static_cast<uint32_t>(Dice(length - 1));
        const FakeMover::Copy piece = h_.mover.BeginCopy(reservation.serial, *staging, fill);
        if (piece.status != FillStatus::kOk) continue;
        h_.mover.EndCopy(piece);
        fill.staging_offset = fill.part_offset = fill.length;
        fill.length = length - fill.length;
      }
      const FakeMover::Copy copy = h_.mover.BeginCopy(reservation.serial, *staging, fill);
      if (copy.status != FillStatus::kOk) continue;
      copies_.push_back({copy, staging});
      if (Dice(16) != 0) EndCopy(copies_.size() - 1);
    }
  }
  void EndCopy(size_t i) {
    h_.mover.EndCopy(copies_[i].copy);
    copies_.erase(copies_.begin() + static_cast<ptrdiff_t>(i));
  }

  void CommitSome() {
    if (reservations_.empty()) return;
    const OpenReservation reservation = reservations_[Dice(reservations_.size())];
    const Process* process = ProcessOf(reservation.serial);
    if (process == nullptr) return;
    auto& call = Start<CommitCall>(*process, 0, {}, {});
    call.held->call.reservation_id = reservation.id;
    if (Dice(2) == 0) {
      call.held->call.first_block = static_cast<uint32_t>(Dice(reservation.keys.size()));
      call.held->call.blocks = 1;
    }
    if (Dice(2) == 0) {  // It overtakes fills, some of which never come.
      call.held->call.fills = 1 + static_cast<uint32_t>(Dice(reservation.keys.size()));
      call.held->call.remaining_ms = 1 + static_cast<uint32_t>(Dice(2000));
    }
    if (Dice(2) == 0) NameSums(reservation, call);
    Go(call);
  }
  void NameSums(const OpenReservation& reservation, CallOf<CommitCall>& call) {
    const CommitCall& commit = call.held->call;
    const size_t rest = reservation.keys.size() - commit.first_block;
    const size_t blocks = commit.blocks == 0 ? rest : commit.blocks;
    if (Dice(4) == 0) call.spoilt = Dice(blocks);
    const std::vector<PartId> parts = PartsOf(reservation);
    std::string& sums = call.held->staged;
    for (size_t i = 0; i < blocks * parts.size(); ++i) {
      const PartId id = parts[i % parts.size()];
      const size_t block = i / parts.size();
      std::vector<std::byte> bytes(LengthOf(reservation.ns, id.group));
      ControlHarness::WritePayload(absl::MakeSpan(bytes), reservation.ns,
                                   reservation.keys[commit.first_block + block], id);
      sums.append(sizeof(uint32_t), '\0');
      PackAt(sums, i, block < call.spoilt ? Crc32c(bytes) : ~Crc32c(bytes));
    }
    call.held->call.sums = sums;
  }
  void Ended(CallOf<CommitCall>& call) {
    if (!call.held->step.ok()) return;
    const std::string& results = call.held->call.results;
    ASSERT_EQ(results.size(), call.held->call.blocks);
    for (size_t i = 0; i < results.size(); ++i) {
      const auto result = static_cast<CommitResult>(results[i]);
      if (i < call.spoilt) {
        ASSERT_NE(result, CommitResult::kFailed) << "right sums were refused";
      } else {
        ASSERT_TRUE(result != CommitResult::kCommitted && result != CommitResult::kParked)
            << "a block whose sums are wrong was stored";
      }
    }
  }

  void AbortOne() {
    if (reservations_.empty()) return;
    const size_t i = Dice(reservations_.size());
    const OpenReservation reservation = reservations_[i];
    reservations_.erase(reservations_.begin() + static_cast<ptrdiff_t>(i));
    if (const Process* process = ProcessOf(reservation.serial)) {
      (void)h_.control.Abort(process->session.token, reservation.id);
    }
  }

  void StartInlinePut() {
    const Process& process = AnyProcess();
    const NamespaceId ns = AnyNamespace(process);
    const Keys keys = AnyChain();
    auto& call = Start<CommitCall>(process, ns, keys, {});
    // The bytes must stay until the copier has been there: each put has a part of its own.
    auto staging = std::make_shared<MemoryStaging>(keys.size() * 2 * kFullBytes);
    h_.inbox.Post(StagingOpened{.serial = process.session.serial, .staging = staging});
    h_.control.Poll();
    while (Resumable* ready = h_.control.NextReady()) ready->Resume();
    call.held->staged.resize(keys.size() * 2 * sizeof(PackedStaged));
    for (size_t i = 0; i < keys.size() * 2; ++i) {
      const PartId id{static_cast<uint8_t>(i % 2), 0};
      const uint32_t length = LengthOf(ns, id.group);
      ControlHarness::WritePayload(staging->writable().subspan(i * kFullBytes, length), ns,
                                   keys[i / 2], id);
      PackAt(call.held->staged, i, PackedStaged{.offset = i * kFullBytes, .length = length});
    }
    call.held->call.staged = call.held->staged;
    // In one go up to the copier: the next put brings other staging.
    do {
      call.held->step = h_.Dispatch(call.held->call);
    } while (call.held->step.ok() && *call.held->step == Step::kMore);
    if (call.held->waits()) return;
    ++call.ended;
    Ended(call);
  }

  void LookUp() {
    const Process& process = AnyProcess();
    auto& call = Start<LookupCall>(process, AnyNamespace(process), AnyChain(), {});
    if (Dice(2) == 0) call.held->call.lease_ms = static_cast<uint32_t>(1 + Dice(5000));
    if (Dice(3) == 0) call.held->call.extent_blocks = static_cast<uint32_t>(1 + Dice(20));
    Go(call);
  }
  void Ended(CallOf<LookupCall>& call) {
    const LookupCall& answer = call.held->call;
    if (!call.held->step.ok()) return;
    ASSERT_LE(answer.hit_blocks, call.keys.size());
    ASSERT_LE(answer.cursor.next, answer.hit_blocks);
    if (answer.lease == LeaseOutcome::kGranted) {
      ASSERT_NE(answer.lease_id, 0u);
      leases_.emplace_back(call.serial, answer.lease_id);
    }
    TakeHold(call.serial, call.ns, call.keys, answer.cursor, answer.extents);
  }

  void LoadSome() {
    const Process& process = AnyProcess();
    auto& call = Start<LoadCall>(process, AnyNamespace(process), AnyChain(), {});
    call.held->call.remaining_ms = static_cast<uint32_t>(Dice(3000));
    Go(call);
    loads_waited_ += call.held->waits();
  }
  void Ended(CallOf<LoadCall>& call) {
    if (!call.held->step.ok()) return;
    TakeHold(call.serial, call.ns, call.keys, call.held->call.cursor, call.held->call.extents);
  }

  // Every extent answered has the right bytes for its key, unless the test damaged them.
  void TakeHold(uint32_t serial, NamespaceId ns, const Keys& keys, const ExtentCursor& cursor,
                const std::string& extents) {
    if (cursor.hold == 0) return;
    ASSERT_EQ(extents.size(), cursor.next * 2 * sizeof(PackedExtent));
    const Process* process = ProcessOf(serial);
    ASSERT_NE(process, nullptr);
    HeldExtents held{.id = cursor.hold, .serial = serial, .ns = ns, .keys = keys};
    held.pid = process->session.pid;
    for (size_t i = 0; i < cursor.next * 2; ++i) {
      const auto extent = UnpackAt<PackedExtent>(extents, i);
      held.extents.push_back(extent);
      // Only a window may miss parts.
      if (extent.length == 0) {
        ASSERT_TRUE(i % 2 == 1 && hybrid_.contains(ns));
      }
      if (damaged_.contains({extent.region, extent.offset, extent.generation})) {
        held.damaged.insert(i);
      }
    }
    holds_.push_back(std::move(held));
    Check(holds_.back());
  }

  void Check(const HeldExtents& held) {
    for (size_t i = 0; i < held.extents.size(); ++i) {
      const PackedExtent& extent = held.extents[i];
      if (extent.length == 0 ||
          damaged_.contains({extent.region, extent.offset, extent.generation})) {
        continue;
      }
      const PartId id{static_cast<uint8_t>(i % 2), 0};
      ASSERT_EQ(extent.stored_length, LengthOf(held.ns, id.group));
      ASSERT_TRUE(h_.IsPayload(extent, held.ns, held.keys[i / 2], id))
          << "wrong bytes under a hold, key " << held.keys[i / 2];
      ++extents_checked_;
    }
  }
  // Room under a hold is not reused while its process lives.
  void CheckHolds() {
    if (!holds_.empty()) Check(holds_[Dice(holds_.size())]);
    quarantined_seen_ += h_.counts().quarantined_parts > 0;
  }

  void ReleaseSome() {
    if (!holds_.empty() && Dice(3) != 0) {
      const size_t i = Dice(holds_.size());
      Check(holds_[i]);
      const Process* process = ProcessOf(holds_[i].serial);
      if (process == nullptr) return;  // Its session ended; the hold goes with the process.
      ASSERT_TRUE(h_.ReleaseHold(process->session, holds_[i].id));
      holds_.erase(holds_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (!leases_.empty()) {
      const size_t i = Dice(leases_.size());
      if (const Process* process = ProcessOf(leases_[i].first)) {
        (void)h_.ReleaseLease(process->session, leases_[i].second);  // It may have expired.
      }
      leases_.erase(leases_.begin() + static_cast<ptrdiff_t>(i));
    }
  }

  void DamageSome() {
    if (holds_.empty()) return;
    HeldExtents& held = holds_[Dice(holds_.size())];
    const Process* process = ProcessOf(held.serial);
    if (held.extents.empty() || process == nullptr) return;
    const size_t i = Dice(held.extents.size());
    const PackedExtent& extent = held.extents[i];
    if (extent.length != 0 && Dice(2) == 0 &&
        damaged_.insert({extent.region, extent.offset, extent.generation}).second) {
      h_.Damage(extent);
      ++damage_done_;
    }
    h_.ReportDamage(process->session, held.id, {static_cast<uint32_t>(i)});
  }

  void LetCopiersWork() {
    for (uint64_t n = Dice(4); n > 0; --n) {
      switch (Dice(4)) {
        case 0:
          h_.mover.CompleteFill();
          break;
        case 1:
          h_.mover.CompleteVerify();
          break;
        case 2:
          if (Dice(4) == 0) {
            h_.mover.FailRegion();
          } else {
            h_.mover.CompleteRegion();
          }
          break;
        default:
          if (!copies_.empty()) EndCopy(Dice(copies_.size()));
          break;
      }
    }
  }

  // Jobs end in any order, some badly.
  void LetNvmeWork() {
    for (uint64_t n = Dice(6); n > 0 && h_.nvme.jobs() > 0; --n) {
      const size_t i = Dice(3) == 0 ? Dice(h_.nvme.jobs()) : 0;
      const uint64_t dice = Dice(40);
      NvmeOutcome outcome = NvmeOutcome::kOk;
      if (dice == 0) outcome = NvmeOutcome::kError;
      if (dice == 1 && !h_.nvme.is_write(i)) outcome = NvmeOutcome::kCorrupt;
      if (dice == 2 && !h_.nvme.is_write(i)) outcome = NvmeOutcome::kExpired;
      h_.nvme.End(i, outcome);
    }
    switch (Dice(100)) {
      case 0:
        h_.nvme.Damage(random_());
        break;
      case 1:
        ReclaimOne();
        break;
      case 2:
        h_.nvme.set_readable(Dice(4) != 0);
        break;
      case 3:
        h_.nvme.set_writable(Dice(4) != 0);
        break;
      case 4:
        h_.nvme.takes_writes = Dice(4) != 0;
        h_.nvme.takes_reads = Dice(4) != 0;
        break;
      default:
        break;
    }
  }

  // Its record is copied forward, or turns out to be damaged, or finds no room.
  void ReclaimOne() {
    std::optional<NvmeOutcome> lost;
    const uint64_t dice = Dice(8);
    if (dice == 0) lost = NvmeOutcome::kCorrupt;
    if (dice == 1) lost = NvmeOutcome::kExpired;
    h_.nvme.Reclaim(random_(), lost);
    Poll();
  }

  void PinSome() {
    const Process& process = AnyProcess();
    const std::string key = PackKeys({AnyChain().back()});
    PinCall call{.key = key, .owner = "owner", .budget_bytes = 8000, .ttl_ms = 1 + Dice(20'000)};
    call.header.session = process.session.token;
    call.header.ns = AnyNamespace(process);
    (void)h_.control.Pin(call);
  }

  void Die() {
    EndProcess(Dice(processes_.size()));
    OpenProcess();
  }

  // The socket closes and the process exits, in either order, with other things between.
  void EndProcess(size_t i) {
    const Process process = processes_[i];
    const uint32_t serial = process.session.serial;
    const bool exit_first = Dice(3) == 0;
    if (exit_first) {
      DropHoldsOf(serial);
      h_.inbox.Post(ProcessExited{.serial = serial});
      if (Dice(2) == 0) Poll();
    }
    processes_.erase(processes_.begin() + static_cast<ptrdiff_t>(i));
    h_.inbox.Post(SessionEnded{.serial = serial});
    if (exit_first) DropHoldsOf(serial);
    Poll();
    if (!exit_first) {
      CheckHolds();
      DropHoldsOf(serial);
      h_.inbox.Post(ProcessExited{.serial = serial});
      Poll();
    }
    std::erase_if(reservations_, [serial](const auto& r) { return r.serial == serial; });
    std::erase_if(leases_, [serial](const auto& lease) { return lease.first == serial; });
  }
  void DropHoldsOf(uint32_t serial) {
    std::erase_if(holds_, [serial](const auto& held) { return held.serial == serial; });
  }

  Random random_;
  const bool two_tiers_;
  ControlHarness h_;
  std::vector<Process> processes_;
  std::set<NamespaceId> hybrid_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::deque<std::function<void()>> more_;
  std::vector<OpenReservation> reservations_;
  std::vector<SlowCopy> copies_;
  std::vector<HeldExtents> holds_;
  std::vector<std::pair<uint32_t, LeaseId>> leases_;
  std::set<std::tuple<uint32_t, uint64_t, uint32_t>> damaged_;  // Region, offset, generation.
  uint64_t extents_checked_ = 0;
  uint64_t damage_done_ = 0;
  uint64_t loads_waited_ = 0;
  uint64_t quarantined_seen_ = 0;
};

void RunSeeds(bool two_tiers, uint64_t seeds) {
  const uint64_t first = NumberFromEnvironment("KVD_SEED", 1);
  seeds = NumberFromEnvironment("KVD_SIM_SEEDS", seeds);
  uint64_t committed = 0;
  uint64_t checked = 0;
  uint64_t evicted = 0;
  uint64_t quarantined = 0;
  uint64_t damage = 0;
  uint64_t waits = 0;
  uint64_t early_commits = 0;
  uint64_t sums_differ = 0;
  uint64_t demoted = 0;
  uint64_t promoted = 0;
  uint64_t damaged_records = 0;
  uint64_t loads_waited = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "KVD_SEED=" << seed << " KVD_SIM_SEEDS=1");
    ControlSim sim(seed, two_tiers);
    for (int step = 0; step < 1500; ++step) {
      sim.Step();
      if (step % 16 == 0) sim.Audit();
      if (testing::Test::HasFatalFailure()) {
        FAIL() << "at step " << step << " of KVD_SEED=" << seed;
      }
    }
    sim.Drain();
    if (testing::Test::HasFatalFailure()) FAIL() << "draining KVD_SEED=" << seed;
    committed += sim.committed();
    checked += sim.extents_checked();
    evicted += sim.evicted();
    quarantined += sim.quarantined_seen();
    damage += sim.counters().damage_confirmed;
    waits += sim.counters().reserve_waits;
    early_commits += sim.counters().commit_waits;
    sums_differ += sim.counters().put_sums_differ;
    demoted += sim.moved().demoted_blocks + sim.moved().clean_blocks;
    promoted += sim.moved().promoted_blocks;
    damaged_records += sim.moved().damaged_records;
    loads_waited += sim.loads_waited();
  }
  // So that a simulation in which nothing happens does not pass.
  EXPECT_GT(committed, 20 * seeds);
  EXPECT_GT(checked, 20 * seeds);
  EXPECT_GT(evicted, seeds);
  if (seeds >= 10) {
    EXPECT_GT(quarantined, 0u);
    EXPECT_GT(damage, 0u);
    EXPECT_GT(waits, 0u);
    EXPECT_GT(early_commits, 0u);
    EXPECT_GT(sums_differ, 0u);
  }
  if (two_tiers && seeds >= 10) {
    EXPECT_GT(demoted, 20 * seeds);
    EXPECT_GT(promoted, 10 * seeds);
    EXPECT_GT(damaged_records, 0u);
    EXPECT_GT(loads_waited, seeds);
  }
}

TEST(ControlSimTest, NoSeedBreaksAPromise) {
  RunSeeds(/*two_tiers=*/false, RoundsForThisBuild(300));
}
TEST(ControlSimTest, NoSeedBreaksAPromiseInTwoTiers) {
  RunSeeds(/*two_tiers=*/true, RoundsForThisBuild(300));
}

}  // namespace
}  // namespace kvd
