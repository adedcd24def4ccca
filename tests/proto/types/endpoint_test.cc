#include "proto/types/endpoint.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>
#include <string>

namespace kvd {
namespace {

class EndpointTest : public testing::Test {
 protected:
  EndpointTest() {
    unsetenv("KVD_ENDPOINT");
    setenv("XDG_RUNTIME_DIR", folder_.c_str(), /*overwrite=*/1);
  }
  ~EndpointTest() override {
    unsetenv("KVD_ENDPOINT");
    unsetenv("XDG_RUNTIME_DIR");
    std::filesystem::remove_all(folder_);
  }

  // A socket file stays when its socket is closed.
  static void Bind(const std::string& path) {
    sockaddr_un address{.sun_family = AF_UNIX};
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    close(fd);
  }

  static std::string NewFolder() {
    char name[] = "/tmp/kvd-endpoint-XXXXXX";
    return mkdtemp(name);
  }

  const std::string folder_ = NewFolder();
  const std::string own_ = folder_ + "/kvd.sock";
  const std::string packaged_ = folder_ + "/packaged.sock";
};

TEST_F(EndpointTest, WithoutAnySocketClientsLookWhereADaemonWouldListen) {
  EXPECT_EQ(DefaultEndpoint(), "unix:" + own_);
  EXPECT_EQ(FindEndpoint(packaged_), "unix:" + own_);
}

TEST_F(EndpointTest, ThePackagedDaemonIsFoundWhenTheUserHasNone) {
  Bind(packaged_);
  EXPECT_EQ(FindEndpoint(packaged_), "unix:" + packaged_);
  EXPECT_EQ(DefaultEndpoint(), "unix:" + own_);  // What a daemon listens at does not change.
  Bind(own_);
  EXPECT_EQ(FindEndpoint(packaged_), "unix:" + own_);
}

TEST_F(EndpointTest, WhatIsNamedIsNotSecondGuessed) {
  Bind(packaged_);
  setenv("KVD_ENDPOINT", "unix:/not/there", 1);
  EXPECT_EQ(FindEndpoint(packaged_), "unix:/not/there");
}

TEST_F(EndpointTest, AFileIsNoSocket) {
  std::filesystem::create_directory(packaged_);
  EXPECT_EQ(FindEndpoint(packaged_), "unix:" + own_);
}

}  // namespace
}  // namespace kvd
