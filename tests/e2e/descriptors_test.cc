// A real daemon of which somebody takes more connections than it has descriptors for.

#include "daemon/descriptors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "client/client.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

constexpr rlim_t kDescriptors = 256;
constexpr int kConnections = 400;
constexpr uint32_t kPartBytes = 4096;
constexpr int kCallers = 4;  // A domain may have eight streams, and one may end after its answer.

UniqueFd ConnectTo(const std::string& path, int type) {
  sockaddr_un address{.sun_family = AF_UNIX};
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd made(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  return made;
}

// How many of them the other end has closed; waits until that is `least` or patience ends.
int CountHungUp(const std::vector<UniqueFd>& sockets, int least) {
  std::vector<pollfd> open;
  for (const UniqueFd& socket : sockets) open.push_back({socket.get(), POLLRDHUP, 0});
  const absl::Time end = absl::Now() + kPatience;
  int hung_up = 0;
  while (hung_up < least && absl::Now() < end) {
    poll(open.data(), open.size(), 1000);
    for (pollfd& one : open) {
      if (one.fd < 0 || (one.revents & (POLLRDHUP | POLLHUP)) == 0) continue;
      one.fd = -1;  // Passed over from here on.
      ++hung_up;
    }
  }
  return hung_up;
}

TEST(DescriptorsTest, ConnectionsTakeNoneThatThoseWhoAreThereNeed) {
  auto daemon = DaemonProcess::Start();
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const rlimit few{.rlim_cur = kDescriptors, .rlim_max = kDescriptors};
  ASSERT_EQ(prlimit((*daemon)->pid(), RLIMIT_NOFILE, &few, nullptr), 0);
  Client client({.endpoint = "stream:" + (*daemon)->endpoint(), .timeout = kPatience});
  const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
  ASSERT_TRUE(ns.ok()) << ns.status();

  std::vector<UniqueFd> taken;
  for (int i = 0; i < kConnections; ++i) {
    constexpr const char* kSuffixes[] = {"", ".session", ".stream", ".admin"};
    const int which = i % 4;
    taken.push_back(
        ConnectTo((*daemon)->path() + kSuffixes[which], which == 1 ? SOCK_SEQPACKET : SOCK_STREAM));
  }
  const int most = static_cast<int>(kDescriptors) - kReservedDescriptors;
  EXPECT_GE(CountHungUp(taken, kConnections - most), kConnections - most);

  // Each of these has a thread of the daemon, and a descriptor of its own.
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&client, &ns, caller] {
      for (int i = 0; i < 20; ++i) {
        const std::string key = TestKey(1000 * caller + i);
        std::vector<std::byte> bytes = TestBytes(key, kPartBytes);
        const PutResult put = client.Put(*ns, key, {bytes});
        EXPECT_EQ(put.stored, 1u) << put.status;
        std::fill(bytes.begin(), bytes.end(), std::byte{0});
        const GetResult got = client.Get(*ns, key, {absl::MakeSpan(bytes)});
        EXPECT_EQ(got.blocks, 1u) << got.status;
        EXPECT_EQ(bytes, TestBytes(key, kPartBytes));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();

  taken.clear();
  Client newcomer({.endpoint = (*daemon)->endpoint(), .timeout = kPatience});
  EXPECT_TRUE(newcomer.RegisterNamespace(TestModel(kPartBytes)).ok());
  EXPECT_EQ((*daemon)->Stop(), 0);
}

}  // namespace
}  // namespace kvd
