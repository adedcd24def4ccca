#include "tiers/arena.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr uint64_t kHugePage = 2u << 20;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kDefaultRegionBytes = 256u << 20;

}  // namespace

uint64_t Arena::RegionBytes(const Options& options) {
  uint64_t bytes = options.region_bytes;
  if (bytes == 0) bytes = std::min(kDefaultRegionBytes, options.bytes / 16);
  // Whole huge pages where the arena is large enough for it not to matter.
  const uint64_t unit = bytes >= kHugePage ? kHugePage : kPage;
  return std::max(bytes / unit * unit, kPage);
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Open(RegionDirectory& directory,
                                                   const Options& options) {
  const uint64_t region_bytes = RegionBytes(options);
  const uint64_t regions = options.bytes / region_bytes;
  if (regions == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("an arena of ", options.bytes, " bytes has room for no region"));
  }
  auto arena = std::unique_ptr<Arena>(new Arena(directory, region_bytes));
  arena->regions_.reserve(regions);
  for (uint64_t i = 0; i < regions; ++i) {
    absl::StatusOr<MemoryRegion> memory = MemoryRegion::Create(region_bytes, options.pages);
    if (!memory.ok()) return memory.status();
    arena->regions_.push_back(
        Region{.memory = *std::move(memory), .number = arena->next_number_++});
  }
  arena->free_regions_ = static_cast<uint32_t>(regions);
  return arena;
}

std::unique_ptr<Arena> Arena::OfRegions(RegionDirectory& directory, const ArenaFolder& folder,
                                        SlotTable& table, std::vector<NamedRegion> regions) {
  auto arena = std::unique_ptr<Arena>(new Arena(directory, regions.front().memory.size_bytes()));
  arena->folder_ = &folder;
  arena->table_ = &table;
  arena->free_regions_ = static_cast<uint32_t>(regions.size());
  for (NamedRegion& named : regions) {
    const uint32_t number = named.memory.number();
    arena->next_number_ = std::max(arena->next_number_, number + 1);
    arena->regions_.push_back(Region{.memory = std::move(named.memory),
                                     .number = number,
                                     .domain = named.used ? kSomebody : kNobody});
  }
  for (const Region& region : arena->regions_) arena->Record(region);
  return arena;
}

void Arena::Occupy(uint32_t index, DomainId domain, uint32_t slot_bytes,
                   absl::Span<const uint32_t> slots) {
  Region& region = regions_[index];
  KVD_CHECK(region.slot_bytes == 0 && !slots.empty()) << index;
  region.domain = kNobody;  // Whoever had it is `domain`.
  Open(index, domain, slot_bytes);
  KVD_CHECK(slots.back() < region.slot_count) << slots.back();
  region.slots.assign(slots.back() + 1, kFreeBit);
  for (const uint32_t slot : slots) region.slots[slot] = 0;
  for (uint32_t slot = slots.back() + 1; slot-- > 0;) {
    if (region.slots[slot] == 0) continue;
    region.slots[slot] = kFreeBit | std::exchange(region.free_slot, slot);
  }
  Use(index, static_cast<uint32_t>(slots.size()));
}

// Writes down what the next process must know of a region.
void Arena::Record(const Region& region) {
  if (table_ == nullptr) return;
  table_->SetRegion(static_cast<uint32_t>(&region - regions_.data()),
                    {.number = region.number, .used = region.domain != kNobody});
}

uint32_t Arena::SlotBytes(uint32_t part_bytes) {
  const uint32_t unit = part_bytes <= kPage ? kMinSlotBytes : kPage;
  return (part_bytes + unit - 1) / unit * unit;
}

std::optional<uint32_t> Arena::OpenRegion(DomainId domain, uint32_t slot_bytes) {
  const Region& last = regions_[last_region_];
  if (last.domain == domain && last.slot_bytes == slot_bytes && last.used < last.slot_count) {
    return last_region_;
  }
  const auto kind = kinds_.find({domain, slot_bytes});
  if (kind != kinds_.end() && !kind->second.roomy.empty()) return *kind->second.roomy.begin();

  if (free_regions() == 0) return std::nullopt;
  std::optional<uint32_t> fresh;
  for (uint32_t i = 0; i < regions_.size(); ++i) {
    const Region& region = regions_[i];
    const bool free_for_us = region.slot_bytes == 0 && !region.renewing &&
                             (region.domain == domain || region.domain == kNobody);
    // One that was ours before one that nobody had: the latter serves any domain.
    if (free_for_us && (!fresh.has_value() || region.domain == domain)) fresh = i;
  }
  if (!fresh.has_value() || slot_bytes > region_bytes_) return std::nullopt;

  Open(*fresh, domain, slot_bytes);
  return fresh;
}

// Gives a free region to a domain, cut into slots.
void Arena::Open(uint32_t index, DomainId domain, uint32_t slot_bytes) {
  Region& region = regions_[index];
  if (region.domain == kNobody) {
    region.domain = domain;
    directory_.Publish(region.number, domain, region.memory.read_only_fd(), region_bytes_);
    Record(region);
  }
  region.slot_bytes = slot_bytes;
  region.slot_count = static_cast<uint32_t>(region_bytes_ / slot_bytes);
  region.slots.reserve(
      region.slot_count);  // Address space: to touch it here would take milliseconds.
  --free_regions_;
  region.kind = kinds_.try_emplace({domain, slot_bytes}).first;
  Kind& kind = region.kind->second;
  ++kind.regions;
  kind.free_slots += region.slot_count;
  kind.roomy.insert(index);
}

// So many of a region's free slots are taken.
void Arena::Use(uint32_t index, uint32_t slots) {
  Region& region = regions_[index];
  region.used += slots;
  reserved_bytes_ += uint64_t{region.slot_bytes} * slots;
  Kind& kind = region.kind->second;
  kind.free_slots -= slots;
  if (region.used == region.slot_count) kind.roomy.erase(index);
}

// A region in which nobody is any more is free.
void Arena::Close(uint32_t index) {
  Region& region = regions_[index];
  Kind& kind = region.kind->second;
  kind.free_slots -= region.slot_count;
  kind.roomy.erase(index);
  if (--kind.regions == 0) kinds_.erase(region.kind);
  region.slot_bytes = 0;
  region.free_slot = kEnd;
  region.slots.clear();
  ++free_regions_;
}

uint64_t Arena::FreeBytesFor(DomainId domain, uint32_t slot_bytes) const {
  const auto kind = kinds_.find({domain, slot_bytes});
  return free_regions() * region_bytes_ +
         (kind == kinds_.end() ? 0 : kind->second.free_slots * slot_bytes);
}

std::optional<Arena::Room> Arena::Take(DomainId domain, uint32_t slot_bytes) {
  const std::optional<uint32_t> index = OpenRegion(domain, slot_bytes);
  if (!index.has_value()) return std::nullopt;
  last_region_ = *index;
  Region& region = regions_[*index];
  uint32_t slot = region.free_slot;
  if (slot != kEnd) {
    region.free_slot = region.slots[slot] & ~kFreeBit;
    region.slots[slot] = 0;
  } else {
    slot = static_cast<uint32_t>(region.slots.size());
    region.slots.push_back(0);
  }
  Use(*index, 1);
  return Room{.region = *index, .slot = slot, .generation = next_generation_++};
}

void Arena::Give(uint32_t index, uint32_t slot) {
  Region& region = regions_[index];
  KVD_CHECK((region.slots[slot] & kFreeBit) == 0) << index << " " << slot;
  region.slots[slot] = kFreeBit | std::exchange(region.free_slot, slot);
  reserved_bytes_ -= region.slot_bytes;
  Kind& kind = region.kind->second;
  ++kind.free_slots;
  if (region.used == region.slot_count) kind.roomy.insert(index);
  if (--region.used == 0) Close(index);
}

std::optional<uint32_t> Arena::IndexOf(uint32_t number) const {
  for (uint32_t i = 0; i < regions_.size(); ++i) {
    if (regions_[i].number == number) return i;
  }
  return std::nullopt;
}

std::optional<uint32_t> Arena::BeginRenewal(DomainId wanted_by) {
  for (uint32_t i = 0; i < regions_.size(); ++i) {
    const Region& region = regions_[i];
    if (region.slot_bytes == 0 && !region.renewing && region.domain != wanted_by) {
      return SetApart(i);
    }
  }
  return std::nullopt;
}

std::optional<uint32_t> Arena::BeginInheritedRenewal() {
  for (uint32_t i = 0; i < regions_.size(); ++i) {
    const Region& region = regions_[i];
    if (region.slot_bytes == 0 && !region.renewing && region.domain == kSomebody) {
      return SetApart(i);
    }
  }
  return std::nullopt;
}

uint32_t Arena::SetApart(uint32_t index) {
  regions_[index].renewing = true;
  ++renewing_regions_;
  directory_.Withdraw(regions_[index].number);
  return index;
}

void Arena::FinishRenewal(uint32_t index, MemoryRegion memory) {
  Region& region = regions_[index];
  KVD_CHECK(region.renewing && memory.size_bytes() == region_bytes_) << index;
  const uint32_t old_number = region.number;
  region.memory = std::move(memory);
  region.number = table_ == nullptr ? next_number_++ : region.memory.number();
  region.domain = kNobody;
  Record(region);
  if (folder_ != nullptr) folder_->RemoveRegion(old_number);  // Who maps it keeps it.
  region.renewing = false;
  --renewing_regions_;
}

void Arena::CancelRenewal(uint32_t index) {
  Region& region = regions_[index];
  KVD_CHECK(region.renewing) << index;
  region.renewing = false;
  --renewing_regions_;
  if (region.domain == kSomebody) return;
  directory_.Publish(region.number, region.domain, region.memory.read_only_fd(), region_bytes_);
}

}  // namespace kvd
