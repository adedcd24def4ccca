// The session socket with real clients; what hostile messages do is in tests/fuzz/ and tests/e2e/.

#include "daemon/session_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/session.h"

namespace kvd {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

class SessionServerTest : public testing::Test {
 protected:
  SessionServerTest() {
    char name[] = "/tmp/kvd-session-XXXXXX";
    folder_ = mkdtemp(name);
    inbox_.SetWake([this] {
      absl::MutexLock lock(&mu_);
      woken_ = true;
    });
  }
  ~SessionServerTest() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }
  void Start(SessionServer::Options options = {}) {
    options.path = folder_ + "/session";
    auto server = SessionServer::Start(inbox_, copiers_, regions_, domains_, options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  absl::StatusOr<std::unique_ptr<Session>> Open(const SessionToken& finished = {}) {
    return Session::Open(folder_ + "/session", finished, absl::Now() + kPatience);
  }
  // The next event of type `Event`; others are dropped.
  template <typename Event>
  std::optional<Event> Next() {
    const absl::Time deadline = absl::Now() + kPatience;
    while (absl::Now() < deadline) {
      while (!events_.empty()) {
        InboxEvent event = std::move(events_.front());
        events_.erase(events_.begin());
        if (auto* wanted = std::get_if<Event>(&event)) return std::move(*wanted);
      }
      {
        absl::MutexLock lock(&mu_);
        mu_.AwaitWithTimeout(absl::Condition(&woken_), kPatience);
        woken_ = false;
      }
      inbox_.Drain(events_);
    }
    return std::nullopt;
  }

  std::string folder_;
  absl::Mutex mu_;
  bool woken_ = false;
  std::vector<InboxEvent> events_;
  Inbox inbox_;
  FillBoard board_{4};
  Copier copier_{{.loop = "plain"}};
  CopierPool copiers_{board_, inbox_, copier_, {.threads = 1, .pages = PageKind::kSmall}};
  RegionDirectory regions_;
  Domains domains_;
  const DomainId ours_ = *domains_.OfUser(geteuid(), {});
  std::unique_ptr<SessionServer> server_;
};

TEST_F(SessionServerTest, TellsWhoCameAndWhenTheyLeft) {
  Start();
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  const auto opened = Next<SessionOpened>();
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(opened->token, (*session)->token());
  EXPECT_EQ(opened->domain, ours_);
  EXPECT_EQ(opened->pid, getpid());
  session->reset();
  const auto ended = Next<SessionEnded>();
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->serial, opened->serial);
}

TEST_F(SessionServerTest, TokensAndSerialNumbersAreNeverTheSame) {
  Start();
  const auto a = Open();
  const auto b = Open();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE((*a)->token(), (*b)->token());
  EXPECT_NE(Next<SessionOpened>()->serial, Next<SessionOpened>()->serial);
}

TEST_F(SessionServerTest, RulesSayWhichDomainAUserIsIn) {
  Start();
  const auto alone = Open();
  domains_.SetRules({.domains = {{.name = "chat", .users = {geteuid()}}}});
  const auto by_user = Open();
  domains_.SetRules({.domains = {{.name = "primary", .groups = {getegid()}}}});
  const auto by_group = Open();
  ASSERT_TRUE(alone.ok() && by_user.ok() && by_group.ok());
  EXPECT_EQ(domains_.Name(Next<SessionOpened>()->domain), absl::StrCat("uid:", geteuid()));
  EXPECT_EQ(domains_.Name(Next<SessionOpened>()->domain), "chat");
  EXPECT_EQ(domains_.Name(Next<SessionOpened>()->domain), "primary");
}

TEST_F(SessionServerTest, RefusesWhomNoRuleNamesAndSaysWhy) {
  domains_.SetRules({.unlisted = Unlisted::kRefuse});
  Start();
  const absl::Status refused = Open().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_NE(refused.message().find(absl::StrCat("user ", geteuid())), absl::string_view::npos);
  domains_.SetRules({});
  EXPECT_TRUE(Open().ok());
}

// More groups than the first guess at their number.
TEST_F(SessionServerTest, SupplementaryGroupsCount) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a process groups";
  domains_.SetRules({.domains = {{.name = "many", .groups = {5000}}}});
  Start();
  const pid_t child = fork();
  if (child == 0) {
    std::vector<gid_t> groups(100);
    std::iota(groups.begin(), groups.end(), 4901);
    if (syscall(SYS_setgroups, groups.size(), groups.data()) != 0) _exit(1);
    _exit(Open().ok() ? 0 : 2);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(domains_.Name(Next<SessionOpened>()->domain), "many");
}

TEST_F(SessionServerTest, PassesOnWhichSessionIsFinished) {
  Start();
  SessionToken finished{};
  {
    const auto before = Open();
    ASSERT_TRUE(before.ok());
    finished = (*before)->token();
  }
  const auto after = Open(finished);
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(Next<SessionOpened>()->finished, SessionToken{});
  EXPECT_EQ(Next<SessionOpened>()->finished, finished);
}

TEST_F(SessionServerTest, TheEndOfAProcessIsTwoEvents) {
  Start();
  int hold[2];
  ASSERT_EQ(pipe(hold), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto session = Open();
    char byte;
    close(hold[1]);
    (void)!read(hold[0], &byte, 1);  // Until the parent closes its end.
    _exit(0);
  }
  close(hold[0]);
  const auto opened = Next<SessionOpened>();
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(opened->pid, child);
  close(hold[1]);
  EXPECT_EQ(Next<SessionEnded>()->serial, opened->serial);
  EXPECT_EQ(Next<ProcessExited>()->serial, opened->serial);
  waitpid(child, nullptr, 0);
}

TEST_F(SessionServerTest, HasABoundOnSessionsAndForgetsThoseThatAreOver) {
  Start({.max_sessions = 2});
  auto a = Open();
  const auto b = Open();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kResourceExhausted);
  a->reset();
  const auto ended = Next<SessionEnded>();
  ASSERT_TRUE(ended.has_value());
  // Not before the control thread says that nothing is held under it.
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kResourceExhausted);
  server_->Forget(ended->serial);
  const absl::Time deadline = absl::Now() + kPatience;
  auto c = Open();
  while (!c.ok() && absl::Now() < deadline) c = Open();
  EXPECT_TRUE(c.ok()) << c.status();
}

TEST_F(SessionServerTest, HasABoundOnTheSessionsOfOneDomain) {
  Start({.max_sessions = 4, .max_domain_sessions = 2});
  const auto a = Open();
  const auto b = Open();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_FALSE(Open().ok());
}

TEST_F(SessionServerTest, RefusesWhoComesWhenNoDescriptorIsLeft) {
  Start();
  const int socket = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{.sun_family = AF_UNIX};
  const std::string path = folder_ + "/session";
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit few{.rlim_cur = 512, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  std::vector<int> all;
  for (int fd = dup(0); fd >= 0; fd = dup(0)) all.push_back(fd);
  EXPECT_EQ(connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  SessionWelcome welcome;
  EXPECT_EQ(recv(socket, &welcome, sizeof welcome, 0), ssize_t{sizeof welcome});
  EXPECT_EQ(welcome.status, SessionStatus::kFull);
  for (const int fd : all) close(fd);
  setrlimit(RLIMIT_NOFILE, &limit);
  close(socket);
  EXPECT_TRUE(Open().ok());
}

// A memfd of a terabyte costs nothing, but the address space for a hundred of them is all there is.
TEST_F(SessionServerTest, OwnStagingOfAllSessionsIsBounded) {
  Start({.max_all_own_staging_bytes = 3 << 20, .max_domain_own_staging_bytes = 2 << 20});
  const int fd = memfd_create("staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(fd, 2 << 20), 0);
  ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  const auto bring = [&](uint64_t size) {
    sockaddr_un address{.sun_family = AF_UNIX};
    const std::string path = folder_ + "/session";
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const SessionHello hello{.version_min = 1, .version_max = 1};
    SessionWelcome welcome;
    EXPECT_EQ(send(socket.get(), &hello, sizeof hello, 0), ssize_t{sizeof hello});
    EXPECT_EQ(recv(socket.get(), &welcome, sizeof welcome, 0), ssize_t{sizeof welcome});
    StagingRequest request{.own = 1, .size_bytes = size};
    iovec io{&request, sizeof request};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    *part = {.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    std::memcpy(CMSG_DATA(part), &fd, sizeof fd);
    EXPECT_EQ(sendmsg(socket.get(), &message, 0), ssize_t{sizeof request});
    StagingReply reply;
    EXPECT_EQ(recv(socket.get(), &reply, sizeof reply, 0), ssize_t{sizeof reply});
    return std::pair{std::move(socket), reply.status};
  };
  {
    const auto first = bring(2 << 20);
    EXPECT_EQ(first.second, SessionStatus::kOk);
    EXPECT_EQ(bring(4096).second, SessionStatus::kFull);
    ASSERT_TRUE(Next<SessionEnded>().has_value());  // Of the one that was refused.
  }
  ASSERT_TRUE(Next<SessionEnded>().has_value());
  EXPECT_EQ(bring(2 << 20).second, SessionStatus::kOk);
  close(fd);
}

TEST_F(SessionServerTest, ASessionHasOneStagingOfEachKind) {
  Start();
  const absl::Time deadline = absl::Now() + kPatience;
  const UniqueFd memory(memfd_create("staging", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(memory.get(), 1 << 20), 0);
  ASSERT_EQ(fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  auto session = Open();
  ASSERT_TRUE(session.ok());
  const auto made = (*session)->OpenStaging(1 << 20, deadline);
  const auto own = (*session)->OpenOwnStaging(memory.get(), 1 << 20, deadline);
  ASSERT_TRUE(made.ok()) << made.status();
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_FALSE((*session)->OpenStaging(1 << 20, deadline).ok());
  EXPECT_EQ((*session)->OpenOwnStaging(memory.get(), 1 << 20, deadline).status().code(),
            absl::StatusCode::kFailedPrecondition);
  session->reset();
  for (const int channel : {made->fill_channel.get(), own->get()}) {
    pollfd hang_up{channel, POLLIN, 0};
    EXPECT_EQ(poll(&hang_up, 1, static_cast<int>(absl::ToInt64Milliseconds(kPatience))), 1);
    EXPECT_NE(hang_up.revents & POLLHUP, 0);
  }
}

TEST_F(SessionServerTest, GivesRegionsToTheirDomainAndNobodyElse) {
  auto region = MemoryRegion::Create(64 << 10, PageKind::kSmall);
  ASSERT_TRUE(region.ok());
  std::memset(region->data(), 0x5a, region->size_bytes());
  regions_.Publish(1, ours_, region->read_only_fd(), region->size_bytes());
  regions_.Publish(2, ours_ + 1, region->read_only_fd(), region->size_bytes());
  Start();
  const auto session = Open();
  ASSERT_TRUE(session.ok());
  const absl::Time deadline = absl::Now() + kPatience;
  const auto mine = (*session)->GetRegion(1, deadline);
  ASSERT_TRUE(mine.ok()) << mine.status();
  EXPECT_EQ((*mine)->size(), 64u << 10);
  const PackedExtent first{.stored_length = 1};
  EXPECT_EQ((*mine)->Bytes(first)[0], std::byte{0x5a});
  for (const uint32_t number : {0u, 2u, 3u, UINT32_MAX}) {
    EXPECT_EQ((*session)->GetRegion(number, deadline).status().code(), absl::StatusCode::kNotFound)
        << number;
  }
}

TEST_F(SessionServerTest, StagingIsBoundedAndComesBackWithTheSession) {
  Start({.max_staging_bytes = 3 << 20});
  const absl::Time deadline = absl::Now() + kPatience;
  auto a = Open();
  const auto b = Open();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_TRUE((*a)->OpenStaging(2 << 20, deadline).ok());
  const auto told = Next<StagingOpened>();
  ASSERT_TRUE(told.has_value());
  EXPECT_EQ(told->staging->bytes().size(), 2u << 20);
  EXPECT_FALSE((*b)->OpenStaging(2 << 20, deadline).ok());
  a->reset();
  ASSERT_TRUE(Next<SessionEnded>().has_value());
  const auto c = Open();
  ASSERT_TRUE(c.ok());
  EXPECT_TRUE((*c)->OpenStaging(2 << 20, deadline).ok());
}

TEST_F(SessionServerTest, ReplacesAStaleFileAndTakesItsOwnAway) {
  {
    std::filesystem::path stale(folder_ + "/session");
    close(creat(stale.c_str(), 0600));
  }
  Start();
  EXPECT_TRUE(Open().ok());
  server_.reset();
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/session"));
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace kvd
