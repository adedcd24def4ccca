// Places at which this process can be told to kill itself, as if the power of SIGKILL had hit it
// just there: `kvd-bench crash` visits each of them. They are in the release build, because what
// is proved must be what runs.
//
//   KVD_KILL_POINT("commit.published");
//
// Where none is armed, a point costs one relaxed load and a branch that is never taken. This is the
// one piece of global state of the program: a point must be reachable from everywhere, and what
// stands behind it never returns.
//
// Threads: any. ArmKillPoint() before there are others.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"

namespace kvd {

// All points. A name says which step has just been taken, or is about to be ("x.before_y").
inline constexpr std::string_view kKillPoints[] = {
    // A start and a stop.
    "start.locked",
    "start.arena_opened",
    "start.nvme_opened",
    "start.serving",
    "stop.draining",
    "stop.drained",
    // Sessions.
    "session.opened",
    "session.staging_opened",
    "session.ended",
    "session.process_exited",
    "namespace.registered",
    "namespace.dropped",
    // Storing.
    "reserve.granted_block",
    "reserve.finished",
    "fill.before_copy",
    "fill.copied",
    "fill.told",
    "commit.inline_filling",
    "commit.before_part",
    "commit.part_visible",
    "commit.block_parked",
    "commit.finished",
    "reservation.closing",
    "reservation.freed",
    // Finding and reading.
    "lookup.found",
    "lookup.leased",
    "load.held",
    "load.finished",
    "release.applied",
    // Making room.
    "evict.before",
    "evict.after",
    "region.emptied",
    // A start finds what was left.
    "restore.table_taken_over",
    "restore.table_created",
    "restore.regions_opened",
    "restore.block_inserted",
    "restore.finished",
    "recover.scanned",
    "recover.index_repaired",
    // The slot table.
    "slot.before_row",
    "slot.row_written",
    "slot.half_cleared",
    "slot.cleared",
    // From DRAM to NVMe and back.
    "demote.begun",
    "demote.clean",
    "demote.part_appended",
    "demote.part_written",
    "demote.before_leaving",
    "demote.left",
    "nvme.evicted",
    "promote.begun",
    "promote.before_part",
    "promote.part_visible",
    "promote.landed",
    // Segments and their records.
    "segment.opened",
    "segment.synced",
    "segment.freed",
    "record.placed",
    "record.before_write",
    "record.written",
    "record.acknowledged",
    "record.read",
    "record.dropped",
    "seal.before_footer",
    "seal.before_trailer",
    "seal.trailer_written",
    "reclaim.begun",
    "reclaim.copy_read",
    "reclaim.copy_placed",
    "reclaim.copy_written",
    "reclaim.drained",
    "reclaim.before_release",
    // Superblocks and the index.
    "scope.added",
    "scope.purged",
    "scope.purge_told",
    "superblock.before_write",
    "superblock.written",
    "superblock.synced",
    "index.before_batch",
    "index.batch_written",
};
inline constexpr size_t kKillPointCount = std::size(kKillPoints);

// Arms the point that `order`, NAME or NAME:N, names: this process ends by SIGKILL when it passes
// there for the Nth time (N from 1). kInvalidArgument says what is wrong with it.
absl::Status ArmKillPoint(std::string_view order);

namespace internal {

inline std::atomic<size_t> armed_kill_point{kKillPointCount};  // None.

consteval size_t KillPointNumber(std::string_view name) {
  for (size_t i = 0; i < kKillPointCount; ++i) {
    if (kKillPoints[i] == name) return i;
  }
  throw "not in kKillPoints";  // Ends the compilation.
}

void PassArmedKillPoint();

inline void PassKillPoint(size_t number) {
  if (__builtin_expect(armed_kill_point.load(std::memory_order_relaxed) == number, 0)) {
    PassArmedKillPoint();
  }
}

}  // namespace internal
}  // namespace kvd

#define KVD_KILL_POINT(name) ::kvd::internal::PassKillPoint(::kvd::internal::KillPointNumber(name))
