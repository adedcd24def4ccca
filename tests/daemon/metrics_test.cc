// What the control thread counts: each block that is asked for is attributed once, and what goes up
// comes down again. The names on the wire are in exposition_test.cc.

#include "daemon/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

constexpr uint32_t kBlockTokens = 16;  // As ControlHarness::Descriptor() says.

struct Asked {
  uint64_t lookups = 0;
  uint64_t blocks = 0;
  uint64_t hits = 0;
};

const TenantCounters& TenantOf(const ControlMetrics& metrics, DomainId domain) {
  for (uint32_t i = 0; i < metrics.tenants(); ++i) {
    if (metrics.domain(i) == domain) return metrics.tenant(i);
  }
  return metrics.others();
}

void ExpectAttributed(const TenantCounters& tenant, const Asked& asked) {
  EXPECT_EQ(tenant.lookups_full + tenant.lookups_partial + tenant.lookups_none, asked.lookups);
  EXPECT_EQ(tenant.lookup_dram_blocks, asked.hits);
  EXPECT_EQ(tenant.lookup_dram_blocks + tenant.lookup_miss_blocks, asked.blocks);
  EXPECT_EQ(tenant.lookup_dram_tokens + tenant.lookup_miss_tokens, asked.blocks * kBlockTokens);
}

// Puts, lookups, loads and releases at random, of tenants in a small arena, so that blocks come and
// go; damage among them. After each, tiers and misses together are what was asked.
TEST(MetricsTest, TiersAndMissesTogetherAreWhatWasAsked) {
  constexpr uint64_t kSeed = 20'261'121;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random(kSeed);
  const auto below = [&random](uint64_t n) { return random() % n; };
  ControlHarness h;  // 64 blocks of room.
  struct Client {
    ControlHarness::Session session;
    NamespaceId ns = 0;
  };
  std::vector<Client> clients;
  for (const DomainId domain : {1, 2, 2, 3}) {
    const auto session = h.Open(domain);
    clients.push_back({session, h.Register(session, ControlHarness::Descriptor())});
  }
  std::map<DomainId, Asked> asked;
  uint64_t evicted_seen = 0;
  for (int step = 0; step < 3000; ++step) {
    const Client& client = clients[below(clients.size())];
    // Chains share a trunk and part at a few places, so hits are full, partial and none.
    Keys keys = KeysFrom(0, 1 + below(8));
    const Keys branch = KeysFrom(1000 * (1 + below(6)), below(12));
    keys.insert(keys.end(), branch.begin(), branch.end());
    switch (below(4)) {
      case 0:
        h.Put(client.session, client.ns, keys);
        break;
      case 1: {
        const auto load = h.Load(client.session, client.ns, keys);
        if (load->call.cursor.hold == 0) break;
        if (below(8) == 0) {
          h.Damage(UnpackAt<PackedExtent>(load->call.extents, 0));
          h.ReportDamage(client.session, load->call.cursor.hold, {0});
        }
        h.ReleaseHold(client.session, load->call.cursor.hold);
        break;
      }
      default: {
        const auto lookup = h.Lookup(client.session, client.ns, keys, /*lease_ms=*/below(2) * 50);
        ASSERT_TRUE(lookup->done());
        Asked& of = asked[client.session.domain];
        ++of.lookups;
        of.blocks += keys.size();
        of.hits += lookup->call.hit_blocks;
        break;
      }
    }
    h.mover.CompleteAll();
    h.clock.Advance(kMillisecond);
    h.control.Poll();
    for (const auto& [domain, of] : asked) {
      ASSERT_NO_FATAL_FAILURE(ExpectAttributed(TenantOf(h.control.metrics(), domain), of));
    }
    evicted_seen = h.counts().evicted;
  }
  const ControlMetrics& metrics = h.control.metrics();
  EXPECT_GT(evicted_seen, 100u);
  EXPECT_GT(metrics.counters.damage_confirmed, 0u);
  EXPECT_EQ(h.counts().evicted_from[0].blocks[static_cast<size_t>(EvictReason::kPressure)],
            evicted_seen);
  for (const auto& [domain, of] : asked) {
    const TenantCounters& tenant = TenantOf(metrics, domain);
    EXPECT_GT(tenant.lookups_full, 0u);
    EXPECT_GT(tenant.lookups_partial, 0u);
    EXPECT_GT(tenant.lookups_none, 0u);
  }

  // What is there now is there no more when everybody has gone.
  for (const Client& client : clients) {
    h.End(client.session);
    h.Exit(client.session);
  }
  for (const DomainId domain : {1, 2, 3}) {
    const TenantCounters& tenant = TenantOf(metrics, domain);
    EXPECT_EQ(tenant.shm_sessions, 0u);
    EXPECT_EQ(tenant.leases, 0u);
    EXPECT_EQ(tenant.held_extents, 0u);
  }
  EXPECT_EQ(h.counts().reserved_bytes, 0u);
  EXPECT_EQ(h.counts().quarantined_bytes, 0u);
}

TEST(MetricsTest, LookupsAreNotAttributedWhenThatIsOff) {
  ControlHarness h(ControlHarness::Options{.control = {.count_operations = false}});
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, {1, 2});
  EXPECT_EQ(h.Hits(session, ns, {1, 2, 3}), 2u);
  const TenantCounters& tenant = TenantOf(h.control.metrics(), 1);
  EXPECT_EQ(tenant.lookup_dram_blocks, 0u);
  EXPECT_EQ(tenant.lookups_partial, 0u);
  EXPECT_EQ(h.control.counters().lookup_hit_blocks, 2u);
}

TEST(MetricsTest, TenantsBeyondTheirBoundShareOneSetOfNumbers) {
  ControlHarness h;
  NamespaceId last = 0;
  for (DomainId domain = 1; domain <= ControlMetrics::kMaxTenants + 2; ++domain) {
    const auto session = h.Open(domain);
    last = h.Register(session, ControlHarness::Descriptor());
    EXPECT_EQ(h.Hits(session, last, {1, 2, 3}), 0u);
  }
  const ControlMetrics& metrics = h.control.metrics();
  EXPECT_EQ(metrics.tenants(), ControlMetrics::kMaxTenants);
  EXPECT_EQ(metrics.tenant(0).lookup_miss_blocks, 3u);
  EXPECT_EQ(metrics.others().lookup_miss_blocks, 6u);
  EXPECT_EQ(metrics.others().shm_sessions, 2u);
}

TEST(MetricsTest, WorkersThatLoadTheirShardsSaveTheTokensOnce) {
  ControlHarness h;
  const auto session = h.Open(1);
  NamespaceDescriptor descriptor = ControlHarness::Descriptor(
      "sharded", {{.shards = 2, .block_tokens = kBlockTokens, .part_bytes = 4096}});
  descriptor.tensor_parallel = 2;
  const NamespaceId ns = h.Register(session, descriptor);
  const auto reserve = h.Reserve(session, ns, {1, 2});
  for (uint32_t i = 0; i < 4; ++i) {
    const PartId id{0, static_cast<uint8_t>(i % 2)};
    ASSERT_EQ(h.Fill(session, reserve->call.reservation_id, i, ns, 1 + i / 2, id, 4096),
              FillStatus::kOk);
  }
  ASSERT_EQ(h.Commit(session, reserve->call.reservation_id)->call.stored, 2u);
  for (const char* shard : {"\0\0", "\0\1"}) {
    auto load = ControlHarness::Make<LoadCall>(session, ns, {1, 2});
    load->parts.assign(shard, 2);
    load->call.header.parts = load->parts;
    h.Run(*load);
    ASSERT_EQ(load->call.cursor.next, 2u);
  }
  EXPECT_EQ(TenantOf(h.control.metrics(), 1).saved_tokens, 2u * kBlockTokens);
  EXPECT_EQ(h.control.counters().load_bytes, 4u * 4096);
  EXPECT_EQ(h.control.counters().committed_bytes, 4u * 4096);
}

TEST(MetricsTest, ALookupThatNamesExtentsIsALoadAsWell) {
  ControlHarness h;
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, {1, 2, 3});
  h.Lookup(session, ns, {1, 2, 3}, /*lease_ms=*/0, /*extent_blocks=*/2);
  EXPECT_EQ(h.control.counters().load_blocks, 2u);
  EXPECT_EQ(h.control.counters().load_bytes, 2u * 4096);
  EXPECT_EQ(TenantOf(h.control.metrics(), 1).saved_tokens, 2u * kBlockTokens);
  h.Load(session, ns, {1, 2, 3, 4});
  EXPECT_EQ(h.control.counters().load_blocks, 5u);
  EXPECT_EQ(h.control.counters().load_miss_blocks, 1u);
}

TEST(HistogramTest, AValueIsInTheBucketWhoseBoundItDoesNotExceed) {
  Histogram<DurationBuckets> histogram;
  histogram.Observe(0);
  histogram.Observe(1'000);
  histogram.Observe(1'001);
  histogram.Observe(10'000'000'000);
  histogram.Observe(10'000'000'001);
  EXPECT_EQ(histogram.count(0), 2u);
  EXPECT_EQ(histogram.count(1), 1u);
  EXPECT_EQ(histogram.count(DurationBuckets::kBounds.size() - 1), 1u);
  EXPECT_EQ(histogram.count(DurationBuckets::kBounds.size()), 1u);
  EXPECT_EQ(histogram.sum(), 20'000'002'002u);
}

TEST(HistogramTest, AQuantileLiesWithinItsBucket) {
  Histogram<DurationBuckets> histogram;
  EXPECT_EQ(Quantile(histogram, 0.5), 0);
  for (int i = 0; i < 99; ++i) histogram.Observe(2'000);
  histogram.Observe(60'000'000'000);
  EXPECT_GT(Quantile(histogram, 0.5), 1'000);
  EXPECT_LE(Quantile(histogram, 0.5), 2'500);
  EXPECT_EQ(Quantile(histogram, 1), 10e9);
}

}  // namespace
}  // namespace kvd
