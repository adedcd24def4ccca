// Records that travel packed in `bytes` fields: an array of 2,048 of them costs a copy, not 2,048
// message objects. Little-endian, as they lie in memory; a big-endian host would not build.

#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

namespace kvd {

static_assert(std::endian::native == std::endian::little);

// Where one part lies and how to check it. `length` 0: the part is not there (a window or a state
// may miss parts). Extents stand block by block, in the order of the parts that were asked for.
struct PackedExtent {
  uint32_t region = 0;         // A number never used again for other memory.
  uint32_t generation = 0;     // Differs each time the same room is handed out.
  uint64_t offset = 0;         // Bytes from the start of the region.
  uint32_t stored_length = 0;  // Bytes as they lie there.
  uint32_t length = 0;         // Bytes after decoding.
  uint16_t codec = 0;          // 0: as put.
  uint8_t sum_algorithm = 0;   // 1: CRC32C.
  uint8_t tier = 0;            // As `Tier` of kvd.proto.
  uint32_t sum = 0;            // Of the stored bytes.
  uint32_t sum_chunk = 0;      // Bytes that each sum covers; 0: all of them.
  uint32_t reserved = 0;
};
static_assert(sizeof(PackedExtent) == 40 && std::is_trivially_copyable_v<PackedExtent>);

inline constexpr uint8_t kSumCrc32c = 1;

// Where the bytes of one part wait in the session's staging memory.
struct PackedStaged {
  uint64_t offset = 0;  // Bytes from the start of the staging memory.
  uint32_t length = 0;  // Bytes.
  uint32_t sum = 0;     // CRC32C of them, where CommitRequest.staged_sums says so.
};
static_assert(sizeof(PackedStaged) == 16);

// Record `i` of a packed field. Requires: it is there.
template <typename T>
T UnpackAt(std::string_view packed, size_t i) {
  static_assert(std::is_trivially_copyable_v<T>);
  T record;
  std::memcpy(&record, packed.data() + i * sizeof(T), sizeof(T));
  return record;
}

template <typename T>
void PackAt(std::string& packed, size_t i, const T& record) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(packed.data() + i * sizeof(T), &record, sizeof(T));
}

// What became of one block of a Reserve; one byte each.
enum class ReserveState : uint8_t {
  kGranted = 1,       // Yours: fill the parts, then commit.
  kPresent = 2,       // All parts asked for are there: do not send it.
  kInProduction = 3,  // Another session reserved it and may still commit.
  kNoRoom = 4,        // No index entry or no room, and nothing can be evicted now.
  kNoParent = 5,      // The parent (or an earlier block of the list) is not there: stop here.
};

// What became of one block of a Commit; one byte each.
enum class CommitResult : uint8_t {
  kCommitted = 1,  // Visible now, or waiting only for parts of other shards.
  kPresent = 2,    // Was there already: the bytes sent were not needed.
  kParked = 3,     // Below a parent still in production: visible when that one is.
  kNotFilled = 4,  // Some part was never filled; still reserved.
  kNoRoom = 5,     // Nothing can be evicted now.
  kNoParent = 6,   // The parent is not there.
  kFailed = 7,     // The bytes in staging were not those that the caller had summed.
};

}  // namespace kvd
