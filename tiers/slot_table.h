// What lies in the slots of a named arena, told to the process that comes next: a file beside the
// regions that no client maps. It is the truth of a warm restart.
//
// It has a header (of which machine and geometry), and rows with a sum each: of regions, of
// sessions that may be reading, of scopes (domain and namespace), and of slots. A row is written
// after what it says is true and cleared before that ends. A process that is killed between two
// stores leaves a row whose sum is wrong: nothing is known of that slot.
//
// Memory of slots' rows is taken as slots are used: 128 bytes each.
//
// Threads: one, the control thread.

#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "proto/types/block.h"
#include "tiers/arena_folder.h"

namespace kvd {

enum class SlotState : uint8_t {
  kEmpty = 0,
  kStored = 1,
  kQuarantined = 2,  // Of no block any more, but somebody may be reading it.
};

// Row of one slot.
struct SlotRow {
  uint32_t check = 0;  // CRC32C of all that follows.
  SlotState state = SlotState::kEmpty;
  PartId id;
  bool has_parent = false;
  uint32_t region = 0;  // Its own place: a page of the table in another's place is noticed.
  uint32_t slot = 0;
  uint32_t scope = 0;  // Row.
  uint32_t depth = 0;
  uint32_t length = 0;      // Bytes of the part.
  uint32_t generation = 0;  // Of the room.
  uint32_t sum = 0;         // CRC32C of the part.
  ChainHash key;
  ChainHash parent;
  std::array<std::byte, 28> spare{};
};
static_assert(sizeof(SlotRow) == 128);

// A session that may hold parts of this arena.
struct ReaderRow {
  std::array<uint8_t, 16> token{};
  pid_t pid = 0;
  uint64_t started = 0;  // As /proc/PID/stat says; 0: not known.

  friend bool operator==(const ReaderRow& a, const ReaderRow& b) = default;
};

// A scope as the next process will know it.
struct ScopeRow {
  std::string domain;     // Name.
  std::string canonical;  // Form of the namespace's descriptor.

  friend bool operator==(const ScopeRow& a, const ScopeRow& b) = default;
};

class SlotTable {
 public:
  static constexpr uint32_t kNone = 0xffffffff;
  static constexpr uint32_t kMaxSessions = 4096;
  static constexpr uint32_t kMaxScopes = 2048;
  static constexpr uint32_t kMinSlotBytes = 512;

  struct Geometry {
    uint64_t region_bytes = 0;
    uint32_t regions = 0;
    // In whose terms process numbers are: another boot or PID namespace knows other processes.
    std::array<uint8_t, 32> machine{};

    friend bool operator==(const Geometry& a, const Geometry& b) = default;
  };

  // An empty table, in the place of one that may be there.
  static absl::StatusOr<std::unique_ptr<SlotTable>> Create(const ArenaFolder& folder,
                                                           const Geometry& geometry);
  // That of the process before.
  //   kNotFound            there is none.
  //   kFailedPrecondition  of another geometry, machine or format.
  //   kDataLoss            it is damaged, or does not know all readers.
  static absl::StatusOr<std::unique_ptr<SlotTable>> Attach(const ArenaFolder& folder,
                                                           const Geometry& geometry);

  ~SlotTable();
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;

  // --- regions -----------------------------------------------------------------------------------

  struct Region {
    uint32_t number = 0;  // Of its file; 0: none.
    bool used = false;    // Some domain had it since the file was made.
  };
  // Requires: no slot of the region has a row, if the number changes.
  void SetRegion(uint32_t region, const Region& row);
  // Empties the region's row and those of its slots, whatever they say.
  void ForgetRegion(uint32_t region);
  // Empty: damaged, and all rows of its slots with it.
  std::optional<Region> region(uint32_t region) const;

  // --- sessions ----------------------------------------------------------------------------------

  // The row. kNone: there are too many; then the next process trusts nothing here.
  uint32_t AddSession(const ReaderRow& session);
  void RemoveSession(uint32_t row);
  std::vector<std::pair<uint32_t, ReaderRow>> sessions() const;

  // --- scopes ------------------------------------------------------------------------------------

  // The row, an old one if there is one of the same words. kNone: no room, or too long.
  uint32_t AddScope(const ScopeRow& scope);
  void RemoveScope(uint32_t row);
  std::optional<ScopeRow> scope(uint32_t row) const;  // Empty: none, or damaged.

  // --- slots -------------------------------------------------------------------------------------

  // Writes the row of row.region and row.slot; `check` is set here. False: no memory for it.
  bool Put(SlotRow row);
  void Quarantine(uint32_t region, uint32_t slot);
  void Clear(uint32_t region, uint32_t slot);
  // Calls for every row of a region that is not empty; null: that of `slot` is damaged.
  void ForEach(uint32_t region, absl::FunctionRef<void(uint32_t slot, const SlotRow*)> each) const;

 private:
  struct Header;
  struct RegionRow;
  struct StoredSession;
  struct StoredScope;

  SlotTable(const ArenaFolder& folder, const Geometry& geometry);
  absl::Status Map(int flags);
  bool Allocate(uint64_t offset, uint64_t bytes);
  bool RowsReach(uint32_t region, uint32_t slot);
  absl::Status CheckHeader() const;
  template <typename T>
  T* At(uint64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }
  RegionRow* RegionAt(uint32_t region) const;
  StoredSession* SessionAt(uint32_t row) const;
  StoredScope* ScopeAt(uint32_t row) const;
  SlotRow* SlotAt(uint32_t region, uint32_t slot) const;

  const Geometry geometry_;
  const int folder_fd_;
  const std::string path_;
  const uint64_t page_;
  // Offsets into the file.
  uint64_t regions_at_ = 0;
  uint64_t sessions_at_ = 0;
  uint64_t scopes_at_ = 0;
  uint64_t scope_stride_ = 0;
  uint64_t slots_at_ = 0;
  uint64_t region_stride_ = 0;  // Of the rows of one region's slots.
  uint64_t size_ = 0;

  int fd_ = -1;
  std::byte* data_ = nullptr;
};

}  // namespace kvd
