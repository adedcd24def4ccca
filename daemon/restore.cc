#include "daemon/restore.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "proto/types/check.h"

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

class Restorer {
 public:
  Restorer(SlotTable& table, Control& control, Store& store, ArenaRecord& record, Domains& domains)
      : table_(table),
        control_(control),
        store_(store),
        record_(record),
        domains_(domains),
        scopes_(SlotTable::kMaxScopes) {}

  RestoreReport Run(std::map<uint32_t, ReaderRow> readers) {
    for (uint32_t region = 0; region < store_.arena().regions(); ++region) TakeRegion(region);
    ForgetIdleScopes();
    GatherBlocks();
    // In the order in which rooms were handed out: what came last leaves last.
    std::sort(order_.begin(), order_.end(),
              [](const Pending* a, const Pending* b) { return a->generation < b->generation; });
    uint32_t generation = 0;
    for (Pending* block : order_) {
      Insert(*block);
      generation = std::max(generation, block->generation);
    }
    // Far enough that no room which the process before handed out last has a number of ours.
    store_.arena().SetNextGeneration(generation + (1u << 20));
    for (const Found& found : found_) {
      if (!found.restored) Drop(*found.row);
    }
    record_.Withhold(std::move(readers), std::move(parts_), std::move(rooms_));
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
  struct Found {
    const SlotRow* row = nullptr;
    uint32_t next = 0;  // Of the same block, in found_, counted from 1.
    bool restored = false;
  };
  struct Pending {
    uint32_t first = 0;  // In found_, counted from 1.
    uint32_t generation = 0;
    NamespaceId ns = 0;
    BlockRef ref = 0;
    bool tried = false;
  };

  Scope& ScopeOf(uint32_t row) {
    Scope& scope = scopes_[row];
    if (std::exchange(scope.asked, true)) return scope;
    const std::optional<ScopeRow> stored = table_.scope(row);
    if (!stored.has_value()) return scope;
    absl::StatusOr<NamespaceDescriptor> descriptor =
        NamespaceDescriptor::FromCanonical(stored->canonical);
    const std::optional<DomainId> domain = domains_.Named(stored->domain);
    if (!descriptor.ok() || !domain.has_value()) return scope;
    scope.domain = *domain;
    scope.descriptor = *std::move(descriptor);
    const auto restored = control_.RestoreNamespace(*domain, scope.descriptor);
    if (!restored.ok()) return scope;
    scope.ns = restored->id;
    ++report_.namespaces;
    return scope;
  }

  // Whether a part of these words may be one of its namespace.
  static bool Fits(const Scope& scope, const SlotRow& row) {
    const std::vector<GroupDescriptor>& groups = scope.descriptor.groups;
    return row.id.group < groups.size() && row.id.shard < groups[row.id.group].shards &&
           row.length == groups[row.id.group].part_bytes && row.has_parent == (row.depth > 0);
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
    DomainId domain = 0;
    uint32_t slot_bytes = 0;
    std::vector<uint32_t> slots;
    const size_t found_before = found_.size();
    for (const SlotRow* row : rows) {
      Scope& scope = ScopeOf(row->scope);
      const uint32_t bytes = Arena::SlotBytes(row->length);
      const bool fits = scope.ns != 0 && Fits(scope, *row) &&
                        (slot_bytes == 0 || (slot_bytes == bytes && domain == scope.domain)) &&
                        (uint64_t{row->slot} + 1) * bytes <= store_.arena().region_bytes();
      if (!fits) {
        ++report_.parts_dropped;
        unknown.push_back(row->slot);
        continue;
      }
      slot_bytes = bytes;
      domain = scope.domain;
      scope.used = true;
      slots.push_back(row->slot);
      found_.push_back({.row = row});
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
      const SlotRow& row = *found_[i].row;
      const NamespaceId ns = scopes_[row.scope].ns;
      Pending& block = blocks_[BlockKey{ns, row.key}];
      block.ns = ns;
      block.generation = std::max(block.generation, row.generation);
      found_[i].next = std::exchange(block.first, i + 1);
    }
    order_.reserve(blocks_.size());
    for (auto& [key, block] : blocks_) order_.push_back(&block);
  }

  // Inserts a block after its ancestors, root first.
  void Insert(Pending& deepest) {
    std::vector<Pending*> chain;
    for (Pending* at = &deepest; at != nullptr && !at->tried;) {
      at->tried = true;
      chain.push_back(at);
      const SlotRow& row = *found_[at->first - 1].row;
      if (!row.has_parent) break;
      const auto above = blocks_.find(BlockKey{at->ns, row.parent});
      at = above == blocks_.end() ? nullptr : &above->second;
    }
    while (!chain.empty()) {
      InsertOne(*chain.back());
      chain.pop_back();
    }
  }

  void InsertOne(Pending& block) {
    Residency& residency = store_.residency();
    const SlotRow& first = *found_[block.first - 1].row;
    BlockRef parent = 0;
    if (first.has_parent) {
      parent = residency.Find(block.ns, first.parent);
      if (parent == 0 || residency.block(parent).state != BlockState::kVisible ||
          residency.block(parent).depth + 1 != first.depth) {
        return;
      }
    }
    if (!Complete(block, first) || residency.full() || residency.Find(block.ns, first.key) != 0) {
      return;
    }
    block.ref = residency.Add(block.ns, first.key, parent, control_.NextTick());
    for (uint32_t i = block.first; i != 0; i = found_[i - 1].next) AddPart(block, found_[i - 1]);
    KVD_CHECK(residency.block(block.ref).state == BlockState::kVisible) << block.ref;
    ++report_.blocks;
  }

  // Whether the rows say one thing of the block, no part twice, and every part that makes it
  // findable.
  bool Complete(const Pending& block, const SlotRow& first) const {
    const std::vector<GroupDescriptor>& groups = scopes_[first.scope].descriptor.groups;
    std::array<uint32_t, kMaxGroups> shards{};
    std::vector<PartId> ids;
    for (uint32_t i = block.first; i != 0; i = found_[i - 1].next) {
      const SlotRow& row = *found_[i - 1].row;
      if (row.has_parent != first.has_parent || row.parent != first.parent ||
          row.depth != first.depth || std::find(ids.begin(), ids.end(), row.id) != ids.end()) {
        return false;
      }
      ids.push_back(row.id);
      ++shards[row.id.group];
    }
    if (store_.residency().parts_left() < ids.size()) return false;
    for (size_t g = 0; g < groups.size(); ++g) {
      if (groups[g].kind == GroupKind::kFull && shards[g] != groups[g].shards) return false;
    }
    return true;
  }

  void AddPart(const Pending& block, Found& found) {
    Residency& residency = store_.residency();
    const SlotRow& row = *found.row;
    const PartRef part =
        residency.AddPart(block.ref, row.id, row.region, row.slot, row.length, row.generation);
    store_.arena().SetOccupant({row.region, row.slot, row.generation}, part);
    found.restored = true;
    parts_.push_back(part);
    ++report_.parts;
    report_.bytes += row.length;
    const uint32_t sum = row.sum;  // The row is written again when the part is committed.
    residency.CommitPart(part, sum, control_.NextTick());
  }

  void Drop(const SlotRow& row) {
    ++report_.parts_dropped;
    rooms_.push_back({row.region, row.slot});
  }

  SlotTable& table_;
  Control& control_;
  Store& store_;
  ArenaRecord& record_;
  Domains& domains_;
  std::vector<Scope> scopes_;  // By row.
  std::vector<Found> found_;
  absl::flat_hash_map<BlockKey, Pending> blocks_;
  std::vector<Pending*> order_;
  std::vector<PartRef> parts_;
  std::vector<ArenaRecord::Room> rooms_;
  RestoreReport report_;
};

}  // namespace

RestoreReport RestoreArena(SlotTable& table, Control& control, Store& store, ArenaRecord& record,
                           Domains& domains, std::map<uint32_t, ReaderRow> readers) {
  return Restorer(table, control, store, record, domains).Run(std::move(readers));
}

}  // namespace kvd
