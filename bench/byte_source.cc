#include "bench/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr size_t kReadBytes = 64u << 10;

class FileStream final : public ByteStream {
 public:
  FileStream(int fd, bool owned, uint64_t size, std::string path)
      : fd_(fd), owned_(owned), size_(size), path_(std::move(path)) {}
  ~FileStream() override {
    if (owned_) close(fd_);
  }

  absl::StatusOr<size_t> Read(char* target, size_t size) override {
    ssize_t got;
    do {
      got = read(fd_, target, size);
    } while (got < 0 && errno == EINTR);
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("reading ", path_));
    read_ += static_cast<uint64_t>(got);
    return static_cast<size_t>(got);
  }

  double fraction() const override {
    if (size_ == 0) return -1;
    return std::min(1.0, static_cast<double>(read_) / static_cast<double>(size_));
  }

 private:
  const int fd_;
  const bool owned_;
  const uint64_t size_;  // Bytes; zero when unknown.
  const std::string path_;
  uint64_t read_ = 0;
};

class StringStream final : public ByteStream {
 public:
  explicit StringStream(std::string bytes) : bytes_(std::move(bytes)) {}

  absl::StatusOr<size_t> Read(char* target, size_t size) override {
    size = std::min(size, bytes_.size() - read_);
    std::memcpy(target, bytes_.data() + read_, size);
    read_ += size;
    return size;
  }

  double fraction() const override {
    return bytes_.empty() ? 1 : static_cast<double>(read_) / static_cast<double>(bytes_.size());
  }

 private:
  const std::string bytes_;
  size_t read_ = 0;
};

class GzipStream final : public ByteStream {
 public:
  explicit GzipStream(std::unique_ptr<ByteSource> raw) : raw_(std::move(raw)) {
    constexpr int kGzipOnly = 16;
    KVD_CHECK(inflateInit2(&inflate_, MAX_WBITS + kGzipOnly) == Z_OK);
  }
  ~GzipStream() override { inflateEnd(&inflate_); }

  absl::StatusOr<size_t> Read(char* target, size_t size) override {
    size = std::min<size_t>(size, 1u << 30);  // zlib counts in 32 bits.
    inflate_.next_out = reinterpret_cast<Bytef*>(target);
    inflate_.avail_out = static_cast<uInt>(size);
    while (inflate_.avail_out == size) {
      absl::StatusOr<std::string_view> raw = raw_->Peek(1);
      if (!raw.ok()) return raw.status();
      if (raw->empty()) {
        if (between_members_) return 0;
        return absl::InvalidArgumentError("the gzip data end early");
      }
      if (between_members_ && inflateReset(&inflate_) != Z_OK) return Damaged();
      between_members_ = false;
      const uInt offered = static_cast<uInt>(std::min<size_t>(raw->size(), 1u << 30));
      inflate_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(raw->data()));
      inflate_.avail_in = offered;
      const int result = inflate(&inflate_, Z_NO_FLUSH);
      raw_->Consume(offered - inflate_.avail_in);
      if (result == Z_STREAM_END) {
        between_members_ = true;
      } else if (result != Z_OK) {
        return Damaged();
      }
    }
    return size - inflate_.avail_out;
  }

  double fraction() const override { return raw_->fraction(); }

 private:
  static absl::Status Damaged() { return absl::InvalidArgumentError("the gzip data are damaged"); }

  const std::unique_ptr<ByteSource> raw_;
  z_stream inflate_{};
  bool between_members_ = false;
};

class ZstdStream final : public ByteStream {
 public:
  explicit ZstdStream(std::unique_ptr<ByteSource> raw)
      : raw_(std::move(raw)), context_(ZSTD_createDCtx(), &ZSTD_freeDCtx) {
    KVD_CHECK(context_ != nullptr);
  }

  absl::StatusOr<size_t> Read(char* target, size_t size) override {
    ZSTD_outBuffer output{target, size, 0};
    while (output.pos == 0) {
      absl::StatusOr<std::string_view> raw = raw_->Peek(1);
      if (!raw.ok()) return raw.status();
      if (raw->empty() && between_frames_) return 0;
      ZSTD_inBuffer input{raw->data(), raw->size(), 0};
      // At the end of the input this still flushes what the decoder holds back.
      const size_t result = ZSTD_decompressStream(context_.get(), &output, &input);
      if (ZSTD_isError(result)) {
        return absl::InvalidArgumentError(
            absl::StrCat("the zstd data are damaged: ", ZSTD_getErrorName(result)));
      }
      raw_->Consume(input.pos);
      between_frames_ = result == 0;
      if (raw->empty() && output.pos == 0 && !between_frames_) {
        return absl::InvalidArgumentError("the zstd data end early");
      }
    }
    return output.pos;
  }

  double fraction() const override { return raw_->fraction(); }

 private:
  const std::unique_ptr<ByteSource> raw_;
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context_;
  bool between_frames_ = false;
};

bool IsGzip(std::string_view bytes) {
  return bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b';
}

bool IsZstd(std::string_view bytes) {
  if (bytes.size() < 4) return false;
  if (bytes.substr(0, 4) == "\x28\xb5\x2f\xfd") return true;
  // A skippable frame; parallel compressors begin with one.
  return (bytes[0] & 0xf0) == 0x50 && bytes.substr(1, 3) == "\x2a\x4d\x18";
}

absl::StatusOr<std::unique_ptr<ByteSource>> Decompressed(std::unique_ptr<ByteStream> stream) {
  auto raw = std::make_unique<ByteSource>(std::move(stream));
  absl::StatusOr<std::string_view> magic = raw->Peek(4);
  if (!magic.ok()) return magic.status();
  if (IsGzip(*magic)) {
    return std::make_unique<ByteSource>(std::make_unique<GzipStream>(std::move(raw)));
  }
  if (IsZstd(*magic)) {
    return std::make_unique<ByteSource>(std::make_unique<ZstdStream>(std::move(raw)));
  }
  return raw;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> ByteSource::Open(const std::string& path) {
  if (path == "-") {
    return Decompressed(std::make_unique<FileStream>(STDIN_FILENO, false, 0, "standard input"));
  }
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
  struct stat info {};
  const bool sized = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  return Decompressed(std::make_unique<FileStream>(
      fd, true, sized ? static_cast<uint64_t>(info.st_size) : 0, path));
}

absl::StatusOr<std::unique_ptr<ByteSource>> ByteSource::FromBytes(std::string bytes) {
  return Decompressed(std::make_unique<StringStream>(std::move(bytes)));
}

absl::StatusOr<std::string_view> ByteSource::Peek(size_t size) {
  while (end_ - begin_ < size && !ended_) {
    if (begin_ > 0) {  // Whole requests are consumed, so what moves is short.
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    if (buffer_.size() - end_ < kReadBytes) buffer_.resize(2 * buffer_.size() + kReadBytes);
    absl::StatusOr<size_t> got = stream_->Read(buffer_.data() + end_, buffer_.size() - end_);
    if (!got.ok()) return got.status();
    end_ += *got;
    ended_ = *got == 0;
  }
  return std::string_view(buffer_).substr(begin_, end_ - begin_);
}

void ByteSource::Consume(size_t size) {
  KVD_CHECK(size <= end_ - begin_);
  begin_ += size;
}

}  // namespace kvd
