#include "daemon/put_buffer.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/types/checksum.h"
#include "proto/types/host_memory.h"
#include "proto/types/session_wire.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr uint32_t kLeastRing = 4u << 20;  // Stays in cache until the copier has read it.
constexpr size_t kMaxFilling = 64;         // Far below what ends a channel.

}  // namespace

class PutBuffer::Memory final : public StagedBytes {
 public:
  Memory() : bytes_(kMaxStagingBytes, Touch::kOnUse) {}
  absl::Span<const std::byte> bytes() const override { return {&bytes_[0], bytes_.size()}; }
  std::byte* At(uint32_t offset) { return &bytes_[offset]; }

 private:
  MappedArray<std::byte> bytes_;
};

PutBuffer::PutBuffer(const Copier& copier, uint64_t reservation_id, absl::Time deadline)
    : copier_(copier),
      reservation_id_(reservation_id),
      deadline_(deadline),
      memory_(std::make_shared<Memory>()) {}

PutBuffer::~PutBuffer() {
  if (channel_ >= 0) close(channel_);
}

absl::StatusOr<std::unique_ptr<PutBuffer>> PutBuffer::Open(CopierPool& copiers,
                                                           const Copier& copier, uint32_t serial,
                                                           uint64_t reservation_id,
                                                           absl::Time deadline) {
  auto buffer = std::unique_ptr<PutBuffer>(new PutBuffer(copier, reservation_id, deadline));
  int channel[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, channel) != 0) {
    return absl::ResourceExhaustedError("streams: the daemon has no descriptors left; try later");
  }
  buffer->channel_ = channel[0];
  copiers.AddChannel(serial, channel[1], buffer->memory_);
  return buffer;
}

absl::Status PutBuffer::Add(const Chunk& chunk, bool keep) {
  if (length_ == 0) {
    if (absl::Status status = BeginPart(chunk, keep); !status.ok()) return status;
  }
  if (chunk.index != index_ || chunk.length != length_ || chunk.offset != received_) {
    return InvalidField(
        "bytes", absl::StrCat("part ", index_, " is not complete (", received_, " of ", length_,
                              " bytes), and this is not its rest"));
  }
  if (chunk.data.empty() || chunk.data.size() > kMaxChunkBytes ||
      chunk.data.size() > length_ - received_) {
    return InvalidField("data", absl::StrCat("must be 1 byte to 512 KiB, and not more than is left "
                                             "of the part (",
                                             length_ - received_, ")"));
  }
  const auto size = static_cast<uint32_t>(chunk.data.size());
  if (keep_) {
    const uint32_t sum = copier_.CopySum(
        {memory_->At(head_ + received_), size},
        {reinterpret_cast<const std::byte*>(chunk.data.data()), size}, CopyUse::kCache);
    sum_ = Crc32cConcat(sum_, sum, size);
  }
  received_ += size;
  if (received_ < length_) return absl::OkStatus();
  if (keep_) {
    if (chunk.sum != sum_) {
      return absl::DataLossError(absl::StrCat("bytes: part ", index_, " has the sum ", sum_,
                                              ", and ", chunk.sum, " came with it"));
    }
    if (absl::Status status = SendFill(); !status.ok()) return status;
  }
  length_ = 0;
  return absl::OkStatus();
}

absl::Status PutBuffer::BeginPart(const Chunk& chunk, bool keep) {
  if (chunk.length == 0 || chunk.length > kMaxStagingBytes) {
    return InvalidField("length", absl::StrCat("must be 1 byte to 16 MiB, got ", chunk.length));
  }
  if (chunk.offset != 0) {
    return InvalidField("offset", absl::StrCat("the first chunk of part ", chunk.index,
                                               " must begin at 0, got ", chunk.offset));
  }
  if (keep) {
    if (absl::Status status = MakeRoom(chunk.length); !status.ok()) return status;
  }
  keep_ = keep;
  index_ = chunk.index;
  length_ = chunk.length;
  received_ = 0;
  sum_ = 0;
  return absl::OkStatus();
}

// Moves head_ to where `length` bytes are free in one piece.
absl::Status PutBuffer::MakeRoom(uint32_t length) {
  while (true) {
    if (filling_.empty()) {
      const uint64_t wanted = std::max<uint64_t>({limit_, kLeastRing, uint64_t{3} * length});
      limit_ = static_cast<uint32_t>(std::min<uint64_t>(wanted, kMaxStagingBytes));
      head_ = 0;
      return absl::OkStatus();
    }
    const uint32_t tail = filling_.front().offset;
    if (filling_.size() < kMaxFilling) {
      if (head_ > tail) {  // In use: [tail, head).
        if (limit_ - head_ >= length) return absl::OkStatus();
        if (tail > length) {
          head_ = 0;
          return absl::OkStatus();
        }
      } else if (tail - head_ > length) {  // Free: [head, tail), never filled to the brim.
        return absl::OkStatus();
      }
    }
    if (absl::Status status = AwaitOldest(); !status.ok()) return status;
  }
}

absl::Status PutBuffer::SendFill() {
  const FillRequest request{.reservation_id = reservation_id_,
                            .staging_offset = head_,
                            .index = index_,
                            .length = length_,
                            .whole = 1};
  if (send(channel_, &request, sizeof request, MSG_NOSIGNAL) != ssize_t{sizeof request}) {
    return absl::UnavailableError("the copiers have hung up: the daemon is stopping");
  }
  filling_.push_back({head_, index_, sum_});
  head_ += length_;
  return absl::OkStatus();
}

absl::Status PutBuffer::AwaitOldest() {
  FillReply replies[kMaxFillsPerMessage];
  ssize_t size;
  while ((size = recv(channel_, replies, sizeof replies, 0)) < 0) {
    if (errno != EAGAIN && errno != EINTR) break;
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline_ - absl::Now());
    if (left_ms <= 0) return absl::DeadlineExceededError("put: ran out of time");
    pollfd waiting{.fd = channel_, .events = POLLIN};
    poll(&waiting, 1, static_cast<int>(std::min<int64_t>(left_ms, 1000)));
  }
  if (size <= 0) return absl::UnavailableError("the copiers have hung up: the daemon is stopping");
  for (size_t i = 0; i < static_cast<size_t>(size) / sizeof(FillReply); ++i) {
    const Filling filled = filling_.front();
    filling_.pop_front();
    switch (replies[i].status) {
      case FillStatus::kOk:
        if (replies[i].sum == filled.sum) break;
        return absl::DataLossError(
            absl::StrCat("bytes: part ", filled.index, " changed in the daemon's memory"));
      case FillStatus::kInvalid:
        if (!unwanted_.has_value()) unwanted_ = filled.index;
        break;
      case FillStatus::kGone:
        return absl::AbortedError(
            "reservation_id: no such reservation of this session, or it ended before all its bytes "
            "had come");
    }
  }
  return absl::OkStatus();
}

absl::Status PutBuffer::Finish() {
  if (length_ != 0) {
    return InvalidField("bytes", absl::StrCat("part ", index_, " ends after ", received_, " of ",
                                              length_, " bytes"));
  }
  while (!filling_.empty()) {
    if (absl::Status status = AwaitOldest(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace kvd
