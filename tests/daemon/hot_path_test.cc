// On the hot path nothing is allocated: lookups with a lease, loads and releases of a control that
// has seen some already. Only the answer's string of extents is, once a call, at its full size.
// This program replaces the global operator new in order to count.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>

#include "tests/testing/control_harness.h"

namespace {

std::atomic<uint64_t> allocations{0};

void* CountedAllocation(size_t size) {
  ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t size) { return CountedAllocation(size); }
void* operator new[](size_t size) { return CountedAllocation(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace kvd {
namespace {

class HotPathTest : public testing::Test {
 protected:
  static constexpr uint32_t kBlocks = 48;

  HotPathTest() { h_.Put(session_, ns_, keys_); }

  CallHeader Header() { return {.session = session_.token, .ns = ns_, .keys = packed_}; }
  // One round of a client: look up with a lease, load, give both back. Returns what was found.
  uint32_t Round() {
    LookupCall lookup{.header = Header(), .lease_ms = 1000};
    if (!h_.control.Lookup(lookup).ok()) return 0;
    LoadCall load{.header = Header()};
    while (*h_.control.Load(load) == Step::kMore) {
    }
    const uint64_t holds[] = {load.cursor.hold};
    const uint64_t leases[] = {lookup.lease_id};
    (void)h_.control.Release(session_.token, {.holds = holds, .leases = leases});
    return lookup.hit_blocks + load.cursor.next;
  }
  // A lookup with a lease, whose release rides on it: `lease` is the one before.
  uint32_t LeaseRound(uint64_t& lease) {
    LookupCall lookup{.header = Header(), .lease_ms = 1000};
    lookup.header.releases.leases = {&lease, 1};
    if (!h_.control.Lookup(lookup).ok()) return 0;
    lease = lookup.lease_id;
    h_.control.Poll();
    return lookup.hit_blocks;
  }

  ControlHarness h_{
      ControlHarness::Options{.control = {.session_hold_bytes = 1u << 20, .slice_blocks = 16}}};
  ControlHarness::Session session_ = h_.Open(1);
  NamespaceId ns_ = h_.Register(session_, ControlHarness::Descriptor());
  const Keys keys_ = KeysFrom(100, kBlocks);
  const std::string packed_ = PackKeys(keys_);
};

TEST_F(HotPathTest, TheCounterCounts) {
  const uint64_t before = allocations;
  const std::string text(100, 'x');
  EXPECT_GT(allocations, before);
}

TEST_F(HotPathTest, ALookupWithALeaseAllocatesNothing) {
  uint64_t lease = 0;
  for (int i = 0; i < 10; ++i) LeaseRound(lease);
  const uint64_t before = allocations;
  uint64_t found = 0;
  for (int i = 0; i < 1000; ++i) found += LeaseRound(lease);
  EXPECT_EQ(allocations - before, 0u);
  EXPECT_EQ(found, 1000u * kBlocks);
}

TEST_F(HotPathTest, ALongLookupAllocatesNothing) {
  ControlHarness h({.arena_bytes = 16u << 20, .region_bytes = 1u << 20});
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  Keys parent;
  for (uint64_t first = 0; first < 3000; first += 1000) {
    h.Put(session, ns, KeysFrom(first, 1000), parent);
    parent = {first + 999};
  }
  const std::string packed = PackKeys(KeysFrom(0, 8000));
  const uint64_t before = allocations;
  LookupCall lookup{.header = {.session = session.token, .ns = ns, .keys = packed}};
  ASSERT_TRUE(h.control.Lookup(lookup).ok());
  EXPECT_EQ(allocations - before, 0u);
  EXPECT_EQ(lookup.hit_blocks, 3000u);
}

TEST_F(HotPathTest, ALoadAllocatesItsAnswerAndNothingElse) {
  for (int i = 0; i < 10; ++i) Round();
  const uint64_t before = allocations;
  uint64_t found = 0;
  for (int i = 0; i < 1000; ++i) found += Round();
  EXPECT_EQ(allocations - before, 1000u);  // LoadCall::extents, once each, in three slices.
  EXPECT_EQ(found, 2 * 1000u * kBlocks);
}

}  // namespace
}  // namespace kvd
