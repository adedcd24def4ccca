// How room is made: eviction at admission, in the order of the policy, within a layout and across
// layouts and domains.

#include "daemon/store.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "policy/lru.h"

namespace kvd {
namespace {

constexpr uint64_t kRegion = 16u << 10;

ChainHash HashOf(uint64_t key) {
  ChainHash hash;
  std::memcpy(hash.bytes.data(), &key, sizeof key);
  return hash;
}

class StoreTest : public testing::Test {
 protected:
  struct Sizes {
    uint64_t regions = 4;
    uint32_t max_blocks = 1000;
    uint64_t max_parts = 1000;
    uint64_t region_bytes = kRegion;
  };
  explicit StoreTest(Sizes sizes)
      : arena_(*Arena::Open(directory_, {.bytes = sizes.regions * sizes.region_bytes,
                                         .region_bytes = sizes.region_bytes,
                                         .pages = PageKind::kSmall})),
        policy_(sizes.max_blocks),
        store_(policy_, *arena_,
               {.max_blocks = sizes.max_blocks, .max_parts = sizes.max_parts, .secret = 1},
               [this](uint32_t region, uint64_t) { renewals_.push_back(region); }) {}
  StoreTest() : StoreTest(Sizes{}) {}

  NamespaceId Namespace(DomainId domain, EvictionPolicy::Pool pool) {
    return store_.residency().AddNamespace({.domain = domain, .pool = pool});
  }
  // A visible block; 0: there was no room.
  BlockRef Put(NamespaceId ns, uint64_t key, uint32_t bytes, BlockRef parent = 0) {
    Residency& index = store_.residency();
    if (parent != 0) index.Lease(parent);
    BlockRef block = 0;
    if (store_.MakeIndexRoom()) {
      block = index.Add(ns, HashOf(key), parent, ++tick_);
      const PartRef part = store_.TakePart(block, {}, bytes);
      if (part != 0) {
        index.CommitPart(part, 0, tick_);
      } else {
        index.Abandon(block);
        block = 0;
      }
    }
    if (parent != 0) index.Unlease(parent);
    return block;
  }
  BlockRef Find(NamespaceId ns, uint64_t key) { return store_.residency().Find(ns, HashOf(key)); }
  PartRef PartOf(BlockRef block) { return store_.residency().FindPart(block, {}); }
  void FinishRenewals() {
    for (const uint32_t region : std::exchange(renewals_, {})) {
      arena_->FinishRenewal(region, *MemoryRegion::Create(kRegion, PageKind::kSmall));
    }
  }
  void TearDown() override {
    const Residency& index = store_.residency();
    const Residency::AuditResult audit = index.Audit(1, index.max_blocks());
    EXPECT_EQ(audit.errors, 0u) << audit.first_error;
    EXPECT_EQ(audit.stranded, 0u);
  }

  RegionDirectory directory_;
  std::unique_ptr<Arena> arena_;
  LruPolicy policy_;
  std::vector<uint32_t> renewals_;
  Store store_;
  uint64_t tick_ = 0;
};

TEST_F(StoreTest, AFullArenaEvictsTheOldest) {
  const NamespaceId ns = Namespace(1, 0);
  for (uint64_t key = 0; key < 16; ++key) ASSERT_NE(Put(ns, key, 4096), 0u);
  EXPECT_NE(Put(ns, 16, 4096), 0u);
  EXPECT_EQ(Find(ns, 0), 0u);
  EXPECT_NE(Find(ns, 1), 0u);
  EXPECT_EQ(store_.residency().counts().evicted, 1u);
}

class SmallIndexTest : public StoreTest {
 protected:
  SmallIndexTest() : StoreTest({.max_blocks = 5}) {}
};

TEST_F(SmallIndexTest, AFullIndexEvictsLikeAFullArena) {
  const NamespaceId ns = Namespace(1, 0);
  for (uint64_t key = 0; key < 8; ++key) ASSERT_NE(Put(ns, key, 512), 0u);
  EXPECT_EQ(store_.residency().counts().visible, 5u);
  EXPECT_EQ(Find(ns, 2), 0u);
  EXPECT_NE(Find(ns, 3), 0u);
  for (uint64_t key = 3; key < 8; ++key) store_.residency().Lease(Find(ns, key));
  EXPECT_EQ(Put(ns, 9, 512), 0u);
}

class FewPartsTest : public StoreTest {
 protected:
  FewPartsTest() : StoreTest({.max_parts = 5}) {}
};

TEST_F(FewPartsTest, AFullListOfPartsEvictsToo) {
  const NamespaceId ns = Namespace(1, 0);
  for (uint64_t key = 0; key < 8; ++key) ASSERT_NE(Put(ns, key, 512), 0u) << key;
  EXPECT_EQ(store_.residency().counts().visible, 5u);
  for (uint64_t key = 3; key < 8; ++key) store_.residency().Lease(Find(ns, key));
  EXPECT_EQ(Put(ns, 9, 512), 0u);
}

TEST_F(StoreTest, LeavesLeaveBeforeTheirParents) {
  const NamespaceId ns = Namespace(1, 0);
  BlockRef above = 0;
  for (uint64_t key = 0; key < 16; ++key) above = Put(ns, key, 4096, above);
  Put(ns, 100, 4096);
  Put(ns, 101, 4096);
  EXPECT_EQ(Find(ns, 15), 0u);
  EXPECT_EQ(Find(ns, 14), 0u);
  EXPECT_NE(Find(ns, 13), 0u);
}

TEST_F(StoreTest, ASecondLayoutOnAFullDaemonTakesRegions) {
  const NamespaceId small = Namespace(1, 0);
  const NamespaceId large = Namespace(1, 1);
  for (uint64_t key = 0; key < 16; ++key) Put(small, key, 4096);
  for (uint64_t key = 100; key < 103; ++key) ASSERT_NE(Put(large, key, 8192), 0u) << key;
  EXPECT_EQ(store_.regions_emptied(), 1u);
  EXPECT_EQ(Find(large, 100), 0u);  // Its own oldest.
  // It gets more as it goes on: its own are younger than what the others keep.
  for (uint64_t key = 103; key < 120; ++key) ASSERT_NE(Put(large, key, 8192), 0u) << key;
  EXPECT_GE(store_.regions_emptied(), 2u);
  EXPECT_TRUE(renewals_.empty());  // All of one domain: no new memory.
}

class LongChainTest : public StoreTest {
 protected:
  static constexpr uint32_t kBlocks = 32768;
  LongChainTest()
      : StoreTest({.regions = 1,
                   .max_blocks = kBlocks + 1,
                   .max_parts = kBlocks + 1,
                   .region_bytes = kBlocks * Arena::kMinSlotBytes}) {}
};

// Its blocks leave one by one, leaf first; to find each leaf from the root would take seconds.
TEST_F(LongChainTest, ARegionOfOneChainIsEmptied) {
  const NamespaceId ns = Namespace(1, 0);
  const NamespaceId other = Namespace(1, 1);
  BlockRef parent = 0;
  for (uint64_t key = 0; key < kBlocks; ++key) {
    parent = Put(ns, key, Arena::kMinSlotBytes, parent);
    ASSERT_NE(parent, 0u);
  }
  store_.residency().Lease(Find(ns, 0));
  EXPECT_EQ(Put(other, 1, 4096), 0u);
  EXPECT_EQ(store_.residency().counts().visible, kBlocks);
  store_.residency().Unlease(Find(ns, 0));
  EXPECT_NE(Put(other, 1, 4096), 0u);
  EXPECT_EQ(store_.residency().counts().visible, 1u);
}

TEST_F(StoreTest, HeldAndLeasedRegionsStay) {
  const NamespaceId small = Namespace(1, 0);
  const NamespaceId large = Namespace(1, 1);
  for (uint64_t key = 0; key < 16; ++key) Put(small, key, 4096);
  // One block of each region is held or leased.
  for (uint64_t key = 0; key < 16; key += 4) {
    if (key % 8 == 0) {
      store_.residency().Hold(PartOf(Find(small, key)));
    } else {
      store_.residency().Lease(Find(small, key));
    }
  }
  EXPECT_EQ(Put(large, 100, 8192), 0u);
  for (uint64_t key = 0; key < 16; key += 4) EXPECT_NE(Find(small, key), 0u) << key;
  store_.residency().Unhold(PartOf(Find(small, 0)));
  EXPECT_NE(Put(large, 100, 8192), 0u);
  EXPECT_NE(Find(small, 8), 0u);
}

TEST_F(StoreTest, QuarantinedRoomIsNotReused) {
  const NamespaceId ns = Namespace(1, 0);
  for (uint64_t key = 0; key < 16; ++key) Put(ns, key, 4096);
  const PartRef part = PartOf(Find(ns, 3));
  const Part held = store_.residency().part(part);
  store_.residency().Hold(part);
  store_.residency().MarkDamaged(part);
  EXPECT_EQ(Find(ns, 3), 0u);
  for (uint64_t key = 100; key < 150; ++key) {
    const BlockRef block = Put(ns, key, 4096);
    ASSERT_NE(block, 0u);
    const Part& room = store_.residency().part(PartOf(block));
    EXPECT_FALSE(room.region == held.region && room.slot == held.slot);
  }
  store_.residency().Unhold(part);
  EXPECT_EQ(store_.residency().counts().quarantined_parts, 0u);
}

TEST_F(StoreTest, AnotherDomainGetsARegionAsNewMemory) {
  const NamespaceId ours = Namespace(1, 0);
  const NamespaceId theirs = Namespace(2, 1);
  for (uint64_t key = 0; key < 16; ++key) Put(ours, key, 4096);
  const uint32_t newest = arena_->regions();
  EXPECT_EQ(Put(theirs, 100, 4096), 0u);  // Told at once.
  ASSERT_EQ(renewals_.size(), 1u);
  FinishRenewals();
  EXPECT_NE(Put(theirs, 100, 4096), 0u);
  EXPECT_GT(arena_->Number(store_.residency().part(PartOf(Find(theirs, 100))).region), newest);
  EXPECT_EQ(store_.residency().counts().visible, 13u);
}

TEST_F(StoreTest, WhileNewMemoryIsOnItsWayNoMoreRegionsAreEmptied) {
  const NamespaceId ours = Namespace(1, 0);
  const NamespaceId theirs = Namespace(2, 1);
  for (uint64_t key = 0; key < 16; ++key) Put(ours, key, 4096);
  for (int attempt = 0; attempt < 3; ++attempt) EXPECT_EQ(Put(theirs, 100, 4096), 0u);
  EXPECT_EQ(renewals_.size(), 1u);
  EXPECT_EQ(store_.residency().counts().visible, 12u);
  arena_->CancelRenewal(renewals_[0]);  // There was no memory: the next one asks again.
  renewals_.clear();
  EXPECT_EQ(Put(theirs, 100, 4096), 0u);
  EXPECT_EQ(renewals_.size(), 1u);
  EXPECT_EQ(store_.residency().counts().visible, 12u);  // That region was free already.
}

// Two layouts of one domain whose slots have the same size share regions: neither may starve.
TEST_F(StoreTest, LayoutsThatShareASlotSizeShareRoom) {
  const NamespaceId first = Namespace(1, 0);
  const NamespaceId second = Namespace(1, 1);  // Say, with a group of another size besides.
  for (uint64_t key = 0; key < 16; ++key) Put(first, key, 4096);
  EXPECT_NE(Put(second, 100, 4096), 0u);
  EXPECT_EQ(Find(first, 0), 0u);
  EXPECT_EQ(store_.residency().counts().visible, 16u);
}

TEST_F(StoreTest, NobodyElsesBlocksLeaveWhenThatMakesNoRoom) {
  const NamespaceId ours = Namespace(1, 0);
  const NamespaceId theirs = Namespace(2, 1);
  for (uint64_t key = 0; key < 16; ++key) {
    const BlockRef block = Put(ours, key, 4096);
    if (key % 4 == 3) store_.residency().Hold(PartOf(block));
  }
  EXPECT_EQ(Put(theirs, 100, 4096), 0u);
  EXPECT_TRUE(renewals_.empty());
  EXPECT_EQ(store_.residency().counts().visible, 16u);
}

}  // namespace
}  // namespace kvd
