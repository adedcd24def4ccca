// Events over real sockets: a publisher beside a control thread, and routers that read from it.

#include "daemon/event_publisher.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zmq.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "daemon/residency_follower.h"
#include "proto/types/announcement.h"
#include "tests/testing/control_harness.h"
#include "tests/testing/router.h"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

constexpr int kPatienceMs = 20'000;

// Polls a harness on a thread of its own; what tests want of it is run there, between two polls.
class ControlThread {
 public:
  explicit ControlThread(const ControlHarness::Options& options) {
    thread_ = std::thread([this, options] { Loop(options); });
    started_.WaitForNotification();
  }
  ~ControlThread() {
    {
      absl::MutexLock lock(&mu_);
      stop_ = awake_ = true;
    }
    thread_.join();
  }

  // What it has told is published when this returns.
  void Run(std::function<void(ControlHarness&)> work) {
    absl::MutexLock lock(&mu_);
    work_ = std::move(work);
    awake_ = true;
    mu_.Await(absl::Condition(
        +[](std::function<void(ControlHarness&)>* left) { return *left == nullptr; }, &work_));
  }
  ControlHarness& harness() { return *harness_; }

 private:
  void Loop(const ControlHarness::Options& options) {
    ControlHarness harness(options);
    harness_ = &harness;
    harness.inbox.SetWake([this] {
      absl::MutexLock lock(&mu_);
      awake_ = true;
    });
    started_.Notify();
    while (true) {
      std::function<void(ControlHarness&)> work;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(&awake_));
        awake_ = false;
        if (stop_) break;
        work = work_;
      }
      if (work != nullptr) work(harness);
      harness.control.Poll();
      if (work == nullptr) continue;
      absl::MutexLock lock(&mu_);
      work_ = nullptr;
    }
    harness.inbox.SetWake(nullptr);
  }

  std::thread thread_;
  ControlHarness* harness_ = nullptr;
  absl::Notification started_;
  absl::Mutex mu_;
  bool awake_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::function<void(ControlHarness&)> work_ ABSL_GUARDED_BY(mu_);
};

struct Message {
  std::string topic;
  uint64_t sequence = 0;
  std::string payload;
};

// A socket of a router.
class Peer {
 public:
  // It keeps up to `messages` that were not read yet, and then the kernel does.
  Peer(int type, const std::string& address, int messages = 1000) : context_(zmq_ctx_new()) {
    socket_ = zmq_socket(context_, type);
    Set(ZMQ_RCVHWM, messages);
    Set(ZMQ_LINGER, 0);
    Set(ZMQ_RCVTIMEO, kPatienceMs);
    if (type == ZMQ_SUB) zmq_setsockopt(socket_, ZMQ_SUBSCRIBE, "", 0);
    EXPECT_EQ(zmq_connect(socket_, address.c_str()), 0) << zmq_strerror(zmq_errno());
  }
  ~Peer() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  void Set(int option, int value) { zmq_setsockopt(socket_, option, &value, sizeof value); }

  void Send(const std::vector<std::string>& frames) {
    for (size_t i = 0; i < frames.size(); ++i) {
      zmq_send(socket_, frames[i].data(), frames[i].size(),
               i + 1 < frames.size() ? ZMQ_SNDMORE : 0);
    }
  }
  // Frames; none: nothing came in time.
  std::vector<std::string> Receive() {
    std::vector<std::string> frames;
    int more = 1;
    while (more != 0) {
      zmq_msg_t frame;
      zmq_msg_init(&frame);
      if (zmq_msg_recv(&frame, socket_, 0) < 0) return {};
      frames.emplace_back(static_cast<char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame));
      more = zmq_msg_more(&frame);
      zmq_msg_close(&frame);
    }
    return frames;
  }
  std::optional<Message> Next() {
    std::vector<std::string> frames = Receive();
    if (frames.size() != 3 || frames[1].size() != 8) return std::nullopt;
    uint64_t sequence = 0;
    for (const char byte : frames[1]) sequence = sequence << 8 | static_cast<uint8_t>(byte);
    return Message{frames[0], sequence, frames[2]};
  }
  // Answers up to their end, and what it says.
  std::vector<Message> Ask(const std::vector<std::string>& request) {
    std::vector<std::string> frames = {""};
    frames.insert(frames.end(), request.begin(), request.end());
    Send(frames);
    std::vector<Message> answers;
    while (true) {
      frames = Receive();
      EXPECT_EQ(frames.size(), 4u);
      if (frames.size() != 4) return answers;
      if (frames[2] == std::string(8, '\xff')) {
        EXPECT_EQ(frames[3], "");
        return answers;
      }
      uint64_t sequence = 0;
      for (const char byte : frames[2]) sequence = sequence << 8 | static_cast<uint8_t>(byte);
      answers.push_back({frames[1], sequence, frames[3]});
    }
  }

 private:
  void* context_;
  void* socket_;
};

std::string From(uint64_t sequence) {
  std::string bytes(8, '\0');
  for (int i = 7; i >= 0; --i, sequence >>= 8)
    bytes[static_cast<size_t>(i)] = static_cast<char>(sequence);
  return bytes;
}

class EventPublisherTest : public testing::Test {
 protected:
  explicit EventPublisherTest(ControlHarness::Options options = HarnessOptions())
      : control_(options) {
    control_.Run([this](ControlHarness& h) {
      session_ = h.Open(1);
      ns_ = h.Register(session_, ControlHarness::Descriptor());
    });
  }
  static ControlHarness::Options HarnessOptions() {
    ControlHarness::Options options;
    options.arena_bytes = 8u << 20;
    options.region_bytes = 1u << 20;
    return options;
  }
  void Start(EventPublisher::Options options) {
    options.backend_id = "kvd@test";
    options.domain_name = [](DomainId) { return "t"; };
    options.metrics = &metrics_;
    if (options.listen.empty()) options.listen = "tcp://127.0.0.1:0";
    if (options.replay.empty()) options.replay = "tcp://127.0.0.1:0";
    auto started = EventPublisher::Start(control_.harness().inbox,
                                         control_.harness().control.events(), options);
    ASSERT_TRUE(started.ok()) << started.status();
    publisher_ = *std::move(started);
  }
  // Each is a root of 16 tokens, and announced.
  void Put(const Keys& keys) {
    control_.Run([&](ControlHarness& h) {
      for (const uint64_t key : keys) {
        const std::vector<uint64_t> hashes = {key};
        const std::vector<uint32_t> tokens(16, 7);
        const std::string announced =
            WriteAnnouncement({.hashes = hashes, .tokens = tokens, .block_tokens = 16});
        auto reserve = ControlHarness::Make<ReserveCall>(session_, ns_, {key});
        reserve->call.announce = {announced};
        h.Run(*reserve);
        if (reserve->call.reservation_id == 0) continue;
        h.FillGranted(session_, reserve->call, {key});
        h.Commit(session_, reserve->call.reservation_id);
      }
    });
  }
  // Reads until the router has the block `key`, asking again after a gap, and where nothing comes
  // any more: what was dropped last is followed by nothing that would show it.
  void ReadUntil(Peer& subscription, Router& router, uint64_t key) {
    const absl::Time end = absl::Now() + absl::Milliseconds(kPatienceMs);
    while (!router.blocks().contains(key)) {
      ASSERT_LT(absl::Now(), end) << "before " << key;
      const std::optional<Message> message = subscription.Next();
      if (message.has_value() &&
          router.Hear(message->sequence, message->payload) != Router::Heard::kGap) {
        continue;
      }
      Peer asker(ZMQ_DEALER, publisher_->replay_address());
      for (const Message& again : asker.Ask({From(router.next())})) {
        ASSERT_EQ(router.Hear(again.sequence, again.payload), Router::Heard::kApplied);
      }
    }
    EXPECT_EQ(router.mistakes(), 0u);
  }

  ControlThread control_;
  ControlHarness::Session session_;
  NamespaceId ns_ = 0;
  EventMetrics metrics_;
  std::unique_ptr<EventPublisher> publisher_;
};

TEST_F(EventPublisherTest, ARouterThatComesLateHasEverything) {
  Put(KeysFrom(1, 100));
  Start({.topic = "kv@pod@model"});
  Peer subscription(ZMQ_SUB, publisher_->address());
  Peer asker(ZMQ_DEALER, publisher_->replay_address());

  Router by_replay;
  for (const Message& m : asker.Ask({From(0)})) {
    EXPECT_EQ(m.topic, "kv@pod@model");
    EXPECT_EQ(by_replay.Hear(m.sequence, m.payload), Router::Heard::kApplied);
  }
  EXPECT_EQ(by_replay.blocks().size(), 100u);

  Router by_snapshot;
  for (const Message& m : asker.Ask({"snapshot-v1", "kv@pod@model"})) {
    by_snapshot.HearSnapshot(m.sequence, m.payload);
  }
  EXPECT_EQ(by_snapshot.blocks(), by_replay.blocks());
  EXPECT_EQ(by_snapshot.next(), by_replay.next());
  EXPECT_TRUE(asker.Ask({"snapshot-v1", "another"}).empty());
  EXPECT_TRUE(asker.Ask({From(1000)}).empty());

  Put(KeysFrom(1001, 20));
  ReadUntil(subscription, by_snapshot, 1020);
  EXPECT_EQ(by_snapshot.blocks().size(), 120u);
  EXPECT_EQ(metrics_.snapshots, 2u);
}

TEST_F(EventPublisherTest, NothingIsMissedBetweenASnapshotAndTheSubscription) {
  Start({});
  for (int round = 0; round < 20; ++round) {
    Peer subscription(ZMQ_SUB, publisher_->address());
    Peer asker(ZMQ_DEALER, publisher_->replay_address());
    const uint64_t first = 1 + static_cast<uint64_t>(round) * 100;
    std::thread putter([&] {
      for (uint64_t i = 0; i < 50; ++i) Put({first + i});
    });
    Router router;
    for (const Message& m : asker.Ask({"snapshot-v1"})) router.HearSnapshot(m.sequence, m.payload);
    putter.join();
    Put({first + 50});  // By now the subscription is there, or this is asked for again.
    while (router.blocks().size() < static_cast<size_t>(round + 1) * 51) {
      for (const Message& m : asker.Ask({From(router.next())})) {
        ASSERT_EQ(router.Hear(m.sequence, m.payload), Router::Heard::kApplied);
      }
    }
    EXPECT_EQ(router.mistakes(), 0u);
  }
}

TEST_F(EventPublisherTest, AnIpcSocketHasItsMode) {
  char folder[] = "/tmp/kvd_events_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string path = absl::StrCat(folder, "/events");
  Start({.listen = "ipc://" + path, .replay = "ipc://" + path + ".replay", .ipc_mode = 0640});
  for (const std::string& file : {path, path + ".replay"}) {
    struct stat status;
    ASSERT_EQ(stat(file.c_str(), &status), 0) << file;
    EXPECT_EQ(status.st_mode & 0777, 0640u);
  }
  Put({1});
  Peer asker(ZMQ_DEALER, publisher_->replay_address());
  Router router;
  while (router.blocks().empty()) {
    for (const Message& m : asker.Ask({From(router.next())})) router.Hear(m.sequence, m.payload);
  }
  publisher_.reset();
  EXPECT_FALSE(std::filesystem::exists(path));
  std::filesystem::remove_all(folder);
}

TEST_F(EventPublisherTest, AnAddressInUseIsRefusedByName) {
  Start({});
  EventPublisher::Options options{.listen = publisher_->address(), .metrics = &metrics_};
  const auto second =
      EventPublisher::Start(control_.harness().inbox, control_.harness().control.events(), options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(second.status().message(),
            "--events: cannot listen at " + publisher_->address() + ": Address already in use");
}

TEST_F(EventPublisherTest, RequestsThatAreNoneAreCountedAndTheNextIsAnswered) {
  Start({});
  Peer asker(ZMQ_DEALER, publisher_->replay_address());
  asker.Send({"x"});
  asker.Send({"", "1234567"});
  asker.Send({"", From(0), "topic", "more"});
  asker.Send({"not empty", From(0)});
  EXPECT_TRUE(asker.Ask({From(1000)}).empty());
  EXPECT_EQ(metrics_.refused_requests, 4u);
}

TEST_F(EventPublisherTest, WhoReadsSlowlyMissesAndHoldsNobodyUp) {
  Start({.high_water = 10});
  Peer slow(ZMQ_SUB, publisher_->address(), 1);
  Peer quick(ZMQ_SUB, publisher_->address());
  quick.Set(ZMQ_RCVTIMEO, 100);
  Router router;
  // The slow one does not read. The kernel keeps some megabytes for it, so there must be more.
  uint64_t puts = 0;
  for (; puts < 200'000 && metrics_.dropped_messages == 0; puts += 500) {
    control_.Run([](ControlHarness& h) {
      auto sweep = *h.control.BeginFlush(TierIndex::kDram);
      while (!h.control.Continue(sweep)) {
      }
    });
    Put(KeysFrom(1 + puts, 500));
    ReadUntil(quick, router, puts + 500);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(metrics_.dropped_messages, 0u);

  // It sees a gap in what comes when it reads again, and a snapshot mends it.
  slow.Set(ZMQ_RCVTIMEO, 100);
  Router late;
  const absl::Time end = absl::Now() + absl::Milliseconds(kPatienceMs);
  Router::Heard heard = Router::Heard::kApplied;
  for (uint64_t key = 10'000'000; heard != Router::Heard::kGap && absl::Now() < end; ++key) {
    const std::optional<Message> message = slow.Next();
    if (!message.has_value()) {
      Put({key});  // All that was kept for it has been read.
    } else if (late.next() == 0) {
      late.HearSnapshot(message->sequence, message->payload);
    } else {
      heard = late.Hear(message->sequence, message->payload);
    }
  }
  EXPECT_EQ(heard, Router::Heard::kGap);
  Peer asker(ZMQ_DEALER, publisher_->replay_address());
  Router mended;
  for (const Message& m : asker.Ask({"snapshot-v1"})) mended.HearSnapshot(m.sequence, m.payload);
  EXPECT_GE(mended.blocks().size(), 500u);
  EXPECT_EQ(mended.mistakes(), 0u);
}

TEST_F(EventPublisherTest, AnAnswerThatNobodyReadsEndsAndOthersGetTheirs) {
  Put(KeysFrom(1, 1500));
  Start({});
  Peer asker(ZMQ_DEALER, publisher_->replay_address());
  ASSERT_FALSE(asker.Ask({From(0)}).empty());
  // Eight who do not read have answers under way; they leave, and their answers end.
  std::vector<std::unique_ptr<Peer>> idle;
  for (int i = 0; i < 8; ++i) {
    idle.push_back(std::make_unique<Peer>(ZMQ_DEALER, publisher_->replay_address(), 1));
    idle.back()->Send({"", "snapshot-v1"});
  }
  idle.clear();
  EXPECT_FALSE(asker.Ask({"snapshot-v1"}).empty());
}

TEST_F(EventPublisherTest, WhoComesBeyondTheBoundIsCutOff) {
  Start({.most_connections = 4});
  std::vector<std::unique_ptr<Peer>> peers;
  for (int i = 0; i < 8; ++i) {
    peers.push_back(std::make_unique<Peer>(ZMQ_DEALER, publisher_->replay_address()));
    peers.back()->Set(ZMQ_RCVTIMEO, 20'000);
  }
  const absl::Time end = absl::Now() + absl::Milliseconds(kPatienceMs);
  while (metrics_.refused_requests == 0 && absl::Now() < end) std::this_thread::yield();
  EXPECT_GT(metrics_.refused_requests, 0u);
  peers.clear();
  Peer asker(ZMQ_DEALER, publisher_->replay_address());  // It comes again until there is room.
  EXPECT_FALSE(asker.Ask({From(0)}).empty());
}

class ManyEventsTest : public EventPublisherTest {
 protected:
  static ControlHarness::Options Options() {
    ControlHarness::Options options;
    options.arena_bytes = 32u << 20;  // Of 4 KiB slots: what comes beyond evicts.
    options.region_bytes = 4u << 20;
    options.max_blocks = 1u << 14;
    options.max_parts = 1u << 14;
    return options;
  }
  ManyEventsTest() : EventPublisherTest(Options()) {}
};

// A router that loses one message in a hundred, over KVD_EVENTS events (one in ten where there are
// few): it ends with the index's truth, and so does one that comes then. Times are printed.
TEST_F(ManyEventsTest, ARouterThatLosesMessagesEndsWithTheTruth) {
  const uint64_t wanted = NumberFromEnvironment("KVD_EVENTS", RoundsForThisBuild(20'000));
  const uint64_t one_in = wanted < 1'000'000 ? 10 : 100;  // Few messages: more of them must go.
  Start({.replay_messages = 100});
  Peer subscription(ZMQ_SUB, publisher_->address());
  Peer asker(ZMQ_DEALER, publisher_->replay_address());
  Router router;
  std::mt19937_64 random(7);
  uint64_t lost = 0;
  uint64_t replays = 0;
  uint64_t snapshots = 0;
  const auto catch_up = [&](Router& behind) {
    const std::vector<Message> missed = asker.Ask({From(behind.next())});
    if (missed.empty() || missed[0].sequence == behind.next()) {
      ++replays;
      for (const Message& m : missed) behind.Hear(m.sequence, m.payload);
      return;
    }
    ++snapshots;
    for (const Message& m : asker.Ask({"snapshot-v1"})) behind.HearSnapshot(m.sequence, m.payload);
  };
  subscription.Set(ZMQ_RCVTIMEO, 0);
  for (uint64_t key = 1; metrics_.stored + metrics_.removed < wanted; key += 256) {
    Put(KeysFrom(key, 256));
    while (const std::optional<Message> message = subscription.Next()) {
      if (random() % one_in == 0) {
        ++lost;
      } else if (router.Hear(message->sequence, message->payload) == Router::Heard::kGap) {
        catch_up(router);
      }
    }
  }
  absl::flat_hash_map<uint64_t, TierSet> truth;
  control_.Run([&](ControlHarness& h) {
    const Residency& index = h.store.residency();
    for (BlockRef ref = 1; ref <= index.max_blocks(); ++ref) {
      if (index.tiers(ref) == 0) continue;
      uint64_t key = 0;
      std::memcpy(&key, index.block(ref).key.bytes.data(), sizeof key);
      truth[key] = index.tiers(ref);
    }
  });
  const absl::Time end = absl::Now() + absl::Milliseconds(kPatienceMs);
  while (router.blocks() != truth && absl::Now() < end) catch_up(router);
  EXPECT_EQ(router.blocks(), truth);
  EXPECT_EQ(router.mistakes(), 0u);
  EXPECT_EQ(metrics_.losses, 0u);
  EXPECT_GT(lost, 0u);

  Router late;
  const absl::Time asked = absl::Now();
  for (const Message& m : asker.Ask({"snapshot-v1"})) late.HearSnapshot(m.sequence, m.payload);
  const absl::Time had = absl::Now();
  while (late.blocks() != truth && absl::Now() < end) catch_up(late);
  EXPECT_EQ(late.blocks(), truth);
  std::printf(
      "%lu events, %lu messages, %lu lost, %lu replays, %lu snapshots; %zu blocks, a snapshot of "
      "them "
      "%.1f ms, equal to the index %.2f ms after it\n",
      static_cast<uint64_t>(metrics_.stored + metrics_.removed), uint64_t{metrics_.messages}, lost,
      replays, snapshots, truth.size(), absl::ToDoubleMilliseconds(had - asked),
      absl::ToDoubleMilliseconds(absl::Now() - had));
}

class SmallRingPublisherTest : public EventPublisherTest {
 protected:
  static ControlHarness::Options Options() {
    ControlHarness::Options options = HarnessOptions();
    options.control.events = 64;
    return options;
  }
  SmallRingPublisherTest() : EventPublisherTest(Options()) {}
};

TEST_F(SmallRingPublisherTest, EventsThatWereForgottenAreToldAnewWithANumberMissing) {
  Start({});
  Peer asker(ZMQ_DEALER, publisher_->replay_address());
  Router router;
  for (uint64_t first = 1; metrics_.losses == 0 && first < 100'000; first += 200) {
    Put(KeysFrom(first, 200));  // One turn: more than the ring remembers.
  }
  ASSERT_GT(metrics_.losses, 0u);
  for (const Message& m : asker.Ask({"snapshot-v1"})) router.HearSnapshot(m.sequence, m.payload);
  size_t there = 0;
  control_.Run([&](ControlHarness& h) { there = h.counts().visible; });
  EXPECT_EQ(router.blocks().size(), there);
  uint64_t last = 0;
  bool missing = false;
  for (const Message& m : asker.Ask({From(0)})) {
    missing |= m.sequence > last + 1;
    last = m.sequence;
  }
  EXPECT_TRUE(missing);
}

// What a follower is given, in order, is the truth whenever it says so.
TEST_F(EventPublisherTest, AFollowerGoesOnWhereItIsTold) {
  Put({1, 2, 3});
  ResidencyFollower follower(control_.harness().inbox);
  ResidencyFollower::Turn turn;
  std::map<std::string, TierSet> there;
  bool cleared = false;
  do {
    ASSERT_TRUE(follower.Next(turn).ok());
    cleared |= turn.cleared;
    for (const auto& followed : turn.events) {
      if (followed.event.tiers != 0) {
        there[std::string(reinterpret_cast<const char*>(followed.event.key.bytes.data()), 8)] =
            followed.event.tiers;
      }
    }
  } while (!turn.synced);
  EXPECT_TRUE(cleared);
  EXPECT_FALSE(turn.lost);
  EXPECT_EQ(there.size(), 3u);

  const uint64_t next = follower.next();
  Put({4});
  ResidencyFollower later(control_.harness().inbox, next);
  ASSERT_TRUE(later.Next(turn).ok());
  EXPECT_FALSE(turn.cleared);
  EXPECT_EQ(turn.first, next);
  ASSERT_EQ(turn.events.size(), 1u);
  EXPECT_EQ(turn.events[0].event.kind, EventKind::kStored);
  EXPECT_NE(turn.events[0].announcement, nullptr);
  EXPECT_EQ(*later.ModelOf(ns_), "model");

  ResidencyFollower ahead(control_.harness().inbox, next + 1000);  // Of another daemon's life.
  ASSERT_TRUE(ahead.Next(turn).ok());
  EXPECT_TRUE(turn.cleared);
}

}  // namespace
}  // namespace kvd
