#include "tiers/arena.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/testing/memory_folder.h"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

constexpr uint64_t kRegion = 64u << 10;

class ArenaTest : public testing::Test {
 protected:
  std::unique_ptr<Arena> OpenArena(uint64_t regions) {
    auto arena = Arena::Open(
        directory_,
        {.bytes = regions * kRegion, .region_bytes = kRegion, .pages = PageKind::kSmall});
    EXPECT_TRUE(arena.ok()) << arena.status();
    return *std::move(arena);
  }
  std::vector<Arena::Room> Fill(Arena& arena, DomainId domain, uint32_t slot_bytes) {
    std::vector<Arena::Room> rooms;
    while (const auto room = arena.Take(domain, slot_bytes)) rooms.push_back(*room);
    return rooms;
  }

  RegionDirectory directory_;
};

TEST_F(ArenaTest, SlotsAreWholeUnits) {
  EXPECT_EQ(Arena::SlotBytes(1), 512u);
  EXPECT_EQ(Arena::SlotBytes(512), 512u);
  EXPECT_EQ(Arena::SlotBytes(513), 1024u);
  EXPECT_EQ(Arena::SlotBytes(4096), 4096u);
  EXPECT_EQ(Arena::SlotBytes(4097), 8192u);
  EXPECT_EQ(Arena::SlotBytes(64u << 20), 64u << 20);
}

TEST_F(ArenaTest, TakesWholeRegionsForOneDomainAndSlotSize) {
  const auto arena = OpenArena(2);
  EXPECT_EQ(arena->capacity_bytes(), 2 * kRegion);
  const Arena::Room a = *arena->Take(1, 4096);
  const Arena::Room b = *arena->Take(1, 4096);
  EXPECT_EQ(a.region, b.region);
  EXPECT_NE(a.slot, b.slot);
  EXPECT_NE(a.generation, b.generation);
  const Arena::Room c = *arena->Take(1, 8192);
  EXPECT_NE(c.region, a.region);
  EXPECT_FALSE(arena->Take(2, 4096).has_value());
  EXPECT_FALSE(arena->Take(1, 512).has_value());
  EXPECT_EQ(arena->reserved_bytes(), 2 * 4096u + 8192u);
  EXPECT_EQ(arena->free_regions(), 0u);
}

TEST_F(ArenaTest, IsFullWhenEverySlotIsTaken) {
  const auto arena = OpenArena(2);
  EXPECT_EQ(Fill(*arena, 1, 4096).size(), 2 * kRegion / 4096);
  EXPECT_EQ(arena->reserved_bytes(), arena->capacity_bytes());
}

TEST_F(ArenaTest, AnEmptyRegionServesAnotherSlotSizeOfItsDomainAtOnce) {
  const auto arena = OpenArena(1);
  const Arena::Room room = *arena->Take(1, 4096);
  const uint32_t number = arena->Number(room.region);
  arena->Give(room.region, room.slot);
  const auto other = arena->Take(1, 8192);
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(arena->Number(other->region), number);
  EXPECT_NE(other->generation, room.generation);
}

TEST_F(ArenaTest, AnEmptyRegionServesAnotherDomainOnlyAsNewMemory) {
  const auto arena = OpenArena(1);
  const Arena::Room room = *arena->Take(1, 4096);
  const uint32_t number = arena->Number(room.region);
  EXPECT_FALSE(arena->BeginRenewal(2).has_value());  // It is in use.
  arena->Give(room.region, room.slot);
  EXPECT_FALSE(arena->Take(2, 4096).has_value());
  EXPECT_FALSE(arena->BeginRenewal(1).has_value());  // It is ours already.

  const auto renewed = arena->BeginRenewal(2);
  ASSERT_TRUE(renewed.has_value());
  EXPECT_FALSE(arena->BeginRenewal(2).has_value());  // Once.
  EXPECT_FALSE(arena->Take(1, 4096).has_value());    // It is set apart.
  arena->FinishRenewal(*renewed, *MemoryRegion::Create(kRegion, PageKind::kSmall));

  const auto taken = arena->Take(2, 4096);
  ASSERT_TRUE(taken.has_value());
  EXPECT_NE(arena->Number(taken->region), number);
  EXPECT_FALSE(arena->IndexOf(number).has_value());
  EXPECT_EQ(arena->IndexOf(arena->Number(taken->region)), taken->region);
}

TEST_F(ArenaTest, ARenewalThatFailsLeavesTheRegionAsItWas) {
  const auto arena = OpenArena(1);
  const Arena::Room room = *arena->Take(1, 4096);
  arena->Give(room.region, room.slot);
  arena->CancelRenewal(*arena->BeginRenewal(2));
  EXPECT_FALSE(arena->Take(2, 4096).has_value());
  EXPECT_TRUE(arena->Take(1, 4096).has_value());
  EXPECT_TRUE(arena->IndexOf(arena->Number(0)).has_value());
}

TEST_F(ArenaTest, ADescriptorIsForItsDomainOnly) {
  const auto arena = OpenArena(2);
  const Arena::Room room = *arena->Take(1, 4096);
  const uint32_t number = arena->Number(room.region);
  const RegionDirectory::Entry entry = directory_.Open(number, 1);
  ASSERT_GE(entry.fd, 0);
  EXPECT_EQ(entry.size_bytes, kRegion);
  struct stat info;
  EXPECT_EQ(fstat(entry.fd, &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), kRegion);
  close(entry.fd);
  EXPECT_EQ(directory_.Open(number, 2).fd, -1);
  EXPECT_EQ(directory_.Open(number + 1, 1).fd, -1);  // Nobody's yet.
  arena->Give(room.region, room.slot);
  ASSERT_TRUE(arena->BeginRenewal(2).has_value());
  EXPECT_EQ(directory_.Open(number, 1).fd, -1);  // The memory is going away.
}

TEST_F(ArenaTest, KnowsWhoIsInASlot) {
  const auto arena = OpenArena(1);
  const Arena::Room room = *arena->Take(1, 4096);
  EXPECT_EQ(arena->Occupant(room.region, room.slot), 0u);
  arena->SetOccupant(room, 42);
  EXPECT_EQ(arena->Occupant(room.region, room.slot), 42u);
  const Arena::Room next = *arena->Take(1, 4096);
  arena->Give(room.region, room.slot);
  EXPECT_EQ(arena->Occupant(room.region, room.slot), 0u);
  EXPECT_EQ(arena->used_slots(next.region), 1u);
}

TEST_F(ArenaTest, AnArenaSmallerThanARegionIsRefused) {
  EXPECT_EQ(Arena::Open(directory_, {.bytes = 1000, .pages = PageKind::kSmall}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// The free bytes for a domain and slot size, counted region by region.
uint64_t CountFree(const Arena& arena, DomainId domain, uint32_t slot_bytes) {
  uint64_t bytes = 0;
  for (uint32_t region = 0; region < arena.regions(); ++region) {
    if (arena.slot_bytes(region) == 0) {
      bytes += arena.region_bytes();
    } else if (arena.slot_bytes(region) == slot_bytes && arena.domain(region) == domain) {
      bytes += (arena.region_bytes() / slot_bytes - arena.used_slots(region)) * slot_bytes;
    }
  }
  return bytes;
}

// Random takes and gives: no two live rooms overlap, what is written stays, counts are exact.
TEST_F(ArenaTest, RoomsNeverOverlap) {
  std::mt19937_64 random(NumberFromEnvironment("KVD_SEED", 1));
  const auto arena = OpenArena(6);
  struct Live {
    Arena::Room room;
    uint32_t slot_bytes;
    uint8_t mark;
  };
  std::vector<Live> live;
  std::set<uint32_t> generations;
  uint64_t reserved = 0;
  for (uint64_t step = 0; step < RoundsForThisBuild(60'000); ++step) {
    const auto domain = static_cast<DomainId>(1 + random() % 2);
    const uint32_t slot_bytes = std::vector<uint32_t>{512, 1536, 4096, 12288}[random() % 4];
    ASSERT_EQ(arena->FreeBytesFor(domain, slot_bytes), CountFree(*arena, domain, slot_bytes));
    if (random() % 2 == 0 || live.empty()) {
      const auto room = arena->Take(domain, slot_bytes);
      if (!room.has_value()) {
        if (const auto region = arena->BeginRenewal(domain)) {
          arena->FinishRenewal(*region, *MemoryRegion::Create(kRegion, PageKind::kSmall));
        }
        continue;
      }
      ASSERT_TRUE(generations.insert(room->generation).second);
      ASSERT_EQ(arena->domain(room->region), domain);
      ASSERT_EQ(arena->slot_bytes(room->region), slot_bytes);
      ASSERT_LE(arena->Offset(room->region, room->slot) + slot_bytes, kRegion);
      const auto mark = static_cast<uint8_t>(random());
      std::fill_n(arena->Address(room->region, room->slot), slot_bytes, std::byte{mark});
      arena->SetOccupant(*room, 1);
      live.push_back({*room, slot_bytes, mark});
      reserved += slot_bytes;
    } else {
      std::swap(live[random() % live.size()], live.back());
      const Live gone = live.back();
      live.pop_back();
      const std::byte* bytes = arena->Address(gone.room.region, gone.room.slot);
      for (uint32_t i = 0; i < gone.slot_bytes; i += 64) ASSERT_EQ(bytes[i], std::byte{gone.mark});
      arena->Give(gone.room.region, gone.room.slot);
      reserved -= gone.slot_bytes;
    }
    ASSERT_EQ(arena->reserved_bytes(), reserved);
  }
  for (const Live& room : live) arena->Give(room.room.region, room.room.slot);
  EXPECT_EQ(arena->reserved_bytes(), 0u);
  EXPECT_EQ(arena->free_regions(), arena->regions());
}

// ---- with a name --------------------------------------------------------------------------------

class NamedArenaTest : public testing::Test {
 protected:
  static constexpr uint32_t kRegions = 3;

  NamedArenaTest() : folder_(*ArenaFolder::Open(parent_.path(), "arena")) {}

  static SlotTable::Geometry GeometryOf() { return {.region_bytes = kRegion, .regions = kRegions}; }

  // The first process.
  void OpenNew() {
    table_ = *SlotTable::Create(folder_, GeometryOf());
    std::vector<Arena::NamedRegion> regions;
    for (uint32_t number = 1; number <= kRegions; ++number) {
      auto memory = MemoryRegion::CreateNamed(folder_, number, kRegion);
      ASSERT_TRUE(memory.ok()) << memory.status();
      regions.push_back({*std::move(memory)});
    }
    arena_ = Arena::OfRegions(*directory_, folder_, *table_, std::move(regions));
  }
  // The next one.
  void Reopen() {
    arena_.reset();
    table_ = *SlotTable::Attach(folder_, GeometryOf());
    directory_ = std::make_unique<RegionDirectory>();
    std::vector<Arena::NamedRegion> regions;
    for (uint32_t i = 0; i < kRegions; ++i) {
      const SlotTable::Region row = *table_->region(i);
      auto memory = MemoryRegion::Attach(folder_, row.number, kRegion);
      ASSERT_TRUE(memory.ok()) << memory.status();
      regions.push_back({*std::move(memory), row.used});
    }
    arena_ = Arena::OfRegions(*directory_, folder_, *table_, std::move(regions));
  }

  MemoryFolder parent_;
  ArenaFolder folder_;
  std::unique_ptr<RegionDirectory> directory_ = std::make_unique<RegionDirectory>();
  std::unique_ptr<SlotTable> table_;
  std::unique_ptr<Arena> arena_;
};

TEST_F(NamedArenaTest, TheNextProcessFindsTheBytesAndTheNumbers) {
  OpenNew();
  const Arena::Room room = *arena_->Take(1, 4096);
  std::memset(arena_->Address(room.region, room.slot), 0x5a, 4096);
  const uint32_t number = arena_->Number(room.region);
  Reopen();
  EXPECT_EQ(arena_->Number(room.region), number);
  EXPECT_EQ(arena_->free_regions(), kRegions);
  EXPECT_EQ(static_cast<int>(arena_->Address(room.region, 0)[4095]), 0x5a);
}

TEST_F(NamedArenaTest, OccupiedSlotsAreNotHandedOutAndTheOthersAre) {
  OpenNew();
  const uint32_t region = arena_->Take(4, 4096)->region;
  Reopen();
  const uint32_t taken[] = {1, 4, 6};
  arena_->Occupy(region, 9, 4096, taken);
  EXPECT_EQ(arena_->used_slots(region), 3u);
  EXPECT_EQ(arena_->reserved_bytes(), 3 * 4096u);
  EXPECT_EQ(arena_->FreeBytesFor(9, 4096), CountFree(*arena_, 9, 4096));
  EXPECT_EQ(arena_->domain(region), 9u);
  EXPECT_GE(directory_->Open(arena_->Number(region), 9).fd, 0) << "readers find it";
  std::set<uint32_t> slots;
  for (uint32_t i = 0; i < kRegion / 4096 - 3; ++i) {
    const auto room = arena_->Take(9, 4096);
    ASSERT_TRUE(room.has_value());
    if (room->region == region) slots.insert(room->slot);
  }
  EXPECT_EQ(slots.size(), kRegion / 4096 - 3);
  for (const uint32_t slot : taken) EXPECT_EQ(slots.count(slot), 0u);
  for (const uint32_t slot : taken) arena_->Give(region, slot);
  for (const uint32_t slot : slots) arena_->Give(region, slot);
  EXPECT_EQ(arena_->reserved_bytes(), 0u);
}

TEST_F(NamedArenaTest, WhatSomebodyHadBeforeIsNewMemoryForEverybody) {
  OpenNew();
  const Arena::Room room = *arena_->Take(1, 4096);
  arena_->Give(room.region, room.slot);
  Reopen();
  std::set<uint32_t> found;
  while (const auto taken = arena_->Take(1, static_cast<uint32_t>(kRegion))) {
    found.insert(taken->region);
  }
  EXPECT_EQ(found.size(), kRegions - 1);
  EXPECT_EQ(found.count(room.region), 0u);
  const uint32_t old_number = arena_->Number(room.region);
  ASSERT_EQ(arena_->BeginInheritedRenewal(), room.region);
  EXPECT_EQ(arena_->BeginInheritedRenewal(), std::nullopt);
  arena_->CancelRenewal(room.region);
  ASSERT_EQ(arena_->BeginInheritedRenewal(), room.region);
  arena_->FinishRenewal(room.region, *MemoryRegion::CreateNamed(folder_, 40, kRegion));
  EXPECT_EQ(arena_->Number(room.region), 40u);
  EXPECT_EQ(table_->region(room.region)->number, 40u);
  EXPECT_FALSE(table_->region(room.region)->used);
  EXPECT_EQ(folder_.RegionNumbers().count(old_number), 0u);
  EXPECT_EQ(arena_->Take(1, 4096)->region, room.region);
}

}  // namespace
}  // namespace kvd
