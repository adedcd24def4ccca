#include "tiers/slot_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/kill_point.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr std::array<char, 8> kMagic = {'K', 'V', 'D', 'S', 'L', 'O', 'T', 'S'};
constexpr uint32_t kFormat = 1;
constexpr uint64_t kRowsAtATime = 2048;  // For whom memory is taken: 256 KiB.
// The longest canonical form has about 37,000 bytes.
constexpr uint32_t kMaxScopeBytes = 40u << 10;

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

// The sum of a row beyond its first word, which is the sum.
template <typename T>
uint32_t CheckOf(const T& row) {
  static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
  return Crc32c({reinterpret_cast<const std::byte*>(&row) + 4, sizeof(T) - 4});
}

// Stores a row so that whoever is killed in between leaves one whose sum is wrong.
template <typename T>
void Store(T* place, T row) {
  row.check = CheckOf(row);
  place->check = ~row.check;
  std::atomic_signal_fence(std::memory_order_seq_cst);  // The kernel keeps our stores in order.
  std::memcpy(reinterpret_cast<std::byte*>(place) + 4, reinterpret_cast<const std::byte*>(&row) + 4,
              sizeof(T) - 4);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  place->check = row.check;
}

template <typename T>
bool Intact(const T& row) {
  return row.check == CheckOf(row);
}

}  // namespace

struct SlotTable::Header {
  uint32_t check = 0;
  uint32_t format = kFormat;
  std::array<char, 8> magic = kMagic;
  uint64_t region_bytes = 0;
  uint32_t regions = 0;
  uint32_t sessions_lost = 0;  // 1: somebody reads of whom there is no row.
  uint32_t scopes = 0;         // Rows that have memory.
  uint32_t spare = 0;
  std::array<uint8_t, 32> machine{};
};

struct SlotTable::RegionRow {
  uint32_t check = 0;
  uint32_t number = 0;
  uint32_t used = 0;
  uint32_t rows = 0;  // Of slots, that have memory.
};

struct SlotTable::StoredSession {
  uint32_t check = 0;
  uint32_t taken = 0;
  std::array<uint8_t, 16> token{};
  uint64_t started = 0;
  uint32_t pid = 0;
  uint32_t spare = 0;
};

struct SlotTable::StoredScope {
  uint32_t check = 0;  // Of the sizes and of the text.
  uint32_t domain_bytes = 0;
  uint32_t canonical_bytes = 0;  // 0: no scope.
  char text[kMaxScopeBytes - 12];
};

SlotTable::SlotTable(const ArenaFolder& folder, const Geometry& geometry)
    : geometry_(geometry),
      folder_fd_(folder.fd()),
      path_(absl::StrCat(folder.path(), "/", ArenaFolder::kTableFile)),
      page_(folder.page_bytes()) {
  regions_at_ = RoundUp(sizeof(Header), 4096);
  sessions_at_ = RoundUp(regions_at_ + geometry.regions * sizeof(RegionRow), 4096);
  scopes_at_ = RoundUp(sessions_at_ + kMaxSessions * sizeof(StoredSession), page_);
  // Whole pages, so that a short scope takes one and not ten.
  scope_stride_ = RoundUp(sizeof(StoredScope), 4096);
  slots_at_ = RoundUp(scopes_at_ + kMaxScopes * scope_stride_, page_);
  region_stride_ = RoundUp(geometry.region_bytes / kMinSlotBytes * sizeof(SlotRow), page_);
  size_ = slots_at_ + geometry.regions * region_stride_;
}

SlotTable::~SlotTable() {
  if (data_ != nullptr) munmap(data_, size_);
  if (fd_ >= 0) close(fd_);
}

absl::Status SlotTable::Map(int flags) {
  fd_ = openat(folder_fd_, ArenaFolder::kTableFile, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
  if (fd_ < 0) return ErrnoStatus(errno, path_);
  if (flags != 0 && ftruncate(fd_, static_cast<off_t>(size_)) != 0) {
    return ErrnoStatus(errno, path_);
  }
  struct stat info;
  if (fstat(fd_, &info) != 0) return ErrnoStatus(errno, path_);
  if (static_cast<uint64_t>(info.st_size) != size_) {
    return absl::FailedPreconditionError(absl::StrCat(path_, " is of another geometry"));
  }
  // Most of it is never touched.
  void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, 0);
  if (memory == MAP_FAILED) return ErrnoStatus(errno, path_);
  data_ = static_cast<std::byte*>(memory);
  return absl::OkStatus();
}

// Takes memory for a stretch of the file: to touch what has none could be a SIGBUS.
bool SlotTable::Allocate(uint64_t offset, uint64_t bytes) {
  const uint64_t from = offset / page_ * page_;
  const uint64_t to = RoundUp(offset + bytes, page_);
  return fallocate(fd_, 0, static_cast<off_t>(from), static_cast<off_t>(to - from)) == 0;
}

absl::StatusOr<std::unique_ptr<SlotTable>> SlotTable::Create(const ArenaFolder& folder,
                                                             const Geometry& geometry) {
  auto table = std::unique_ptr<SlotTable>(new SlotTable(folder, geometry));
  unlinkat(folder.fd(), ArenaFolder::kTableFile, 0);
  if (absl::Status status = table->Map(O_CREAT | O_EXCL); !status.ok()) return status;
  if (!table->Allocate(0, table->scopes_at_)) return ErrnoStatus(errno, table->path_);
  for (uint32_t region = 0; region < geometry.regions; ++region) table->SetRegion(region, {});
  Store(table->At<Header>(0), Header{.region_bytes = geometry.region_bytes,
                                     .regions = geometry.regions,
                                     .machine = geometry.machine});
  return table;
}

absl::StatusOr<std::unique_ptr<SlotTable>> SlotTable::Attach(const ArenaFolder& folder,
                                                             const Geometry& geometry) {
  auto table = std::unique_ptr<SlotTable>(new SlotTable(folder, geometry));
  if (absl::Status status = table->Map(0); !status.ok()) return status;
  // What is a hole after damage would be memory that may not be there.
  if (!table->Allocate(0, table->scopes_at_)) return ErrnoStatus(errno, table->path_);
  if (absl::Status status = table->CheckHeader(); !status.ok()) return status;
  for (uint32_t region = 0; region < geometry.regions; ++region) {
    if (!table->region(region).has_value()) continue;
    const uint64_t bytes = uint64_t{table->RegionAt(region)->rows} * sizeof(SlotRow);
    if (bytes > 0 && !table->Allocate(table->slots_at_ + region * table->region_stride_, bytes)) {
      return ErrnoStatus(errno, table->path_);
    }
  }
  return table;
}

absl::Status SlotTable::CheckHeader() const {
  const Header& header = *At<Header>(0);
  if (header.magic != kMagic || !Intact(header)) {
    return absl::DataLossError(absl::StrCat(path_, " is damaged"));
  }
  if (header.format != kFormat || header.region_bytes != geometry_.region_bytes ||
      header.regions != geometry_.regions) {
    return absl::FailedPreconditionError(absl::StrCat(path_, " is of another geometry or format"));
  }
  if (header.machine != geometry_.machine) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, " is of another boot or another PID namespace"));
  }
  if (header.scopes > kMaxScopes) return absl::DataLossError(absl::StrCat(path_, " is damaged"));
  if (header.sessions_lost != 0) {
    return absl::DataLossError(absl::StrCat(path_, " does not know all who were reading"));
  }
  for (uint32_t row = 0; row < kMaxSessions; ++row) {
    const StoredSession& session = *SessionAt(row);
    if ((session.check != 0 || session.taken != 0) && !Intact(session)) {
      return absl::DataLossError(absl::StrCat(path_, " does not know all who were reading"));
    }
  }
  return absl::OkStatus();
}

// --- regions -------------------------------------------------------------------------------------

SlotTable::RegionRow* SlotTable::RegionAt(uint32_t region) const {
  return At<RegionRow>(regions_at_) + region;
}

void SlotTable::SetRegion(uint32_t region, const Region& row) {
  RegionRow* place = RegionAt(region);
  Store(place, RegionRow{.number = row.number, .used = row.used, .rows = place->rows});
}

void SlotTable::ForgetRegion(uint32_t region) {
  // The slots first: a row of a region that says it has none must not find any when it grows.
  const uint64_t from = slots_at_ + region * region_stride_;
  if (fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from),
                static_cast<off_t>(region_stride_)) != 0) {
    std::memset(data_ + from, 0, region_stride_);
  }
  Store(RegionAt(region), RegionRow{});
}

std::optional<SlotTable::Region> SlotTable::region(uint32_t region) const {
  const RegionRow& row = *RegionAt(region);
  if (!Intact(row) || row.rows > geometry_.region_bytes / kMinSlotBytes) return std::nullopt;
  return Region{.number = row.number, .used = row.used != 0};
}

// --- sessions ------------------------------------------------------------------------------------

SlotTable::StoredSession* SlotTable::SessionAt(uint32_t row) const {
  return At<StoredSession>(sessions_at_) + row;
}

uint32_t SlotTable::AddSession(const ReaderRow& session) {
  for (uint32_t row = 0; row < kMaxSessions; ++row) {
    if (SessionAt(row)->taken != 0) continue;
    Store(SessionAt(row), StoredSession{.taken = 1,
                                        .token = session.token,
                                        .started = session.started,
                                        .pid = static_cast<uint32_t>(session.pid)});
    return row;
  }
  Header header = *At<Header>(0);
  header.sessions_lost = 1;
  Store(At<Header>(0), header);
  return kNone;
}

void SlotTable::RemoveSession(uint32_t row) { Store(SessionAt(row), StoredSession{}); }

std::vector<std::pair<uint32_t, ReaderRow>> SlotTable::sessions() const {
  std::vector<std::pair<uint32_t, ReaderRow>> sessions;
  for (uint32_t row = 0; row < kMaxSessions; ++row) {
    const StoredSession& stored = *SessionAt(row);
    if (stored.taken == 0) continue;
    sessions.push_back({row, ReaderRow{.token = stored.token,
                                       .pid = static_cast<pid_t>(stored.pid),
                                       .started = stored.started}});
  }
  return sessions;
}

// --- scopes --------------------------------------------------------------------------------------

SlotTable::StoredScope* SlotTable::ScopeAt(uint32_t row) const {
  return At<StoredScope>(scopes_at_ + row * scope_stride_);
}

uint32_t SlotTable::AddScope(const ScopeRow& scope) {
  const uint64_t bytes = scope.domain.size() + scope.canonical.size();
  if (scope.canonical.empty() || bytes > sizeof(StoredScope::text)) return kNone;
  uint32_t free_row = kNone;
  for (uint32_t row = 0; row < At<Header>(0)->scopes; ++row) {
    const std::optional<ScopeRow> there = this->scope(row);
    if (there == scope) return row;
    if (!there.has_value() && free_row == kNone) free_row = row;
  }
  Header header = *At<Header>(0);
  if (free_row == kNone) {
    if (header.scopes == kMaxScopes) return kNone;
    free_row = header.scopes++;
  }
  if (!Allocate(scopes_at_ + free_row * scope_stride_, 12 + bytes)) return kNone;
  Store(At<Header>(0), header);
  StoredScope* place = ScopeAt(free_row);
  place->check = 0;
  place->domain_bytes = static_cast<uint32_t>(scope.domain.size());
  place->canonical_bytes = static_cast<uint32_t>(scope.canonical.size());
  std::memcpy(place->text, scope.domain.data(), scope.domain.size());
  std::memcpy(place->text + scope.domain.size(), scope.canonical.data(), scope.canonical.size());
  std::atomic_signal_fence(std::memory_order_seq_cst);
  place->check = Crc32c({reinterpret_cast<const std::byte*>(place) + 4, 8 + bytes});
  return free_row;
}

void SlotTable::RemoveScope(uint32_t row) {
  ScopeAt(row)->check = 0;
  ScopeAt(row)->canonical_bytes = 0;
}

std::optional<ScopeRow> SlotTable::scope(uint32_t row) const {
  if (row >= At<Header>(0)->scopes) return std::nullopt;
  const StoredScope& stored = *ScopeAt(row);
  const uint64_t bytes = uint64_t{stored.domain_bytes} + stored.canonical_bytes;
  if (stored.canonical_bytes == 0 || bytes > sizeof(StoredScope::text) ||
      stored.check != Crc32c({reinterpret_cast<const std::byte*>(&stored) + 4, 8 + bytes})) {
    return std::nullopt;
  }
  return ScopeRow{
      .domain = std::string(stored.text, stored.domain_bytes),
      .canonical = std::string(stored.text + stored.domain_bytes, stored.canonical_bytes)};
}

// --- slots ---------------------------------------------------------------------------------------

SlotRow* SlotTable::SlotAt(uint32_t region, uint32_t slot) const {
  return At<SlotRow>(slots_at_ + region * region_stride_) + slot;
}

// Whether the row of `slot` has memory, after taking more if need be.
bool SlotTable::RowsReach(uint32_t region, uint32_t slot) {
  RegionRow* place = RegionAt(region);
  if (slot < place->rows) return true;
  const uint64_t rows =
      std::min<uint64_t>(RoundUp(slot + 1, kRowsAtATime), geometry_.region_bytes / kMinSlotBytes);
  KVD_CHECK(slot < rows) << region << " " << slot;
  if (!Allocate(slots_at_ + region * region_stride_ + place->rows * sizeof(SlotRow),
                (rows - place->rows) * sizeof(SlotRow))) {
    return false;
  }
  RegionRow row = *place;
  row.rows = static_cast<uint32_t>(rows);
  Store(place, row);
  return true;
}

bool SlotTable::Put(SlotRow row) {
  if (!RowsReach(row.region, row.slot)) return false;
  KVD_KILL_POINT("slot.before_row");
  Store(SlotAt(row.region, row.slot), row);
  KVD_KILL_POINT("slot.row_written");
  return true;
}

void SlotTable::Quarantine(uint32_t region, uint32_t slot) {
  Put(SlotRow{.state = SlotState::kQuarantined, .region = region, .slot = slot});
}

void SlotTable::Clear(uint32_t region, uint32_t slot) {
  if (slot >= RegionAt(region)->rows) return;
  SlotRow* row = SlotAt(region, slot);
  // A row is empty when both are zero; one of them says damaged, which is as good.
  row->check = 0;
  KVD_KILL_POINT("slot.half_cleared");
  row->state = SlotState::kEmpty;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  KVD_KILL_POINT("slot.cleared");
}

void SlotTable::ForEach(uint32_t region,
                        absl::FunctionRef<void(uint32_t, const SlotRow*)> each) const {
  const uint32_t rows = RegionAt(region)->rows;
  for (uint32_t slot = 0; slot < rows; ++slot) {
    const SlotRow& row = *SlotAt(region, slot);
    if (row.check == 0 && row.state == SlotState::kEmpty) continue;
    const bool fine = Intact(row) && row.region == region && row.slot == slot &&
                      (row.state == SlotState::kStored || row.state == SlotState::kQuarantined);
    each(slot, fine ? &row : nullptr);
  }
}

}  // namespace kvd
