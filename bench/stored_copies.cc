#include "bench/stored_copies.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>

#include "absl/container/flat_hash_map.h"
#include "bench/payload.h"
#include "proto/types/checksum.h"
#include "proto/types/clock.h"
#include "proto/types/status.h"
#include "tiers/arena.h"
#include "tiers/nvme_completions.h"
#include "tiers/open_device.h"
#include "tiers/recovery.h"
#include "tiers/rocks_index.h"
#include "tiers/segment_table.h"
#include "tiers/slot_table.h"
#include "tiers/superblock.h"

namespace kvd {
namespace {

// Blocks of the account by key.
class KnownBlocks {
 public:
  struct At {
    CrashChain* chain = nullptr;
    uint32_t block = 0;
  };

  explicit KnownBlocks(CrashAccount& account) {
    for (size_t i = 0; i < account.chains(); ++i) {
      CrashChain& chain = account.chain(i);
      for (uint32_t block = 0; block < kCrashChainBlocks; ++block) {
        by_key_[std::string(chain.key(block))] = {&chain, block};
      }
    }
  }
  const At* Find(const ChainHash& key) const {
    const auto it = by_key_.find(
        std::string(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size()));
    return it == by_key_.end() ? nullptr : &it->second;
  }

 private:
  absl::flat_hash_map<std::string, At> by_key_;
};

class File {
 public:
  File(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

}  // namespace

absl::StatusOr<std::string> ReadBytes(const std::string& path, ByteRange range) {
  const File file(path, O_RDONLY);
  if (file.fd() < 0) return ErrnoStatus(errno, path);
  std::string bytes(range.bytes, '\0');
  size_t got = 0;
  while (got < bytes.size()) {
    const ssize_t some = pread(file.fd(), bytes.data() + got, bytes.size() - got,
                               static_cast<off_t>(range.offset + got));
    if (some < 0) return ErrnoStatus(errno, path);
    if (some == 0) break;
    got += static_cast<size_t>(some);
  }
  bytes.resize(got);
  return bytes;
}

absl::Status WriteBytes(const std::string& path, uint64_t offset, std::string_view bytes) {
  const File file(path, O_WRONLY);
  if (file.fd() < 0) return ErrnoStatus(errno, path);
  const ssize_t wrote = pwrite(file.fd(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
  if (wrote != static_cast<ssize_t>(bytes.size())) return ErrnoStatus(errno, path);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredCopy>> CopiesOnNvme(const std::string& path, uint64_t device_bytes,
                                                     const std::string& index_path,
                                                     CrashAccount& account) {
  const SystemClock clock;
  const absl::StatusOr<std::unique_ptr<RocksIndex>> index =
      RocksIndex::Open({.path = index_path}, nullptr);
  if (!index.ok()) return index.status();
  absl::StatusOr<OpenedNvmeDevice> opened =
      OpenNvmeDevice({.path = path, .size_bytes = device_bytes, .may_use_uring = false}, clock);
  if (!opened.ok()) return opened.status();
  NvmeDevice& device = *opened->device;
  absl::StatusOr<std::optional<LoadedSuperblock>> superblock = LoadSuperblock(device);
  if (!superblock.ok()) return superblock.status();
  if (!superblock->has_value()) return std::vector<StoredCopy>();
  const Superblock& said = (*superblock)->superblock;

  const auto completions = std::make_shared<NvmeCompletions>();
  device.SetSink([completions](const NvmeDone& done) { completions->Push(0, done); });
  RecoveryInput input;
  const SegmentGeometry geometry = SegmentGeometry::Of(device.size_bytes(), said.segment_bytes);
  input.devices.push_back({&device, said.ordinal, geometry});
  input.scopes = said.scopes;
  input.index = index->get();
  input.completions = completions.get();
  RecoveryReport report;
  const Recovered recovered = Recover(input, report);

  const KnownBlocks known(account);
  std::vector<StoredCopy> copies;
  for (const RecoveredRecord& record : recovered.records) {
    const KnownBlocks::At* at = known.Find(record.info.key);
    if (at == nullptr) continue;
    const uint64_t offset =
        geometry.OffsetOf(LocalSegment(record.place.segment), record.place.page);
    copies.push_back({.chain = at->chain,
                      .block = at->block,
                      .part = record.info.id.shard,
                      .header_file = path,
                      .header = {offset, kNvmePageBytes},
                      .payload_file = path,
                      .payload = {offset + kNvmePageBytes, record.info.length}});
  }
  return copies;
}

absl::StatusOr<std::vector<StoredCopy>> CopiesInArena(const std::string& folder,
                                                      CrashAccount& account) {
  std::error_code error;
  std::vector<std::string> regions;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().filename() != ArenaFolder::kTableFile) regions.push_back(entry.path());
  }
  if (error) return ErrnoStatus(error.value(), folder);
  const std::string table = folder + "/" + ArenaFolder::kTableFile;
  const uint64_t table_bytes = std::filesystem::file_size(table, error);
  if (error) return ErrnoStatus(error.value(), table);
  absl::StatusOr<std::string> rows = ReadBytes(table, {0, table_bytes});
  if (!rows.ok()) return rows.status();

  const KnownBlocks known(account);
  std::vector<StoredCopy> copies;
  for (uint64_t at = 0; at + sizeof(SlotRow) <= rows->size(); at += sizeof(SlotRow)) {
    SlotRow row;
    std::memcpy(&row, rows->data() + at, sizeof row);
    const auto* bytes = reinterpret_cast<const std::byte*>(rows->data() + at);
    if (row.state != SlotState::kStored ||
        row.check != Crc32c({bytes + sizeof row.check, sizeof row - sizeof row.check})) {
      continue;
    }
    const KnownBlocks::At* block = known.Find(row.key);
    if (block == nullptr) continue;
    // Which file a region has now, its first bytes say: no two parts begin alike.
    const ByteRange payload{uint64_t{row.slot} * Arena::SlotBytes(row.length), row.length};
    for (const std::string& region : regions) {
      const absl::StatusOr<std::string> stored = ReadBytes(region, {payload.offset, 64});
      const auto* begin = reinterpret_cast<const std::byte*>(stored.ok() ? stored->data() : "");
      if (!stored.ok() || stored->size() < 64 ||
          CheckPayload(row.key.bytes, 0, row.id.shard, {begin, 64}) != kPayloadMatches) {
        continue;
      }
      copies.push_back({.chain = block->chain,
                        .block = block->block,
                        .part = row.id.shard,
                        .header_file = table,
                        .header = {at, sizeof row},
                        .payload_file = region,
                        .payload = payload});
      break;
    }
  }
  return copies;
}

}  // namespace kvd
