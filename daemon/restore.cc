#include "daemon/restore.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "proto/types/kill_point.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

// The key of a block in a namespace.
struct BlockKey {
  NamespaceId ns = 0;
  ChainHash key;

  friend bool operator==(const BlockKey& a, const BlockKey& b) = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& block) {
    return H::combine_contiguous(H::combine(std::move(h), block.ns), block.key.bytes.data(),
                                 block.key.bytes.size());
  }
};

// A part that lies in a tier, as its row or its record says.
struct Found {
  const SlotRow* row = nullptr;             // Of these two
  const RecoveredRecord* record = nullptr;  // there is one.
  NamespaceId ns = 0;
  uint32_t next = 0;  // Of the same block, counted from 1.
  bool restored = false;

  const ChainHash& key() const { return row != nullptr ? row->key : record->info.key; }
  const ChainHash& parent() const { return row != nullptr ? row->parent : record->info.parent; }
  bool has_parent() const { return row != nullptr ? row->has_parent : record->info.has_parent; }
  uint32_t depth() const { return row != nullptr ? row->depth : record->info.depth; }
  PartId id() const { return row != nullptr ? row->id : record->info.id; }
  uint32_t length() const { return row != nullptr ? row->length : record->info.length; }
  uint32_t sum() const { return row != nullptr ? row->sum : record->info.sum; }
  uint32_t generation() const { return row != nullptr ? row->generation : record->info.generation; }
  // Of two, the greater was stored later: what is in DRAM later than what is not.
  std::pair<bool, uint64_t> age() const {
    return row != nullptr ? std::pair(true, uint64_t{row->generation})
                          : std::pair(false, record->sequence);
  }
};

class Restorer {
 public:
  Restorer(SlotTable& table, Control& control, Store& store, ArenaRecord& record, Domains& domains,
           const NvmeRemains* nvme)
      : table_(table),
        control_(control),
        store_(store),
        record_(record),
        domains_(domains),
        nvme_(nvme),
        scopes_(SlotTable::kMaxScopes),
        nvme_scopes_(nvme == nullptr ? 0 : nvme->scopes.size()) {}

  RestoreReport Run(std::map<uint32_t, ReaderRow> readers) {
    for (uint32_t region = 0; region < store_.arena().regions(); ++region) TakeRegion(region);
    ForgetIdleScopes();
    if (nvme_ != nullptr) TakeRecords();
    GatherBlocks();
    // In the order in which they were stored: what came last leaves last.
    std::sort(order_.begin(), order_.end(),
              [](const Pending* a, const Pending* b) { return a->age < b->age; });
    for (Pending* block : order_) Insert(*block);
    // Far enough that no room which the process before handed out last has a number of ours.
    store_.arena().SetNextGeneration(generation_ + (1u << 20));
    for (const Found& found : found_) {
      if (!found.restored) Drop(found);
    }
    record_.Withhold(std::move(readers), std::move(parts_), std::move(rooms_));
    KVD_KILL_POINT("restore.finished");
    record_.restored().blocks = report_.blocks;
    record_.restored().bytes = report_.bytes;
    record_.restored().parts_dropped = report_.parts_dropped;
    record_.restored().rows_damaged = report_.rows_damaged;
    return report_;
  }

 private:
  struct Scope {
    bool asked = false;
    bool used = false;
    NamespaceId ns = 0;  // 0: it does not come back.
    DomainId domain = 0;
    NamespaceDescriptor descriptor;
  };
  struct Pending {
    uint32_t first = 0;  // In found_, counted from 1.
    std::pair<bool, uint64_t> age;
    bool tried = false;
  };

  void Register(Scope& scope, const std::string& domain_name, const std::string& canonical) {
    absl::StatusOr<NamespaceDescriptor> descriptor = NamespaceDescriptor::FromCanonical(canonical);
    const std::optional<DomainId> domain = domains_.Named(domain_name);
    if (!descriptor.ok() || !domain.has_value()) return;
    scope.domain = *domain;
    scope.descriptor = *std::move(descriptor);
    const auto restored = control_.RestoreNamespace(*domain, scope.descriptor);
    if (!restored.ok()) return;
    scope.ns = restored->id;
    if (!restored->created) return;
    ++report_.namespaces;
    groups_.resize(std::max<size_t>(groups_.size(), restored->id + 1));
    groups_[restored->id] = scope.descriptor.groups;
  }

  Scope& ScopeOf(uint32_t row) {
    Scope& scope = scopes_[row];
    if (std::exchange(scope.asked, true)) return scope;
    const std::optional<ScopeRow> stored = table_.scope(row);
    if (stored.has_value()) Register(scope, stored->domain, stored->canonical);
    return scope;
  }

  Scope& NvmeScopeOf(ScopeNumber number) {
    Scope& scope = nvme_scopes_[number - 1];
    if (std::exchange(scope.asked, true)) return scope;
    const StoredScope& stored = nvme_->scopes[number - 1];
    Register(scope, stored.domain, stored.canonical);
    return scope;
  }

  // Whether a part of these words may be one of its namespace.
  static bool Fits(const Scope& scope, const Found& part) {
    const std::vector<GroupDescriptor>& groups = scope.descriptor.groups;
    const PartId id = part.id();
    return scope.ns != 0 && id.group < groups.size() && id.shard < groups[id.group].shards &&
           part.length() == groups[id.group].part_bytes && part.has_parent() == (part.depth() > 0);
  }

  void TakeRecords() {
    for (const RecoveredRecord& record : nvme_->records) {
      if (record.info.scope == 0 || record.info.scope > nvme_scopes_.size()) {
        ++report_.records_dropped;
        continue;
      }
      Scope& scope = NvmeScopeOf(record.info.scope);
      const Found found{.record = &record, .ns = scope.ns};
      if (Fits(scope, found)) {
        found_.push_back(found);
      } else {
        ++report_.records_dropped;
      }
    }
  }

  // Takes the slots of a region that have rows. One without any that can be believed stays as it
  // is: it gets new memory before anybody is given room there.
  void TakeRegion(uint32_t region) {
    std::vector<const SlotRow*> rows;
    std::vector<uint32_t> unknown;
    table_.ForEach(region, [&](uint32_t slot, const SlotRow* row) {
      if (row != nullptr && row->state == SlotState::kStored && row->scope < scopes_.size()) {
        rows.push_back(row);
      } else {
        ++(row == nullptr ? report_.rows_damaged : report_.parts_quarantined);
        unknown.push_back(slot);
      }
    });
    // Whose the region is, says the first that comes back.
    NamespaceId ns = 0;
    DomainId domain = 0;
    uint32_t slot_bytes = 0;
    std::vector<uint32_t> slots;
    const size_t found_before = found_.size();
    for (const SlotRow* row : rows) {
      Scope& scope = ScopeOf(row->scope);
      const uint32_t bytes = Arena::SlotBytes(row->length);
      const Found found{.row = row, .ns = scope.ns};
      const bool fits = Fits(scope, found) &&
                        (slot_bytes == 0 || (slot_bytes == bytes && domain == scope.domain)) &&
                        (uint64_t{row->slot} + 1) * bytes <= store_.arena().region_bytes();
      if (!fits) {
        ++report_.parts_dropped;
        unknown.push_back(row->slot);
        continue;
      }
      slot_bytes = bytes;
      ns = scope.ns;
      domain = scope.domain;
      scope.used = true;
      slots.push_back(row->slot);
      found_.push_back(found);
    }
    const bool whole = found_.size() > found_before;
    const auto beyond = [&](uint32_t slot) {
      return !whole || (uint64_t{slot} + 1) * slot_bytes > store_.arena().region_bytes();
    };
    for (const uint32_t slot : unknown) {
      if (beyond(slot)) {
        table_.Clear(region, slot);
        continue;
      }
      slots.push_back(slot);
      rooms_.push_back({region, slot});
    }
    if (!whole) return;
    std::sort(slots.begin(), slots.end());
    store_.arena().Occupy(region, domain, slot_bytes, slots);
    store_.SetLayout(store_.residency().shape(ns).pool,
                     {.domain = domain, .slot_bytes = slot_bytes});
  }

  void ForgetIdleScopes() {
    for (uint32_t row = 0; row < scopes_.size(); ++row) {
      if (!scopes_[row].used && !scopes_[row].asked && table_.scope(row).has_value()) {
        table_.RemoveScope(row);
      }
    }
  }

  void GatherBlocks() {
    blocks_.reserve(found_.size());
    for (uint32_t i = 0; i < found_.size(); ++i) {
      Found& found = found_[i];
      Pending& block = blocks_[BlockKey{found.ns, found.key()}];
      block.age = std::max(block.age, found.age());
      if (found.row != nullptr) generation_ = std::max(generation_, found.generation());
      found.next = std::exchange(block.first, i + 1);
    }
    order_.reserve(blocks_.size());
    for (auto& [key, block] : blocks_) order_.push_back(&block);
  }

  // Inserts a block after its ancestors, root first.
  void Insert(Pending& deepest) {
    chain_.clear();
    for (Pending* at = &deepest; at != nullptr && !at->tried;) {
      at->tried = true;
      chain_.push_back(at);
      const Found& says = Witness(*at);
      if (!says.has_parent()) break;
      const auto above = blocks_.find(BlockKey{says.ns, says.parent()});
      at = above == blocks_.end() ? nullptr : &above->second;
    }
    for (; !chain_.empty(); chain_.pop_back()) InsertOne(*chain_.back());
  }

  // The part whose word on the block counts: of one in DRAM if there is any.
  const Found& Witness(const Pending& block) const {
    uint32_t at = block.first;
    while (found_[at - 1].row == nullptr && found_[at - 1].next != 0) at = found_[at - 1].next;
    return found_[at - 1].row != nullptr ? found_[at - 1] : found_[block.first - 1];
  }

  void InsertOne(const Pending& block) {
    Residency& residency = store_.residency();
    const Found& says = Witness(block);
    BlockRef parent = 0;
    if (says.has_parent()) {
      parent = residency.Find(says.ns, says.parent());
      if (parent == 0 || residency.block(parent).state != BlockState::kVisible ||
          residency.block(parent).depth + 1 != says.depth()) {
        return;
      }
    }
    Choose(block, says);
    if (!Servable(says.ns) || residency.full()) return;
    const uint64_t tick = control_.NextTick();
    const BlockRef ref = residency.Add(says.ns, says.key(), parent, tick);
    for (const uint32_t i : chosen_) {
      Found& found = found_[i - 1];
      if (found.row != nullptr) {
        AddPart(ref, found, tick);
      } else {
        AddRecord(ref, found, tick);
      }
    }
    ++report_.blocks;
    KVD_KILL_POINT("restore.block_inserted");
  }

  // Those parts of the block that agree on where it hangs, none twice in one tier.
  void Choose(const Pending& block, const Found& says) {
    chosen_.clear();
    for (uint32_t i = block.first; i != 0; i = found_[i - 1].next) {
      const Found& found = found_[i - 1];
      const bool twice = std::any_of(chosen_.begin(), chosen_.end(), [&](uint32_t other) {
        return found_[other - 1].id() == found.id() &&
               (found_[other - 1].row == nullptr) == (found.row == nullptr);
      });
      if (!twice && found.has_parent() == says.has_parent() && found.parent() == says.parent() &&
          found.depth() == says.depth()) {
        chosen_.push_back(i);
      }
    }
  }

  // Whether what was chosen makes a block findable, and the index has room for it.
  bool Servable(NamespaceId ns) const {
    std::array<uint32_t, kMaxGroups> warm{};
    std::array<uint32_t, kMaxGroups> cold{};
    uint32_t parts = 0;
    for (const uint32_t i : chosen_) {
      const Found& found = found_[i - 1];
      parts += found.row != nullptr;
      ++(found.row != nullptr ? warm : cold)[found.id().group];
    }
    const Residency& residency = store_.residency();
    if (residency.parts_left() < parts || residency.colds_left() < chosen_.size() - parts) {
      return false;
    }
    const std::vector<GroupDescriptor>& groups = groups_[ns];
    for (size_t g = 0; g < groups.size(); ++g) {
      if (groups[g].kind == GroupKind::kFull && warm[g] != groups[g].shards &&
          cold[g] != groups[g].shards) {
        return false;
      }
    }
    return true;
  }

  void AddPart(BlockRef block, Found& found, uint64_t tick) {
    Residency& residency = store_.residency();
    const SlotRow& row = *found.row;
    const PartRef part =
        residency.AddPart(block, row.id, row.region, row.slot, row.length, row.generation);
    store_.arena().SetOccupant({row.region, row.slot, row.generation}, part);
    residency.CommitPart(part, row.sum, tick);
    found.restored = true;
    parts_.push_back(part);
    ++report_.parts;
    report_.bytes += row.length;
  }

  void AddRecord(BlockRef block, Found& found, uint64_t tick) {
    Residency& residency = store_.residency();
    const RecordInfo& info = found.record->info;
    const ColdRef cold = residency.AddCold(block, info.id, info.length, info.sum, info.generation);
    if (!nvme_->tier.Adopt(found.record->place, cold)) {
      residency.DropCold(cold);
      return;
    }
    residency.MoveCold(cold, found.record->place);
    residency.CommitCold(cold, tick);
    found.restored = true;
    ++report_.records;
    report_.record_bytes += info.length;
  }

  void Drop(const Found& found) {
    if (found.row == nullptr) {
      ++report_.records_dropped;
      return;
    }
    ++report_.parts_dropped;
    rooms_.push_back({found.row->region, found.row->slot});
  }

  SlotTable& table_;
  Control& control_;
  Store& store_;
  ArenaRecord& record_;
  Domains& domains_;
  const NvmeRemains* nvme_;                           // Null: there is none.
  std::vector<Scope> scopes_;                         // By row.
  std::vector<Scope> nvme_scopes_;                    // By number, less one.
  std::vector<std::vector<GroupDescriptor>> groups_;  // By namespace.
  std::vector<Found> found_;
  absl::flat_hash_map<BlockKey, Pending> blocks_;
  std::vector<Pending*> order_;
  std::vector<Pending*> chain_;   // Scratch.
  std::vector<uint32_t> chosen_;  // Scratch: of found_, counted from 1.
  uint32_t generation_ = 0;       // The highest of a room.
  std::vector<PartRef> parts_;
  std::vector<ArenaRecord::Room> rooms_;
  RestoreReport report_;
};

}  // namespace

RestoreReport RestoreArena(SlotTable& table, Control& control, Store& store, ArenaRecord& record,
                           Domains& domains, std::map<uint32_t, ReaderRow> readers,
                           const NvmeRemains* nvme) {
  return Restorer(table, control, store, record, domains, nvme).Run(std::move(readers));
}

}  // namespace kvd
