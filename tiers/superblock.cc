#include "tiers/superblock.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/types/checksum.h"
#include "proto/types/kill_point.h"
#include "proto/types/view.h"
#include "tiers/nvme_buffer.h"

namespace kvd {
namespace {

constexpr char kMagic[8] = {'K', 'V', 'D', 'N', 'V', 'M', 'E', '1'};

// The part that no format may ever change: how to tell ours, its format, and that it is intact.
struct Prefix {
  char magic[8];
  uint32_t format;
  uint32_t sum;  // CRC32C of `length` bytes, as if this were 0.
  uint64_t length;
};
static_assert(sizeof(Prefix) == 24);

// Follows the prefix; then each scope: epoch, two lengths, domain, canonical.
struct Fixed {
  MediaId device;
  MediaId set;
  uint32_t ordinal;
  uint32_t devices;
  uint64_t segment_bytes;
  uint64_t generation;
  uint64_t run;
  uint32_t scopes;
  uint32_t reserved;
};
static_assert(sizeof(Fixed) == 72);

struct ScopePrefix {
  uint32_t epoch;
  uint32_t domain_bytes;
  uint32_t canonical_bytes;
};

template <typename T>
void Put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Takes values from the front; false once there is too little.
class Reader {
 public:
  explicit Reader(absl::Span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  bool Get(T& value) {
    if (rest_.size() < sizeof(T)) return false;
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return true;
  }
  bool Get(std::string& value, size_t bytes) {
    if (rest_.size() < bytes) return false;
    value.assign(reinterpret_cast<const char*>(rest_.data()), bytes);
    rest_.remove_prefix(bytes);
    return true;
  }
  bool empty() const { return rest_.empty(); }

 private:
  absl::Span<const std::byte> rest_;
};

bool AllZeros(absl::Span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

uint32_t SumOf(absl::Span<const std::byte> bytes) {
  Prefix prefix;
  std::memcpy(&prefix, bytes.data(), sizeof(prefix));
  prefix.sum = 0;
  const auto* start = reinterpret_cast<const std::byte*>(&prefix);
  return Crc32cExtend(Crc32c({start, sizeof(prefix)}), bytes.subspan(sizeof(prefix)));
}

bool DecodeBody(absl::Span<const std::byte> body, Superblock& superblock) {
  Reader reader(body);
  Fixed fixed;
  if (!reader.Get(fixed)) return false;
  superblock = {.device = fixed.device,
                .set = fixed.set,
                .ordinal = fixed.ordinal,
                .devices = fixed.devices,
                .segment_bytes = fixed.segment_bytes,
                .generation = fixed.generation,
                .run = fixed.run};
  for (uint32_t i = 0; i < fixed.scopes; ++i) {
    ScopePrefix prefix;
    StoredScope scope;
    if (!reader.Get(prefix) || !reader.Get(scope.domain, prefix.domain_bytes) ||
        !reader.Get(scope.canonical, prefix.canonical_bytes)) {
      return false;
    }
    scope.epoch = prefix.epoch;
    superblock.scopes.push_back(std::move(scope));
  }
  return reader.empty();
}

// One copy as it lies on the device.
struct FoundCopy {
  SuperblockCopy state = SuperblockCopy::kDamaged;
  Superblock superblock;
  absl::Status read = absl::OkStatus();
};

FoundCopy ReadCopy(NvmeDevice& device, uint32_t copy) {
  FoundCopy found;
  // The first page first: few superblocks are longer, and a start should not read 8 MiB for it.
  const uint64_t offset = copy * kSuperblockCopyBytes;
  NvmeBuffer bytes(kNvmePageBytes);
  found.read = device.ReadNow(offset, bytes.span());
  if (!found.read.ok()) return found;
  Prefix prefix;
  std::memcpy(&prefix, bytes.data(), sizeof(prefix));
  const bool ours = std::memcmp(prefix.magic, kMagic, sizeof(kMagic)) == 0;
  const uint64_t more =
      ours ? std::min(WholePages(prefix.length), kSuperblockCopyBytes) : kSuperblockCopyBytes;
  if (more > kNvmePageBytes) {
    bytes = NvmeBuffer(more);
    found.read = device.ReadNow(offset, bytes.span());
    if (!found.read.ok()) return found;
  }
  found.state = ParseSuperblock(bytes.span(), found.superblock);
  return found;
}

}  // namespace

std::string MediaIdText(const MediaId& id) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(id.data()), id.size()});
}

std::optional<std::string> EncodeSuperblock(const Superblock& superblock) {
  std::string out(sizeof(Prefix), '\0');
  Put(out, Fixed{.device = superblock.device,
                 .set = superblock.set,
                 .ordinal = superblock.ordinal,
                 .devices = superblock.devices,
                 .segment_bytes = superblock.segment_bytes,
                 .generation = superblock.generation,
                 .run = superblock.run,
                 .scopes = static_cast<uint32_t>(superblock.scopes.size())});
  for (const StoredScope& scope : superblock.scopes) {
    Put(out, ScopePrefix{scope.epoch, static_cast<uint32_t>(scope.domain.size()),
                         static_cast<uint32_t>(scope.canonical.size())});
    out += scope.domain;
    out += scope.canonical;
  }
  if (out.size() > kSuperblockCopyBytes) return std::nullopt;
  Prefix prefix = {.format = kSuperblockFormat, .sum = 0, .length = out.size()};
  std::memcpy(prefix.magic, kMagic, sizeof(kMagic));
  std::memcpy(out.data(), &prefix, sizeof(prefix));
  prefix.sum =
      SumOf(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(out.data()), out.size()));
  std::memcpy(out.data(), &prefix, sizeof(prefix));
  return out;
}

SuperblockCopy ParseSuperblock(absl::Span<const std::byte> bytes, Superblock& superblock) {
  Prefix prefix;
  if (bytes.size() < sizeof(prefix)) return SuperblockCopy::kForeign;
  std::memcpy(&prefix, bytes.data(), sizeof(prefix));
  if (std::memcmp(prefix.magic, kMagic, sizeof(kMagic)) != 0) {
    return AllZeros(bytes) ? SuperblockCopy::kZeros : SuperblockCopy::kForeign;
  }
  if (prefix.length < sizeof(prefix) || prefix.length > bytes.size()) {
    return SuperblockCopy::kDamaged;
  }
  const absl::Span<const std::byte> whole = bytes.first(prefix.length);
  if (SumOf(whole) != prefix.sum) return SuperblockCopy::kDamaged;
  if (prefix.format > kSuperblockFormat) return SuperblockCopy::kNewer;
  if (prefix.format != kSuperblockFormat) return SuperblockCopy::kDamaged;  // There is no format 0.
  return DecodeBody(whole.subspan(sizeof(prefix)), superblock) ? SuperblockCopy::kValid
                                                               : SuperblockCopy::kDamaged;
}

absl::StatusOr<std::optional<LoadedSuperblock>> LoadSuperblock(NvmeDevice& device) {
  FoundCopy copies[2] = {ReadCopy(device, 0), ReadCopy(device, 1)};
  const auto either = [&](SuperblockCopy state) {
    return copies[0].state == state || copies[1].state == state;
  };
  if (either(SuperblockCopy::kNewer)) {
    return absl::FailedPreconditionError(
        absl::StrCat(View(device.name()),
                     ": written by a newer kvd, whose format this one does not know; "
                     "nothing was changed"));
  }
  if (either(SuperblockCopy::kValid)) {
    const bool both = copies[0].state == copies[1].state;
    const uint32_t newest =
        both ? (copies[1].superblock.generation > copies[0].superblock.generation ? 1 : 0)
             : (copies[1].state == SuperblockCopy::kValid ? 1 : 0);
    const SuperblockCopy other = copies[1 - newest].state;
    return LoadedSuperblock{.superblock = std::move(copies[newest].superblock),
                            .copy_lost = !both && other != SuperblockCopy::kZeros,
                            .next_copy = 1 - newest};
  }
  for (const FoundCopy& copy : copies) {
    if (!copy.read.ok()) return copy.read;
  }
  if (copies[0].state == SuperblockCopy::kZeros && copies[1].state == SuperblockCopy::kZeros) {
    return std::nullopt;
  }
  if (either(SuperblockCopy::kForeign)) {
    return absl::FailedPreconditionError(
        absl::StrCat(View(device.name()),
                     ": holds something that is not kvd's; nothing was changed. Where it may be "
                     "overwritten, zero its first 8 MiB or remove the file"));
  }
  return absl::DataLossError(
      absl::StrCat(View(device.name()),
                   ": both copies of the superblock are damaged; nothing was changed. Where its "
                   "contents may be lost, zero its first 8 MiB or remove the file"));
}

absl::Status StoreSuperblock(NvmeDevice& device, const Superblock& superblock, uint32_t copy) {
  const std::optional<std::string> encoded = EncodeSuperblock(superblock);
  if (!encoded) {
    return absl::ResourceExhaustedError("the superblock has no room for more scopes");
  }
  NvmeBuffer bytes(encoded->size());
  std::memcpy(bytes.data(), encoded->data(), encoded->size());
  KVD_KILL_POINT("superblock.before_write");
  const absl::Status written = device.WriteNow(copy * kSuperblockCopyBytes, bytes.span());
  if (!written.ok()) return written;
  KVD_KILL_POINT("superblock.written");
  const absl::Status synced = device.SyncNow();
  KVD_KILL_POINT("superblock.synced");
  return synced;
}

}  // namespace kvd
