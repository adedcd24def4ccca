// One session with the daemon: the descriptor socket (proto/types/session_wire.h), and the
// read-only mappings of the regions that this client has met. It knows nothing of gRPC.
//
// Threads: everything is safe from any thread. Requests on the socket take turns.
// Errors: what is unexpected on the socket (a hang-up, an answer of the wrong size or too late)
// ends the session, because a later answer could no longer be told from a late one. Mappings stay
// good after that, for as long as somebody holds the Region.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/turn.h"
#include "proto/types/packed.h"
#include "proto/types/session_wire.h"

namespace kvd {

// A descriptor that closes itself.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd();

  int get() const { return fd_; }

 private:
  int fd_;
};

// Shared memory of the daemon, mapped here until this object goes. Move-only.
class Mapping {
 public:
  enum class Access { kRead, kReadWrite };

  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // kDataLoss when the file is shorter than `size_bytes`: touching its end would be a SIGBUS.
  static absl::StatusOr<Mapping> Map(int fd, uint64_t size_bytes, Access access);

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

// A region of the daemon's arena, read-only.
class Region {
 public:
  Region(uint32_t number, Mapping mapping) : number_(number), mapping_(std::move(mapping)) {}

  uint32_t number() const { return number_; }
  uint64_t size() const { return mapping_.size(); }
  // The stored bytes of `extent`. Requires: they lie inside the region.
  absl::Span<const std::byte> Bytes(const PackedExtent& extent) const {
    return {mapping_.data() + extent.offset, extent.stored_length};
  }

 private:
  const uint32_t number_;
  const Mapping mapping_;
};

// What a StagingRequest gave.
struct StagingMemory {
  Mapping memory;
  UniqueFd fill_channel;  // Non-blocking.
};

class RemoteSession;

class Session {
 public:
  // Connects to `path` and says hello, within `deadline`. `finished` is a session of this process
  // whose extents nobody reads any more, or zeros.
  //   kUnavailable         nobody listens there, or it hung up
  //   kDeadlineExceeded    it does not answer
  //   kFailedPrecondition  no protocol version in common
  //   kResourceExhausted   the daemon has too many sessions
  static absl::StatusOr<std::unique_ptr<Session>> Open(const std::string& path,
                                                       const SessionToken& finished,
                                                       absl::Time deadline);
  virtual ~Session() = default;

  const SessionToken& token() const { return token_; }

  // Whether calls can no longer use this session. Costs one poll().
  virtual bool ended() const;
  // Ends it for both sides, now. Mappings stay.
  virtual void End();

  // The region of that number, mapped; asked for once, then remembered.
  // kNotFound: no such region for this domain, a miss.
  virtual absl::StatusOr<std::shared_ptr<const Region>> GetRegion(uint32_t number,
                                                                  absl::Time deadline);

  // Staging memory of at most `size_bytes`, with its fill channel. Once in a session.
  virtual absl::StatusOr<StagingMemory> OpenStaging(uint64_t size_bytes, absl::Time deadline);

  // Shows the daemon the first `size_bytes` of a memfd of ours; the fill channel for them. Once in
  // a session. kFailedPrecondition: it will not take it.
  virtual absl::StatusOr<UniqueFd> OpenOwnStaging(int fd, uint64_t size_bytes, absl::Time deadline);

  // This, when it is one without shared memory; otherwise null.
  virtual RemoteSession* remote() { return nullptr; }

 protected:
  Session(UniqueFd socket, const SessionToken& token) : socket_(std::move(socket)), token_(token) {}

 private:
  struct CachedRegion {
    std::shared_ptr<const Region> region;
    uint64_t last_use = 0;
  };

  std::shared_ptr<const Region> FindRegion(uint32_t number);
  void RememberRegion(std::shared_ptr<const Region> region);
  template <typename Request, typename Reply>
  absl::StatusOr<Reply> Exchange(const Request& request, std::vector<UniqueFd>& fds,
                                 absl::Time deadline, int passed_fd = -1);

  // Constant after construction.
  const UniqueFd socket_;
  const SessionToken token_;

  std::atomic<bool> ended_{false};  // A stop flag.
  Turn exchange_;                   // Who may send a request and await its answer.
  absl::Mutex mu_;
  absl::flat_hash_map<uint32_t, CachedRegion> regions_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
};

// ---- SEQPACKET sockets with deadlines -----------------------------------------------------------

// Waits until `fd` has one of `events` or hung up. kDeadlineExceeded when it does not.
absl::Status PollUntil(int fd, short events, absl::Time deadline);
// Sends one message whole, and `passed_fd` with it unless that is -1. kUnavailable: the peer hung
// up.
absl::Status SendMessage(int fd, const void* data, size_t size, absl::Time deadline,
                         int passed_fd = -1);
// Receives one message into `data`, at most `capacity` bytes, and returns its size. Descriptors
// that come with it are added to `fds`. A longer message is kDataLoss, a hang-up kUnavailable.
absl::StatusOr<size_t> ReceiveMessage(int fd, void* data, size_t capacity,
                                      std::vector<UniqueFd>& fds, absl::Time deadline);

}  // namespace kvd
