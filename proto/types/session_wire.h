// The session socket (PATH.session, SOCK_SEQPACKET): beside gRPC, because descriptors cannot travel
// through gRPC, and because its end of file is the end of the session.
//
//   client -> daemon  SessionHello
//   daemon -> client  SessionWelcome                     the token that every call then carries
//   client -> daemon  RegionRequest                      when it first meets a region number
//   daemon -> client  RegionReply    + read-only fd
//   client -> daemon  StagingRequest [+ own memfd]       before its first put
//   daemon -> client  StagingReply   + [memfd] + fill channel
//
// A session has at most one memory that the daemon made and one of its own, each with a channel.
// What a Commit names as staged lies in the one that it got first.
//
// The fill channel is another SEQPACKET socket, read by a copier thread: the client sends arrays of
// FillRequest, the copier answers each with a FillReply, in order. It carries offsets only; every
// field is checked against the reservation before a byte moves.
//
// Requests are answered in order. A message of the wrong size or kind ends the session.

#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

namespace kvd {

inline constexpr uint32_t kSessionMagic = 0x3144564b;  // "KVD1"
using SessionToken = std::array<uint8_t, 16>;          // Unguessable; names the session in calls.

// Trailing metadata of a call that a draining daemon refuses with UNAVAILABLE. A client takes it
// for a miss and keeps its session, whose holds it still has to give back.
inline constexpr char kDrainingKey[] = "kvd-draining";

enum class SessionMessage : uint32_t {
  kHello = 1,
  kWelcome = 2,
  kRegionRequest = 3,
  kRegionReply = 4,
  kStagingRequest = 5,
  kStagingReply = 6,
};

enum class SessionStatus : uint32_t {
  kOk = 0,
  kVersion = 1,   // No protocol version in common.
  kFull = 2,      // Too many sessions or too much staging; try later.
  kNotFound = 3,  // No such region for this domain.
  kInvalid = 4,   // The descriptor or the size will not do (see daemon log).
  kRefused = 5,   // The rules of this daemon name neither this user nor its groups.
};

struct SessionHello {
  uint32_t magic = kSessionMagic;
  SessionMessage kind = SessionMessage::kHello;
  uint32_t version_min = 0;
  uint32_t version_max = 0;
  // A session of this process that has ended and whose extents nobody reads any more: its holds end
  // now instead of when the process does. All zeros: none.
  SessionToken finished_session{};
};

struct SessionWelcome {
  SessionMessage kind = SessionMessage::kWelcome;
  SessionStatus status = SessionStatus::kOk;
  uint32_t version = 0;
  uint32_t reserved = 0;
  SessionToken token{};
};

struct RegionRequest {
  SessionMessage kind = SessionMessage::kRegionRequest;
  uint32_t region = 0;
};

struct RegionReply {
  SessionMessage kind = SessionMessage::kRegionReply;
  SessionStatus status = SessionStatus::kOk;
  uint32_t region = 0;
  uint32_t reserved = 0;
  uint64_t size_bytes = 0;
};

struct StagingRequest {
  SessionMessage kind = SessionMessage::kStagingRequest;
  uint32_t own = 0;         // 1: the memfd that comes with this message; it must be sealed
                            // against shrinking, and if it has huge pages also against new
                            // writable mappings, and taken whole.
  uint64_t size_bytes = 0;  // At most kMaxStagingBytes unless own.
};

struct StagingReply {
  SessionMessage kind = SessionMessage::kStagingReply;
  SessionStatus status = SessionStatus::kOk;
  uint64_t size_bytes = 0;  // What was given; may be less than was asked for.
};

// Copy `length` bytes at `staging_offset` into part `index` (block times parts plus part) of a
// reservation, from byte `part_offset` of the part on. A part comes whole or in pieces, in order
// and without a gap, so that its first bytes are stored while the last ones are still being staged;
// it is filled with its last byte.
struct FillRequest {
  uint64_t reservation_id = 0;
  uint64_t staging_offset = 0;
  uint32_t index = 0;
  uint32_t length = 0;
  uint32_t part_offset = 0;
  uint32_t whole = 0;  // Not 0: these must be all bytes of the part.
};
// The same in sessions of protocol version 1, where a part always comes whole.
struct FillRequestV1 {
  uint64_t reservation_id = 0;
  uint64_t staging_offset = 0;
  uint32_t index = 0;
  uint32_t length = 0;
};

enum class FillStatus : uint32_t {
  kOk = 0,
  kGone = 1,     // No such reservation of this session, or it ended.
  kInvalid = 2,  // Out of range, wrong length, not the next bytes of its part, or filled before.
};

struct FillReply {
  uint32_t index = 0;
  FillStatus status = FillStatus::kOk;
  uint32_t sum = 0;  // CRC32C of what this fill stored.
  uint32_t reserved = 0;
};

inline constexpr uint32_t kMaxFillsPerMessage = 32;
inline constexpr uint32_t kMaxFillsInFlight = 256;  // Of one session; beyond it the channel ends.

static_assert(sizeof(SessionHello) == 32 && sizeof(SessionWelcome) == 32);
static_assert(sizeof(RegionRequest) == 8 && sizeof(RegionReply) == 24);
static_assert(sizeof(StagingRequest) == 16 && sizeof(StagingReply) == 16);
static_assert(sizeof(FillRequest) == 32 && sizeof(FillRequestV1) == 24 && sizeof(FillReply) == 16);

}  // namespace kvd
