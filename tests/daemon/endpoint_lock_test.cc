#include "daemon/endpoint_lock.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace kvd {
namespace {

class EndpointLockTest : public testing::Test {
 protected:
  EndpointLockTest() {
    char name[] = "/tmp/kvd-lock-XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~EndpointLockTest() override { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ + "/kvd"; }

  std::string folder_;
};

TEST_F(EndpointLockTest, OnlyOneHasIt) {
  const auto first = EndpointLock::Take(path());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = EndpointLock::Take(path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(std::string(second.status().message()).find(path()), std::string::npos);
  EXPECT_TRUE(EndpointLock::Take(path() + "2").ok());
}

TEST_F(EndpointLockTest, EndsWithItsHolderAndLeavesTheFile) {
  { ASSERT_TRUE(EndpointLock::Take(path()).ok()); }
  struct stat info;
  EXPECT_EQ(stat((path() + ".lock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_TRUE(EndpointLock::Take(path()).ok());
}

TEST_F(EndpointLockTest, MovesWithoutBeingGivenUp) {
  auto first = EndpointLock::Take(path());
  ASSERT_TRUE(first.ok());
  const EndpointLock moved = *std::move(first);
  EXPECT_FALSE(EndpointLock::Take(path()).ok());
}

TEST_F(EndpointLockTest, FollowsNoLinkAndSaysWhatIsWrong) {
  ASSERT_EQ(symlink("/etc/passwd", (path() + ".lock").c_str()), 0);
  EXPECT_FALSE(EndpointLock::Take(path()).ok());
  EXPECT_EQ(EndpointLock::Take(folder_ + "/no/such/folder/kvd").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvd
