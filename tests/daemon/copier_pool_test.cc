// The copier threads with real sockets; what hostile messages do is in tests/fuzz/.

#include "daemon/copier_pool.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "absl/synchronization/notification.h"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

constexpr uint32_t kPart = 4096;

class MemoryStaging final : public StagedBytes {
 public:
  explicit MemoryStaging(size_t size) : memory_(size) {
    for (size_t i = 0; i < size; ++i) memory_[i] = static_cast<std::byte>(i * 13 >> 3);
  }
  absl::Span<const std::byte> bytes() const override { return memory_; }

 private:
  std::vector<std::byte> memory_;
};

class CopierPoolTest : public testing::Test {
 protected:
  CopierPoolTest() : arena_(8 * kPart) {
    inbox_.SetWake([this] {
      absl::MutexLock lock(&mu_);
      woken_ = true;
    });
  }
  // Opens a reservation of `parts` parts.
  uint64_t Reserve(uint32_t session, uint32_t parts) {
    const uint64_t id = board_.Open(session);
    std::vector<FillBoard::Room> rooms;
    for (uint32_t i = 0; i < parts; ++i) rooms.push_back({&arena_[i * kPart], kPart});
    board_.Append(id, rooms);
    return id;
  }
  // Our end of a new channel of `session`.
  int Connect(uint32_t session, uint32_t protocol = kProtocolVersion) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const timeval patience{.tv_sec = 20};
    setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    pool_.AddChannel(session, ends[0], staging_, protocol);
    return ends[1];
  }
  static std::vector<FillReply> Receive(int channel, size_t count) {
    std::vector<FillReply> replies;
    while (replies.size() < count) {
      FillReply message[kMaxFillsPerMessage];
      const ssize_t got = recv(channel, message, sizeof message, 0);
      if (got <= 0) break;
      replies.insert(replies.end(), message, message + static_cast<size_t>(got) / sizeof *message);
    }
    return replies;
  }
  // The next event that the pool posts.
  InboxEvent NextEvent() {
    while (events_.empty()) {
      {
        absl::MutexLock lock(&mu_);
        mu_.AwaitWithTimeout(absl::Condition(&woken_), absl::Seconds(20));
        EXPECT_TRUE(woken_);
        woken_ = false;
      }
      inbox_.Drain(events_);
    }
    InboxEvent event = std::move(events_.front());
    events_.erase(events_.begin());
    return event;
  }

  std::vector<std::byte> arena_;
  std::shared_ptr<MemoryStaging> staging_ = std::make_shared<MemoryStaging>(8 * kPart);
  FillBoard board_{4};
  Inbox inbox_;
  absl::Mutex mu_;
  bool woken_ = false;
  std::vector<InboxEvent> events_;
  Copier copier_{{.loop = "plain"}};
  CopierPool pool_{board_, inbox_, copier_, {.threads = 2, .pages = PageKind::kSmall}};
};

TEST_F(CopierPoolTest, CopiesSumsAndAnswersInOrder) {
  const uint64_t id = Reserve(1, 4);
  const int channel = Connect(1);
  std::vector<FillRequest> fills;
  for (uint32_t i = 0; i < 4; ++i) fills.push_back({id, i * 100, 3 - i, kPart});
  ASSERT_GT(send(channel, fills.data(), fills.size() * sizeof(FillRequest), 0), 0);
  const auto replies = Receive(channel, 4);
  ASSERT_EQ(replies.size(), 4u);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(replies[i].index, 3 - i);
    EXPECT_EQ(replies[i].status, FillStatus::kOk);
    const auto source = staging_->bytes().subspan(i * 100, kPart);
    EXPECT_EQ(replies[i].sum, Crc32c(source));
    EXPECT_EQ(std::memcmp(&arena_[(3 - i) * kPart], source.data(), kPart), 0);
    EXPECT_EQ(board_.Get(id, 3 - i).state, FillBoard::State::kFull);
  }
  EXPECT_EQ(pool_.filled_bytes(), 4u * kPart);
  close(channel);
}

TEST_F(CopierPoolTest, UnderstandsFillsOfVersion1AndTakesThemForWholeParts) {
  const uint64_t id = Reserve(1, 2);
  const int channel = Connect(1, /*protocol=*/1);
  const std::vector<FillRequestV1> fills = {{id, 0, 0, kPart}, {id, 100, 1, kPart - 1}};
  ASSERT_GT(send(channel, fills.data(), fills.size() * sizeof(FillRequestV1), 0), 0);
  const auto replies = Receive(channel, 2);
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].status, FillStatus::kOk);
  EXPECT_EQ(board_.Get(id, 0).state, FillBoard::State::kFull);
  EXPECT_EQ(replies[1].status, FillStatus::kInvalid);
  close(channel);
}

TEST_F(CopierPoolTest, AJobOfTheControlThreadIsToldWhenItIsDone) {
  const uint64_t id = Reserve(1, 2);
  FillJob job{.session = 1, .staging = staging_, .reservation_id = id};
  job.fills = {{id, 0, 0, kPart}, {id, 0, 9, kPart}};  // The second has no such part.
  ASSERT_TRUE(pool_.Fill(std::move(job)));
  const InboxEvent event = NextEvent();
  ASSERT_TRUE(std::holds_alternative<FillsDone>(event));
  EXPECT_EQ(std::get<FillsDone>(event).reservation_id, id);
  EXPECT_EQ(board_.Get(id, 0).state, FillBoard::State::kFull);
  EXPECT_EQ(pool_.refused_fills(), 1u);
}

TEST_F(CopierPoolTest, SumsAgainWhatIsCalledDamaged) {
  const uint32_t sum = Crc32c(absl::MakeConstSpan(arena_));
  ASSERT_TRUE(pool_.Verify({arena_, sum, 7}));
  const InboxEvent intact = NextEvent();
  ASSERT_TRUE(std::holds_alternative<Verified>(intact));
  EXPECT_TRUE(std::get<Verified>(intact).intact);
  EXPECT_EQ(std::get<Verified>(intact).part, 7u);
  ASSERT_TRUE(pool_.Verify({arena_, sum ^ 1, 8}));
  EXPECT_FALSE(std::get<Verified>(NextEvent()).intact);
}

TEST_F(CopierPoolTest, MakesRegions) {
  pool_.MakeRegion(3, 64 << 10);
  const InboxEvent event = NextEvent();
  ASSERT_TRUE(std::holds_alternative<RegionMade>(event));
  EXPECT_EQ(std::get<RegionMade>(event).region, 3u);
  ASSERT_TRUE(std::get<RegionMade>(event).memory.ok());
  EXPECT_EQ(std::get<RegionMade>(event).memory->size_bytes(), 64u << 10);
}

TEST_F(CopierPoolTest, ChannelsEndWhenTheirSessionDoes) {
  const int channel = Connect(1);
  const int second = Connect(1);
  const int other = Connect(3);
  pool_.EndChannels(1);
  char byte;
  EXPECT_EQ(recv(channel, &byte, sizeof byte, 0), 0);
  EXPECT_EQ(recv(second, &byte, sizeof byte, 0), 0);
  const FillRequest fill{Reserve(3, 1), 0, 0, kPart};
  ASSERT_GT(send(other, &fill, sizeof fill, 0), 0);
  EXPECT_EQ(Receive(other, 1).size(), 1u);
  close(channel);
  close(second);
  close(other);
}

TEST_F(CopierPoolTest, AClientThatTakesNoRepliesLosesItsChannel) {
  const int channel = Connect(1);
  const std::vector<FillRequest> fills(kMaxFillsPerMessage);  // All refused, all answered.
  while (send(channel, fills.data(), fills.size() * sizeof(FillRequest), MSG_NOSIGNAL) > 0) {
  }
  EXPECT_TRUE(errno == EPIPE || errno == ECONNRESET) << errno;
  close(channel);
}

TEST_F(CopierPoolTest, AReservationThatClosesUnderACopyIsToldWhenItIsIdle) {
  const uint64_t id = Reserve(1, 1);
  const FillBoard::Ticket ticket = board_.Begin(1, id, {.length = kPart});
  ASSERT_EQ(ticket.status, FillStatus::kOk);
  EXPECT_FALSE(board_.Close(id));
  const int channel = Connect(1);
  const FillRequest late{id, 0, 0, kPart};
  ASSERT_GT(send(channel, &late, sizeof late, 0), 0);
  const auto replies = Receive(channel, 1);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].status, FillStatus::kGone);
  EXPECT_TRUE(board_.End(id, 0, 0));
  EXPECT_TRUE(board_.Close(id));
  close(channel);
}

}  // namespace
}  // namespace kvd
