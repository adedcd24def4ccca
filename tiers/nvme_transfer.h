// One run of bytes on its way between memory and a device, whatever the engine: what is left of it,
// and what each result of the kernel means.
//
// Threads: one at a time.

#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/types/span.h"
#include "tiers/nvme_device.h"

namespace kvd {

class NvmeTransfer {
 public:
  enum class Step : uint8_t { kDone, kAgain, kFailed };

  NvmeTransfer(NvmeJob::Kind kind, uint64_t offset, absl::Span<std::byte> bytes)
      : kind_(kind), offset_(offset), rest_(bytes) {}

  NvmeJob::Kind kind() const { return kind_; }
  uint64_t offset() const { return offset_; }           // Of what is left; bytes.
  absl::Span<std::byte> rest() const { return rest_; }  // Empty for kSync.
  int error() const { return error_; }                  // errno of kFailed.

  // The kernel said `result`: bytes, or an errno as a negative number. kAgain: ask it for rest().
  Step Take(int64_t result) {
    if (result == -EINTR || result == -EAGAIN) {
      return ++retries_ <= kRetries ? Step::kAgain : Fail(static_cast<int>(-result));
    }
    if (result < 0) return Fail(static_cast<int>(-result));
    const auto moved = std::min(static_cast<size_t>(result), rest_.size());
    if (moved == rest_.size()) return Step::kDone;
    // Direct I/O goes by pages. No whole page: the file ends here, or nothing moves any more.
    const size_t whole = moved - moved % kNvmePageBytes;
    if (whole == 0) return Fail(EIO);
    offset_ += whole;
    rest_.remove_prefix(whole);
    return Step::kAgain;
  }

 private:
  static constexpr uint32_t kRetries = 1000;  // In a row the kernel never needs more than some.

  Step Fail(int error) {
    error_ = error;
    return Step::kFailed;
  }

  const NvmeJob::Kind kind_;
  uint64_t offset_;
  absl::Span<std::byte> rest_;
  uint32_t retries_ = 0;
  int error_ = 0;
};

// For tests: sees each result of the kernel before anybody else, on the thread that got it, and
// says what it is to be. Null: nothing is between.
using NvmeFault = std::function<int64_t(const NvmeTransfer& transfer, int64_t result)>;

}  // namespace kvd
