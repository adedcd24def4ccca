// As fast a memcached client as a Unix socket allows, so that comparing with memcached is fair:
// values leave by writev() straight from the caller's memory and arrive by readv() straight in
// place. The classic text protocol, and the sizes of the answers are known beforehand; anything
// else is an error, after which the connection is of no use.
//
// Threads: one at a time. Blocking, with a timeout.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvd {

class MemcachedClient {
 public:
  static absl::StatusOr<std::unique_ptr<MemcachedClient>> Connect(const std::string& path);
  ~MemcachedClient();
  MemcachedClient(const MemcachedClient&) = delete;
  MemcachedClient& operator=(const MemcachedClient&) = delete;

  // One `set` for each key, `depth` of them sent before the first answer is read. How many of them
  // the server stored: it may lack the memory for one.
  absl::StatusOr<uint32_t> Set(absl::Span<const std::string> keys,
                               absl::Span<const absl::Span<const std::byte>> values,
                               uint32_t depth);
  // One `get` of `depth` keys at a time. For each key whether it was there; a value of another size
  // than its target is an error.
  absl::StatusOr<std::vector<bool>> Get(absl::Span<const std::string> keys,
                                        absl::Span<const absl::Span<std::byte>> targets,
                                        uint32_t depth);
  // How many of the keys there are, in one `get`: their values, of one byte each, come along. The
  // protocol has no shorter way that is faster.
  absl::StatusOr<uint64_t> Exists(absl::Span<const std::string> keys);

 private:
  explicit MemcachedClient(int fd) : fd_(fd) {}
  absl::Status Write(std::string_view command);
  // The next line, without its end. It stays good until the next call.
  absl::StatusOr<std::string_view> ReadLine();
  // The next bytes, past what ReadLine() has buffered already.
  absl::Status ReadInto(absl::Span<std::byte> target);

  const int fd_;
  std::string buffer_;   // Read ahead by ReadLine().
  size_t consumed_ = 0;  // Of buffer_.
  std::string command_;  // Of one call; its memory is used again.
};

}  // namespace kvd
