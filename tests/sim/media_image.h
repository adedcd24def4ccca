// What a medium holds, as a value: a copy shares the chunks that neither side has written since, so
// that a thousand images of one device cost little.
//
// Threads: as a std::map; images that share chunks may be used on different threads.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "proto/types/check.h"

namespace kvd {

class MediaImage {
 public:
  explicit MediaImage(uint64_t bytes)  // All zeros. In whole chunks.
      : bytes_(bytes), chunks_((bytes + kChunkBytes - 1) / kChunkBytes) {}

  uint64_t size_bytes() const { return bytes_; }

  void Read(uint64_t offset, absl::Span<std::byte> target) const {
    KVD_CHECK(offset + target.size() <= bytes_) << offset;
    while (!target.empty()) {
      const uint64_t within = offset % kChunkBytes;
      const size_t some = std::min<uint64_t>(target.size(), kChunkBytes - within);
      const Chunk* chunk = chunks_[offset / kChunkBytes].get();
      if (chunk == nullptr) {
        std::memset(target.data(), 0, some);
      } else {
        std::memcpy(target.data(), chunk->data() + within, some);
      }
      target.remove_prefix(some);
      offset += some;
    }
  }

  void Write(uint64_t offset, absl::Span<const std::byte> source) {
    KVD_CHECK(offset + source.size() <= bytes_) << offset;
    while (!source.empty()) {
      const uint64_t within = offset % kChunkBytes;
      const size_t some = std::min<uint64_t>(source.size(), kChunkBytes - within);
      std::memcpy(Own(offset / kChunkBytes).data() + within, source.data(), some);
      source.remove_prefix(some);
      offset += some;
    }
  }

 private:
  static constexpr uint64_t kChunkBytes = 64u << 10;
  using Chunk = std::vector<std::byte>;

  Chunk& Own(size_t i) {
    if (chunks_[i] == nullptr) {
      chunks_[i] = std::make_shared<Chunk>(kChunkBytes);
    } else if (chunks_[i].use_count() > 1) {
      chunks_[i] = std::make_shared<Chunk>(*chunks_[i]);
    }
    return *chunks_[i];
  }

  uint64_t bytes_;
  std::vector<std::shared_ptr<Chunk>> chunks_;  // Null: zeros.
};

}  // namespace kvd
