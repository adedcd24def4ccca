// Our nouns: what names a block, what names a part of it, and how a caller's list of names looks.
// Plain values; nothing here allocates.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "proto/types/limits.h"

namespace kvd {

// The engine's hash of a block's tokens and of all before it. Opaque, up to 32 bytes; shorter
// hashes are padded with zeros. A namespace fixes the length, so padding makes no two hashes equal.
struct ChainHash {
  std::array<std::byte, kMaxHashBytes> bytes{};

  friend bool operator==(const ChainHash& a, const ChainHash& b) {
    return std::memcmp(a.bytes.data(), b.bytes.data(), kMaxHashBytes) == 0;
  }
};

// Scope of a block: domain (tenant) times namespace (what the bytes mean), as the daemon numbers
// them. Valid within one run of the daemon.
using NamespaceId = uint32_t;
using DomainId = uint32_t;  // daemon/domains.h says who belongs to which.

// One part of a block: KV-cache group and shard.
struct PartId {
  uint8_t group = 0;
  uint8_t shard = 0;

  friend bool operator==(PartId a, PartId b) = default;
};

// A caller's chain: hashes of one length, back to back, root first. Borrows the bytes.
class KeyList {
 public:
  KeyList() = default;
  // Requires: hash_bytes in [1, 32] and packed.size() a multiple of it.
  KeyList(std::string_view packed, uint32_t hash_bytes)
      : data_(packed.data()),
        hash_bytes_(hash_bytes),
        size_(static_cast<uint32_t>(packed.size() / hash_bytes)) {}

  uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  uint32_t hash_bytes() const { return hash_bytes_; }

  ChainHash operator[](uint32_t i) const {
    ChainHash hash;
    std::memcpy(hash.bytes.data(), data_ + size_t{i} * hash_bytes_, hash_bytes_);
    return hash;
  }
  // Whether entry `i` is `hash`; cheaper than building the entry.
  bool Equals(uint32_t i, const ChainHash& hash) const {
    return std::memcmp(hash.bytes.data(), data_ + size_t{i} * hash_bytes_, hash_bytes_) == 0;
  }
  // The first n entries, or those from `from` on. Requires: they are there.
  KeyList Prefix(uint32_t n) const {
    KeyList prefix = *this;
    prefix.size_ = n;
    return prefix;
  }
  KeyList Suffix(uint32_t from) const {
    KeyList suffix = *this;
    suffix.data_ += size_t{from} * hash_bytes_;
    suffix.size_ -= from;
    return suffix;
  }

 private:
  const char* data_ = nullptr;
  uint32_t hash_bytes_ = kMaxHashBytes;
  uint32_t size_ = 0;
};

}  // namespace kvd
