// The blocks that `micro` looks up: a million in 1,000 branching chains, as conversations over a
// few system prompts would leave them. Eight trees; each has a trunk, one branch that makes a chain
// of 32,768 with it, and 124 branches from anywhere on the trunk.
//
// Threads: immutable after construction.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "client/client.h"

namespace kvd {

class MicroForest {
 public:
  static constexpr uint32_t kTrees = 8;
  static constexpr uint32_t kBlocksPerTree = 125'000;
  static constexpr uint32_t kBlocks = kTrees * kBlocksPerTree;
  static constexpr uint32_t kTrunkBlocks = 16'384;
  static constexpr uint32_t kBranches = 125;  // Of one tree, the long one included.
  static constexpr uint32_t kHashBytes = 32;

  // A run of blocks below another one.
  struct Chain {
    std::string parent;  // Hash; empty: the first key is a root.
    std::string keys;
  };

  MicroForest();

  // Parents before children.
  const std::vector<Chain>& chains() const { return chains_; }
  // Chains of 32,768 from their roots.
  const std::vector<std::string>& longest() const { return longest_; }
  // 256 keys on end of some branch; other `i`, others.
  std::string_view Window256(uint64_t i) const;

 private:
  std::vector<Chain> chains_;
  std::vector<std::string> longest_;
  std::vector<const Chain*> short_branches_;
};

// Stores a chain of blocks in pages; every part gets the same `part` bytes.
absl::Status PutChain(Client& client, const Namespace& ns, std::string_view parent,
                      std::string_view keys, absl::Span<const std::byte> part);

// `count` keys of a fresh chain, never the same for another `chain`.
std::string MakeKeys(uint64_t chain, uint32_t count);

// A namespace of one group of such parts.
NamespaceDescriptor MicroNamespace(uint32_t part_bytes, uint32_t shards);

}  // namespace kvd
