#include "bench/sim_tiers.h"

#include <algorithm>
#include <array>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/payload.h"
#include "policy/admissions.h"
#include "policy/policies.h"
#include "proto/types/check.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

constexpr uint64_t kMaxBlocks = (1u << 30) - 1;  // As Residency allows, of both tiers.
constexpr uint64_t kSecret = 1;  // The keys are ours: nobody chooses ones that collide.
constexpr uint32_t kPartBytes = Arena::kMinSlotBytes;  // A stand-in: sizes cancel out.
constexpr uint32_t kPageBlocks = 64;  // That a replay loads or puts at a time, of 256 KiB.

}  // namespace

class TwoTierSimulator::InstantTier final : public NvmeTier {
 public:
  explicit InstantTier(uint64_t blocks) : capacity_(blocks * RoomOf(kPartBytes)) {}
  void SetOwner(Owner* owner) { owner_ = owner; }

  absl::StatusOr<ScopeNumber> AddScope(const std::string&, const std::string&) override {
    return ScopeNumber{1};
  }
  absl::Status PurgeScope(ScopeNumber, std::function<void(absl::Status)> done) override {
    done(absl::OkStatus());
    return absl::OkStatus();
  }
  uint32_t max_payload_bytes() const override { return kPartBytes; }
  bool Adopt(RecordPlace, uint32_t) override { return false; }
  std::optional<RecordPlace> Append(const RecordInfo& info, absl::Span<std::byte>, uint32_t,
                                    uint64_t tag) override {
    live_ += RoomOf(info.length);
    ended_.push_back({.tag = tag});
    return RecordPlace{.segment = 1};
  }
  bool Read(RecordPlace, const RecordInfo&, absl::Span<std::byte>, Nanos, uint64_t tag) override {
    ended_.push_back({.tag = tag});
    return true;
  }
  void Drop(RecordPlace, uint32_t length) override { live_ -= RoomOf(length); }
  void Poll(Nanos) override {
    for (const Completion& completion : std::exchange(ended_, {})) owner_->NvmeEnded(completion);
  }
  Nanos NextDeadline() const override { return INT64_MAX; }
  uint64_t live_capacity_bytes() const override { return capacity_; }
  uint64_t live_bytes() const override { return live_; }
  bool writable() const override { return true; }
  bool making_room() const override { return false; }
  bool readable() const override { return true; }
  uint32_t in_flight() const override { return static_cast<uint32_t>(ended_.size()); }
  uint64_t EstimateReadUs(uint64_t) const override { return 0; }

 private:
  const uint64_t capacity_;
  Owner* owner_ = nullptr;
  uint64_t live_ = 0;
  std::vector<Completion> ended_;
};

absl::StatusOr<std::unique_ptr<TwoTierSimulator>> TwoTierSimulator::Create(
    const std::string& policy, uint64_t capacity_blocks, uint64_t nvme_blocks,
    const std::string& admission) {
  if (capacity_blocks == 0 || nvme_blocks == 0 || nvme_blocks > kMaxBlocks ||
      capacity_blocks > kMaxBlocks - nvme_blocks) {
    return absl::InvalidArgumentError(absl::StrCat("capacity of ", capacity_blocks, " and ",
                                                   nvme_blocks, " blocks: must be 1 to ",
                                                   kMaxBlocks, " together"));
  }
  const auto blocks = static_cast<uint32_t>(capacity_blocks + nvme_blocks);
  try {
    std::unique_ptr<EvictionPolicy> made = MakePolicy(policy, blocks);
    if (made == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("no policy \"", policy, "\"; there is ", std::string(PolicyNames())));
    }
    std::unique_ptr<AdmissionPolicy> admits = MakeAdmission(admission, blocks);
    if (admits == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "no admission policy \"", admission, "\"; there is ", std::string(AdmissionNames())));
    }
    return std::unique_ptr<TwoTierSimulator>(
        new TwoTierSimulator(std::move(made), MakePolicy(policy, blocks), std::move(admits),
                             static_cast<uint32_t>(capacity_blocks), nvme_blocks));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for an index of ", blocks, " blocks"));
  }
}

TwoTierSimulator::TwoTierSimulator(std::unique_ptr<EvictionPolicy> policy,
                                   std::unique_ptr<EvictionPolicy> cold_policy,
                                   std::unique_ptr<AdmissionPolicy> admission,
                                   uint32_t capacity_blocks, uint64_t nvme_blocks)
    : policy_(std::move(policy)),
      cold_policy_(std::move(cold_policy)),
      admission_(std::move(admission)),
      arena_(MakeArena(directory_, capacity_blocks)),
      store_(
          *policy_, *arena_,
          {.max_blocks = static_cast<uint32_t>(capacity_blocks + nvme_blocks),
           .max_parts = capacity_blocks,
           .max_cold_parts = nvme_blocks,
           .secret = kSecret},
          [](uint32_t, uint64_t) {}, cold_policy_.get()),
      residency_(store_.residency()),
      tier_(std::make_unique<InstantTier>(nvme_blocks)),
      movement_(store_, *tier_, *admission_, clock_, static_cast<Movement::Listener&>(*this),
                counters_, {}),
      ns_(residency_.AddNamespace({})) {
  tier_->SetOwner(&movement_.owner());
  movement_.SetScope(ns_, 1);
  result_.policy = std::string(policy_->name());
  result_.capacity_blocks = capacity_blocks;
  result_.nvme_blocks = nvme_blocks;
  result_.admission = std::string(admission_->name());
}

TwoTierSimulator::~TwoTierSimulator() = default;

// Slots for all blocks; the rest of its last page is kept unused by the bound on parts.
std::unique_ptr<Arena> TwoTierSimulator::MakeArena(RegionDirectory& directory,
                                                   uint32_t capacity_blocks) {
  constexpr uint64_t kPage = 4096;
  const uint64_t bytes = (uint64_t{capacity_blocks} * kPartBytes + kPage - 1) / kPage * kPage;
  absl::StatusOr<std::unique_ptr<Arena>> arena =
      Arena::Open(directory, {.bytes = bytes, .region_bytes = bytes, .pages = PageKind::kSmall});
  if (!arena.ok()) throw std::bad_alloc();
  return *std::move(arena);
}

void TwoTierSimulator::Request(absl::Span<const uint64_t> hash_ids) {
  keys_.clear();
  for (const uint64_t id : hash_ids) {
    const std::array<std::byte, kMaxHashBytes> key = KeyOf(id, kSecret);
    keys_.append(reinterpret_cast<const char*>(key.data()), key.size());
  }
  const KeyList keys(keys_, kMaxHashBytes);

  const Residency::Prefix prefix = residency_.LongestPrefix(ns_, keys, nullptr);
  uint32_t loaded = 0;
  if (prefix.deepest != 0) {
    residency_.Use(prefix.deepest, ++tick_);
    residency_.Lease(prefix.deepest);
    result_.nvme_blocks_hit += prefix.blocks - residency_.WarmBlocks(prefix);
    loaded = LoadPrefix(prefix);
  }
  const BlockRef above =
      loaded == 0 ? 0
                  : residency_.AncestorAt(prefix.deepest, residency_.block(prefix.deepest).depth -
                                                              (prefix.blocks - loaded));
  StoreRest(keys, loaded, above);
  if (prefix.deepest != 0) residency_.Unlease(prefix.deepest);
  Quiesce();

  ++result_.requests;
  result_.blocks_asked += keys.size();
  result_.blocks_hit += loaded;
}

// Brings a prefix to DRAM, as pages of a replay's loads do. Returns how many blocks came.
uint32_t TwoTierSimulator::LoadPrefix(const Residency::Prefix& prefix) {
  const uint32_t base = residency_.block(prefix.deepest).depth + 1 - prefix.blocks;
  uint32_t loaded = 0;
  while (loaded < prefix.blocks) {
    const uint32_t end = std::min(prefix.blocks, loaded + kPageBlocks);
    std::vector<PartRef> held;  // What has come stays until the page is whole.
    for (; loaded < end; ++loaded) {
      const BlockRef block = residency_.AncestorAt(prefix.deepest, base + loaded);
      if (!residency_.InDram(block)) {
        Movement::Fetch fetch = movement_.Promote(block, INT64_MAX);
        if (fetch == Movement::Fetch::kBusy) {  // What has to leave first is written at once here.
          movement_.Turn(clock_.Now());
          fetch = movement_.Promote(block, INT64_MAX);
        }
        if (fetch != Movement::Fetch::kUnderWay) break;
        movement_.Turn(clock_.Now());
        if (!residency_.InDram(block)) break;
      }
      held.push_back(residency_.block(block).first_part);
      KVD_CHECK(residency_.Hold(held.back()));
    }
    for (const PartRef part : held) residency_.Unhold(part);
    movement_.Turn(clock_.Now());
    if (loaded < end) break;
  }
  return loaded;
}

// Stores the keys from `from` on below `above` (0: as a root), as Control::Reserve and Commit do.
void TwoTierSimulator::StoreRest(const KeyList& keys, uint32_t from, BlockRef above) {
  BlockRef leased = 0;  // The deepest block of the chain so far: it keeps all above it.
  MoveLease(leased, above);
  for (uint32_t i = from; i < keys.size(); ++i) {
    above = StoreOne(keys[i], above);
    if (above == 0) break;
    MoveLease(leased, above);
    if ((i - from) % kPageBlocks == kPageBlocks - 1) movement_.Turn(clock_.Now());
  }
  MoveLease(leased, 0);
}

// 0: it cannot be stored.
BlockRef TwoTierSimulator::StoreOne(const ChainHash& key, BlockRef above) {
  if (above != 0 && residency_.block(above).depth + 1 >= kMaxChainDepth) return 0;
  BlockRef block = residency_.Find(ns_, key);
  if (block != 0) {  // It could not be loaded, or the chains of the trace contradict each other.
    return residency_.block(block).parent == above ? block : 0;
  }
  if (!store_.MakeIndexRoom()) return 0;
  block = residency_.Add(ns_, key, above, ++tick_);
  const PartRef part = store_.TakePart(block, PartId{}, kPartBytes);
  if (part == 0) {
    residency_.Abandon(block);
    return 0;
  }
  result_.blocks_stored += residency_.CommitPart(part, 0, tick_);
  movement_.Stored(block);
  return block;
}

void TwoTierSimulator::MoveLease(BlockRef& leased, BlockRef to) {
  if (to != 0) residency_.Lease(to);
  if (leased != 0) residency_.Unlease(leased);
  leased = to;
}

void TwoTierSimulator::Quiesce() {
  do {
    movement_.Turn(clock_.Now());
  } while (movement_.moves() > 0);
}

SimResult TwoTierSimulator::Result() const {
  SimResult result = result_;
  const Residency::AuditResult audit = residency_.Audit(0, std::numeric_limits<uint32_t>::max());
  KVD_CHECK(audit.errors == 0) << audit.first_error;
  result.stranded_blocks = audit.stranded;
  result.evicted_blocks = residency_.counts().evicted;
  result.nvme_blocks_written = counters_.written_blocks;
  result.lost_blocks = counters_.lost_blocks;
  return result;
}

}  // namespace kvd
