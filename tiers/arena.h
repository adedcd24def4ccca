// The DRAM tier's room: regions of shared memory, cut into slots.
//
// A region has one domain and one slot size at a time, so that a client can be given all of it to
// read, and so that quotas, resizing and new layouts move regions, not bytes. An empty region goes
// back to the free ones; it serves another slot size of its domain as it is, another domain only as
// new memory (somebody may still have the old memory mapped).
//
// It is mechanism only: it never evicts. It knows of each slot by whom it is occupied (a number of
// the caller's), so that a region can be emptied.
//
// Threads: one, the control thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/types/block.h"
#include "proto/types/shared_count.h"
#include "tiers/arena_folder.h"
#include "tiers/memory_region.h"
#include "tiers/region_directory.h"
#include "tiers/slot_table.h"

namespace kvd {

class Arena {
 public:
  struct Options {
    uint64_t bytes = 1u << 30;
    uint64_t region_bytes = 0;            // 0: 256 MiB, or a sixteenth of a smaller arena.
    PageKind pages = PageKind::kHugetlb;  // A wish.
  };

  struct Room {
    uint32_t region = 0;  // Index, below regions(). Not the number on the wire.
    uint32_t slot = 0;
    uint32_t generation = 0;
  };

  // Maps and touches all of it. kResourceExhausted when the memory is not there.
  static absl::StatusOr<std::unique_ptr<Arena>> Open(RegionDirectory& directory,
                                                     const Options& options);

  // The bytes of a region of an arena of `options`, and how many it would have.
  static uint64_t RegionBytes(const Options& options);
  static uint32_t RegionCount(const Options& options) {
    return static_cast<uint32_t>(options.bytes / RegionBytes(options));
  }

  // A region that has a name, as a process before left it or new.
  struct NamedRegion {
    MemoryRegion memory;
    bool used = false;  // Some domain had it: another gets new memory.
  };
  // An arena of these regions, which tells `table` what becomes of them; both outlive it.
  // Requires: at least one; all of one size.
  static std::unique_ptr<Arena> OfRegions(RegionDirectory& directory, const ArenaFolder& folder,
                                          SlotTable& table, std::vector<NamedRegion> regions);
  // Says that slots of a region that nobody has taken yet are taken. `slots` ascend.
  // Requires: they are in the region.
  void Occupy(uint32_t region, DomainId domain, uint32_t slot_bytes,
              absl::Span<const uint32_t> slots);
  // Generations go on from here.
  void SetNextGeneration(uint32_t generation) { next_generation_ = generation; }

  // The room that a part takes: whole slots of 512 bytes up to 4 KiB, of 4 KiB above.
  static uint32_t SlotBytes(uint32_t part_bytes);
  static constexpr uint32_t kMinSlotBytes = 512;

  // A free slot, in a region of this domain and size or in a free one. Empty: there is none.
  // O(1), but for the first slot of a region.
  std::optional<Room> Take(DomainId domain, uint32_t slot_bytes);
  // Bytes of slots that are free for this domain and size; regions that nobody is in count whole,
  // though another domain's must be renewed first.
  uint64_t FreeBytesFor(DomainId domain, uint32_t slot_bytes) const;
  // Who is in a taken slot: a number of the caller's from 1 to 2^31 - 2; 0 until it is told.
  void SetOccupant(const Room& room, uint32_t occupant) {
    regions_[room.region].slots[room.slot] = occupant;
  }
  void Give(uint32_t region, uint32_t slot);

  std::byte* Address(uint32_t region, uint32_t slot) const {
    return regions_[region].memory.data() + Offset(region, slot);
  }
  uint64_t Offset(uint32_t region, uint32_t slot) const {
    return uint64_t{slot} * regions_[region].slot_bytes;
  }
  absl::Span<std::byte> memory(uint32_t region) const {
    return {regions_[region].memory.data(), region_bytes_};
  }
  // The number that clients know this memory by; never used again for other memory.
  uint32_t Number(uint32_t region) const { return regions_[region].number; }
  // The region that has `number` now.
  std::optional<uint32_t> IndexOf(uint32_t number) const;

  // --- emptying ----------------------------------------------------------------------------------

  uint32_t regions() const { return static_cast<uint32_t>(regions_.size()); }
  uint32_t used_slots(uint32_t region) const { return regions_[region].used; }
  // Slots that were handed out since the region was opened: the occupied ones are among them.
  uint32_t slots(uint32_t region) const {
    return static_cast<uint32_t>(regions_[region].slots.size());
  }
  DomainId domain(uint32_t region) const { return regions_[region].domain; }
  uint32_t slot_bytes(uint32_t region) const { return regions_[region].slot_bytes; }
  // Who is in a slot; 0: nobody, or not told yet.
  uint32_t Occupant(uint32_t region, uint32_t slot) const {
    const uint32_t entry = regions_[region].slots[slot];
    return (entry & kFreeBit) != 0 ? 0 : entry;
  }

  // --- changing domain ---------------------------------------------------------------------------

  // A free region that belongs to another domain, set apart to be replaced; empty: there is none.
  std::optional<uint32_t> BeginRenewal(DomainId wanted_by);
  // The same for a free region of some domain of a process before.
  std::optional<uint32_t> BeginInheritedRenewal();
  // Its new memory (made by some other thread), free for anybody. An error keeps the region apart
  // for good only if there is no memory: call again with the next attempt.
  void FinishRenewal(uint32_t region, MemoryRegion memory);
  void CancelRenewal(uint32_t region);
  uint32_t renewing_regions() const { return renewing_regions_; }  // Set apart now.

  // --- counting ----------------------------------------------------------------------------------

  uint64_t capacity_bytes() const { return region_bytes_ * regions_.size(); }
  uint64_t reserved_bytes() const { return reserved_bytes_; }  // Any thread.
  uint64_t region_bytes() const { return region_bytes_; }
  uint32_t free_regions() const {  // Any thread.
    return static_cast<uint32_t>(uint64_t{free_regions_});
  }
  PageKind page_kind() const { return regions_[0].memory.page_kind(); }

 private:
  static constexpr uint32_t kFreeBit = 0x80000000;
  static constexpr uint32_t kEnd = 0x7fffffff;  // Of a chain of free slots.
  static constexpr DomainId kNobody = 0xffffffff;
  static constexpr DomainId kSomebody = 0xfffffffe;  // Of a run before; none of this one.

  // The regions of one domain and slot size.
  struct Kind {
    uint32_t regions = 0;
    uint64_t free_slots = 0;
    absl::btree_set<uint32_t> roomy;  // Those with a free slot.
  };
  using Kinds = std::map<std::pair<DomainId, uint32_t>, Kind>;

  struct Region {
    MemoryRegion memory;
    uint32_t number = 0;
    DomainId domain = kNobody;
    uint32_t slot_bytes = 0;  // 0: free.
    Kinds::iterator kind;     // Unless it is free.
    uint32_t used = 0;
    uint32_t free_slot = kEnd;
    bool renewing = false;
    uint32_t slot_count = 0;
    // Those handed out at least once: the occupant, or kFreeBit and the next free slot.
    std::vector<uint32_t> slots;
  };

  Arena(RegionDirectory& directory, uint64_t region_bytes)
      : directory_(directory), region_bytes_(region_bytes) {}
  std::optional<uint32_t> OpenRegion(DomainId domain, uint32_t slot_bytes);
  void Open(uint32_t region, DomainId domain, uint32_t slot_bytes);
  void Use(uint32_t region, uint32_t slots);
  void Close(uint32_t region);
  void Record(const Region& region);
  uint32_t SetApart(uint32_t region);

  RegionDirectory& directory_;
  const ArenaFolder* folder_ = nullptr;  // With `table_`; null: the arena has no name.
  SlotTable* table_ = nullptr;
  const uint64_t region_bytes_;
  std::vector<Region> regions_;
  Kinds kinds_;
  uint32_t next_number_ = 1;
  uint32_t next_generation_ = 1;
  SharedCount free_regions_;
  uint32_t renewing_regions_ = 0;
  SharedCount reserved_bytes_;
  uint32_t last_region_ = 0;  // Where the last slot was taken: the next is likely there too.
};

}  // namespace kvd
