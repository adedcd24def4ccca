// Hostile messages on the session socket: the real server on a real socket. Each message is one
// byte that says which descriptors come with it, one of length, and the bytes. Whatever comes, the
// server either answers or hangs up, and it serves the next client.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "daemon/session_server.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr PageKind kPages = PageKind::kSmall;

int MakeMemfd(off_t size, int seals) {
  const int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  KVD_CHECK(fd >= 0 && ftruncate(fd, size) == 0);
  KVD_CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

// One for the whole process.
class Server {
 public:
  Server() {
    char name[] = "/tmp/kvd-fuzz-XXXXXX";
    KVD_CHECK(mkdtemp(name) != nullptr);
    folder_ = name;
    auto region = MemoryRegion::Create(64 << 10, kPages);
    KVD_CHECK(region.ok());
    const DomainId ours = *domains_.OfUser(getuid(), {});
    regions_.Publish(7, ours, region->read_only_fd(), region->size_bytes());
    regions_.Publish(8, ours + 1, region->read_only_fd(), region->size_bytes());
    auto server = SessionServer::Start(inbox_, copiers_, regions_, domains_, {.path = path()});
    KVD_CHECK(server.ok()) << server.status();
    server_ = *std::move(server);
    fds_ = {MakeMemfd(64 << 10, F_SEAL_SHRINK), MakeMemfd(64 << 10, 0), MakeMemfd(0, F_SEAL_SHRINK),
            open("/dev/null", O_RDWR | O_CLOEXEC), open("/dev/zero", O_RDWR | O_CLOEXEC)};
  }
  ~Server() {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  void RunOneClient(const uint8_t* data, size_t size);

 private:
  std::string path() const { return folder_ + "/s"; }
  int Connect();
  // Sends a message and takes the answer. False: the server hung up.
  bool Exchange(int socket, const uint8_t* data, size_t size, uint8_t with);
  void TakeEvents();

  std::string folder_;
  Inbox inbox_;
  FillBoard board_{8};
  Copier copier_{{.loop = "plain"}};
  CopierPool copiers_{board_, inbox_, copier_, {.threads = 1, .pages = kPages}};
  RegionDirectory regions_;
  Domains domains_;
  std::unique_ptr<SessionServer> server_;
  std::vector<int> fds_;
  std::vector<InboxEvent> events_;
};

int Server::Connect() {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{.sun_family = AF_UNIX};
  std::strcpy(address.sun_path, path().c_str());
  KVD_CHECK(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const timeval patience{.tv_sec = 8};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  return fd;
}

bool Server::Exchange(int socket, const uint8_t* data, size_t size, uint8_t with) {
  iovec io{const_cast<uint8_t*>(data), size};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(20 * sizeof(int))] = {};
  const size_t count = with == 0 ? 0 : with >= 250 ? 20 : 1 + with / 100;
  if (count > 0) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(count * sizeof(int));
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (size_t i = 0; i < count; ++i) {
      const int fd = fds_[(with + i) % fds_.size()];
      std::memcpy(CMSG_DATA(part) + i * sizeof(int), &fd, sizeof fd);
    }
  }
  if (sendmsg(socket, &header, MSG_NOSIGNAL) < 0) return false;
  char answer[64];
  io = {answer, sizeof answer};
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);  // libFuzzer's own clock.
  KVD_CHECK(got >= 0 || errno == ECONNRESET) << "no answer: " << std::strerror(errno);
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); got > 0 && part != nullptr;
       part = CMSG_NXTHDR(&header, part)) {
    const size_t fds = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      // What comes from the arena cannot be written; staging can, and carries nobody's bytes.
      const int seals = fcntl(fd, F_GET_SEALS);
      KVD_CHECK(fds != 1 || seals < 0 || (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
      close(fd);
    }
  }
  return got > 0;
}

// The control thread's part: it has no holds to keep, so a session that ended is over.
void Server::TakeEvents() {
  inbox_.Drain(events_);
  for (const InboxEvent& event : events_) {
    if (const auto* ended = std::get_if<SessionEnded>(&event)) server_->Forget(ended->serial);
  }
  events_.clear();
}

void Server::RunOneClient(const uint8_t* data, size_t size) {
  const int socket = Connect();
  bool open = true;
  if (size > 0 && data[0] % 4 != 0) {
    const SessionHello hello{.version_min = 1, .version_max = 1};
    open = Exchange(socket, reinterpret_cast<const uint8_t*>(&hello), sizeof hello, 0);
    KVD_CHECK(open) << "no session for a client that did nothing wrong";
  }
  if (size > 0) ++data, --size;
  while (open && size >= 2) {
    const size_t length = std::min<size_t>(data[1] % 80, size - 2);
    open = Exchange(socket, data + 2, length, data[0]);
    data += 2 + length;
    size -= 2 + length;
  }
  close(socket);
  TakeEvents();
}

}  // namespace
}  // namespace kvd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static kvd::Server server;
  server.RunOneClient(data, size);
  return 0;
}
