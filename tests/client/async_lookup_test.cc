// What a lookup that nobody sits out owes its caller: it never makes it wait, and no lease is lost.

#include "client/async_lookup.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/client/fake_daemon.h"

namespace kvd {
namespace {

constexpr uint32_t kHashBytes = 16;
constexpr uint32_t kPartBytes = 4096;
const LookupOptions kLeased{.lease = absl::Seconds(60)};

class AsyncLookupTest : public testing::Test {
 protected:
  AsyncLookupTest() : path_(folder_.path() + "/kvd"), daemon_(path_) {
    NamespaceDescriptor model;
    model.model = "test/model";
    model.hash_bytes = kHashBytes;
    model.groups = {{.block_tokens = 16, .part_bytes = kPartBytes}};
    const absl::StatusOr<Namespace> ns = client_.RegisterNamespace(model);
    EXPECT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    const std::vector<std::byte> part(kPartBytes);
    EXPECT_EQ(client_.Put(ns_, keys_, {part, part}).stored, 2u);
  }

  AsyncLookups::Ticket MustStart(const LookupOptions& options = kLeased) {
    absl::StatusOr<AsyncLookups::Ticket> ticket = lookups_.Start(ns_, keys_, options);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    return *std::move(ticket);
  }
  LookupResult Await(const AsyncLookups::Ticket& ticket) {
    const absl::Time patience = absl::Now() + absl::Seconds(20);
    while (absl::Now() < patience) {
      if (const std::optional<LookupResult> result = lookups_.Poll(ticket)) return *result;
      std::this_thread::yield();
    }
    return {absl::UnknownError("no answer")};
  }
  void AwaitLookups(int count) {
    ASSERT_TRUE(daemon_.WaitUntilSeen(
        [count](const FakeDaemon::Seen& seen) { return Lookups(seen) >= count; }));
  }
  static int Lookups(const FakeDaemon::Seen& seen) {
    const auto found = seen.calls.find("Lookup");
    return found == seen.calls.end() ? 0 : found->second;
  }
  void ExpectLeasesReleased(size_t count) {
    EXPECT_TRUE(daemon_.WaitUntilSeen(
        [count](const FakeDaemon::Seen& seen) { return seen.released_leases.size() == count; }));
  }

  TemporaryFolder folder_;
  const std::string path_;
  FakeDaemon daemon_;
  Client client_{{.endpoint = "unix:" + path_, .timeout = absl::Seconds(20)}};
  Namespace ns_;
  const std::string keys_ = std::string(kHashBytes, 'a') + std::string(kHashBytes, 'b');
  AsyncLookups lookups_{client_};
};

TEST_F(AsyncLookupTest, TheAnswerComesLaterAndItsLeaseIsTheCallers) {
  daemon_.Pause();
  const AsyncLookups::Ticket ticket = MustStart();
  EXPECT_FALSE(lookups_.Poll(ticket).has_value());

  daemon_.Resume();
  const LookupResult found = Await(ticket);
  lookups_.Leave(ticket);

  ASSERT_TRUE(found.status.ok()) << found.status;
  EXPECT_EQ(found.hit_blocks, 2u);
  EXPECT_NE(found.lease_id, 0u);
  client_.ReleaseLease(found.lease_id);
  ExpectLeasesReleased(1);  // And not twice, or by Leave().
  EXPECT_TRUE(daemon_.seen().released_leases.contains(found.lease_id));
}

TEST_F(AsyncLookupTest, WhatComesForACallerThatLeftIsGivenBack) {
  daemon_.Pause();
  const AsyncLookups::Ticket ticket = MustStart();
  AwaitLookups(1);
  lookups_.Leave(ticket);

  daemon_.Resume();

  ExpectLeasesReleased(1);
}

TEST_F(AsyncLookupTest, WhatNobodyTookIsGivenBack) {
  const AsyncLookups::Ticket ticket = MustStart();
  Await(MustStart());  // One after another: the first has ended too.

  lookups_.Leave(ticket);

  ExpectLeasesReleased(1);
}

TEST_F(AsyncLookupTest, NobodyIsAskedForACallerThatLeftInTime) {
  daemon_.Pause();
  MustStart();
  AwaitLookups(1);
  lookups_.Leave(MustStart());

  daemon_.Resume();
  Await(MustStart());

  EXPECT_EQ(Lookups(daemon_.seen()), 2);
}

TEST_F(AsyncLookupTest, TheTimeSpentBehindOthersCounts) {
  daemon_.Pause();
  const AsyncLookups::Ticket first = MustStart({.timeout = absl::Milliseconds(20)});
  const AsyncLookups::Ticket second = MustStart({.timeout = absl::Milliseconds(1)});

  EXPECT_TRUE(absl::IsDeadlineExceeded(Await(first).status));
  EXPECT_TRUE(absl::IsDeadlineExceeded(Await(second).status));
  EXPECT_EQ(Lookups(daemon_.seen()), 1);
  daemon_.Resume();
}

TEST_F(AsyncLookupTest, MoreThanTheBoundAreRefusedAtOnce) {
  daemon_.Pause();
  MustStart();
  AwaitLookups(1);
  for (size_t i = 0; i < AsyncLookups::kMaxWaiting; ++i) MustStart();

  const absl::Status refused = lookups_.Start(ns_, keys_, kLeased).status();

  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  daemon_.Resume();
}

TEST_F(AsyncLookupTest, WhatWaitsWhenAllEndsIsCancelledAndMayStillBeAskedFor) {
  daemon_.Pause();
  const AsyncLookups::Ticket under_way = MustStart({.timeout = absl::Milliseconds(50)});
  AwaitLookups(1);
  const AsyncLookups::Ticket waiting = MustStart();

  lookups_.Stop();

  EXPECT_TRUE(absl::IsDeadlineExceeded(lookups_.Poll(under_way)->status));
  EXPECT_TRUE(absl::IsCancelled(lookups_.Poll(waiting)->status));
  EXPECT_TRUE(absl::IsCancelled(lookups_.Start(ns_, keys_, kLeased).status()));
  lookups_.Leave(waiting);
  daemon_.Resume();
}

}  // namespace
}  // namespace kvd
