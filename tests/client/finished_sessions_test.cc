#include "client/finished_sessions.h"

#include <gtest/gtest.h>

#include <string>

namespace kvd {
namespace {

SessionToken Token(size_t n) {
  SessionToken token{};
  token[0] = static_cast<uint8_t>(n);
  token[1] = 1;
  return token;
}

constexpr SessionToken kNone{};

TEST(FinishedSessionsTest, EachIsTakenOnceByItsOwnPath) {
  FinishedSessions sessions;
  sessions.Add("/a", Token(1));
  sessions.Add("/b", Token(2));
  sessions.Add("/a", Token(3));

  EXPECT_EQ(sessions.Take("/a"), Token(1));
  EXPECT_EQ(sessions.Take("/a"), Token(3));
  EXPECT_EQ(sessions.Take("/a"), kNone);
  EXPECT_EQ(sessions.Take("/b"), Token(2));
  EXPECT_EQ(sessions.Take("/c"), kNone);
}

TEST(FinishedSessionsTest, TheNewestOfAPathAreRemembered) {
  FinishedSessions sessions;
  for (size_t n = 0; n <= FinishedSessions::kMaxOfAPath; ++n) sessions.Add("/a", Token(n));

  EXPECT_EQ(sessions.Take("/a"), Token(1));
  for (size_t n = 2; n <= FinishedSessions::kMaxOfAPath; ++n) sessions.Take("/a");
  EXPECT_EQ(sessions.Take("/a"), kNone);
}

TEST(FinishedSessionsTest, PathsAreBoundedAndMakeRoomWhenTold) {
  FinishedSessions sessions;
  for (size_t n = 0; n <= FinishedSessions::kMaxPaths; ++n) {
    sessions.Add(std::to_string(n), Token(n));
  }
  const std::string last = std::to_string(FinishedSessions::kMaxPaths);
  EXPECT_EQ(sessions.Take(last), kNone);

  EXPECT_EQ(sessions.Take("0"), Token(0));
  sessions.Add(last, Token(7));
  EXPECT_EQ(sessions.Take(last), Token(7));
}

}  // namespace
}  // namespace kvd
