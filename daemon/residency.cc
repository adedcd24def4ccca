#include "daemon/residency.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "proto/types/check.h"

namespace kvd {
namespace {

// How many keys are under way at once in Scan(): enough to hide the latency of memory.
constexpr uint32_t kScanBatch = 16;
constexpr uint32_t kStretch = 1024;  // Of a list longer than kExactBlocks.
constexpr uint32_t kScanPage = 512;  // Blocks that ExactPrefix() names at a time.

// Two halves of a 128-bit product, folded: what wyhash and its kin call mum.
uint64_t FoldedProduct(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t SplitMix(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

EventReason EventReasonOf(EvictReason reason) {
  switch (reason) {
    case EvictReason::kPressure:
      return EventReason::kPressure;
    case EvictReason::kAdmin:
      return EventReason::kAdmin;
    case EvictReason::kPurge:
      return EventReason::kPurge;
    case EvictReason::kCorrupt:  // Damage is an event of its own.
      return EventReason::kNone;
  }
  return EventReason::kNone;
}

uint32_t BucketCount(uint32_t max_blocks) { return std::bit_ceil(2 * max_blocks + 2); }

}  // namespace

Residency::Residency(EvictionPolicy& policy, RoomOwner& room, const Options& options)
    : policy_(policy),
      room_(room),
      secret_(options.secret),
      bucket_mask_(BucketCount(options.max_blocks) - 1),
      blocks_(size_t{options.max_blocks} + 1, Touch::kNow),
      parts_(options.max_parts + 1, Touch::kOnUseSmall),
      buckets_(BucketCount(options.max_blocks), Touch::kNow),
      shapes_(1),
      gaps_(1),
      uses_(1),
      path_bits_(options.secret * 0x9e3779b97f4a7c15u + 1) {
  uint64_t state = options.secret;
  for (uint64_t& word : digest_secret_) word = SplitMix(state);
  KVD_CHECK(options.max_blocks > 0 && options.max_blocks < (1u << 30)) << options.max_blocks;
  for (BlockRef block = options.max_blocks; block > 0; --block) {
    blocks_[block].next_sibling = std::exchange(free_block_, block);
  }
}

NamespaceId Residency::AddNamespace(NamespaceShape shape) {
  pools_ = std::max<EvictionPolicy::Pool>(pools_, shape.pool + 1);
  shapes_.push_back(std::move(shape));
  gaps_.push_back(0);
  uses_.emplace_back();
  return static_cast<NamespaceId>(shapes_.size() - 1);
}

// --- finding -------------------------------------------------------------------------------------

uint32_t Residency::Tag(NamespaceId ns, const ChainHash& key) const {
  // The whole key and a secret: with only a word of it, 32,768 chosen keys share one bucket.
  return static_cast<uint32_t>(XXH3_64bits_withSeed(key.bytes.data(), key.bytes.size(),
                                                    secret_ ^ (ns * 0x9e3779b97f4a7c15u)));
}

// Order counts: the digest of a chain is a polynomial in its keys' hashes.
uint64_t Residency::Digest(uint64_t above, const ChainHash& key) const {
  uint64_t words[4];
  std::memcpy(words, key.bytes.data(), sizeof words);
  const uint64_t hash = FoldedProduct(words[0] ^ digest_secret_[0], words[1] ^ digest_secret_[1]) ^
                        FoldedProduct(words[2] ^ digest_secret_[2], words[3] ^ digest_secret_[3]);
  return above * 0x9fb21c651e98df25u + hash;
}

BlockRef Residency::FindTagged(uint32_t tag, NamespaceId ns, const ChainHash& key) const {
  for (uint32_t at = tag & bucket_mask_; buckets_[at].block != 0; at = (at + 1) & bucket_mask_) {
    if (buckets_[at].tag != tag) continue;
    const Block& block = blocks_[buckets_[at].block];
    if (block.ns == ns && block.key == key) return buckets_[at].block;
  }
  return 0;
}

BlockRef Residency::Find(NamespaceId ns, const ChainHash& key) const {
  return FindTagged(Tag(ns, key), ns, key);
}

PartRef Residency::FindPart(BlockRef block, PartId id) const {
  PartRef part = blocks_[block].first_part;
  while (part != 0 && parts_[part].id != id) part = parts_[part].next;
  return part;
}

BlockRef Residency::AncestorAt(BlockRef ref, uint32_t depth) const {
  while (blocks_[ref].depth > depth) {
    const Block& block = blocks_[ref];
    ref = block.jump != 0 && blocks_[block.jump].depth >= depth ? block.jump : block.parent;
  }
  return ref;
}

uint32_t Residency::Scan(NamespaceId ns, const KeyList& keys, const ChainHash* parent,
                         absl::Span<BlockRef> found) const {
  const auto limit = static_cast<uint32_t>(std::min<size_t>(keys.size(), found.size()));
  BlockRef above = 0;
  ChainHash hashes[kScanBatch];
  uint32_t tags[kScanBatch];
  for (uint32_t from = 0; from < limit; from += kScanBatch) {
    const uint32_t n = std::min(kScanBatch, limit - from);
    for (uint32_t i = 0; i < n; ++i) {
      hashes[i] = keys[from + i];
      tags[i] = Tag(ns, hashes[i]);
      __builtin_prefetch(&buckets_[tags[i] & bucket_mask_]);
    }
    for (uint32_t i = 0; i < n; ++i) {
      const Block* guess = &blocks_[buckets_[tags[i] & bucket_mask_].block];
      __builtin_prefetch(guess);
      __builtin_prefetch(reinterpret_cast<const char*>(guess) + 64);
    }
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t at = from + i;
      const BlockRef ref = FindTagged(tags[i], ns, hashes[i]);
      if (ref == 0 || blocks_[ref].state != BlockState::kVisible) return at;
      if (at > 0 ? blocks_[ref].parent != above
                 : parent != nullptr &&
                       (blocks_[ref].parent == 0 || blocks_[blocks_[ref].parent].key != *parent)) {
        return at;
      }
      found[at] = above = ref;
    }
  }
  return limit;
}

Residency::Prefix Residency::ExactPrefix(NamespaceId ns, const KeyList& keys,
                                         const ChainHash* parent) const {
  // In pages, because the list may be long and the stack is not.
  BlockRef page[kScanPage];
  Prefix prefix;
  ChainHash above;
  for (uint32_t from = 0; from < keys.size(); from += kScanPage) {
    const uint32_t n = std::min(kScanPage, keys.size() - from);
    const uint32_t found =
        Scan(ns, keys.Suffix(from), from == 0 ? parent : &above, absl::MakeSpan(page, n));
    if (found == 0) break;
    prefix = {from + found, page[found - 1]};
    if (found < n) break;
    above = blocks_[prefix.deepest].key;
  }
  return prefix;
}

Residency::Prefix Residency::LongestPrefix(NamespaceId ns, const KeyList& keys,
                                           const ChainHash* parent) const {
  if (keys.empty()) return {};
  // Below a stub blocks are resident that must not be found, so presence is not monotone then.
  if (gaps_[ns] > 0) return WalkBackToServable(ExactPrefix(ns, keys, parent));
  const BlockRef first = Find(ns, keys[0]);
  if (first == 0 || blocks_[first].state != BlockState::kVisible) return {};
  if (parent != nullptr &&
      (blocks_[first].parent == 0 || blocks_[blocks_[first].parent].key != *parent)) {
    return {};
  }
  const Prefix prefix = Search(ns, keys, first);
  if (!Confirm(keys, prefix, first)) return WalkBackToServable(ExactPrefix(ns, keys, parent));
  return WalkBackToServable(prefix);
}

// Galloping, then binary: by prefix closure presence is monotone along a stored chain.
Residency::Prefix Residency::Search(NamespaceId ns, const KeyList& keys, BlockRef first) const {
  const uint32_t base = blocks_[first].depth;
  uint32_t low = 0;  // Present.
  BlockRef deepest = first;
  uint32_t high = keys.size();  // Absent, or the end.
  for (uint32_t step = 1; low + step < keys.size(); step *= 2) {
    const uint32_t probe = low + step;
    const BlockRef block = Find(ns, keys[probe]);
    if (!VisibleAt(block, base + probe)) {
      high = probe;
      break;
    }
    low = probe;
    deepest = block;
  }
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const BlockRef block = Find(ns, keys[middle]);
    if (VisibleAt(block, base + middle)) {
      low = middle;
      deepest = block;
    } else {
      high = middle;
    }
  }
  return {low + 1, deepest};
}

// Whether the list is the chain from `first` to prefix.deepest, as far as LongestPrefix() promises.
bool Residency::Confirm(const KeyList& keys, const Prefix& prefix, BlockRef first) const {
  const uint32_t base = blocks_[first].depth;
  if (prefix.blocks <= kExactBlocks) return ConfirmStretch(keys, base, first, prefix.deepest);

  // Where the stretch lies depends on a secret: a wrong list is not passed by luck twice.
  path_bits_ = path_bits_ * 6364136223846793005u + 1442695040888963407u;
  const auto start = base + static_cast<uint32_t>((path_bits_ >> 32) % (prefix.blocks - kStretch));
  const BlockRef end_of_stretch = Climb(keys, base, prefix.deepest, start + kStretch);
  const BlockRef start_of_stretch = Climb(keys, base, end_of_stretch, start);
  return start_of_stretch != 0 && ConfirmStretch(keys, base, start_of_stretch, end_of_stretch) &&
         Climb(keys, base, start_of_stretch, base) == first;
}

// The ancestor of `from` at `depth`, by jumps; 0 when one of those met on the way is not where the
// list has it. Requires: from is 0, or at least that deep.
BlockRef Residency::Climb(const KeyList& keys, uint32_t base, BlockRef from, uint32_t depth) const {
  BlockRef at = from;
  while (at != 0 && blocks_[at].depth > depth) {
    const Block& block = blocks_[at];
    at = block.jump != 0 && blocks_[block.jump].depth >= depth ? block.jump : block.parent;
    if (at != 0 && !keys.Equals(blocks_[at].depth - base, blocks_[at].key)) return 0;
  }
  return at;
}

// Whether the keys below `from`, down to `to`, have the digest of the stored chain. Requires:
// `from` is the ancestor of `to` at its depth, if the list is a chain at all.
bool Residency::ConfirmStretch(const KeyList& keys, uint32_t base, BlockRef from,
                               BlockRef to) const {
  const uint32_t end = blocks_[to].depth - base;
  uint64_t digest = blocks_[from].digest;
  for (uint32_t i = blocks_[from].depth - base + 1; i <= end; ++i) {
    digest = Digest(digest, keys[i]);
  }
  return digest == blocks_[to].digest;
}

Residency::Prefix Residency::WalkBackToServable(Prefix prefix) const {
  if (prefix.blocks == 0) return prefix;
  const NamespaceShape& shape = shapes_[blocks_[prefix.deepest].ns];
  if (shape.windows.empty() && shape.state_groups == 0) return prefix;

  uint32_t widest = 1;
  for (const NamespaceShape::Window& window : shape.windows) {
    widest = std::max(widest, window.blocks);
  }
  // `prefix` is the candidate; `back` blocks from its end serve. A gap inside somebody's window
  // moves the candidate before the gap. Each block is looked at once; a window may reach above the
  // list.
  BlockRef at = prefix.deepest;
  for (uint32_t back = 0; at != 0 && back < widest;) {
    const Block& block = blocks_[at];
    bool serves = back > 0 || (block.complete_groups & shape.state_groups) == shape.state_groups;
    for (const NamespaceShape::Window& window : shape.windows) {
      serves &= back >= window.blocks || (block.complete_groups >> window.group & 1) != 0;
    }
    at = block.parent;
    if (serves) {
      ++back;
      continue;
    }
    if (prefix.blocks <= back + 1) return {};
    prefix = {prefix.blocks - back - 1, at};
    back = 0;
  }
  return prefix;
}

// --- growing -------------------------------------------------------------------------------------

void Residency::InsertBucket(uint32_t tag, BlockRef block) {
  uint32_t at = tag & bucket_mask_;
  while (buckets_[at].block != 0) at = (at + 1) & bucket_mask_;
  buckets_[at] = {tag, block};
}

// Closes the gap by moving back whatever may stand in it, so that no tombstones pile up.
void Residency::EraseBucket(uint32_t tag, BlockRef block) {
  uint32_t gap = tag & bucket_mask_;
  while (buckets_[gap].block != block) gap = (gap + 1) & bucket_mask_;
  for (uint32_t at = (gap + 1) & bucket_mask_; buckets_[at].block != 0;
       at = (at + 1) & bucket_mask_) {
    const uint32_t home = buckets_[at].tag & bucket_mask_;
    const bool reachable = ((at - home) & bucket_mask_) >= ((at - gap) & bucket_mask_);
    if (reachable) {
      buckets_[gap] = buckets_[at];
      gap = at;
    }
  }
  buckets_[gap] = {};
}

BlockRef Residency::Add(NamespaceId ns, const ChainHash& key, BlockRef parent, uint64_t tick) {
  KVD_CHECK(!full());
  const BlockRef ref = free_block_;
  Block& block = blocks_[ref];
  free_block_ = block.next_sibling;
  block = Block{.key = key, .ns = ns, .parent = parent, .state = BlockState::kProducing};
  if (parent != 0) {
    Block& above = blocks_[parent];
    block.depth = above.depth + 1;
    block.digest = above.digest;
    // A jump as long as the two before it together, where those two are equally long.
    const Block& jump = blocks_[above.jump];
    const bool merge = above.jump != 0 && jump.jump != 0 &&
                       above.depth - jump.depth == jump.depth - blocks_[jump.jump].depth;
    block.jump = merge ? jump.jump : parent;
    block.next_sibling = above.first_child;
    if (above.first_child != 0) blocks_[above.first_child].prev_sibling = ref;
    above.first_child = ref;
    UpdateOffer(parent);
  }
  block.digest = Digest(block.digest, key);
  InsertBucket(Tag(ns, key), ref);
  policy_.Insert(ref, shapes_[ns].pool);
  policy_.Use(ref, tick);
  ++counts_.used;
  ++uses_[ns].used;
  return ref;
}

PartRef Residency::AddPart(BlockRef block, PartId id, uint32_t region, uint32_t slot,
                           uint32_t length, uint32_t generation) {
  KVD_CHECK(!parts_full());
  PartRef ref = free_part_;
  if (ref != 0) {
    free_part_ = parts_[ref].next;
  } else {
    ref = static_cast<PartRef>(++parts_used_);
  }
  Part& part = parts_[ref];
  part = Part{.block = block, .region = region, .slot = slot, .generation = generation, .id = id};
  part.length = length;
  counts_.reserved_bytes += length;
  part.state = static_cast<uint32_t>(PartState::kReserved);
  part.next = std::exchange(blocks_[block].first_part, ref);
  ++blocks_[block].reserved_parts;
  ++counts_.parts;
  if (blocks_[block].state == BlockState::kStub) {
    blocks_[block].state = BlockState::kProducing;
    --counts_.stubs;
  }
  UpdateOffer(block);
  return ref;
}

uint32_t Residency::CommitPart(PartRef ref, uint32_t sum, uint64_t tick) {
  Part& part = parts_[ref];
  KVD_CHECK(part.state == static_cast<uint32_t>(PartState::kReserved)) << ref;
  part.sum = sum;
  part.state = static_cast<uint32_t>(PartState::kCommitted);
  counts_.reserved_bytes -= part.length;
  Block& block = blocks_[part.block];
  --block.reserved_parts;
  uses_[block.ns].bytes += part.length;

  const NamespaceShape& shape = shapes_[block.ns];
  uint32_t committed = 0;
  for (PartRef other = block.first_part; other != 0; other = parts_[other].next) {
    committed += parts_[other].id.group == part.id.group &&
                 parts_[other].state == static_cast<uint32_t>(PartState::kCommitted);
  }
  if (committed == shape.shards[part.id.group]) {
    block.complete_groups = static_cast<uint16_t>(block.complete_groups | 1u << part.id.group);
  }
  if (block.state != BlockState::kProducing ||
      (block.complete_groups & shape.full_groups) != shape.full_groups) {
    UpdateOffer(part.block);
    return 0;
  }
  if (block.parent != 0 && blocks_[block.parent].state != BlockState::kVisible) {
    block.state = BlockState::kParked;
    UpdateOffer(part.block);
    return 0;
  }
  return ShowWithParked(part.block, tick);
}

void Residency::Show(BlockRef ref, uint64_t tick) {
  blocks_[ref].state = BlockState::kVisible;
  SetGap(blocks_[ref], false);
  policy_.Use(ref, tick);
  ++counts_.visible;
  ++uses_[blocks_[ref].ns].visible;
  UpdateOffer(ref);
  if (events_ != nullptr) Record(EventKind::kStored, ref);
}

// Shows a block and, below it, all that was only waiting for it. Preorder, without recursion: the
// chain may be long.
uint32_t Residency::ShowWithParked(BlockRef top, uint64_t tick) {
  Show(top, tick);
  uint32_t shown = 1;
  BlockRef at = top;
  BlockRef next = blocks_[top].first_child;
  while (true) {
    while (next != 0 && blocks_[next].state != BlockState::kParked) {
      next = blocks_[next].next_sibling;
    }
    if (next != 0) {
      Show(next, tick);
      ++shown;
      at = next;
      next = blocks_[at].first_child;
    } else if (at != top) {
      next = blocks_[at].next_sibling;
      at = blocks_[at].parent;
    } else {
      return shown;
    }
  }
}

// --- giving up -----------------------------------------------------------------------------------

void Residency::UnlinkPart(Part& part, PartRef ref) {
  PartRef* link = &blocks_[part.block].first_part;
  while (*link != ref) link = &parts_[*link].next;
  *link = part.next;
}

// The end of a part that no block names any more.
void Residency::ReleasePart(PartRef ref) {
  Part& part = parts_[ref];
  if (part.holds > 0) {
    part.block = 0;
    part.state = static_cast<uint32_t>(PartState::kQuarantined);
    ++counts_.quarantined_parts;
    counts_.quarantined_bytes += part.length;
    return;
  }
  room_.FreeRoom(part);
  part = Part{};
  part.next = std::exchange(free_part_, ref);
  --counts_.parts;
}

// Drops what is committed. What is reserved is its producer's, who writes there and gives it back.
void Residency::DropParts(BlockRef ref) {
  Block& block = blocks_[ref];
  PartRef* link = &block.first_part;
  while (*link != 0) {
    const PartRef part = *link;
    if (parts_[part].state == static_cast<uint32_t>(PartState::kReserved)) {
      link = &parts_[part].next;
      continue;
    }
    *link = parts_[part].next;
    block.holds -= parts_[part].holds;
    uses_[block.ns].bytes -= parts_[part].length;
    ReleasePart(part);
  }
  block.complete_groups = 0;
}

// Takes a block without children out of the index, and stubs above it that nothing needs any more.
void Residency::Remove(BlockRef ref) {
  while (ref != 0) {
    DropParts(ref);
    Block& block = blocks_[ref];
    KVD_CHECK(block.first_child == 0 && block.leases == 0 && block.reserved_parts == 0 &&
              !block.offered)
        << ref;
    const BlockRef parent = block.parent;
    if (block.state == BlockState::kStub) --counts_.stubs;
    if (block.state == BlockState::kVisible) {
      --counts_.visible;
      --uses_[block.ns].visible;
    }
    --uses_[block.ns].used;
    SetGap(block, false);
    policy_.Erase(ref, parent);
    EraseBucket(Tag(block.ns, block.key), ref);
    if (block.next_sibling != 0) blocks_[block.next_sibling].prev_sibling = block.prev_sibling;
    if (block.prev_sibling != 0) {
      blocks_[block.prev_sibling].next_sibling = block.next_sibling;
    } else if (parent != 0) {
      blocks_[parent].first_child = block.next_sibling;
    }
    block = Block{};
    block.next_sibling = std::exchange(free_block_, ref);
    --counts_.used;
    if (parent == 0) return;
    UpdateOffer(parent);
    const Block& above = blocks_[parent];
    const bool idle_stub =
        above.state == BlockState::kStub && above.first_child == 0 && above.leases == 0;
    ref = idle_stub ? parent : 0;
  }
}

// A block that cannot be shown: it stays only for what hangs below it, for who leases it, or for
// who still produces parts of it.
void Residency::BecomeStubOrGo(BlockRef ref) {
  Block& block = blocks_[ref];
  if (std::exchange(block.offered, false)) policy_.Withdraw(ref);
  if (block.first_child == 0 && block.leases == 0 && block.reserved_parts == 0) {
    Remove(ref);
    return;
  }
  if (block.state == BlockState::kVisible) {
    --counts_.visible;
    --uses_[block.ns].visible;
  }
  if (block.state == BlockState::kStub) --counts_.stubs;
  block.state = block.reserved_parts > 0 ? BlockState::kProducing : BlockState::kStub;
  if (block.state == BlockState::kStub) ++counts_.stubs;
  SetGap(block, true);
}

void Residency::SetGap(Block& block, bool gap) {
  gaps_[block.ns] += gap;
  gaps_[block.ns] -= block.gap;
  block.gap = gap;
}

void Residency::DropReserved(PartRef ref) {
  Part& part = parts_[ref];
  KVD_CHECK(part.state == static_cast<uint32_t>(PartState::kReserved)) << ref;
  counts_.reserved_bytes -= part.length;
  const BlockRef block = part.block;
  UnlinkPart(part, ref);
  --blocks_[block].reserved_parts;
  ReleasePart(ref);
  UpdateOffer(block);
}

void Residency::Abandon(BlockRef ref) {
  if (blocks_[ref].state != BlockState::kProducing || blocks_[ref].first_part != 0) return;
  DropParkedBelow(ref);
  BecomeStubOrGo(ref);
}

void Residency::DropParked(BlockRef ref) {
  KVD_CHECK(blocks_[ref].state == BlockState::kParked) << ref;
  DropParkedBelow(ref);
  DropParts(ref);
  ++counts_.parked_dropped;
  BecomeStubOrGo(ref);
}

// Postorder, without recursion: the chain may be long. The blocks above the ones dropped are parked
// or in production, so no stub above them goes by the way.
void Residency::DropParkedBelow(BlockRef top) {
  BlockRef at = top;
  BlockRef next = blocks_[top].first_child;
  while (true) {
    while (next != 0 && blocks_[next].state != BlockState::kParked) {
      next = blocks_[next].next_sibling;
    }
    if (next != 0) {
      at = next;
      next = blocks_[at].first_child;
      continue;
    }
    if (at == top) return;
    const BlockRef done = at;
    next = blocks_[done].next_sibling;
    at = blocks_[done].parent;
    DropParts(done);
    ++counts_.parked_dropped;
    BecomeStubOrGo(done);
  }
}

// --- using ---------------------------------------------------------------------------------------

void Residency::UpdateOffer(BlockRef ref) {
  Block& block = blocks_[ref];
  // What waits for other shards or for its parent may leave too: they may never come.
  const bool stored = block.state != BlockState::kStub && block.first_part != 0;
  const bool may_leave = stored && block.first_child == 0 && block.leases == 0 &&
                         block.holds == 0 && block.reserved_parts == 0;
  if (may_leave == block.offered) return;
  block.offered = may_leave;
  if (may_leave) {
    policy_.Offer(ref);
  } else {
    policy_.Withdraw(ref);
  }
}

void Residency::Lease(BlockRef ref) {
  ++blocks_[ref].leases;
  UpdateOffer(ref);
}

void Residency::Unlease(BlockRef ref) {
  Block& block = blocks_[ref];
  KVD_CHECK(block.leases > 0) << ref;
  if (--block.leases > 0) return;
  if (block.state == BlockState::kStub && block.first_child == 0) {
    Remove(ref);
  } else {
    UpdateOffer(ref);
  }
}

bool Residency::Hold(PartRef ref) {
  Part& part = parts_[ref];
  if (part.holds == UINT16_MAX) return false;
  ++part.holds;
  ++blocks_[part.block].holds;
  UpdateOffer(part.block);
  return true;
}

void Residency::Unhold(PartRef ref) {
  Part& part = parts_[ref];
  KVD_CHECK(part.holds > 0) << ref;
  --part.holds;
  if (part.block != 0) {
    --blocks_[part.block].holds;
    UpdateOffer(part.block);
    return;
  }
  if (part.holds > 0) return;
  --counts_.quarantined_parts;
  counts_.quarantined_bytes -= part.length;
  ReleasePart(ref);
}

// --- leaving -------------------------------------------------------------------------------------

void Residency::Record(EventKind kind, BlockRef ref, EventReason why) const {
  const Block& block = blocks_[ref];
  Event event{.number = block.depth + uint64_t{1},
              .ns = block.ns,
              .domain = shapes_[block.ns].domain,
              .kind = kind,
              .reason = why,
              .has_parent = block.parent != 0,
              .key = block.key};
  if (event.has_parent) event.parent = blocks_[block.parent].key;
  events_->Add(event);
}

void Residency::Evict(BlockRef ref, EvictReason reason) {
  KVD_CHECK(evictable(ref)) << ref;
  if (events_ != nullptr && blocks_[ref].state == BlockState::kVisible) {
    Record(EventKind::kEvicted, ref, EventReasonOf(reason));
  }
  uint64_t bytes = 0;
  for (PartRef part = blocks_[ref].first_part; part != 0; part = parts_[part].next) {
    bytes += parts_[part].length;
  }
  ++counts_.evicted_for[static_cast<size_t>(reason)];
  counts_.evicted_bytes_for[static_cast<size_t>(reason)] += bytes;
  blocks_[ref].offered = false;
  policy_.Withdraw(ref);
  ++counts_.evicted;
  Remove(ref);
}

bool Residency::EvictNext(EvictionPolicy::Pool pool) {
  const std::optional<EvictionPolicy::Victim> victim = policy_.Next(pool);
  if (victim.has_value()) Evict(victim->block);
  return victim.has_value();
}

std::optional<EvictionPolicy::Victim> Residency::NextVictim() const {
  std::optional<EvictionPolicy::Victim> next;
  for (EvictionPolicy::Pool pool = 0; pool < pools_; ++pool) {
    const std::optional<EvictionPolicy::Victim> victim = policy_.Next(pool);
    if (victim.has_value() && (!next.has_value() || victim->score < next->score)) next = victim;
  }
  return next;
}

bool Residency::EvictNext() {
  const std::optional<EvictionPolicy::Victim> victim = NextVictim();
  if (victim.has_value()) Evict(victim->block);
  return victim.has_value();
}

void Residency::MarkDamaged(PartRef ref) {
  Part& part = parts_[ref];
  KVD_CHECK(part.state == static_cast<uint32_t>(PartState::kCommitted)) << ref;
  const BlockRef block_ref = part.block;
  Block& block = blocks_[block_ref];
  const uint32_t group = part.id.group;
  const uint32_t length = part.length;
  UnlinkPart(part, ref);
  block.holds -= part.holds;
  uses_[block.ns].bytes -= part.length;
  block.complete_groups = static_cast<uint16_t>(block.complete_groups & ~(1u << group));
  ReleasePart(ref);

  const bool needed = (shapes_[block.ns].full_groups >> group & 1) != 0;
  if (events_ != nullptr && block.state == BlockState::kVisible) {
    Record(needed ? EventKind::kDamaged : EventKind::kPartDamaged, block_ref);
  }
  if (needed && block.state == BlockState::kParked) block.state = BlockState::kProducing;
  if (needed && block.state == BlockState::kVisible) {
    ++counts_.evicted_for[static_cast<size_t>(EvictReason::kCorrupt)];
    counts_.evicted_bytes_for[static_cast<size_t>(EvictReason::kCorrupt)] += length;
    BecomeStubOrGo(block_ref);
  } else if (block.state == BlockState::kProducing && block.first_part == 0) {
    Abandon(block_ref);
  } else {
    UpdateOffer(block_ref);
  }
}

// --- counting ------------------------------------------------------------------------------------

Residency::AuditResult Residency::Audit(uint32_t from, uint32_t n) const {
  AuditResult result;
  const auto error = [&result](const char* what) {
    ++result.errors;
    if (result.first_error == nullptr) result.first_error = what;
  };
  const uint64_t end = std::min<uint64_t>(uint64_t{from} + n, blocks_.size());
  for (uint64_t i = std::max(from, 1u); i < end; ++i) {
    const auto ref = static_cast<BlockRef>(i);
    const Block& block = blocks_[ref];
    if (block.state == BlockState::kFree) continue;
    if (Find(block.ns, block.key) != ref) error("a block is not found under its key");
    if (block.parent != 0) {
      const Block& above = blocks_[block.parent];
      if (above.state == BlockState::kFree) {
        ++result.stranded;
      } else if (block.state == BlockState::kVisible && above.state != BlockState::kVisible &&
                 !above.gap) {
        error("a visible block has a parent that is neither visible nor a known gap");
      }
      if (above.depth + 1 != block.depth) error("depths do not follow each other");
    }
    uint32_t holds = 0;
    uint32_t reserved = 0;
    for (PartRef part = block.first_part; part != 0; part = parts_[part].next) {
      if (parts_[part].block != ref) error("a part belongs to another block");
      holds += parts_[part].holds;
      reserved += parts_[part].state == static_cast<uint32_t>(PartState::kReserved);
    }
    if (holds != block.holds) error("holds do not add up");
    if (reserved != block.reserved_parts) error("reserved parts do not add up");
    if (block.state == BlockState::kVisible) {
      ++result.blocks;
      const uint16_t full = shapes_[block.ns].full_groups;
      if ((block.complete_groups & full) != full) error("a visible block lacks a full part");
    }
    const bool pinned_down = block.first_child != 0 || block.leases != 0 || block.holds != 0 ||
                             block.reserved_parts != 0;
    if (block.offered && pinned_down) error("a block that must stay is offered to the policy");
    if (!block.offered && !pinned_down && block.state == BlockState::kVisible) {
      error("a block that may leave is not offered to the policy");
    }
  }
  return result;
}

}  // namespace kvd
