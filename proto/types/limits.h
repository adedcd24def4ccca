// The bounds of the wire, in one place, because both sides enforce them. DESIGN: work per call is
// bounded. Tests try one below, at and one above each.

#pragma once

#include <cstdint>

namespace kvd {

// 2: fills come in pieces, and a commit may overtake them.
inline constexpr uint32_t kProtocolVersion = 2;     // Spoken by this build.
inline constexpr uint32_t kProtocolVersionMin = 1;  // Oldest that the daemon still understands.

inline constexpr uint32_t kMaxHashBytes = 32;
inline constexpr uint32_t kMinHashBytes = 8;
inline constexpr uint32_t kMaxLookupBlocks = 32768;  // Keys of one lookup.
inline constexpr uint32_t kMaxPageBlocks = 2048;     // Keys of what answers or takes extents.
inline constexpr uint32_t kMaxPageExtents = 16384;   // Blocks times parts of such a page.
inline constexpr uint32_t kMaxChainDepth = 1u << 20;
inline constexpr uint32_t kMaxGroups = 16;          // Of a namespace.
inline constexpr uint32_t kMaxExtra = 64;           // Entries of a descriptor's `extra`.
inline constexpr uint32_t kMaxPartsPerBlock = 256;  // Groups times shards.
inline constexpr uint32_t kMaxPartBytes = 64u << 20;
inline constexpr uint32_t kMaxAnnounceBytes = 16384;  // For one block.
inline constexpr uint32_t kMaxReleasesPerCall = 1024;
inline constexpr uint32_t kMaxLeaseMs = 10 * 60 * 1000;
inline constexpr uint32_t kMaxPinMs = 7u * 24 * 3600 * 1000;
inline constexpr uint32_t kMaxNameBytes = 256;  // Any string of a descriptor, an owner's name.
inline constexpr uint32_t kMaxMessageBytes = 1280 * 1024;    // 1.25 MiB, both directions.
inline constexpr uint32_t kMaxChunkBytes = 512 * 1024;       // Of a stream.
inline constexpr uint32_t kMaxStreamMs = 60 * 60 * 1000;     // From start to deadline.
inline constexpr uint32_t kMaxStagingBytes = 16u << 20;      // Of one session, made by the daemon.
inline constexpr uint64_t kMaxOwnStagingBytes = 1ull << 40;  // A memfd that a client brings.

}  // namespace kvd
