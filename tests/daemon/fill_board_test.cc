#include "daemon/fill_board.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "proto/types/checksum.h"

namespace kvd {
namespace {

class FillBoardTest : public testing::Test {
 protected:
  FillBoard::Room RoomAt(size_t i) { return {&bytes_[i * 8], 8}; }

  std::array<std::byte, 64> bytes_{};
  FillBoard board_{2};
  uint64_t id_ = board_.Open(/*session=*/5);
};

TEST_F(FillBoardTest, APartIsFilledOnce) {
  board_.Append(id_, {{RoomAt(0), RoomAt(1)}});
  EXPECT_EQ(board_.Get(id_, 1).state, FillBoard::State::kEmpty);

  const FillBoard::Ticket ticket = board_.Begin(5, id_, {1, 0, 8});
  EXPECT_EQ(ticket.status, FillStatus::kOk);
  EXPECT_EQ(ticket.address, &bytes_[8]);
  EXPECT_EQ(board_.Get(id_, 1).state, FillBoard::State::kCopying);
  EXPECT_EQ(board_.Begin(5, id_, {1, 0, 8}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.copying(), 1u);

  EXPECT_FALSE(board_.End(id_, 1, 77));
  EXPECT_EQ(board_.Get(id_, 1).state, FillBoard::State::kFull);
  EXPECT_EQ(board_.Get(id_, 1).sum, 77u);
  EXPECT_EQ(board_.Begin(5, id_, {1, 0, 8}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.copying(), 0u);
}

TEST_F(FillBoardTest, ChecksWhatAClientSays) {
  board_.Append(id_, {{RoomAt(0), FillBoard::Room{}}});
  EXPECT_EQ(board_.Begin(6, id_, {0, 0, 8}).status, FillStatus::kGone);
  EXPECT_EQ(board_.Begin(5, id_ + 1, {0, 0, 8}).status, FillStatus::kGone);
  EXPECT_EQ(board_.Begin(5, 0, {0, 0, 8}).status, FillStatus::kGone);
  EXPECT_EQ(board_.Begin(5, ~uint64_t{0}, {0, 0, 8}).status, FillStatus::kGone);
  EXPECT_EQ(board_.Begin(5, id_, {2, 0, 8}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {~0u, 0, 8}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {0, 0, 7, /*whole=*/true}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {0, 0, 0}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {0, 0, 9}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {0, 1, 7}).status, FillStatus::kInvalid);  // A gap before it.
  EXPECT_EQ(board_.Begin(5, id_, {0, ~0u, 9}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {1, 0, 0}).status,
            FillStatus::kInvalid);  // Nothing to fill there.
  EXPECT_EQ(board_.Begin(5, id_, {0, 0, 8}).status, FillStatus::kOk);
}

TEST_F(FillBoardTest, APartComesInPiecesInOrder) {
  board_.Append(id_, {{RoomAt(0), RoomAt(1)}});
  EXPECT_EQ(board_.Begin(5, id_, {1, 0, 3}).address, &bytes_[8]);
  EXPECT_EQ(board_.Begin(5, id_, {1, 3, 5}).status, FillStatus::kInvalid);  // One after the other.
  board_.End(id_, 1, Crc32c(absl::MakeSpan(bytes_).subspan(8, 3)));
  EXPECT_EQ(board_.Get(id_, 1).state, FillBoard::State::kEmpty);
  EXPECT_EQ(board_.Begin(5, id_, {1, 0, 3}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {1, 4, 4}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {1, 3, 6}).status, FillStatus::kInvalid);
  EXPECT_EQ(board_.Begin(5, id_, {1, 3, 5}).address, &bytes_[11]);
  board_.End(id_, 1, Crc32c(absl::MakeSpan(bytes_).subspan(11, 5)));

  EXPECT_EQ(board_.Get(id_, 1).state, FillBoard::State::kFull);
  EXPECT_EQ(board_.Get(id_, 1).sum, Crc32c(absl::MakeSpan(bytes_).subspan(8, 8)));
}

TEST_F(FillBoardTest, TellsWhenSoManyPartsAreFull) {
  board_.Append(id_, {{RoomAt(0), FillBoard::Room{}, RoomAt(1), RoomAt(2)}});
  EXPECT_EQ(board_.fillable(id_), 3u);
  EXPECT_FALSE(board_.Await(id_, 2));
  const auto fill = [this](uint32_t index, uint32_t offset, uint32_t length) {
    EXPECT_EQ(board_.Begin(5, id_, {index, offset, length}).status, FillStatus::kOk);
    return board_.End(id_, index, 0);
  };
  EXPECT_FALSE(fill(3, 0, 8));
  EXPECT_FALSE(fill(0, 0, 7));  // Not yet full.
  EXPECT_TRUE(fill(0, 7, 1));
  EXPECT_FALSE(fill(2, 0, 8));  // It was told once.
  EXPECT_TRUE(board_.Await(id_, 3));
}

TEST_F(FillBoardTest, AClosedReservationWaitsForItsCopiesAndTakesNoMore) {
  board_.Append(id_, {{RoomAt(0), RoomAt(1), RoomAt(2)}});
  board_.Begin(5, id_, {0, 0, 8});
  board_.Begin(5, id_, {1, 0, 8});
  EXPECT_FALSE(board_.Close(id_));
  EXPECT_FALSE(board_.Idle(id_));
  EXPECT_EQ(board_.Begin(5, id_, {2, 0, 8}).status, FillStatus::kGone);
  EXPECT_FALSE(board_.End(id_, 0, 1));
  EXPECT_FALSE(board_.Close(id_));
  EXPECT_TRUE(board_.End(id_, 1, 1));  // The last one: somebody waits for this.
  EXPECT_TRUE(board_.Idle(id_));
  EXPECT_TRUE(board_.Close(id_));
  EXPECT_EQ(board_.Begin(5, id_, {2, 0, 8}).status, FillStatus::kGone);
}

TEST_F(FillBoardTest, IsBoundedAndNeverGivesANumberTwice) {
  const uint64_t second = board_.Open(5);
  EXPECT_NE(second, 0u);
  EXPECT_EQ(board_.Open(5), 0u);
  EXPECT_TRUE(board_.Close(second));
  const uint64_t third = board_.Open(6);
  EXPECT_NE(third, second);
  board_.Append(third, {{RoomAt(0)}});
  EXPECT_EQ(board_.Begin(5, second, {0, 0, 8}).status, FillStatus::kGone);
  EXPECT_EQ(board_.Begin(6, third, {0, 0, 8}).status, FillStatus::kOk);
}

// Copiers race for the same parts while the control thread closes: each part goes to one of them,
// and once Close() says so nobody writes any more.
TEST(FillBoardThreadsTest, NobodyWritesAfterClose) {
  constexpr uint32_t kParts = 64;
  for (int round = 0; round < 50; ++round) {
    FillBoard board(1);
    std::vector<std::byte> room(kParts);
    const uint64_t id = board.Open(1);
    for (uint32_t i = 0; i < kParts; ++i) board.Append(id, {{FillBoard::Room{&room[i], 1}}});
    std::atomic<uint32_t> filled{0};
    std::atomic<bool> last_told{false};
    std::vector<std::thread> copiers;
    for (int copier = 0; copier < 3; ++copier) {
      copiers.emplace_back([&] {
        for (uint32_t i = 0; i < kParts; ++i) {
          const FillBoard::Ticket ticket = board.Begin(1, id, {i, 0, 1});
          if (ticket.status != FillStatus::kOk) continue;
          *ticket.address = std::byte{1};
          ++filled;
          if (board.End(id, i, i)) last_told = true;
        }
      });
    }
    const bool closed_at_once = board.Close(id);
    while (!closed_at_once && !last_told) std::this_thread::yield();
    if (!closed_at_once) {
      EXPECT_TRUE(board.Close(id));
    }
    const uint32_t filled_at_close = filled;
    room.assign(kParts, std::byte{0});  // Nobody else writes there now.
    for (std::thread& copier : copiers) copier.join();
    EXPECT_EQ(filled, filled_at_close);
    EXPECT_EQ(board.copying(), 0u);
  }
}

}  // namespace
}  // namespace kvd
