// The bare io_uring loop that NVMe rows stand beside: one thread, one ring, registered file and
// memory, a fixed number of requests under way, and nothing else: no queue, no sum, no other
// thread.
//
// Threads: one, that which made it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvd {

// One request: all of `bytes` from or to `offset`, in bytes of the file.
struct FloorRequest {
  uint64_t offset = 0;
  absl::Span<std::byte> bytes;
};

class UringFloor {
 public:
  // `memory` is registered, at most 1 GiB a span; all requests go to it. kUnavailable: refused.
  static absl::StatusOr<std::unique_ptr<UringFloor>> Create(
      int fd, absl::Span<const absl::Span<std::byte>> memory);
  ~UringFloor();
  UringFloor(const UringFloor&) = delete;
  UringFloor& operator=(const UringFloor&) = delete;

  // Carries all of them out, in this order, `depth` at a time. kUnavailable: one failed.
  absl::Status Read(absl::Span<const FloorRequest> requests, uint32_t depth);
  absl::Status Write(absl::Span<const FloorRequest> requests, uint32_t depth);

 private:
  struct Ring;
  explicit UringFloor(std::unique_ptr<Ring> ring);
  absl::Status Run(int opcode, absl::Span<const FloorRequest> requests, uint32_t depth);

  const std::unique_ptr<Ring> ring_;
};

}  // namespace kvd
