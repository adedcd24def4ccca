// One NVMe device as bytes: reads and writes of whole pages, many at a time, no order among them.
//
// What stands behind it: a preallocated file or a block device through io_uring with O_DIRECT, the
// same through a pool of threads where io_uring is refused, and in tests a device with a volatile
// and a durable image (tests/sim).
//
// Threads: Submit() is one thread's, the control thread; it never blocks. Completions are told on
// any thread. The *Now() functions block and are for the start and for maintenance.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/types/clock.h"

namespace kvd {

// Of all offsets, lengths and addresses.
inline constexpr uint32_t kNvmePageBytes = 4096;

struct NvmeJob {
  enum class Kind : uint8_t {
    kRead,   // Reads are served before writes, and by deadline.
    kWrite,  // Durable against a killed process when it is done; against power loss after a sync.
    kSync,   // All writes that were done before it was submitted are durable when it is done.
  };
  Kind kind = Kind::kRead;
  uint64_t offset = 0;  // Bytes into the device.
  // Where the bytes come from or go to, back to back on the device. They stay the job's until its
  // completion, however long that takes: the kernel may write there as long.
  std::vector<absl::Span<std::byte>> pieces;
  // Of a read: the CRC32C that pieces[i] is to have, summed after the read by the device's thread,
  // so that nobody else looks at the bytes again; empty: not summed.
  std::vector<uint32_t> sums;
  Nanos deadline =
      INT64_MAX;     // When nobody wants it any more: a job that has not begun is dropped.
  uint64_t tag = 0;  // Told back.
};

enum class NvmeOutcome : uint8_t {
  kOk,
  kCorrupt,  // Read, but a sum differs.
  kExpired,  // Dropped before it began.
  kError,    // `error` says which.
};

struct NvmeDone {
  uint64_t tag = 0;
  NvmeOutcome outcome = NvmeOutcome::kOk;
  int error = 0;   // errno of kError. A short transfer is EIO.
  Nanos took = 0;  // From submission to completion.
};

class NvmeDevice {
 public:
  using Sink = std::function<void(const NvmeDone&)>;  // Runs on any thread; does not block.

  virtual ~NvmeDevice() = default;  // Waits for what the kernel still has, within a bound.

  // Where completions go. Before the first Submit().
  virtual void SetSink(Sink sink) = 0;

  // False: as much is in flight as may be (bounded in jobs and in bytes); nothing happened.
  virtual bool Submit(NvmeJob job) = 0;

  // Memory that was named when the device was opened is about to be unmapped, and `after`, of the
  // same size, serves in its place: what is pinned follows. No job has bytes of `before`, now or
  // later. On the thread of Submit().
  virtual void ReplaceMemory(absl::Span<std::byte> /*before*/, absl::Span<std::byte> /*after*/) {}

  virtual uint64_t size_bytes() const = 0;
  virtual std::string_view name() const = 0;    // For messages: the path.
  virtual std::string_view engine() const = 0;  // "io_uring", "threads", "simulated".

  // At the start and for the superblock. kUnavailable with errno's text; kDataLoss: short.
  virtual absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) = 0;
  virtual absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) = 0;
  virtual absl::Status SyncNow() = 0;
};

}  // namespace kvd
