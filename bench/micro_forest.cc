#include "bench/micro_forest.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "bench/payload.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

constexpr uint64_t kSeed = 20'261'121;

// One to one on 64 bits; good enough to choose by.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

std::string MakeKeys(uint64_t chain, uint32_t count) {
  std::string keys;
  keys.reserve(size_t{count} * MicroForest::kHashBytes);
  for (uint32_t i = 0; i < count; ++i) {
    const auto key = KeyOf(chain << 20 | i, kSeed);
    keys.append(reinterpret_cast<const char*>(key.data()), key.size());
  }
  return keys;
}

NamespaceDescriptor MicroNamespace(uint32_t part_bytes, uint32_t shards) {
  NamespaceDescriptor descriptor;
  descriptor.model = "micro";
  descriptor.hash_algorithm = "micro";
  descriptor.tensor_parallel = shards;
  descriptor.groups = {{.shards = shards, .block_tokens = 16, .part_bytes = part_bytes}};
  return descriptor;
}

MicroForest::MicroForest() {
  constexpr uint32_t kShort =
      (kBlocksPerTree - 2 * kTrunkBlocks) / (kBranches - 1);  // And one more for some.
  constexpr uint32_t kLonger = (kBlocksPerTree - 2 * kTrunkBlocks) % (kBranches - 1);
  chains_.reserve(size_t{kTrees} * (kBranches + 1));
  uint64_t number = 0;
  for (uint32_t tree = 0; tree < kTrees; ++tree) {
    const std::string trunk = MakeKeys(number++, kTrunkBlocks);
    chains_.push_back({"", trunk});
    chains_.push_back({trunk.substr(trunk.size() - kHashBytes), MakeKeys(number++, kTrunkBlocks)});
    longest_.push_back(trunk + chains_.back().keys);
    for (uint32_t branch = 0; branch + 1 < kBranches; ++branch) {
      const uint64_t at = Mix(number) % kTrunkBlocks;
      chains_.push_back({trunk.substr(at * kHashBytes, kHashBytes),
                         MakeKeys(number++, kShort + (branch < kLonger ? 1 : 0))});
      short_branches_.push_back(&chains_.back());
    }
  }
}

std::string_view MicroForest::Window256(uint64_t i) const {
  constexpr uint64_t kWindow = 256;
  const std::string_view keys = short_branches_[Mix(i) % short_branches_.size()]->keys;
  const uint64_t from = Mix(i + kSeed) % (keys.size() / kHashBytes - kWindow);
  return keys.substr(from * kHashBytes, kWindow * kHashBytes);
}

absl::Status PutChain(Client& client, const Namespace& ns, std::string_view parent,
                      std::string_view keys, absl::Span<const std::byte> part) {
  const size_t parts = ns.parts.size();
  const size_t page = std::min<size_t>(kMaxPageBlocks, kMaxPageExtents / parts);
  const size_t blocks = keys.size() / ns.hash_bytes;
  const std::vector<absl::Span<const std::byte>> sources(std::min(page, blocks) * parts, part);
  std::string above(parent);
  for (size_t from = 0; from < blocks; from += page) {
    const size_t count = std::min(page, blocks - from);
    const std::string_view some = keys.substr(from * ns.hash_bytes, count * ns.hash_bytes);
    const PutResult put = client.Put(ns, some, absl::MakeSpan(sources).first(count * parts),
                                     {.timeout = absl::Seconds(30), .parent = above});
    if (!put.status.ok()) return put.status;
    if (put.stored != count) {
      return absl::ResourceExhaustedError(
          absl::StrCat("put stored ", put.stored, " of ", count, " new blocks"));
    }
    above = std::string(some.substr(some.size() - ns.hash_bytes));
  }
  return absl::OkStatus();
}

}  // namespace kvd
