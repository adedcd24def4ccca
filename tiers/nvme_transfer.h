// One run of bytes on its way between memory and a device, whatever the engine: what is left of it,
// and what each result of the kernel means.
//
// Threads: one at a time.

#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "tiers/nvme_device.h"

namespace kvd {

class NvmeTransfer {
 public:
  enum class Step : uint8_t { kDone, kAgain, kFailed };

  // Pieces that lie back to back on the device. None for kSync.
  NvmeTransfer(NvmeJob::Kind kind, uint64_t offset, absl::Span<const absl::Span<std::byte>> pieces)
      : kind_(kind), offset_(offset) {
    for (absl::Span<std::byte> piece : pieces) {
      rest_.push_back({piece.data(), piece.size()});
      bytes_ += piece.size();
    }
  }

  NvmeJob::Kind kind() const { return kind_; }
  // What is left: its place, in bytes, and its memory, which stays where it is until Take().
  uint64_t offset() const { return offset_; }
  const std::vector<iovec>& rest() const { return rest_; }
  int error() const { return error_; }  // errno of kFailed.

  // The kernel said `result`: bytes, or an errno as a negative number. kAgain: ask it for rest().
  Step Take(int64_t result) {
    if (result == -EINTR || result == -EAGAIN) {
      return ++retries_ <= kRetries ? Step::kAgain : Fail(static_cast<int>(-result));
    }
    if (result < 0) return Fail(static_cast<int>(-result));
    const auto moved = static_cast<uint64_t>(result);
    if (moved >= bytes_) return Step::kDone;
    // Direct I/O goes by pages. No whole page: the file ends here, or nothing moves any more.
    const uint64_t whole = moved - moved % kNvmePageBytes;
    if (whole == 0) return Fail(EIO);
    Advance(whole);
    return Step::kAgain;
  }

 private:
  static constexpr uint32_t kRetries = 1000;  // In a row the kernel never needs more than some.

  Step Fail(int error) {
    error_ = error;
    return Step::kFailed;
  }

  void Advance(uint64_t bytes) {
    offset_ += bytes;
    bytes_ -= bytes;
    auto piece = rest_.begin();
    for (; piece->iov_len <= bytes; ++piece) bytes -= piece->iov_len;
    piece->iov_base = static_cast<std::byte*>(piece->iov_base) + bytes;
    piece->iov_len -= bytes;
    rest_.erase(rest_.begin(), piece);
  }

  NvmeJob::Kind kind_;
  uint64_t offset_;
  uint64_t bytes_ = 0;  // Of rest_.
  std::vector<iovec> rest_;
  uint32_t retries_ = 0;
  int error_ = 0;
};

// For tests: sees each result of the kernel before anybody else, on the thread that got it, and
// says what it is to be. Null: nothing is between.
using NvmeFault = std::function<int64_t(const NvmeTransfer& transfer, int64_t result)>;

}  // namespace kvd
