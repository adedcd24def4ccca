// A buffered, decompressing reader of one file, standard input or a string. What the bytes are is
// told by their first bytes, never by a file's name: gzip (RFC 1952, any number of members),
// Zstandard (any number of frames) or anything else, which passes as it is.
//
// Threads: one at a time. Reading blocks.
// Errors: kInvalidArgument when compressed data are damaged or end early; otherwise what the system
// said. Bytes before the damage may have been handed out already.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvd {

// Where bytes come from, in order.
class ByteStream {
 public:
  virtual ~ByteStream() = default;

  // Writes up to `size` bytes to `target` and returns how many; zero only at the end.
  // Requires: size > 0.
  virtual absl::StatusOr<size_t> Read(char* target, size_t size) = 0;

  // How much of the input was read, from 0 to 1; negative when its size is unknown (a pipe).
  virtual double fraction() const = 0;
};

class ByteSource {
 public:
  // `path` "-" is standard input. kNotFound and the like when the file cannot be opened.
  static absl::StatusOr<std::unique_ptr<ByteSource>> Open(const std::string& path);
  static absl::StatusOr<std::unique_ptr<ByteSource>> FromBytes(std::string bytes);

  // Takes `stream` as it is, without a look at its first bytes.
  explicit ByteSource(std::unique_ptr<ByteStream> stream) : stream_(std::move(stream)) {}

  // What comes next: at least `size` bytes, or all that are left. Valid until the next call.
  absl::StatusOr<std::string_view> Peek(size_t size);

  // Skips `size` bytes. Requires: Peek() has shown them.
  void Consume(size_t size);

  double fraction() const { return stream_->fraction(); }

 private:
  std::unique_ptr<ByteStream> stream_;
  std::string buffer_;
  size_t begin_ = 0;  // Of what is buffered and not consumed.
  size_t end_ = 0;
  bool ended_ = false;
};

}  // namespace kvd
