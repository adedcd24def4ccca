#include "policy/ghosts.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>

namespace kvd {
namespace {

uint64_t HashOf(const ChainHash& key, NamespaceId ns) {
  return XXH3_64bits_withSeed(key.bytes.data(), key.bytes.size(), ns);
}

uint32_t TagOf(uint64_t hash) { return static_cast<uint32_t>(hash >> 32) | 1; }

}  // namespace

Ghosts::Ghosts(uint32_t entries) : sets_(std::bit_ceil(std::max(entries / 4, 1u))) {}

Ghosts::Ghost* Ghosts::Find(const ChainHash& key, NamespaceId ns) {
  const uint64_t hash = HashOf(key, ns);
  Set& set = sets_[hash & (sets_.size() - 1)];
  for (Ghost& ghost : set) {
    if (ghost.tag == TagOf(hash)) return &ghost;
  }
  return nullptr;
}

Ghosts::Ghost& Ghosts::Remember(const ChainHash& key, NamespaceId ns) {
  const uint64_t hash = HashOf(key, ns);
  Set& set = sets_[hash & (sets_.size() - 1)];
  auto place = std::find_if(set.begin(), set.end(),
                            [&](const Ghost& ghost) { return ghost.tag == TagOf(hash); });
  if (place == set.end()) {
    place = set.end() - 1;
    *place = Ghost{.tag = TagOf(hash)};
  }
  std::rotate(set.begin(), place, place + 1);
  return set.front();
}

}  // namespace kvd
