// Memory that a device can read into and write from: aligned to pages, zeroed, of its own.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "absl/types/span.h"
#include "tiers/nvme_device.h"

namespace kvd {

// Bytes rounded up to whole pages.
constexpr uint64_t WholePages(uint64_t bytes) {
  return (bytes + kNvmePageBytes - 1) / kNvmePageBytes * kNvmePageBytes;
}

class NvmeBuffer {
 public:
  NvmeBuffer() = default;
  explicit NvmeBuffer(uint64_t bytes)
      : bytes_(WholePages(bytes)),
        data_(static_cast<std::byte*>(::operator new (bytes_, std::align_val_t{kNvmePageBytes}))) {
    std::memset(data_.get(), 0, bytes_);
  }

  uint64_t size() const { return bytes_; }
  std::byte* data() const { return data_.get(); }
  absl::Span<std::byte> span() const { return {data_.get(), bytes_}; }
  // Requires: inside.
  absl::Span<std::byte> span(uint64_t offset, uint64_t bytes) const {
    return {data_.get() + offset, bytes};
  }

 private:
  struct Free {
    void operator()(std::byte* data) const {
      ::operator delete (data, std::align_val_t{kNvmePageBytes});
    }
  };
  uint64_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace kvd
