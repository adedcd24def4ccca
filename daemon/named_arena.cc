#include "daemon/named_arena.h"

#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/process_identity.h"
#include "proto/types/kill_point.h"

namespace kvd {

absl::StatusOr<std::unique_ptr<NamedArena>> NamedArena::Open(RegionDirectory& directory,
                                                             const std::string& parent,
                                                             const std::string& uuid,
                                                             const Arena::Options& options) {
  auto named = std::unique_ptr<NamedArena>(new NamedArena());
  absl::StatusOr<ArenaFolder> folder = ArenaFolder::Open(parent, absl::StrCat("kvd-", uuid));
  if (!folder.ok()) return folder.status();
  named->folder_ = std::make_unique<ArenaFolder>(*std::move(folder));
  const SlotTable::Geometry geometry{.region_bytes = Arena::RegionBytes(options),
                                     .regions = Arena::RegionCount(options),
                                     .machine = MachineIdentity()};
  if (geometry.regions == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("an arena of ", options.bytes, " bytes has room for no region"));
  }
  if (absl::Status status = named->TakeOver(geometry); !status.ok()) return status;
  absl::StatusOr<std::vector<Arena::NamedRegion>> regions = named->OpenRegions(geometry);
  if (!regions.ok()) return regions.status();
  named->arena_ = Arena::OfRegions(directory, *named->folder_, *named->table_, *std::move(regions));
  // Files that no row names: of a kill between the making of one and its row.
  std::set<uint32_t> strays = named->folder_->RegionNumbers();
  for (uint32_t i = 0; i < geometry.regions; ++i) strays.erase(named->arena_->Number(i));
  KVD_KILL_POINT("restore.regions_opened");
  for (const uint32_t number : strays) named->folder_->RemoveRegion(number);
  return named;
}

// The table of the process before, if it can be trusted, else a new one and no regions.
absl::Status NamedArena::TakeOver(const SlotTable::Geometry& geometry) {
  absl::Status why;
  if (absl::StatusOr<std::unique_ptr<SlotTable>> table = SlotTable::Attach(*folder_, geometry);
      table.ok()) {
    absl::StatusOr<std::vector<FormerReaders::Reader>> readers =
        FormerReaders::Find((*table)->sessions());
    if (readers.ok()) {
      table_ = *std::move(table);
      KVD_KILL_POINT("restore.table_taken_over");
      readers_ = *std::move(readers);
      std::set<uint32_t> living;
      for (const FormerReaders::Reader& reader : readers_) living.insert(reader.number);
      for (const auto& [number, session] : table_->sessions()) {
        if (living.count(number) == 0) table_->RemoveSession(number);
      }
      if (const std::set<uint32_t> numbers = folder_->RegionNumbers(); !numbers.empty()) {
        next_number_ = *numbers.rbegin() + 1;
      }
      return absl::OkStatus();
    }
    why = readers.status();
  } else {
    why = table.status();
  }
  if (!absl::IsNotFound(why)) cold_because_ = std::string(why.message());
  folder_->Clear();
  absl::StatusOr<std::unique_ptr<SlotTable>> table = SlotTable::Create(*folder_, geometry);
  if (!table.ok()) return table.status();
  table_ = *std::move(table);
  KVD_KILL_POINT("restore.table_created");
  return absl::OkStatus();
}

bool NamedArena::HasRows(uint32_t region) const {
  bool has = false;
  table_->ForEach(region, [&has](uint32_t, const SlotRow* row) {
    has |= row != nullptr && row->state == SlotState::kStored;
  });
  return has;
}

// Regions of before that hold something, and new ones for the rest.
absl::StatusOr<std::vector<Arena::NamedRegion>> NamedArena::OpenRegions(
    const SlotTable::Geometry& geometry) {
  constexpr uint64_t kRemadeAtStart = uint64_t{4} << 30;  // Bytes: a second or so.
  uint64_t remade_bytes = 0;
  std::vector<Arena::NamedRegion> regions;
  for (uint32_t i = 0; i < geometry.regions; ++i) {
    const std::optional<SlotTable::Region> row = table_->region(i);
    if (row.has_value() && row->number != 0) {
      absl::StatusOr<MemoryRegion> memory =
          MemoryRegion::Attach(*folder_, row->number, geometry.region_bytes);
      // Nobody may be given what somebody had, and new memory takes time: some of it now, so that
      // the first puts find room, the rest meanwhile.
      const bool left = row->used && !HasRows(i) && remade_bytes < kRemadeAtStart;
      if (memory.ok() && !left) {
        regions.push_back({*std::move(memory), row->used});
        continue;
      }
      if (left) remade_bytes += geometry.region_bytes;
      if (!left && HasRows(i)) ++regions_lost_;
      folder_->RemoveRegion(row->number);  // Its room may be all that there is.
    } else if (!row.has_value()) {
      ++regions_lost_;
    }
    table_->ForgetRegion(i);
    absl::StatusOr<MemoryRegion> memory = MakeRegion(geometry.region_bytes);
    if (!memory.ok()) return memory.status();
    regions.push_back({*std::move(memory)});
  }
  return regions;
}

absl::StatusOr<MemoryRegion> NamedArena::MakeRegion(uint64_t bytes) {
  return MemoryRegion::CreateNamed(*folder_, next_number_.fetch_add(1), bytes);
}

}  // namespace kvd
