#include "daemon/residency.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "daemon/announcements.h"
#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "proto/types/safety.h"

namespace kvd {
namespace {

// How many keys are under way at once in Scan(): enough to hide the latency of memory.
constexpr uint32_t kScanBatch = 16;
constexpr uint32_t kStretch = 1024;          // Of a list longer than kExactBlocks.
constexpr uint32_t kScanPage = 512;          // Blocks that ExactPrefix() names at a time.
constexpr uint32_t kChildrenAudited = 4096;  // Of one block; a root may have as many as there are.
// Steps of a search for an ancestor in a tier: enough for any depth where the tiers nest.
constexpr uint32_t kNearestSteps = 128;

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
    case EvictReason::kReclaim:
      return EventReason::kReclaim;
    case EvictReason::kCorrupt:  // Damage is an event of its own.
      return EventReason::kNone;
  }
  return EventReason::kNone;
}

// Groups as bits, one of them.
constexpr uint16_t Bit(uint32_t group) { return static_cast<uint16_t>(1u << group); }

uint32_t BucketCount(uint32_t max_blocks) { return std::bit_ceil(2 * max_blocks + 2); }

}  // namespace

Residency::Residency(EvictionPolicy& policy, RoomOwner& room, const Options& options,
                     EvictionPolicy* cold_policy)
    : policy_(policy),
      cold_policy_(cold_policy),
      room_(room),
      secret_(options.secret),
      bucket_mask_(BucketCount(options.max_blocks) - 1),
      blocks_(size_t{options.max_blocks} + 1, Touch::kNow),
      parts_(options.max_parts + 1, Touch::kOnUseSmall),
      colds_(options.max_cold_parts + 1, Touch::kOnUseSmall),
      buckets_(BucketCount(options.max_blocks), Touch::kNow),
      shapes_(1),
      gaps_(1),
      uses_(1),
      path_bits_(options.secret * 0x9e3779b97f4a7c15u + 1) {
  uint64_t state = options.secret;
  for (uint64_t& word : digest_secret_) word = SplitMix(state);
  KVD_CHECK(options.max_cold_parts == 0 || cold_policy != nullptr);
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

ColdRef Residency::FindCold(BlockRef block, PartId id) const {
  ColdRef cold = blocks_[block].first_cold;
  while (cold != 0 && colds_[cold].id != id) cold = colds_[cold].next;
  return cold;
}

// `block` or its nearest ancestor that is wanted, by jumps: right when all ancestors of a wanted
// block are wanted, and some ancestor or none (0) when they are not.
template <typename Wanted>
BlockRef Residency::Nearest(BlockRef ref, Wanted wanted) const {
  for (uint32_t steps = 0; ref != 0 && steps < kNearestSteps; ++steps) {
    const Block& block = blocks_[ref];
    if (wanted(block)) return ref;
    ref = block.jump != 0 && !wanted(blocks_[block.jump]) ? block.jump : block.parent;
  }
  return 0;
}

BlockRef Residency::NearestCold(BlockRef ref) const {
  return Nearest(ref, [](const Block& block) { return block.first_cold != 0; });
}

uint32_t Residency::WarmBlocks(const Prefix& prefix) const {
  if (cold_policy_ == nullptr || prefix.blocks == 0) return prefix.blocks;
  const BlockRef warm =
      Nearest(prefix.deepest, [this](const Block& block) { return InDram(block); });
  const uint32_t base = blocks_[prefix.deepest].depth + 1 - prefix.blocks;
  return warm == 0 || blocks_[warm].depth < base ? 0 : blocks_[warm].depth - base + 1;
}

Residency::Prefix Residency::Shorten(const Prefix& prefix, uint32_t blocks) const {
  if (blocks >= prefix.blocks) return prefix;
  if (blocks == 0) return {};
  const uint32_t base = blocks_[prefix.deepest].depth + 1 - prefix.blocks;
  return WalkBackToServable({blocks, AncestorAt(prefix.deepest, base + blocks - 1)});
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
    const uint16_t served = block.served_groups();
    bool serves = back > 0 || (served & shape.state_groups) == shape.state_groups;
    for (const NamespaceShape::Window& window : shape.windows) {
      serves &= back >= window.blocks || (served >> window.group & 1) != 0;
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
    UpdateOffers(parent);
  }
  block.digest = Digest(block.digest, key);
  InsertBucket(Tag(ns, key), ref);
  tick_ = tick;
  Order(ref);
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
  if (part.next == 0) WarmthChanged(block, true);
  UpdateOffers(block);
  return ref;
}

// A block has got its first part in DRAM, or lost its last.
void Residency::WarmthChanged(BlockRef ref, bool warm) {
  if (warm && !blocks_[ref].ordered) Order(ref);
  const BlockRef parent = blocks_[ref].parent;
  if (parent == 0) return;
  blocks_[parent].warm_children += warm ? 1 : -1;
  UpdateOffer(parent);
}

// From now on DRAM's policy knows the block, as one that is used now.
void Residency::Order(BlockRef ref) {
  blocks_[ref].ordered = true;
  policy_.Insert(ref, shapes_[blocks_[ref].ns].pool);
  policy_.Use(ref, tick_);
}

// DRAM's policy forgets the block: what is known of its uses goes to its parent.
void Residency::Disorder(BlockRef ref) {
  Block& block = blocks_[ref];
  if (!std::exchange(block.ordered, false)) return;
  const bool handed_up = block.parent != 0 && blocks_[block.parent].ordered;
  policy_.Erase(ref, handed_up ? block.parent : 0);
  const uint8_t uses = std::exchange(block.uses, 0);
  if (!handed_up) return;
  Block& above = blocks_[block.parent];
  above.uses = static_cast<uint8_t>(std::min<uint32_t>(UINT8_MAX, above.uses + uses));
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
  room_.PartCommitted(block, part);

  const NamespaceShape& shape = shapes_[block.ns];
  uint32_t committed = 0;
  for (PartRef other = block.first_part; other != 0; other = parts_[other].next) {
    committed += parts_[other].id.group == part.id.group &&
                 parts_[other].state == static_cast<uint32_t>(PartState::kCommitted);
  }
  if (committed == shape.shards[part.id.group]) {
    block.complete_groups |= Bit(part.id.group);
  }
  return ShowIfServed(part.block, tick);
}

// What becomes of a block that has got a part or a record.
uint32_t Residency::ShowIfServed(BlockRef ref, uint64_t tick) {
  Block& block = blocks_[ref];
  tick_ = tick;
  if (block.state != BlockState::kProducing || !Served(block)) {
    UpdateOffers(ref);
    RecordMove(ref);
    return 0;
  }
  if (block.parent != 0 && blocks_[block.parent].state != BlockState::kVisible) {
    block.state = BlockState::kParked;
    UpdateOffers(ref);
    return 0;
  }
  return ShowWithParked(ref, tick);
}

ColdRef Residency::AddCold(BlockRef block, PartId id, uint32_t length, uint32_t sum,
                           uint32_t generation) {
  KVD_CHECK(!colds_full());
  ColdRef ref = free_cold_;
  if (ref != 0) {
    free_cold_ = colds_[ref].next;
  } else {
    ref = static_cast<ColdRef>(++colds_used_);
  }
  ColdPart& cold = colds_[ref];
  cold = ColdPart{.block = block,
                  .next = std::exchange(blocks_[block].first_cold, ref),
                  .length = length,
                  .sum = sum,
                  .generation = generation,
                  .id = id};
  ++counts_.cold_parts;
  if (cold.next == 0) ColdnessChanged(block, true);
  UpdateColdOffer(block);
  return ref;
}

// A block has got its first cold part, or lost its last.
void Residency::ColdnessChanged(BlockRef ref, bool cold) {
  const BlockRef parent = blocks_[ref].parent;
  if (cold) {
    cold_policy_->Insert(ref, 0);
    cold_policy_->Use(ref, tick_);
    ++counts_.cold_blocks;
  } else {
    if (std::exchange(blocks_[ref].cold_offered, false)) cold_policy_->Withdraw(ref);
    cold_policy_->Erase(ref, parent != 0 && blocks_[parent].first_cold != 0 ? parent : 0);
    --counts_.cold_blocks;
  }
  if (parent == 0) return;
  blocks_[parent].cold_children += cold ? 1 : -1;
  UpdateColdOffer(parent);
}

uint32_t Residency::CommitCold(ColdRef ref, uint64_t tick) {
  ColdPart& cold = colds_[ref];
  KVD_CHECK(cold.state == ColdState::kWriting) << ref;
  cold.state = ColdState::kCommitted;
  if (cold.block == 0) {
    ReleaseCold(ref);
    return 0;
  }
  const BlockRef block_ref = cold.block;
  Block& block = blocks_[block_ref];
  counts_.cold_bytes += cold.length;
  uses_[block.ns].cold_bytes += cold.length;
  uint32_t committed = 0;
  for (ColdRef other = block.first_cold; other != 0; other = colds_[other].next) {
    committed +=
        colds_[other].id.group == cold.id.group && colds_[other].state == ColdState::kCommitted;
  }
  if (committed == shapes_[block.ns].shards[cold.id.group]) {
    block.cold_groups |= Bit(cold.id.group);
  }
  return ShowIfServed(block_ref, tick);
}

void Residency::DropCold(ColdRef ref) {
  ColdPart& cold = colds_[ref];
  KVD_CHECK(cold.state == ColdState::kWriting) << ref;
  const BlockRef block = cold.block;
  if (block != 0) UnlinkCold(ref);
  // It has no record: nobody is told.
  cold = ColdPart{};
  cold.next = std::exchange(free_cold_, ref);
  --counts_.cold_parts;
  if (block != 0) UpdateOffers(block);
}

void Residency::Show(BlockRef ref, uint64_t tick) {
  blocks_[ref].state = BlockState::kVisible;
  SetGap(blocks_[ref], false);
  if (blocks_[ref].ordered) policy_.Use(ref, tick);
  ++counts_.visible;
  ++uses_[blocks_[ref].ns].visible;
  UpdateOffers(ref);
  if (events_ != nullptr) Record(EventKind::kStored, ref, tiers(ref));
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
  if (blocks_[part.block].first_part == 0) WarmthChanged(part.block, false);
}

// The end of a part that no block names any more.
void Residency::ReleasePart(PartRef ref) {
  Part& part = parts_[ref];
  if (part.holds > 0 && SafetyOn(Safety::kQuarantine) && SafetyOn(Safety::kNoReuseUnderHold)) {
    part.block = 0;
    part.state = static_cast<uint32_t>(PartState::kQuarantined);
    room_.PartQuarantined(part);
    ++counts_.quarantined_parts;
    counts_.quarantined_bytes += part.length;
    return;
  }
  room_.FreeRoom(part);
  part = Part{};
  part.next = std::exchange(free_part_, ref);
  --counts_.parts;
}

void Residency::UnlinkCold(ColdRef ref) {
  const ColdPart& cold = colds_[ref];
  Block& block = blocks_[cold.block];
  ColdRef* link = &block.first_cold;
  while (*link != ref) link = &colds_[*link].next;
  *link = cold.next;
  if (cold.state == ColdState::kCommitted) {
    counts_.cold_bytes -= cold.length;
    uses_[block.ns].cold_bytes -= cold.length;
    block.cold_groups = static_cast<uint16_t>(block.cold_groups & ~Bit(cold.id.group));
  }
  if (block.first_cold == 0) ColdnessChanged(cold.block, false);
}

// The end of a cold part that no block names any more, now or when nobody is at it.
void Residency::ReleaseCold(ColdRef ref) {
  ColdPart& cold = colds_[ref];
  cold.block = 0;
  if (cold.state == ColdState::kWriting || cold.readers > 0) return;
  room_.FreeRecord(cold);
  cold = ColdPart{};
  cold.next = std::exchange(free_cold_, ref);
  --counts_.cold_parts;
}

void Residency::DropColds(BlockRef block) {
  while (const ColdRef ref = blocks_[block].first_cold) {
    UnlinkCold(ref);
    ReleaseCold(ref);
  }
}

// Drops what is committed. What is reserved is its producer's, who writes there and gives it back.
void Residency::DropParts(BlockRef ref) {
  Block& block = blocks_[ref];
  if (block.first_part == 0) return;
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
  if (block.first_part == 0) WarmthChanged(ref, false);
}

// Takes a block without children out of the index, and stubs above it that nothing needs any more.
void Residency::Remove(BlockRef ref) {
  while (ref != 0) {
    Block& block = blocks_[ref];
    KVD_CHECK(block.first_child == 0 && block.leases == 0 && block.reserved_parts == 0) << ref;
    WithdrawBoth(block, ref);
    DropParts(ref);
    DropColds(ref);
    if (announcements_ != nullptr) announcements_->Forget(ref);
    const BlockRef parent = block.parent;
    if (block.state == BlockState::kStub) --counts_.stubs;
    if (block.state == BlockState::kVisible) {
      --counts_.visible;
      --uses_[block.ns].visible;
    }
    --uses_[block.ns].used;
    SetGap(block, false);
    Disorder(ref);
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
    UpdateOffers(parent);
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
  UpdateOffers(ref);
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
  UpdateOffers(block);
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
  DropColds(ref);
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
    DropColds(done);
    ++counts_.parked_dropped;
    BecomeStubOrGo(done);
  }
}

// --- using ---------------------------------------------------------------------------------------

void Residency::UseInTiers(BlockRef ref, uint64_t tick) {
  const BlockRef warm = Nearest(ref, [](const Block& block) { return block.ordered; });
  if (warm != 0) {
    policy_.Use(warm, tick);
    if (blocks_[warm].uses < UINT8_MAX) ++blocks_[warm].uses;
  }
  const BlockRef cold = NearestCold(ref);
  if (cold != 0) cold_policy_->Use(cold, tick);
}

bool Residency::OnNvme(const Block& block) const {
  const uint16_t full = shapes_[block.ns].full_groups;
  if (block.first_cold == 0 || (block.cold_groups & full) != full) return false;
  for (PartRef part = block.first_part; part != 0; part = parts_[part].next) {
    if ((block.cold_groups >> parts_[part].id.group & 1) == 0) return false;
  }
  return true;
}

// Nothing of it is held or in production, and nothing in DRAM hangs below it; and then either NVMe
// has it all, or nobody misses it when it is gone.
bool Residency::MayLeaveDram(const Block& block) const {
  // What waits for other shards or for its parent may leave too: they may never come.
  const bool held = block.holds != 0 && SafetyOn(Safety::kNoReuseUnderHold);
  if (block.first_part == 0 || block.state == BlockState::kStub || held ||
      block.reserved_parts != 0 || block.warm_children != 0) {
    return false;
  }
  return (block.first_child == 0 && block.leases == 0) || OnNvme(block);
}

// The same of NVMe. What serves nobody, because DRAM has it or because it is what is left of a
// damaged block, may always go.
bool Residency::MayLeaveNvme(const Block& block) const {
  if (block.first_cold == 0 || block.cold_children != 0) return false;
  for (ColdRef cold = block.first_cold; cold != 0; cold = colds_[cold].next) {
    if (colds_[cold].state == ColdState::kWriting || colds_[cold].readers > 0) return false;
  }
  return block.state == BlockState::kStub || (block.cold_groups & ~block.complete_groups) == 0 ||
         Removable(block);
}

void Residency::UpdateOffers(BlockRef ref) {
  UpdateOffer(ref);
  UpdateColdOffer(ref);
  // A block that can be found and is not in DRAM stands in no order there: its uses are those of
  // what hangs above it.
  const Block& block = blocks_[ref];
  if (block.state == BlockState::kVisible && block.first_part == 0) Disorder(ref);
}

void Residency::UpdateOffer(BlockRef ref) {
  Block& block = blocks_[ref];
  const bool may_leave = MayLeaveDram(block);
  if (may_leave == block.offered) return;
  block.offered = may_leave;
  if (may_leave) {
    policy_.Offer(ref);
  } else {
    policy_.Withdraw(ref);
  }
}

void Residency::UpdateColdOffer(BlockRef ref) {
  Block& block = blocks_[ref];
  if (block.first_cold == 0) return;  // Withdrawn with the last of them.
  const bool may_leave = MayLeaveNvme(block);
  if (may_leave == block.cold_offered) return;
  block.cold_offered = may_leave;
  if (may_leave) {
    cold_policy_->Offer(ref);
  } else {
    cold_policy_->Withdraw(ref);
  }
}

void Residency::WithdrawBoth(Block& block, BlockRef ref) {
  if (std::exchange(block.offered, false)) policy_.Withdraw(ref);
  if (std::exchange(block.cold_offered, false)) cold_policy_->Withdraw(ref);
}

void Residency::Lease(BlockRef ref) {
  ++blocks_[ref].leases;
  UpdateOffers(ref);
}

void Residency::Unlease(BlockRef ref) {
  Block& block = blocks_[ref];
  KVD_CHECK(block.leases > 0) << ref;
  if (--block.leases > 0) return;
  if (block.state == BlockState::kStub && block.first_child == 0) {
    Remove(ref);
  } else {
    UpdateOffers(ref);
  }
}

bool Residency::BeginRead(ColdRef ref) {
  ColdPart& cold = colds_[ref];
  KVD_CHECK(cold.block != 0 && cold.state == ColdState::kCommitted) << ref;
  if (cold.readers == UINT8_MAX) return false;
  ++cold.readers;
  UpdateColdOffer(cold.block);
  return true;
}

void Residency::EndRead(ColdRef ref) {
  ColdPart& cold = colds_[ref];
  KVD_CHECK(cold.readers > 0) << ref;
  --cold.readers;
  if (cold.block != 0) {
    UpdateColdOffer(cold.block);
  } else {
    ReleaseCold(ref);
  }
}

bool Residency::Hold(PartRef ref) {
  Part& part = parts_[ref];
  if (part.holds == UINT16_MAX) return false;
  ++part.holds;
  ++blocks_[part.block].holds;
  UpdateOffers(part.block);
  return true;
}

void Residency::Unhold(PartRef ref) {
  Part& part = parts_[ref];
  KVD_CHECK(part.holds > 0) << ref;
  --part.holds;
  if (part.block != 0) {
    --blocks_[part.block].holds;
    UpdateOffers(part.block);
    return;
  }
  if (part.holds > 0) return;
  --counts_.quarantined_parts;
  counts_.quarantined_bytes -= part.length;
  ReleasePart(ref);
}

// --- leaving -------------------------------------------------------------------------------------

TierSet Residency::tiers(BlockRef ref) const {
  const Block& block = blocks_[ref];
  if (block.state != BlockState::kVisible) return 0;
  const uint16_t full = shapes_[block.ns].full_groups;
  const TierSet alone = ((block.complete_groups & full) == full ? kDramTier : 0) |
                        ((block.cold_groups & full) == full ? kNvmeTier : 0);
  return alone != 0 ? alone : kNvmeTier;
}

// What is not found any more is told before it goes: it is in no tier then.
void Residency::Record(EventKind kind, BlockRef ref, TierSet where, EventReason why) {
  Block& block = blocks_[ref];
  const bool leaves = kind == EventKind::kEvicted || kind == EventKind::kDamaged;
  block.told_tiers = leaves ? 0 : tiers(ref);
  Event event = Describe(kind, ref);
  event.reason = why;
  event.tiers = block.told_tiers;
  event.where = where;
  events_->Add(event);
}

Event Residency::Describe(EventKind kind, BlockRef ref) const {
  const Block& block = blocks_[ref];
  Event event{.number = block.depth + uint64_t{1},
              .ns = block.ns,
              .domain = shapes_[block.ns].domain,
              .kind = kind,
              .has_parent = block.parent != 0,
              .tiers = tiers(ref),
              .key = block.key,
              .block_ref = ref};
  if (event.has_parent) event.parent = blocks_[block.parent].key;
  return event;
}

// Tells if a block that is found is in other tiers than was told.
void Residency::RecordMove(BlockRef ref) {
  if (events_ == nullptr || blocks_[ref].state != BlockState::kVisible) return;
  const TierSet changed = blocks_[ref].told_tiers ^ tiers(ref);
  if (changed != 0) Record(EventKind::kMoved, ref, changed);
}

void Residency::TellAnnounced(BlockRef ref) {
  if (events_ != nullptr && blocks_[ref].state == BlockState::kVisible) {
    Record(EventKind::kAnnounced, ref, /*where=*/0);
  }
}

void Residency::CountEvicted(BlockRef ref, EvictReason reason) {
  const Block& block = blocks_[ref];
  uint64_t bytes = 0;
  for (PartRef part = block.first_part; part != 0; part = parts_[part].next) {
    bytes += parts_[part].length;
  }
  const bool in_dram = block.first_part != 0;
  for (ColdRef cold = in_dram ? 0 : block.first_cold; cold != 0; cold = colds_[cold].next) {
    bytes += colds_[cold].length;
  }
  CountEvicted(in_dram ? TierIndex::kDram : TierIndex::kNvme, reason, bytes);
  ++counts_.evicted;
}

void Residency::CountEvicted(TierIndex tier, EvictReason reason, uint64_t bytes) {
  Counts::Evicted& evicted = counts_.evicted_from[static_cast<size_t>(tier)];
  ++evicted.blocks[static_cast<size_t>(reason)];
  evicted.bytes[static_cast<size_t>(reason)] += bytes;
}

void Residency::Evict(BlockRef ref, EvictReason reason) {
  KVD_CHECK(removable(ref)) << ref;
  if (events_ != nullptr && blocks_[ref].state == BlockState::kVisible) {
    Record(EventKind::kEvicted, ref, blocks_[ref].told_tiers, EventReasonOf(reason));
  }
  CountEvicted(ref, reason);
  KVD_KILL_POINT("evict.before");
  Remove(ref);
  KVD_KILL_POINT("evict.after");
}

void Residency::LeaveDram(BlockRef ref, EvictReason reason) {
  KVD_CHECK(evictable(ref)) << ref;
  if (!OnNvme(ref)) {
    if (blocks_[ref].state == BlockState::kVisible) room_.Lost(blocks_[ref]);
    Evict(ref, reason);
    return;
  }
  blocks_[ref].offered = false;
  policy_.Withdraw(ref);
  DropParts(ref);
  Disorder(ref);
  ++counts_.left_dram;
  UpdateColdOffer(ref);
  RecordMove(ref);
}

void Residency::LeaveNvme(BlockRef ref, EvictReason reason) {
  KVD_CHECK(cold_evictable(ref)) << ref;
  const Block& block = blocks_[ref];
  if (block.state != BlockState::kStub && (block.cold_groups & ~block.complete_groups) != 0) {
    Evict(ref, reason);
    return;
  }
  DropColds(ref);
  ++counts_.left_nvme;
  UpdateOffer(ref);
  RecordMove(ref);
}

bool Residency::EvictNext(EvictionPolicy::Pool pool) {
  const std::optional<EvictionPolicy::Victim> victim = policy_.Next(pool);
  if (victim.has_value()) LeaveDram(victim->block);
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
  if (victim.has_value()) LeaveDram(victim->block);
  return victim.has_value();
}

bool Residency::EvictNextCold() {
  if (cold_policy_ == nullptr) return false;
  const std::optional<EvictionPolicy::Victim> victim = cold_policy_->Next(0);
  if (victim.has_value()) LeaveNvme(victim->block);
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
  block.complete_groups = static_cast<uint16_t>(block.complete_groups & ~Bit(group));
  ReleasePart(ref);
  LoseGroup(block_ref, group, TierIndex::kDram, length, EvictReason::kCorrupt);
}

void Residency::MarkColdDamaged(ColdRef ref) { LoseCold(ref, EvictReason::kCorrupt); }
void Residency::GiveUpCold(ColdRef ref) { LoseCold(ref, EvictReason::kReclaim); }

void Residency::LoseCold(ColdRef ref, EvictReason reason) {
  ColdPart& cold = colds_[ref];
  KVD_CHECK(cold.block != 0 && cold.state == ColdState::kCommitted) << ref;
  const BlockRef block = cold.block;
  const uint32_t group = cold.id.group;
  const uint32_t length = cold.length;
  UnlinkCold(ref);
  ReleaseCold(ref);
  LoseGroup(block, group, TierIndex::kNvme, length, reason);
}

// What becomes of a block that has lost a part or record of `group`.
void Residency::LoseGroup(BlockRef ref, uint32_t group, TierIndex tier, uint32_t length,
                          EvictReason reason) {
  Block& block = blocks_[ref];
  if ((block.served_groups() & Bit(group)) != 0) {  // The other tier has it.
    UpdateOffers(ref);
    RecordMove(ref);
    return;
  }
  const bool needed = (shapes_[block.ns].full_groups & Bit(group)) != 0;
  const bool damaged = reason == EvictReason::kCorrupt;
  if (events_ != nullptr && block.state == BlockState::kVisible && (needed || damaged)) {
    const EventKind kind = !damaged ? EventKind::kEvicted
                           : needed ? EventKind::kDamaged
                                    : EventKind::kPartDamaged;
    Record(kind, ref, tier == TierIndex::kDram ? kDramTier : kNvmeTier, EventReasonOf(reason));
  }
  if (needed && block.state == BlockState::kParked) block.state = BlockState::kProducing;
  if (needed && block.state == BlockState::kVisible) {
    CountEvicted(tier, reason, length);
    if (!damaged) ++counts_.evicted;
    BecomeStubOrGo(ref);
  } else if (block.state == BlockState::kProducing && block.first_part == 0) {
    Abandon(ref);
  } else {
    UpdateOffers(ref);
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
    for (ColdRef cold = block.first_cold; cold != 0; cold = colds_[cold].next) {
      if (colds_[cold].block != ref) error("a cold part belongs to another block");
    }
    uint32_t warm_children = 0;
    uint32_t cold_children = 0;
    BlockRef child = block.first_child;
    for (uint32_t seen = 0; child != 0 && seen < kChildrenAudited; ++seen) {
      warm_children += blocks_[child].first_part != 0;
      cold_children += blocks_[child].first_cold != 0;
      child = blocks_[child].next_sibling;
    }
    if (child == 0 &&
        (warm_children != block.warm_children || cold_children != block.cold_children)) {
      error("children with parts do not add up");
    }
    if (block.state == BlockState::kVisible) {
      ++result.blocks;
      if (!Served(block)) error("a visible block lacks a full part in both tiers");
      if (block.ordered != (block.first_part != 0)) error("a block is in the wrong order");
    }
    if (block.offered != MayLeaveDram(block)) {
      error("a block that must stay in DRAM is offered, or one that may leave is not");
    }
    if (block.cold_offered != MayLeaveNvme(block)) {
      error("a block that must stay on NVMe is offered, or one that may leave is not");
    }
  }
  return result;
}

}  // namespace kvd
