// Who moves and sums bytes for the control thread, which never touches them: copier threads, and
// the one that makes regions. Results come back through the inbox.
//
// Threads: called by the control thread; nothing blocks.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "proto/types/session_wire.h"

namespace kvd {

// Memory that a client fills, mapped read-only by the daemon. It cannot shrink.
class StagedBytes {
 public:
  virtual ~StagedBytes() = default;
  virtual absl::Span<const std::byte> bytes() const = 0;
};

// Copies from staging into the parts of one reservation, as a client's fills would.
struct FillJob {
  uint32_t session = 0;  // Serial number.
  std::shared_ptr<const StagedBytes> staging;
  std::vector<FillRequest> fills;
  uint64_t reservation_id = 0;  // Told back when all are done.
};

// Sums a part again, because a reader called it damaged.
struct VerifyJob {
  absl::Span<const std::byte> bytes;
  uint32_t sum = 0;
  uint32_t part = 0;  // Told back.
};

class Mover {
 public:
  virtual ~Mover() = default;
  // False: too many jobs wait already.
  virtual bool Fill(FillJob job) = 0;
  virtual bool Verify(VerifyJob job) = 0;
  virtual void MakeRegion(uint32_t region, uint64_t bytes) = 0;
};

}  // namespace kvd
