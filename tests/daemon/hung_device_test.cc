// A disk that hangs under load, below the real tier, its breaker and the control loop, in virtual
// time: no call waits past its deadline for it, memory serves on, and the tier comes back with it.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/testing/control_harness.h"
#include "tests/testing/memory_nvme_device.h"
#include "tiers/segment_tier.h"

namespace kvd {
namespace {

constexpr uint32_t kPart = 4096;
constexpr uint64_t kSlots = 64;
constexpr uint32_t kDeadlineMs = 200;
constexpr Nanos kLate = 50 * kMillisecond;

ControlHarness::Options OptionsOf() {
  ControlHarness::Options options;
  options.arena_bytes = kSlots * kPart;
  options.region_bytes = 16 * kPart;
  options.nvme_bytes = 1000 * NvmeTier::RoomOf(kPart);
  options.fake_nvme = false;
  options.control.session_hold_bytes = 1u << 30;
  return options;
}

class HungDeviceTest : public testing::Test {
 protected:
  HungDeviceTest() : device_(NewMedia(64u << 20)), h_(OptionsOf()) {
    SegmentTierOptions options;
    options.devices = {&device_};
    options.clock = &h_.clock;
    options.run_blocking = [](std::function<void()> task) { task(); };
    options.new_id = [] { return MediaId{1}; };
    std::vector<RecoveredRecord> found;
    RecoveryReport report;
    tier_ = *OpenSegmentTier(options, found, report);
    h_.control.AttachNvme(*tier_, *h_.admission, [](DomainId) { return std::string("domain"); });
    tier_->SetOwner(&h_.control.movement()->owner());
    session_ = h_.Open(1);
    ns_ = h_.Register(session_, ControlHarness::Descriptor());
  }

  void Turn() {
    device_.Run();
    h_.control.Poll();
  }
  void Settle() {
    Turn();
    for (int turn = 0; turn < 1000 && h_.control.movement()->moves() > 0; ++turn) {
      h_.clock.Advance(kMillisecond);
      Turn();
    }
    ASSERT_EQ(h_.control.movement()->moves(), 0u);
    h_.Audit();
  }
  void PutChain(const Keys& keys) {
    for (size_t i = 0; i < keys.size(); i += 4) {
      const Keys page(keys.begin() + static_cast<ptrdiff_t>(i),
                      keys.begin() + static_cast<ptrdiff_t>(std::min(keys.size(), i + 4)));
      h_.Put(session_, ns_, page, i == 0 ? Keys{} : Keys{keys[i - 1]});
      Settle();
    }
  }
  uint64_t LoadAll(const Keys& keys) {
    auto load = Begin(keys);
    for (int turn = 0; turn < 100 && !load->done(); ++turn) {
      h_.clock.Advance(kMillisecond);
      device_.Run();
      h_.PollAndResume(*load);
    }
    EXPECT_TRUE(load->done());
    End(*load);
    return load->call.cursor.next;
  }
  ControlHarness::CallPtr<LoadCall> Begin(const Keys& keys) {
    auto load = ControlHarness::Make<LoadCall>(session_, ns_, keys);
    load->call.remaining_ms = kDeadlineMs;
    h_.Run(*load);
    return load;
  }
  void End(const ControlHarness::Held<LoadCall>& load) {
    if (load.call.cursor.hold != 0) h_.ReleaseHold(session_, load.call.cursor.hold);
  }

  // A load that waits.
  struct Waiting {
    ControlHarness::CallPtr<LoadCall> load;
    Nanos due = 0;
  };
  // Lets time pass as the service does: to the control thread's next deadline at the latest.
  void Pass(Nanos time) {
    const Nanos end = h_.clock.Now() + time;
    while (h_.clock.Now() < end) {
      const Nanos next = std::max(h_.control.NextDeadline(), h_.clock.Now() + kMillisecond);
      h_.clock.Advance(std::min(next, end) - h_.clock.Now());
      Turn();
      while (Resumable* ready = h_.control.NextReady()) ready->Resume();
      std::erase_if(waiting_, [this](Waiting& waiting) {
        if (std::exchange(waiting.load->resumable.resumed, 0) > 0) h_.Run(*waiting.load);
        EXPECT_LE(h_.clock.Now(), waiting.due + kLate) << "a call waited past its deadline";
        if (waiting.load->waits()) return false;
        End(*waiting.load);
        return true;
      });
    }
  }

  MemoryNvmeDevice device_;
  std::unique_ptr<SegmentTier> tier_;
  ControlHarness h_;
  ControlHarness::Session session_;
  NamespaceId ns_ = 0;
  std::vector<Waiting> waiting_;
};

TEST_F(HungDeviceTest, ForAMinuteUnderLoadNobodyWaitsForItAndMemoryServesOn) {
  const Keys cold = KeysFrom(100, 8);
  PutChain(cold);
  PutChain(KeysFrom(1000, kSlots));
  const Keys warm = KeysFrom(5000, 8);
  PutChain(warm);
  ASSERT_EQ(LoadAll(cold), 8u);
  PutChain(KeysFrom(2000, kSlots));
  PutChain(warm);
  ASSERT_EQ(LoadAll(warm), 8u);

  device_.hold = [](const NvmeJob&) { return true; };
  const Nanos hung_at = h_.clock.Now();
  uint32_t waited = 0;
  for (uint64_t step = 0; h_.clock.Now() < hung_at + 60 * kSecond; ++step) {
    if (auto load = Begin(cold); load->waits()) {
      EXPECT_LT(h_.clock.Now(), hung_at + 3 * kSecond) << "the breaker has not opened";
      ++waited;
      waiting_.push_back({std::move(load), h_.clock.Now() + kDeadlineMs * kMillisecond});
    } else {
      EXPECT_TRUE(load->done());
      End(*load);
    }
    ASSERT_EQ(h_.Hits(session_, ns_, warm), 8u) << step;
    const auto hit = Begin(warm);
    ASSERT_TRUE(hit->done()) << step;
    EXPECT_EQ(hit->call.cursor.next, 8u) << step;
    End(*hit);
    if (step % 10 == 0) {
      EXPECT_EQ(h_.Put(session_, ns_, {100'000 + step}), Results({CommitResult::kCommitted}));
    }
    Pass(50 * kMillisecond);
  }
  EXPECT_GT(waited, 10u);
  EXPECT_FALSE(tier_->readable());
  EXPECT_EQ(tier_->counters().breaker_changes, 1u);
  EXPECT_TRUE(waiting_.empty());

  device_.hold = nullptr;
  Pass(6 * kSecond);
  EXPECT_TRUE(tier_->readable());
  EXPECT_EQ(LoadAll(cold), 8u);
  EXPECT_EQ(LoadAll(warm), 8u);
  Settle();
}

}  // namespace
}  // namespace kvd
