#include "daemon/store.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "proto/types/kill_point.h"

namespace kvd {
namespace {

// Regions tried before a reservation is refused: each try walks the region's slots.
constexpr size_t kRegionsTried = 4;
// Children of one block among which one with parts is looked for.
constexpr uint32_t kChildrenTried = 4096;

}  // namespace

Store::Store(EvictionPolicy& policy, Arena& arena, const Residency::Options& options, Renew renew,
             EvictionPolicy* cold_policy)
    : arena_(arena),
      residency_(policy, *this, options, cold_policy),
      renew_(std::move(renew)),
      in_the_way_(arena.regions()) {}

// A block may have to leave both tiers, so one that leaves is not always enough.
bool Store::MakeIndexRoom() {
  while (residency_.full()) {
    if (!residency_.EvictNextCold() && !residency_.EvictNext()) return false;
  }
  return true;
}

void Store::FreeRoom(const Part& part) {
  if (observer_ != nullptr) observer_->RoomFreed(part);
  arena_.Give(part.region, part.slot);
}

void Store::PartCommitted(const Block& block, const Part& part) {
  if (observer_ == nullptr) return;
  const ChainHash* parent = block.parent == 0 ? nullptr : &residency_.block(block.parent).key;
  observer_->PartCommitted(block, parent, part);
}

void Store::PartQuarantined(const Part& part) {
  if (observer_ != nullptr) observer_->PartQuarantined(part);
}

PartRef Store::TakePart(BlockRef block, PartId id, uint32_t part_bytes, MayLeave may_leave) {
  while (residency_.parts_full()) {
    if (!residency_.EvictNext()) return 0;
  }
  const NamespaceShape& shape = residency_.shape(residency_.block(block).ns);
  const uint32_t slot_bytes = Arena::SlotBytes(part_bytes);
  layouts_[shape.pool] = {.domain = shape.domain, .slot_bytes = slot_bytes};
  const std::optional<Arena::Room> room = may_leave == MayLeave::kAnything
                                              ? FindRoom(shape, slot_bytes)
                                              : FindRoomOfCopies(shape, slot_bytes);
  if (!room.has_value()) return 0;
  const PartRef part =
      residency_.AddPart(block, id, room->region, room->slot, part_bytes, room->generation);
  arena_.SetOccupant(*room, part);
  return part;
}

std::optional<Arena::Room> Store::FindRoom(const NamespaceShape& shape, uint32_t slot_bytes) {
  uint32_t& younger = younger_evicted_[shape.pool];
  while (true) {
    std::optional<Arena::Room> room = arena_.Take(shape.domain, slot_bytes);
    if (room.has_value()) return room;

    const std::optional<EvictionPolicy::Victim> oldest = residency_.NextVictim();
    if (!oldest.has_value()) {
      if (GiveWay()) continue;
      return std::nullopt;
    }
    if (Helps(oldest->block, shape.domain, slot_bytes)) {
      residency_.LeaveDram(oldest->block);
      continue;
    }
    // Blocks of another layout leave no slot of our size. Ours leave first, but once we have thrown
    // out a region's worth of blocks that were younger than theirs, a region of theirs is due.
    if (younger++ >= arena_.region_bytes() / slot_bytes) {
      younger = 0;
      if (EmptyARegion(shape.domain, slot_bytes)) continue;
    }
    if (residency_.EvictNext(shape.pool)) continue;
    if (EmptyARegion(shape.domain, slot_bytes)) continue;
    if (!EvictNeighbour(shape.domain, slot_bytes) && !GiveWay()) return std::nullopt;
  }
}

std::optional<Arena::Room> Store::FindRoomOfCopies(const NamespaceShape& shape,
                                                   uint32_t slot_bytes) {
  while (true) {
    std::optional<Arena::Room> room = arena_.Take(shape.domain, slot_bytes);
    if (room.has_value()) return room;
    std::optional<EvictionPolicy::Victim> victim = residency_.NextVictim();
    if (!victim.has_value() || !Helps(victim->block, shape.domain, slot_bytes)) {
      victim = residency_.NextVictim(shape.pool);
    }
    if (!victim.has_value() || !residency_.OnNvme(victim->block)) return std::nullopt;
    residency_.LeaveDram(victim->block);
  }
}

// Whether a slot of this size comes free for `domain` when `block` leaves.
bool Store::Helps(BlockRef block, DomainId domain, uint32_t slot_bytes) const {
  if (residency_.shape(residency_.block(block).ns).domain != domain) return false;
  PartRef part = residency_.block(block).first_part;
  while (part != 0 && arena_.slot_bytes(residency_.part(part).region) != slot_bytes) {
    part = residency_.part(part).next;
  }
  return part != 0;
}

// Evicts a block of another layout of this domain that has a slot of this size.
bool Store::EvictNeighbour(DomainId domain, uint32_t slot_bytes) {
  std::optional<EvictionPolicy::Victim> next;
  for (EvictionPolicy::Pool pool = 0; pool < EvictionPolicy::kMaxPools; ++pool) {
    const std::optional<EvictionPolicy::Victim> victim = residency_.NextVictim(pool);
    if (!victim.has_value() || !Helps(victim->block, domain, slot_bytes)) continue;
    if (!next.has_value() || victim->score < next->score) next = victim;
  }
  if (next.has_value()) residency_.LeaveDram(next->block);
  return next.has_value();
}

// Empties the region of another domain or slot size that costs the fewest blocks. False when none
// can be emptied, or when the emptied one needs new memory before we may have it.
bool Store::EmptyARegion(DomainId domain, uint32_t slot_bytes) {
  // While new memory is on its way, or can be had for nothing, nothing of another domain leaves.
  const bool renewing = arena_.renewing_regions() > 0 || RenewARegion(domain);
  std::vector<uint32_t> candidates;
  for (uint32_t region = 0; region < arena_.regions(); ++region) {
    if (arena_.slot_bytes(region) == 0) continue;
    if (arena_.domain(region) == domain && arena_.slot_bytes(region) == slot_bytes) continue;
    if (arena_.domain(region) != domain && renewing) continue;
    candidates.push_back(region);
  }
  std::sort(candidates.begin(), candidates.end(), [this](uint32_t a, uint32_t b) {
    const uint64_t bytes_a = uint64_t{arena_.used_slots(a)} * arena_.slot_bytes(a);
    const uint64_t bytes_b = uint64_t{arena_.used_slots(b)} * arena_.slot_bytes(b);
    return bytes_a != bytes_b ? bytes_a < bytes_b : a < b;
  });
  candidates.resize(std::min(candidates.size(), kRegionsTried));
  for (const uint32_t region : candidates) {
    if (!EmptyRegion(region)) continue;
    ++regions_emptied_;
    KVD_KILL_POINT("region.emptied");
    if (arena_.domain(region) == domain) return true;
    RenewARegion(domain);
    return false;
  }
  return false;
}

// Asks for a free region of somebody else's, which may be had as new memory. False: there is none.
bool Store::RenewARegion(DomainId domain) {
  const std::optional<uint32_t> foreign = arena_.BeginRenewal(domain);
  if (foreign.has_value()) renew_(*foreign, arena_.region_bytes());
  return foreign.has_value();
}

void Store::RenewInherited() {
  while (const std::optional<uint32_t> region = arena_.BeginInheritedRenewal()) {
    renew_(*region, arena_.region_bytes());
  }
}

// A child that has parts in DRAM; 0: none, or none that is found soon.
BlockRef Store::WarmChild(BlockRef block) const {
  if (residency_.block(block).warm_children == 0) return 0;
  BlockRef child = residency_.block(block).first_child;
  for (uint32_t tried = 0; child != 0 && tried < kChildrenTried; ++tried) {
    if (residency_.block(child).first_part != 0) return child;
    child = residency_.block(child).next_sibling;
  }
  return 0;
}

uint64_t Store::RoomFor(const Layout& layout) const {
  uint64_t bytes = 0;
  for (uint32_t region = 0; region < arena_.regions(); ++region) {
    const uint32_t slot_bytes = arena_.slot_bytes(region);
    if (slot_bytes == 0) {
      bytes += arena_.region_bytes();
    } else if (arena_.domain(region) == layout.domain && slot_bytes == layout.slot_bytes) {
      const uint64_t slots = arena_.region_bytes() / slot_bytes - arena_.used_slots(region);
      bytes += slots * slot_bytes;
    }
  }
  return bytes;
}

// Evicts what lies in a region, and what hangs below that. False when something must stay: then
// mostly nothing has left, as only what hangs below from elsewhere is not looked at first.
bool Store::EmptyRegion(uint32_t region) {
  // What was in the way the last time mostly still is: a region that cannot be emptied costs one
  // look then, not one at each of its slots.
  const uint32_t slots = arena_.slots(region);
  uint32_t told = 0;
  for (uint32_t i = 0; i < slots; ++i) {
    const uint32_t slot = (in_the_way_[region] + i) % slots;
    const PartRef part = arena_.Occupant(region, slot);
    if (part == 0) continue;
    ++told;
    const BlockRef ref = residency_.part(part).block;
    const Block& block = residency_.block(ref);
    const bool quarantined = ref == 0;
    const bool stays = quarantined || block.holds > 0 || block.reserved_parts > 0 ||
                       (block.leases > 0 && !residency_.OnNvme(ref));
    if (stays) {
      in_the_way_[region] = slot;
      return false;
    }
  }
  // Rooms that are nobody's are withheld for readers of before a restart.
  if (told < arena_.used_slots(region)) return false;
  for (uint32_t slot = 0; slot < slots; ++slot) {
    const PartRef part = arena_.Occupant(region, slot);
    if (part == 0) continue;
    const BlockRef top = residency_.part(part).block;
    if (top == 0) return false;
    // Postorder: up again from each leaf, as a descent from the top for each would cost the square
    // of a long chain.
    BlockRef at = top;
    while (arena_.Occupant(region, slot) == part) {
      while (const BlockRef child = WarmChild(at)) at = child;
      if (!residency_.evictable(at)) return false;
      const BlockRef above = residency_.block(at).parent;
      residency_.LeaveDram(at);
      if (arena_.slot_bytes(region) == 0) return true;
      // A stub that nothing needs any more goes with the last that hung below it.
      at = residency_.block(above).first_part != 0 ? above : top;
    }
  }
  return true;
}

}  // namespace kvd
