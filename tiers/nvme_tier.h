// The NVMe tier as the control thread sees it: records go in, reads come out, and dead room is
// reclaimed by whole segments. It decides no admission and no eviction.
//
// A device is cut into segments. A record (header page and payload) is appended to the open one of
// its device; a sealed segment ends in a footer of its headers. Segments are the truth: the index
// in RocksDB is written after the data, and Recover() rebuilds what it lacks.
//
// Threads: the control thread, but for what the devices' and the index's own threads do below it.
// Nothing blocks but Open() and Recover(), which run before anybody is served.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/types/block.h"
#include "proto/types/clock.h"
#include "tiers/nvme_device.h"

namespace kvd {

// Where a record's header is. Never reused while the record is live.
struct RecordPlace {
  uint32_t segment = 0;  // Of all devices together.
  uint32_t page = 0;     // In the segment; the payload follows at page + 1.

  friend bool operator==(RecordPlace a, RecordPlace b) = default;
};

// A scope as media know it: numbers of domains and namespaces are of one run only. Kept in the
// superblock of each device, with its epoch.
struct StoredScope {
  std::string domain;     // Its name.
  std::string canonical;  // Canonical form of the namespace's descriptor.
  uint32_t epoch = 0;     // Records of an earlier one are dead.
};
using ScopeNumber = uint32_t;  // Of a StoredScope, from 1, stable on these media.

// What a record says about the part that it holds.
struct RecordInfo {
  ScopeNumber scope = 0;
  ChainHash key;
  bool has_parent = false;
  ChainHash parent;
  uint32_t depth = 0;
  PartId id;
  uint32_t length = 0;  // Bytes of payload.
  uint32_t sum = 0;     // CRC32C of the payload.
  uint32_t generation = 0;
};

// What Recover() found: intact by its header; the payload is verified when it is read.
struct RecoveredRecord {
  RecordInfo info;
  RecordPlace place;
  uint64_t sequence = 0;  // Of two records of one part, the later is the better.
};

class NvmeTier {
 public:
  struct Completion {
    uint64_t tag = 0;
    NvmeOutcome outcome = NvmeOutcome::kOk;
    int error = 0;
    Nanos took = 0;
  };
  // What the tier tells who uses it, on the control thread, at the end of Poll(): moves first, then
  // losses, then what has ended.
  class Owner {
   public:
    virtual ~Owner() = default;
    // A job that was submitted with `tag` has ended.
    virtual void NvmeEnded(const Completion& completion) = 0;
    // A live record was copied forward: it lies at `to` now. `occupant` is who was told of it.
    virtual void NvmeMoved(uint32_t occupant, RecordPlace to) = 0;
    // A live record could not be read while its segment was being reclaimed; or (kExpired) nothing
    // could be copied, as no segment was free, and this one's records had to go.
    virtual void NvmeLost(uint32_t occupant, NvmeOutcome outcome) = 0;
  };

  virtual ~NvmeTier() = default;

  // The number of a scope; makes it durable in every superblock when it is new (asynchronously:
  // records of it are not acknowledged before). kResourceExhausted: as many as there may be.
  virtual absl::StatusOr<ScopeNumber> AddScope(const std::string& domain,
                                               const std::string& canonical) = 0;
  // All records of the scope are dead from now on, and after any restart: `done` is told when that
  // is durable, on the control thread.
  virtual absl::Status PurgeScope(ScopeNumber scope, std::function<void(absl::Status)> done) = 0;

  // --- records -----------------------------------------------------------------------------------

  // Bytes of a device that a payload takes with its header.
  static uint64_t RoomOf(uint32_t length) {
    const uint64_t pages = (uint64_t{length} + kNvmePageBytes - 1) / kNvmePageBytes;
    return (pages + 1) * kNvmePageBytes;
  }

  // The largest payload that a record may have: what segments have room for.
  virtual uint32_t max_payload_bytes() const = 0;

  // A recovered record is wanted: it lives from now on, as if `occupant` had appended it. All that
  // are wanted are adopted before the first Poll(); the others are dead. False: it is not there.
  virtual bool Adopt(RecordPlace place, uint32_t occupant) = 0;

  // Appends a record. `payload` stays as it is until the completion with `tag`, which comes when
  // the record is as durable as it was asked for; after any outcome but kOk there is no record at
  // the place. A payload above a page has whole pages, aligned (the arena's slots have), and what
  // lies behind info.length is zeroed. `occupant` (not 0) names the record in Owner calls and until
  // Drop(). Empty: no room now, too much in flight, or the tier is not taking writes; nothing
  // happened. Requires: the scope was added.
  virtual std::optional<RecordPlace> Append(const RecordInfo& info, absl::Span<std::byte> payload,
                                            uint32_t occupant, uint64_t tag) = 0;

  // Reads the payload of a record into `target` (whole pages, aligned, where it is above a page)
  // and verifies header and sum against `info`. Ends with kCorrupt if either differs. False: too
  // much in flight, or the tier is out.
  virtual bool Read(RecordPlace place, const RecordInfo& info, absl::Span<std::byte> target,
                    Nanos deadline, uint64_t tag) = 0;

  // The record is dead: its room comes back when its segment is reclaimed, not while it is read.
  // One that is dead already is left alone.
  virtual void Drop(RecordPlace place, uint32_t length) = 0;

  // As of NvmeDevice, for all devices.
  virtual void ReplaceMemory(absl::Span<std::byte> /*before*/, absl::Span<std::byte> /*after*/) {}

  // Ends what has ended, writes what waits, reclaims what is due. Cheap; call it each turn.
  virtual void Poll(Nanos now) = 0;
  // When Poll() has something to do at the latest.
  virtual Nanos NextDeadline() const = 0;

  // --- looking (control thread) ------------------------------------------------------------------

  // The most that live records may take, together with their headers, so that segments can be
  // reclaimed at a bearable cost.
  virtual uint64_t live_capacity_bytes() const = 0;
  virtual uint64_t live_bytes() const = 0;
  virtual bool writable() const = 0;  // Not out, not read-only, not full.
  virtual bool readable() const = 0;
  virtual uint32_t in_flight() const = 0;  // Jobs of Append() and Read().
  // How long `bytes` more of reading would take now, by queue depth and measured bandwidth; us.
  virtual uint64_t EstimateReadUs(uint64_t bytes) const = 0;
};

}  // namespace kvd
