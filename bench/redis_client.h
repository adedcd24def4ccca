// As fast a Redis client as a Unix socket allows, so that comparing with Redis is fair: commands
// leave by writev() straight from the caller's memory, values arrive by readv() straight in place.
//
// It knows the sizes of the answers it expects; anything else is an error. Blocking, with a
// timeout.
//
// Threads: one at a time.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/child_process.h"

namespace kvd {

class RedisClient {
 public:
  static absl::StatusOr<std::unique_ptr<RedisClient>> Connect(const std::string& path);
  ~RedisClient();
  RedisClient(const RedisClient&) = delete;
  RedisClient& operator=(const RedisClient&) = delete;

  // One SET for each key, `depth` of them sent before the first answer is read.
  absl::Status Set(absl::Span<const std::string> keys,
                   absl::Span<const absl::Span<const std::byte>> values, uint32_t depth);
  // One GET for each key. kNotFound when one is not there or of another size than its target.
  absl::Status Get(absl::Span<const std::string> keys,
                   absl::Span<const absl::Span<std::byte>> targets, uint32_t depth);
  // One MSET of all keys to the same value.
  absl::Status SetMany(absl::Span<const std::string_view> keys, std::string_view value);
  // How many of the keys there are.
  absl::StatusOr<uint64_t> Exists(absl::Span<const std::string_view> keys);

 private:
  explicit RedisClient(int fd) : fd_(fd) {}

  const int fd_;
  std::string command_;  // Of one call; its memory is used again.
};

// A redis-server of our own that keeps nothing on disk, and a client of it.
class RedisServer {
 public:
  // kNotFound when redis-server is not installed.
  static absl::StatusOr<std::unique_ptr<RedisServer>> Start(const std::string& folder);

  pid_t pid() const { return process_->pid(); }
  RedisClient& client() { return *client_; }

 private:
  RedisServer(std::unique_ptr<ChildProcess> process, std::unique_ptr<RedisClient> client)
      : process_(std::move(process)), client_(std::move(client)) {}

  const std::unique_ptr<ChildProcess> process_;
  const std::unique_ptr<RedisClient> client_;
};

}  // namespace kvd
