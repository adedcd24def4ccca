// The superblock of a device: whose it is, how it is cut, and which scopes live on it with which
// epochs. It is the one thing on media that is written in place, so there are two copies of it,
// written alternately and synced; the newer valid one counts.
//
// Nothing is formatted because it was not understood: only a device whose first 8 MiB are zeros is
// new.
//
// Threads: pure, or blocking in Load and Store: the start, and one maintenance thread after it.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_tier.h"

namespace kvd {

inline constexpr uint32_t kSuperblockFormat = 1;
inline constexpr uint64_t kSuperblockCopyBytes = 4u << 20;
inline constexpr uint64_t kSuperblockBytes = 2 * kSuperblockCopyBytes;  // Segments begin here.
inline constexpr uint32_t kMaxScopes = 16384;

using MediaId = std::array<uint8_t, 16>;
std::string MediaIdText(const MediaId& id);  // 32 hexadecimal digits.

struct Superblock {
  MediaId device{};
  MediaId set{};         // Devices that belong together have one.
  uint32_t ordinal = 0;  // In the set.
  uint32_t devices = 1;  // Of the set.
  uint64_t segment_bytes = 0;
  uint64_t generation = 0;  // Of the superblock: rises with each write.
  uint64_t run = 0;         // Rises with each start; incarnations and sequences begin with it.
  std::vector<StoredScope> scopes;  // Number n is scopes[n - 1].
};

// Empty: it does not fit into a copy.
std::optional<std::string> EncodeSuperblock(const Superblock& superblock);

enum class SuperblockCopy : uint8_t {
  kValid,
  kZeros,
  kNewer,    // Intact, of a format that this program does not know.
  kDamaged,  // Ours by its magic, but the sum differs.
  kForeign,  // Something else.
};
// Requires: `bytes` is all of the copy, or at least as much as its length says.
SuperblockCopy ParseSuperblock(absl::Span<const std::byte> bytes, Superblock& superblock);

struct LoadedSuperblock {
  Superblock superblock;
  bool copy_lost = false;  // The other copy is damaged or cannot be read.
  uint32_t next_copy = 0;  // 0 or 1: where the next one goes.
};
// Empty: the device is new. kFailedPrecondition: a newer format, or not kvd's; kDataLoss: both
// copies are damaged; the device's error where nothing can be read. Nothing is ever written.
absl::StatusOr<std::optional<LoadedSuperblock>> LoadSuperblock(NvmeDevice& device);

// Writes one copy and syncs. kResourceExhausted: it does not fit.
absl::Status StoreSuperblock(NvmeDevice& device, const Superblock& superblock, uint32_t copy);

}  // namespace kvd
