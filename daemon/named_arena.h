// The arena of a daemon with a data directory: regions that have names, and the table of their
// slots. Taken over from the process before if it fits, else cold: then the files of before go, and
// who still maps them keeps them.
//
// Threads: Open() before anybody is served; MakeRegion() any; the rest the control thread.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/former_readers.h"
#include "tiers/arena.h"
#include "tiers/arena_folder.h"
#include "tiers/region_directory.h"
#include "tiers/slot_table.h"

namespace kvd {

class NamedArena {
 public:
  // `uuid` is the data directory's. kResourceExhausted: no room in `parent`; else what
  // ArenaFolder::Open() says.
  static absl::StatusOr<std::unique_ptr<NamedArena>> Open(RegionDirectory& directory,
                                                          const std::string& parent,
                                                          const std::string& uuid,
                                                          const Arena::Options& options);

  Arena& arena() { return *arena_; }
  SlotTable& table() { return *table_; }
  const std::string& path() const { return folder_->path(); }

  // Memory for a region that changes its domain.
  absl::StatusOr<MemoryRegion> MakeRegion(uint64_t bytes);

  // Why nothing of the process before is here; empty: it is, or there was none.
  const std::string& cold_because() const { return cold_because_; }
  uint32_t regions_lost() const { return regions_lost_; }  // Of a warm arena: damaged or missing.
  // Sessions of before whose processes live. Moves them out.
  std::vector<FormerReaders::Reader> TakeReaders() { return std::move(readers_); }

 private:
  NamedArena() = default;
  absl::Status TakeOver(const SlotTable::Geometry& geometry);
  absl::StatusOr<std::vector<Arena::NamedRegion>> OpenRegions(const SlotTable::Geometry& geometry);
  bool HasRows(uint32_t region) const;

  std::unique_ptr<ArenaFolder> folder_;
  std::unique_ptr<SlotTable> table_;
  std::unique_ptr<Arena> arena_;
  std::vector<FormerReaders::Reader> readers_;
  std::atomic<uint32_t> next_number_{1};  // Of a region's file.
  std::string cold_because_;
  uint32_t regions_lost_ = 0;
};

}  // namespace kvd
