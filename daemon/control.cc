// Sessions, finding, holding and the loop. What stores is in control_put.cc.

#include "daemon/control.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "proto/types/status.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

// Leases ended by one call on the side; more are ended only when room is needed.
constexpr int kLeasesExpiredPerPoll = 64;
// Extents whose holds end in one turn, some hundred microseconds; a session may have a million.
constexpr uint32_t kExtentsPerTurn = 4096;
// That one load has on its way from NVMe beyond the block that it waits for.
constexpr uint64_t kReadAheadBytes = 64u << 20;

}  // namespace

Control::Control(Store& store, FillBoard& board, Mover& mover, Inbox& inbox, const Clock& clock,
                 const Options& options)
    : store_(store),
      residency_(store.residency()),
      board_(board),
      mover_(mover),
      inbox_(inbox),
      clock_(clock),
      options_(options),
      leases_(options.max_leases),
      holds_(options.holds),
      event_ring_(options.events),
      announcements_(options.announce_bytes),
      namespaces_(1),
      scrubber_(store, mover, metrics_.scrub, options.scrubber) {
  residency_.Observe(event_ring_, &announcements_);
}

Control::~Control() = default;

void Control::AttachNvme(NvmeTier& tier, AdmissionPolicy& admission,
                         std::function<std::string(DomainId)> domain_name) {
  movement_ = std::make_unique<Movement>(store_, tier, admission, clock_,
                                         static_cast<Movement::Listener&>(*this), metrics_.movement,
                                         options_.movement);
  scrubber_.Attach(*movement_);
  domain_name_ = std::move(domain_name);
}

// Without a number of its scope a namespace stays in DRAM; the tier has said why.
void Control::NameOnMedia(NamespaceId ns) {
  if (movement_ == nullptr) return;
  const NamespaceInfo& info = namespaces_[ns];
  const absl::StatusOr<ScopeNumber> scope =
      movement_->tier().AddScope(domain_name_(info.domain), info.descriptor.Canonical());
  movement_->SetScope(ns, scope.value_or(0));
}

// --- who is calling, and about what --------------------------------------------------------------

absl::StatusOr<Control::Session*> Control::FindSession(std::string_view token) {
  control_.AssertHeld();
  const auto it = by_token_.find(View(token));
  if (it == by_token_.end()) {
    ++counters_.calls_refused;
    ++counters_.unknown_sessions;
    return absl::UnauthenticatedError("session: unknown or ended; open one at the session socket");
  }
  return it->second;
}

DomainUse& Control::UseOf(DomainId domain) {
  DomainUse& use = uses_[domain];
  if (use.tenant == nullptr) use.tenant = &metrics_.AddTenant(domain);
  return use;
}

absl::Status Control::CheckSession(std::string_view session) {
  return FindSession(session).status();
}

const Control::NamespaceInfo* Control::FindNamespace(NamespaceId ns) const {
  return ns == 0 || ns >= namespaces_.size() || namespaces_[ns].dropped ? nullptr
                                                                        : &namespaces_[ns];
}

uint32_t& Control::CallsUnderWay(std::string_view session) {
  control_.AssertHeld();
  const auto it = by_token_.find(View(session));
  return it == by_token_.end() ? stranger_calls_ : it->second->use->calls;
}

absl::StatusOr<Control::Chain> Control::ResolveChain(const CallHeader& header,
                                                     uint32_t max_blocks) {
  absl::StatusOr<Session*> session = FindSession(header.session);
  if (!session.ok()) return session.status();
  const auto refuse = [this](absl::Status status) {
    ++counters_.calls_refused;
    return status;
  };
  // A namespace of another domain does not exist for this one.
  const NamespaceInfo* info = FindNamespace(header.ns);
  if (info == nullptr || info->domain != (*session)->domain) {
    return refuse(absl::NotFoundError(absl::StrCat("namespace_id: no namespace ", header.ns)));
  }
  Chain chain{.info = info, .session = *session};
  const uint32_t hash_bytes = chain.info->descriptor.hash_bytes;
  if (header.keys.empty() || header.keys.size() % hash_bytes != 0) {
    return refuse(InvalidField("keys", absl::StrCat("must be one or more hashes of ", hash_bytes,
                                                    " bytes, got ", header.keys.size(), " bytes")));
  }
  if (header.keys.size() / hash_bytes > max_blocks) {
    return refuse(InvalidField("keys", absl::StrCat("at most ", max_blocks, " blocks a call, got ",
                                                    header.keys.size() / hash_bytes)));
  }
  chain.keys = KeyList(header.keys, hash_bytes);
  if (!header.parent.empty()) {
    if (header.parent.size() != hash_bytes) {
      return refuse(
          InvalidField("parent", absl::StrCat("must be one hash of ", hash_bytes, " bytes")));
    }
    chain.has_parent = true;
    chain.parent = KeyList(header.parent, hash_bytes)[0];
  }
  if (header.releases.size() > kMaxReleasesPerCall) {
    return refuse(
        InvalidField("releases", absl::StrCat("at most ", kMaxReleasesPerCall, " a call")));
  }
  return chain;
}

absl::StatusOr<absl::InlinedVector<PartId, 4>> Control::ResolveParts(const NamespaceInfo& info,
                                                                     std::string_view parts) const {
  absl::InlinedVector<PartId, 4> ids;
  if (parts.empty()) {
    ids.assign(info.parts.begin(), info.parts.end());
    return ids;
  }
  if (parts.size() % 2 != 0 || parts.size() / 2 > info.parts.size()) {
    return InvalidField("parts", "must be pairs of group and shard, each at most once");
  }
  for (size_t i = 0; i < parts.size(); i += 2) {
    const PartId id{static_cast<uint8_t>(parts[i]), static_cast<uint8_t>(parts[i + 1])};
    if (std::find(info.parts.begin(), info.parts.end(), id) == info.parts.end()) {
      return InvalidField(
          "parts", absl::StrCat("the namespace has no group ", id.group, " shard ", id.shard));
    }
    if (std::find(ids.begin(), ids.end(), id) != ids.end()) {
      return InvalidField("parts", "names a part twice");
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<Control::RegisteredNamespace> Control::RegisterNamespace(
    std::string_view session_token, const NamespaceDescriptor& descriptor) {
  absl::StatusOr<Session*> session = FindSession(session_token);
  if (!session.ok()) return session.status();
  absl::StatusOr<RegisteredNamespace> registered =
      AddNamespace((*session)->domain, *(*session)->use, descriptor);
  if (!registered.ok()) ++counters_.calls_refused;
  return registered;
}

absl::StatusOr<Control::RegisteredNamespace> Control::RestoreNamespace(
    DomainId domain, const NamespaceDescriptor& descriptor) {
  return AddNamespace(domain, UseOf(domain), descriptor);
}

absl::StatusOr<Control::RegisteredNamespace> Control::AddNamespace(
    DomainId domain, DomainUse& use, const NamespaceDescriptor& descriptor) {
  if (absl::Status status = descriptor.Validate(); !status.ok()) return status;
  auto [it, created] = namespace_ids_.try_emplace({domain, descriptor.Canonical()}, 0);
  if (!created) {
    return RegisteredNamespace{it->second, descriptor.Fingerprint(), false};
  }

  NamespaceInfo info{.domain = domain, .descriptor = descriptor};
  NamespaceShape shape{.domain = domain, .full_groups = 0, .state_groups = 0, .shards = {}};
  std::vector<uint32_t> slots;
  for (size_t g = 0; g < descriptor.groups.size(); ++g) {
    const GroupDescriptor& group = descriptor.groups[g];
    const auto bit = static_cast<uint16_t>(1u << g);
    if (group.kind == GroupKind::kFull) shape.full_groups |= bit;
    if (group.kind == GroupKind::kState) shape.state_groups |= bit;
    if (group.kind == GroupKind::kWindow) {
      shape.windows.push_back({static_cast<uint16_t>(g), group.window_blocks()});
    }
    shape.shards.push_back(static_cast<uint16_t>(group.shards));
    info.group_part_bytes.push_back(group.part_bytes);
    for (uint32_t s = 0; s < group.shards; ++s) {
      info.parts.push_back({static_cast<uint8_t>(g), static_cast<uint8_t>(s)});
      info.block_bytes += group.part_bytes;
    }
    slots.push_back(Arena::SlotBytes(group.part_bytes));
    if (slots.back() > store_.arena().region_bytes()) {
      namespace_ids_.erase(it);
      return InvalidField(
          absl::StrCat("descriptor.groups[", g, "].part_bytes"),
          absl::StrCat("larger than a region of this daemon (", store_.arena().region_bytes(),
                       " bytes): give it more --dram"));
    }
  }
  std::sort(slots.begin(), slots.end());
  slots.erase(std::unique(slots.begin(), slots.end()), slots.end());
  info.slots = slots;
  const bool new_pool = !pools_.contains({domain, slots});
  if (namespace_ids_.size() > options_.max_namespaces ||
      (new_pool && pools_.size() >= EvictionPolicy::kMaxPools)) {
    namespace_ids_.erase(it);
    ++counters_.namespaces_refused;
    return absl::ResourceExhaustedError("namespaces: this daemon has as many as it may");
  }
  if (use.namespaces >= options_.domain_namespaces ||
      (new_pool && use.layouts >= options_.domain_layouts)) {
    namespace_ids_.erase(it);
    ++counters_.namespaces_refused;
    return absl::ResourceExhaustedError("namespaces: this user has as many as it may");
  }
  ++use.namespaces;
  use.layouts += new_pool;
  Pool& pool = pools_[{domain, std::move(slots)}];
  if (new_pool && free_pools_.empty()) {
    pool.number = static_cast<EvictionPolicy::Pool>(pools_.size() - 1);
  } else if (new_pool) {
    pool.number = free_pools_.back();
    free_pools_.pop_back();
  }
  ++pool.namespaces;
  shape.pool = pool.number;
  it->second = residency_.AddNamespace(std::move(shape));
  namespaces_.push_back(std::move(info));
  if (options_.record != nullptr) options_.record->NamespaceAdded(it->second, domain, descriptor);
  KVD_CHECK(it->second + 1 == namespaces_.size()) << it->second;
  NameOnMedia(it->second);
  KVD_KILL_POINT("namespace.registered");
  Record(EventKind::kNamespaceRegistered, domain, it->second, it->second);
  return RegisteredNamespace{it->second, descriptor.Fingerprint(), true};
}

// --- lookup and load -----------------------------------------------------------------------------

absl::StatusOr<Step> Control::Lookup(LookupCall& call) {
  absl::StatusOr<Chain> chain = ResolveChain(call.header, kMaxLookupBlocks);
  if (!chain.ok()) return chain.status();
  if (!call.found) {
    if (call.lease_ms > kMaxLeaseMs) return InvalidField("lease_ms", "at most 600000");
    if (call.extent_blocks > kMaxPageBlocks) return InvalidField("extent_blocks", "at most 2048");
    if (call.extent_blocks > 0) {
      auto parts = ResolveParts(*chain->info, call.header.parts);
      if (!parts.ok()) return parts.status();
      call.cursor.parts = *std::move(parts);
      if (call.extent_blocks * call.cursor.parts.size() > kMaxPageExtents) {
        return InvalidField("extent_blocks", "blocks times parts is more than 16384");
      }
    }
    ApplyReleases(*chain->session, call.header.releases);
    if (call.lease_ms > 0 || call.extent_blocks > 0) {
      if (absl::Status status = CheckDraining(); !status.ok()) return status;
    }
    ++counters_.lookups;
    counters_.lookup_blocks += chain->keys.size();
    DomainUse& use = *chain->session->use;
    ++use.lookups;
    use.lookup_blocks += chain->keys.size();

    Residency::Prefix prefix = residency_.LongestPrefix(
        call.header.ns, chain->keys, chain->has_parent ? &chain->parent : nullptr);
    if (movement_ != nullptr) prefix = Offered(call, *chain->info, prefix);
    call.found = true;
    call.hit_blocks = prefix.blocks;
    counters_.lookup_hit_blocks += prefix.blocks;
    use.hit_blocks += prefix.blocks;
    if (options_.count_operations) CountLookup(*chain, prefix.blocks, call.nvme_blocks);
    if (prefix.blocks == 0) return Step::kDone;
    KVD_KILL_POINT("lookup.found");
    residency_.Use(prefix.deepest, ++tick_);
    if (call.lease_ms > 0) {
      call.lease_id = AddLease(*chain->session, prefix.deepest, call.lease_ms, call.lease);
    }
    call.load_time_us = LoadUs(*chain->info, prefix.blocks, call.nvme_blocks);
    const uint32_t warm = prefix.blocks - call.nvme_blocks;
    call.cursor.limit = std::min(call.extent_blocks, warm);
    // Somebody will load it.
    if (call.nvme_blocks > 0 && (call.lease_ms > 0 || call.extent_blocks > 0)) {
      movement_->Prefetch(prefix, warm);
    }
  }
  return FillExtents(*chain, call.cursor, call.extents);
}

// What a client's copy takes, after the reads.
uint64_t Control::LoadUs(const NamespaceInfo& info, uint32_t blocks, uint32_t nvme_blocks) const {
  const double copy = static_cast<double>(blocks * info.block_bytes) / options_.load_bytes_per_us;
  const uint64_t read =
      nvme_blocks == 0 ? 0 : movement_->tier().EstimateReadUs(nvme_blocks * info.block_bytes);
  return static_cast<uint64_t>(copy) + read;
}

// As much of a prefix as it pays to load: what is on NVMe alone is offered when the tier can be
// read, and faster than its tokens are computed.
Residency::Prefix Control::Offered(LookupCall& call, const NamespaceInfo& info,
                                   Residency::Prefix prefix) {
  const uint32_t warm = residency_.WarmBlocks(prefix);
  call.nvme_blocks = prefix.blocks - warm;
  if (call.nvme_blocks == 0) return prefix;
  const uint64_t tokens = uint64_t{call.nvme_blocks} * info.descriptor.groups[0].block_tokens;
  const double prefill_us = call.prefill_us_per_token * static_cast<double>(tokens);
  const bool slower =
      call.prefill_us_per_token > 0 &&
      static_cast<double>(LoadUs(info, call.nvme_blocks, call.nvme_blocks)) > prefill_us;
  if (!slower && movement_->tier().readable()) return prefix;
  metrics_.movement.declined_hit_blocks += call.nvme_blocks;
  call.nvme_blocks = 0;
  return residency_.Shorten(prefix, warm);
}

// Attributes each block that was asked for, once: to the tier that has it, or to a miss.
void Control::CountLookup(const Chain& chain, uint32_t hit_blocks, uint32_t nvme_blocks) {
  TenantCounters& tenant = *chain.session->use->tenant;
  const uint64_t asked = chain.keys.size();
  const uint64_t missed = asked - hit_blocks;
  const uint64_t block_tokens = chain.info->descriptor.groups[0].block_tokens;  // Of every group.
  ++(missed == 0       ? tenant.lookups_full
     : hit_blocks == 0 ? tenant.lookups_none
                       : tenant.lookups_partial);
  tenant.lookup_dram_blocks += hit_blocks - nvme_blocks;
  tenant.lookup_miss_blocks += missed;
  tenant.lookup_dram_tokens += (hit_blocks - nvme_blocks) * block_tokens;
  if (nvme_blocks > 0) {
    tenant.lookup_nvme_blocks += nvme_blocks;
    tenant.lookup_nvme_tokens += nvme_blocks * block_tokens;
  }
  tenant.lookup_miss_tokens += missed * block_tokens;
  metrics_.prompt_tokens.Observe(asked * block_tokens);
  metrics_.match_share.Observe(hit_blocks * 1000 / asked);
}

absl::StatusOr<Step> Control::Load(LoadCall& call) {
  absl::StatusOr<Chain> chain = ResolveChain(call.header, kMaxPageBlocks);
  if (!chain.ok()) return chain.status();
  if (!call.started) {
    auto parts = ResolveParts(*chain->info, call.header.parts);
    if (!parts.ok()) return parts.status();
    call.cursor.parts = *std::move(parts);
    if (chain->keys.size() * call.cursor.parts.size() > kMaxPageExtents) {
      return InvalidField("keys", "blocks times parts is more than 16384");
    }
    uint32_t longest = 0;  // Of what the range leaves of the parts.
    for (const PartId id : call.cursor.parts) {
      const uint32_t part_bytes = chain->info->group_part_bytes[id.group];
      if (call.range_offset >= part_bytes) {
        return InvalidField("range_offset", absl::StrCat("parts have ", part_bytes, " bytes"));
      }
      longest = std::max(longest, part_bytes - call.range_offset);
    }
    call.range_bytes = call.range_bytes == 0 ? longest : std::min(call.range_bytes, longest);
    ApplyReleases(*chain->session, call.header.releases);
    if (absl::Status status = CheckDraining(); !status.ok()) return status;
    ++counters_.loads;
    call.started = true;
    call.cursor.limit = chain->keys.size();
    call.wait_until = clock_.Now() + PatienceMs(call.remaining_ms) * kMillisecond;
    call.cursor.may_wait = movement_ != nullptr && call.resumable != nullptr;
    call.cursor.deadline = call.wait_until;
  }
  Step step = FillExtents(*chain, call.cursor, call.extents);
  if (step == Step::kWait) {
    if (AwaitPromotion(call, *chain)) return Step::kWait;
    call.cursor.gave_up = true;  // The shorter prefix, then.
    step = FillExtents(*chain, call.cursor, call.extents);
  }
  if (step == Step::kDone) KVD_KILL_POINT("load.finished");
  if (step == Step::kDone && call.cursor.outcome == LoadOutcome::kMiss) {
    counters_.load_miss_blocks += chain->keys.size() - call.cursor.next;
  }
  return step;
}

// --- waiting for NVMe ----------------------------------------------------------------------------

// Whether nothing that the call wants of a block is on NVMe alone.
bool Control::PartsInDram(BlockRef ref, const ExtentCursor& cursor) const {
  if (residency_.InDram(ref)) return true;
  const uint16_t cold_groups = residency_.block(ref).cold_groups;
  return std::all_of(cursor.parts.begin(), cursor.parts.end(), [&](PartId id) {
    if ((cold_groups >> id.group & 1) == 0) return true;
    const PartRef part = residency_.FindPart(ref, id);
    return part != 0 && residency_.part(part).state == static_cast<uint32_t>(PartState::kCommitted);
  });
}

// Starts what brings the first of `blocks`, and those that follow it as far as one call may go
// ahead. False: the first does not come.
bool Control::Fetch(ExtentCursor& cursor, absl::Span<const BlockRef> blocks, uint64_t block_bytes) {
  const bool joins = movement_->promoting(blocks[0]);
  uint64_t ahead = 0;
  for (const BlockRef block : blocks) {
    if (ahead > 0 && ahead + block_bytes > kReadAheadBytes) return true;
    const bool first = ahead == 0;
    ahead += block_bytes;
    if (!first && PartsInDram(block, cursor)) continue;
    const Movement::Fetch fetch = movement_->Promote(block, cursor.deadline);
    if (first) {
      if (fetch == Movement::Fetch::kNo || fetch == Movement::Fetch::kThere) return false;
      cursor.waits_for = fetch == Movement::Fetch::kUnderWay ? block : 0;
      metrics_.movement.joined_waits += joins;
    }
    if (fetch == Movement::Fetch::kNo || fetch == Movement::Fetch::kBusy) return true;
  }
  return true;
}

// False: its time is up, or too many wait already.
bool Control::AwaitPromotion(LoadCall& call, const Chain& chain) {
  if (waits_ended_ || clock_.Now() >= call.wait_until) return false;
  uint32_t all = 0;
  uint32_t of_block = 0;
  uint32_t of_domain = 0;
  for (const Waiter& waiter : waiters_) {
    if (waiter.load == nullptr) continue;
    ++all;
    of_block += waiter.load->cursor.waits_for == call.cursor.waits_for;
    of_domain += namespaces_[waiter.load->header.ns].domain == chain.session->domain;
  }
  if (all >= options_.max_load_waiters || of_domain >= options_.domain_load_waiters ||
      (call.cursor.waits_for != 0 && of_block >= options_.block_waiters)) {
    ++metrics_.movement.load_waits_refused;
    return false;
  }
  ++metrics_.movement.load_waits;
  waiters_.push_back({.load = &call, .resumable = call.resumable, .until = call.wait_until});
  return true;
}

void Control::Landed(BlockRef block, bool arrived) {
  for (size_t i = 0; i < waiters_.size();) {
    LoadCall* load = waiters_[i].load;
    if (load == nullptr || (load->cursor.waits_for != block && load->cursor.waits_for != 0)) {
      ++i;
      continue;
    }
    if (!arrived && load->cursor.waits_for == block) load->cursor.gave_up = true;
    ready_.push_back(waiters_[i].resumable);
    waiters_.erase(waiters_.begin() + static_cast<ptrdiff_t>(i));
  }
}

// --- damage --------------------------------------------------------------------------------------

void Control::Quarantine(Quarantined entry) {
  ++counters_.damage_confirmed;
  const TierIndex tier = entry.on_nvme ? TierIndex::kNvme : TierIndex::kDram;
  ++metrics_.damage[static_cast<size_t>(tier)][static_cast<size_t>(entry.found_by)];
  entry.time = clock_.Now();
  entry.domain = namespaces_[entry.ns].domain;
  const Quarantined& added = quarantine_.Add(entry);
  if (options_.damage_found) options_.damage_found(added);
}

void Control::RecordDamaged(const Block& block, const ColdPart& cold, Finder finder) {
  Quarantine({.ns = block.ns,
              .key = block.key,
              .depth = block.depth + 1,
              .id = cold.id,
              .on_nvme = true,
              .region = cold.place.segment,
              .offset = uint64_t{cold.place.page} * kNvmePageBytes,
              .length = cold.length,
              .sum = cold.sum,
              .found_by = finder == Finder::kRead      ? FoundBy::kRead
                          : finder == Finder::kReclaim ? FoundBy::kReclaim
                                                       : FoundBy::kScrubber});
}

void Control::RecordChecked(ColdRef cold, NvmeOutcome outcome) {
  scrubber_.RecordChecked(cold, outcome);
}

// Blocks of one slice. A block of many parts is searched for each of them.
uint32_t Control::SliceBlocks(size_t parts) const {
  const auto blocks = static_cast<uint32_t>(options_.slice_extents / parts);
  return std::clamp(blocks, 1u, options_.slice_blocks);
}

// Takes holds and writes extents for the blocks from cursor.next on, as far as they are there.
Step Control::FillExtents(const Chain& chain, ExtentCursor& cursor, std::string& extents) {
  const uint32_t blocks_before = cursor.next;
  const uint64_t bytes_before = cursor.hold == 0 ? 0 : holds_.bytes(cursor.hold);
  const Step step = FillSlice(chain, cursor, extents);
  if (cursor.next > blocks_before) {
    counters_.load_blocks += cursor.next - blocks_before;
    counters_.load_bytes += holds_.bytes(cursor.hold) - bytes_before;
    // Each worker of an engine loads its own parts of a block: together they save its tokens once.
    const NamespaceInfo& info = *chain.info;
    const uint64_t tokens = uint64_t{info.descriptor.groups[0].block_tokens} *
                            (cursor.next - blocks_before) * cursor.parts.size();
    chain.session->use->tenant->saved_tokens += tokens / info.parts.size();
  }
  return step;
}

Step Control::FillSlice(const Chain& chain, ExtentCursor& cursor, std::string& extents) {
  if (cursor.limit == 0) return Step::kDone;
  if (cursor.hold == 0) {
    if (chain.session->use->holds < options_.domain_holds) {
      cursor.hold = holds_.Open(chain.session->index);
    }
    if (cursor.hold == 0) {
      ++counters_.hold_budget_refusals;
      cursor.outcome = LoadOutcome::kHoldBudget;
      cursor.limit = 0;
      return Step::kDone;
    }
    ++chain.session->use->holds;
    extents.reserve(sizeof(PackedExtent) * cursor.limit * cursor.parts.size());
  } else if (!holds_.Has(cursor.hold, chain.session->index)) {
    // Given back by a caller who guessed its number: what was answered so far is held no more.
    extents.clear();
    cursor.outcome = LoadOutcome::kMiss;
    cursor.next = cursor.limit = 0;
    return Step::kDone;
  }
  const uint64_t budget = options_.session_hold_bytes > 0 ? options_.session_hold_bytes
                                                          : store_.arena().capacity_bytes() / 4;
  const uint32_t end = std::min(cursor.limit, cursor.next + SliceBlocks(cursor.parts.size()));
  BlockRef found[kMaxPageBlocks];
  const ChainHash above = cursor.next > 0 ? chain.keys[cursor.next - 1] : chain.parent;
  const bool check_above = cursor.next > 0 || chain.has_parent;
  const NamespaceId ns = static_cast<NamespaceId>(chain.info - namespaces_.data());
  const uint32_t n =
      residency_.Scan(ns, chain.keys.Suffix(cursor.next).Prefix(end - cursor.next),
                      check_above ? &above : nullptr, absl::MakeSpan(found, end - cursor.next));

  for (uint32_t i = 0; i < n; ++i) {
    if (movement_ != nullptr && !PartsInDram(found[i], cursor)) {
      if (cursor.may_wait && !cursor.gave_up &&
          Fetch(cursor, absl::MakeConstSpan(found + i, n - i), chain.info->block_bytes)) {
        return Step::kWait;
      }
      break;
    }
    const size_t before = extents.size();
    for (const PartId id : cursor.parts) {
      PackedExtent extent;
      const PartRef ref = residency_.FindPart(found[i], id);
      const Part& part = residency_.part(ref);
      const bool there = ref != 0 && part.state == static_cast<uint32_t>(PartState::kCommitted);
      const bool affordable =
          !there || holds_.held_bytes(chain.session->index) + part.length <= budget;
      bool counted = affordable && chain.session->use->extents < options_.domain_extents &&
                     (!there || residency_.Hold(ref));
      if (counted && !holds_.Append(cursor.hold, there ? ref : 0, there ? part.length : 0)) {
        if (there) residency_.Unhold(ref);
        counted = false;
      }
      if (!counted) {
        // Parts of this block that are held already stay so until the hold ends; they are not told.
        extents.resize(before);
        ++counters_.hold_budget_refusals;
        cursor.outcome = LoadOutcome::kHoldBudget;
        cursor.limit = cursor.next;
        DropEmptyHold(chain, cursor);
        return Step::kDone;
      }
      KVD_KILL_POINT("load.held");
      ++chain.session->use->extents;
      ++chain.session->use->tenant->held_extents;
      if (there) {
        extent.region = store_.arena().Number(part.region);
        extent.generation = part.generation;
        extent.offset = store_.arena().Offset(part.region, part.slot);
        extent.stored_length = extent.length = part.length;
        extent.sum_algorithm = kSumCrc32c;
        extent.tier = 2;  // TIER_DRAM.
        extent.sum = part.sum;
      }
      extents.append(reinterpret_cast<const char*>(&extent), sizeof extent);
    }
    ++cursor.next;
  }
  if (cursor.next < end) {
    cursor.outcome = LoadOutcome::kMiss;
    cursor.limit = cursor.next;
    DropEmptyHold(chain, cursor);
  }
  return cursor.next < cursor.limit ? Step::kMore : Step::kDone;
}

// A hold of nothing is not told: who asks for what is not there would use up all holds.
void Control::DropEmptyHold(const Chain& chain, ExtentCursor& cursor) {
  if (cursor.next > 0) return;
  CloseHold(*chain.session, std::exchange(cursor.hold, 0));
  DrainHolds();
}

// --- leases, holds, pins -------------------------------------------------------------------------

LeaseId Control::AddLease(Session& session, BlockRef block, uint32_t lease_ms,
                          LeaseOutcome& outcome) {
  LeaseId id = 0;
  if (leases_.CountOf(session.index) < options_.session_leases &&
      session.use->leases < options_.domain_leases) {
    id = leases_.Add(block, session.index, clock_.Now() + lease_ms * kMillisecond);
  }
  if (id == 0) {
    ++counters_.leases_refused;
    outcome = LeaseOutcome::kRefused;
    return 0;
  }
  residency_.Lease(block);
  ++session.use->leases;
  ++session.use->tenant->leases;
  ++counters_.leases_granted;
  KVD_KILL_POINT("lookup.leased");
  outcome = LeaseOutcome::kGranted;
  return id;
}

bool Control::EndLease(LeaseId id, EventReason why) {
  const std::optional<LeaseTable::Lease> lease = leases_.Remove(id);
  if (!lease.has_value()) return false;
  DomainUse& use = uses_[namespaces_[residency_.block(lease->block).ns].domain];
  const bool pinned_chain = lease->owner == LeaseTable::kPinOwner;
  --(pinned_chain ? use.pins : use.leases);
  --(pinned_chain ? use.tenant->pins : use.tenant->leases);
  if (pinned_chain) {
    const auto pin = pins_.find(id);
    const auto pinned = pinned_bytes_.find({pin->second.domain, pin->second.owner});
    pinned->second -= pin->second.bytes;
    if (pinned->second == 0) pinned_bytes_.erase(pinned);  // Owners come and go without a bound.
    pins_.erase(pin);
    RecordChain(EventKind::kPinEnded, id, lease->block, why);
  } else if (why == EventReason::kExpired) {
    RecordChain(EventKind::kLeaseExpired, id, lease->block);
  }
  residency_.Unlease(lease->block);
  return true;
}

void Control::ExpireLeases(int most) {
  const Nanos now = clock_.Now();
  for (; most > 0; --most) {
    const LeaseId id = leases_.Expired(now);
    if (id == 0) return;
    EndLease(id, EventReason::kExpired);
    ++counters_.leases_expired;
  }
}

void Control::CloseHold(Session& session, HoldId hold) {
  --session.use->holds;
  session.use->extents -= holds_.extents(hold);
  session.use->tenant->held_extents -= holds_.extents(hold);
  holds_.Close(hold);
}

void Control::DrainHolds() {
  holds_.Drain(kExtentsPerTurn, [this](PartRef part) { residency_.Unhold(part); });
}

uint32_t Control::ApplyReleases(Session& session, const ReleaseList& releases) {
  uint32_t released = 0;
  for (const DamageReport& report : releases.damaged) ReportDamage(session, report);
  for (const HoldId hold : releases.holds) {
    if (!holds_.Has(hold, session.index)) continue;
    CloseHold(session, hold);
    ++released;
  }
  DrainHolds();
  for (const LeaseId id : releases.leases) {
    // A lease may be used, and given back, by any session of its domain; a pin by Unpin() alone.
    const LeaseTable::Lease* lease = leases_.Find(id);
    if (lease == nullptr || lease->owner == LeaseTable::kPinOwner) continue;
    const NamespaceId ns = residency_.block(lease->block).ns;
    if (namespaces_[ns].domain == session.domain) released += EndLease(id);
  }
  if (released > 0) KVD_KILL_POINT("release.applied");
  return released;
}

// The daemon sums the bytes again before it believes the report: a client may err, or lie.
void Control::ReportDamage(Session& session, const DamageReport& report) {
  if (!holds_.Has(report.hold, session.index)) return;
  counters_.damage_reported += report.extents.size();
  std::vector<uint32_t> positions(report.extents.begin(), report.extents.end());
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  holds_.ForEachAt(report.hold, positions, [this](PartRef ref) {
    const Part& part = residency_.part(ref);
    if (part.state != static_cast<uint32_t>(PartState::kCommitted)) return;
    if (!residency_.Hold(ref)) return;  // Of ours, until the sum is there.
    const VerifyJob job{{store_.Address(part), part.length}, part.sum, ref};
    if (!mover_.Verify(job)) residency_.Unhold(ref);
  });
}

absl::StatusOr<uint32_t> Control::Release(std::string_view token, const ReleaseList& releases) {
  absl::StatusOr<Session*> session = FindSession(token);
  if (!session.ok()) return session.status();
  if (releases.size() > kMaxReleasesPerCall) {
    ++counters_.calls_refused;
    return InvalidField("releases", absl::StrCat("at most ", kMaxReleasesPerCall, " a call"));
  }
  return ApplyReleases(**session, releases);
}

absl::Status Control::Pin(PinCall& call) {
  call.header.keys = call.key;
  absl::StatusOr<Chain> chain = ResolveChain(call.header, 1);
  if (!chain.ok()) return chain.status();
  const absl::StatusOr<LeaseId> pin = AddPin({.ns = call.header.ns,
                                              .key = chain->keys[0],
                                              .owner = call.owner,
                                              .budget_bytes = call.budget_bytes,
                                              .ttl_ms = call.ttl_ms},
                                             call.blocks, call.bytes);
  if (!pin.ok()) return pin.status();
  call.pin_id = *pin;
  return absl::OkStatus();
}

// Requires: the namespace is there.
absl::StatusOr<LeaseId> Control::AddPin(const PinOrder& order, uint32_t& blocks, uint64_t& bytes) {
  if (absl::Status status = CheckDraining(); !status.ok()) return status;
  if (order.owner.empty() || order.owner.size() > kMaxNameBytes) {
    return InvalidField("owner", "must be 1 to 256 bytes");
  }
  if (order.ttl_ms == 0 || order.ttl_ms > kMaxPinMs)
    return InvalidField("ttl_ms", "must be 1 ms to 7 days");
  const BlockRef block = residency_.Find(order.ns, order.key);
  if (block == 0 || residency_.block(block).state != BlockState::kVisible) {
    return absl::NotFoundError("key: no such block");
  }
  const NamespaceInfo& info = namespaces_[order.ns];
  blocks = residency_.block(block).depth + 1;
  bytes = blocks * info.block_bytes;
  const std::pair<DomainId, std::string> owner{info.domain, std::string(order.owner)};
  const auto pinned = pinned_bytes_.find(owner);
  const uint64_t already = pinned == pinned_bytes_.end() ? 0 : pinned->second;
  if (bytes > order.budget_bytes || already > order.budget_bytes - bytes) {
    ++counters_.pins_refused;
    return absl::ResourceExhaustedError(
        absl::StrCat("budget_bytes: the chain has ", bytes, " bytes, ", already,
                     " are pinned already, the budget is ", order.budget_bytes));
  }
  DomainUse& use = uses_[info.domain];
  const LeaseId id =
      pins_.size() < options_.max_pins && use.pins < options_.domain_pins
          ? leases_.Add(block, LeaseTable::kPinOwner,
                        clock_.Now() + static_cast<Nanos>(order.ttl_ms) * kMillisecond)
          : 0;
  if (id == 0) {
    ++counters_.pins_refused;
    return absl::ResourceExhaustedError("pins: this daemon has as many as it may");
  }
  residency_.Lease(block);
  pinned_bytes_[owner] += bytes;
  pins_[id] = {owner.first, owner.second, bytes};
  ++use.pins;
  ++use.tenant->pins;
  ++counters_.pins_granted;
  RecordChain(EventKind::kPinGranted, id, block);
  return id;
}

absl::Status Control::Unpin(std::string_view token, LeaseId pin_id) {
  absl::StatusOr<Session*> session = FindSession(token);
  if (!session.ok()) return session.status();
  const auto pin = pins_.find(pin_id);
  if (pin == pins_.end() || pin->second.domain != (*session)->domain) {
    return absl::NotFoundError("pin_id: no such pin");
  }
  EndLease(pin_id);
  return absl::OkStatus();
}

// --- the loop ------------------------------------------------------------------------------------

void Control::Poll() {
  control_.AssertHeld();
  const Nanos now = clock_.Now();
  event_ring_.SetTime(now);
  inbox_.Drain(events_);
  for (InboxEvent& event : events_) {
    std::visit([this](auto& e) { OnEvent(e); }, event);
  }
  events_.clear();
  polled_at_ = now;
  // Before room is made ahead: what is given back may leave.
  if (options_.record != nullptr) options_.record->Poll();
  if (movement_ != nullptr) movement_->Turn(now, /*asked=*/ready_.empty());
  scrubber_.Turn(now);
  ExpireLeases(kLeasesExpiredPerPoll);
  DrainHolds();
  if (now >= next_expiry_) {
    std::vector<uint64_t> expired;
    next_expiry_ = INT64_MAX;
    for (const auto& [id, reservation] : reservations_) {
      if (reservation->closing) continue;
      if (reservation->expires <= now) {
        expired.push_back(id);
      } else {
        next_expiry_ = std::min(next_expiry_, reservation->expires);
      }
    }
    for (const uint64_t id : expired) {
      ++counters_.reservations_expired;
      const NamespaceId ns = reservations_.find(id)->second->ns;
      Record(EventKind::kReservationExpired, namespaces_[ns].domain, id, ns);
      CloseReservation(id);
    }
  }
  for (size_t i = 0; i < waiters_.size();) {
    if (waiters_[i].until > now) {
      ++i;
      continue;
    }
    ready_.push_back(waiters_[i].resumable);
    waiters_.erase(waiters_.begin() + static_cast<ptrdiff_t>(i));
  }
  // Every waiter has been asked; what none of them took has no producer.
  if (!orphans_.empty() && ready_.empty()) {
    for (const auto& [block, key] : orphans_) {
      if (residency_.block(block).key == key) residency_.Abandon(block);
    }
    orphans_.clear();
  }
  EndDrainIfOver(now);
  event_ring_.Publish();
  metrics_.waiting_calls = waiters_.size();
}

Resumable* Control::NextReady() {
  if (ready_.empty()) return nullptr;
  Resumable* next = ready_.front();
  ready_.pop_front();
  return next;
}

Nanos Control::NextDeadline() const {
  if (options_.record != nullptr && options_.record->busy()) return 0;
  Nanos next = std::min({next_expiry_, drain_look_, scrubber_.NextDeadline()});
  if (movement_ != nullptr) next = std::min(next, movement_->NextDeadline());
  for (const Waiter& waiter : waiters_) next = std::min(next, waiter.until);
  return orphans_.empty() && holds_.drained() ? next : 0;
}

void Control::EndWaits() {
  waits_ended_ = true;
  for (Waiter& waiter : waiters_) {
    waiter.until = 0;
    if (waiter.call != nullptr) waiter.call->wait_until = 0;
  }
}

void Control::OnEvent(SessionOpened& event) {
  auto session = std::make_unique<Session>();
  session->serial = event.serial;
  session->token = event.token;
  session->domain = event.domain;
  session->uid = event.uid;
  session->opened = clock_.Now();
  session->use = &UseOf(event.domain);
  ++session->use->sessions;
  session->pid = event.pid;
  ++(session->pid == 0 ? session->use->tenant->stream_sessions
                       : session->use->tenant->shm_sessions);
  if (free_session_indexes_.empty()) {
    session->index = session_indexes_++;
  } else {
    session->index = free_session_indexes_.back();
    free_session_indexes_.pop_back();
  }
  if (by_index_.size() <= session->index) by_index_.resize(session->index + 1);
  by_index_[session->index] = session.get();
  // The same process says that nobody reads any more under a session of before.
  if (event.finished != SessionToken{}) {
    for (const auto& [serial, old] : by_serial_) {
      if (old->token == event.finished && old->pid == event.pid && old->ended) {
        old->exited = true;
        DropHoldsOf(*old);
        ForgetSessionIfOver(serial);
        break;
      }
    }
  }
  if (options_.record != nullptr) {
    options_.record->ReaderFinished(event.finished, event.pid);
    if (event.started != 0) {
      session->recorded = options_.record->SessionOpened(
          {.token = event.token, .pid = event.pid, .started = event.started});
    }
  }
  by_token_[std::string(event.token.begin(), event.token.end())] = session.get();
  by_serial_[event.serial] = std::move(session);
  ++counters_.sessions_opened;
  KVD_KILL_POINT("session.opened");
  Record(EventKind::kSessionOpened, event.domain, event.serial);
}

void Control::OnEvent(StagingOpened& event) {
  const auto it = by_serial_.find(event.serial);
  if (it == by_serial_.end() || it->second->ended) return;
  it->second->staging = std::move(event.staging);
  KVD_KILL_POINT("session.staging_opened");
}

void Control::OnEvent(SessionEnded& event) {
  const auto it = by_serial_.find(event.serial);
  if (it == by_serial_.end()) return;
  Session& session = *it->second;
  session.ended = true;
  session.staging.reset();
  by_token_.erase(std::string(session.token.begin(), session.token.end()));
  ++counters_.sessions_ended;
  --session.use->sessions;
  --(session.pid == 0 ? session.use->tenant->stream_sessions : session.use->tenant->shm_sessions);
  Record(EventKind::kSessionEnded, session.domain, session.serial);
  while (const LeaseId lease = leases_.AnyOf(session.index)) {
    EndLease(lease);
    ++counters_.leases_ended_with_session;
  }
  std::vector<uint64_t> open;
  for (const auto& [id, reservation] : reservations_) {
    if (reservation->session == session.serial && !reservation->closing) open.push_back(id);
  }
  for (const uint64_t id : open) {
    ++counters_.reservations_aborted;
    CloseReservation(id);
  }
  KVD_KILL_POINT("session.ended");
  if (session.exited) DropHoldsOf(session);  // Taken by calls that were still under way.
  ForgetSessionIfOver(event.serial);
}

void Control::OnEvent(ProcessExited& event) {
  const auto it = by_serial_.find(event.serial);
  if (it == by_serial_.end()) return;
  it->second->exited = true;
  KVD_KILL_POINT("session.process_exited");
  DropHoldsOf(*it->second);
  ForgetSessionIfOver(event.serial);
}

void Control::DropHoldsOf(Session& session) {
  while (const HoldId hold = holds_.AnyOf(session.index)) CloseHold(session, hold);
  DrainHolds();
}

// A session is over when its socket is closed and nothing is held under it: its process has ended,
// or it held nothing.
void Control::ForgetSessionIfOver(uint32_t serial) {
  const auto it = by_serial_.find(serial);
  const Session& session = *it->second;
  if (!session.ended || holds_.AnyOf(session.index) != 0) return;
  if (options_.record != nullptr) options_.record->SessionOver(session.recorded);
  free_session_indexes_.push_back(session.index);
  by_index_[session.index] = nullptr;
  by_serial_.erase(it);
  if (options_.session_over) options_.session_over(serial);
}

void Control::OnEvent(FillsDone& event) {
  const auto it = reservations_.find(event.reservation_id);
  if (it == reservations_.end()) return;
  if (it->second->closing) {
    FinishClosing(it->first, *it->second);
    return;
  }
  for (size_t i = 0; i < waiters_.size(); ++i) {
    if (waiters_[i].call != nullptr || waiters_[i].reservation_id != event.reservation_id) continue;
    ready_.push_back(waiters_[i].resumable);
    waiters_.erase(waiters_.begin() + static_cast<ptrdiff_t>(i));
    return;
  }
}

void Control::OnEvent(Verified& event) {
  const Part& part = residency_.part(event.part);
  const bool scrubbed = scrubber_.PartChecked(event.part, event.intact);
  if (!event.intact && part.state == static_cast<uint32_t>(PartState::kCommitted)) {
    const Block& block = residency_.block(part.block);
    Quarantine({.ns = block.ns,
                .key = block.key,
                .depth = block.depth + 1,
                .id = part.id,
                .region = store_.arena().Number(part.region),
                .offset = store_.arena().Offset(part.region, part.slot),
                .length = part.length,
                .sum = part.sum,
                .found_by = scrubbed ? FoundBy::kScrubber : FoundBy::kClient});
    residency_.MarkDamaged(event.part);  // Our hold, and others', quarantine the room.
  }
  residency_.Unhold(event.part);
}

void Control::OnEvent(RegionMade& event) {
  if (event.memory.ok()) {
    Arena& arena = store_.arena();
    if (movement_ != nullptr) {  // Nobody is in the region, so nothing reads into it.
      movement_->tier().ReplaceMemory(arena.memory(event.region),
                                      {event.memory->data(), event.memory->size_bytes()});
    }
    arena.FinishRenewal(event.region, *std::move(event.memory));
  } else {
    store_.arena().CancelRenewal(event.region);
  }
}

std::vector<std::pair<std::string, uint64_t>> Control::Counters() const {
  const ControlCounters& c = counters_;
  const Residency::Counts& r = residency_.counts();
  const ArenaRecord* record = options_.record;
  const auto of_record = [record](auto count) { return record == nullptr ? 0 : count(*record); };
  const MovementCounters& m = metrics_.movement;
  return {
      {"nvme_out", movement_ != nullptr && !movement_->tier().readable() ? 1u : 0u},
      {"nvme_moves", m.moves},
      {"nvme_written_blocks", m.written_blocks},
      {"nvme_written_bytes", m.written_bytes},
      {"nvme_demoted_blocks", m.demoted_blocks},
      {"nvme_declined_blocks", m.declined_blocks},
      {"nvme_lost_blocks", m.lost_blocks},
      {"nvme_promoted_blocks", m.promoted_blocks},
      {"nvme_damaged_records", m.damaged_records},
      {"restored_blocks", of_record([](const auto& r) { return uint64_t{r.restored().blocks}; })},
      {"former_readers", of_record([](const auto& r) { return r.readers(); })},
      {"withheld_parts", of_record([](const auto& r) { return r.withheld(); })},
      {"lookups", c.lookups},
      {"lookup_blocks", c.lookup_blocks},
      {"lookup_hit_blocks", c.lookup_hit_blocks},
      {"loads", c.loads},
      {"load_blocks", c.load_blocks},
      {"hold_budget_refusals", c.hold_budget_refusals},
      {"reserves", c.reserves},
      {"reserve_granted_blocks", c.reserve_granted_blocks},
      {"reserve_present_blocks", c.reserve_present_blocks},
      {"reserve_in_production_blocks", c.reserve_in_production_blocks},
      {"reserve_no_room_blocks", c.reserve_no_room_blocks},
      {"reserve_waits", c.reserve_waits},
      {"reservations_expired", c.reservations_expired},
      {"reservations_aborted", c.reservations_aborted},
      {"commits", c.commits},
      {"commit_waits", c.commit_waits},
      {"committed_blocks", c.committed_blocks},
      {"parked_blocks", c.parked_blocks},
      {"put_sums_differ", c.put_sums_differ},
      {"parked_blocks_dropped", r.parked_dropped},
      {"evicted_blocks", r.evicted},
      {"regions_emptied", store_.regions_emptied()},
      {"leases_granted", c.leases_granted},
      {"leases_refused", c.leases_refused},
      {"leases_expired", c.leases_expired},
      {"pins_granted", c.pins_granted},
      {"pins_refused", c.pins_refused},
      {"damage_reported", c.damage_reported},
      {"damage_confirmed", c.damage_confirmed},
      {"sessions_opened", c.sessions_opened},
      {"sessions_ended", c.sessions_ended},
      {"calls_refused", c.calls_refused},
      {"announce_refused", announcements_.refused()},
      {"drain_refusals", c.drain_refusals}};
}

}  // namespace kvd
