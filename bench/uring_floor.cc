#include "bench/uring_floor.h"

#include <liburing.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

constexpr unsigned kEntries = 128;  // The largest depth.

absl::Status Refused(const char* what, int error) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(error)));
}

}  // namespace

struct UringFloor::Ring {
  ~Ring() {
    if (ring.ring_fd > 0) io_uring_queue_exit(&ring);
  }
  int BufferOf(absl::Span<std::byte> bytes) const {
    const auto found = std::find_if(buffers.begin(), buffers.end(), [bytes](const iovec& buffer) {
      const auto* base = static_cast<std::byte*>(buffer.iov_base);
      return base <= bytes.data() && bytes.data() < base + buffer.iov_len;
    });
    return static_cast<int>(found - buffers.begin());
  }

  io_uring ring = {};
  std::vector<iovec> buffers;
};

absl::StatusOr<std::unique_ptr<UringFloor>> UringFloor::Create(
    int fd, absl::Span<const absl::Span<std::byte>> memory) {
  auto ring = std::make_unique<Ring>();
  const int made = io_uring_queue_init(kEntries, &ring->ring,
                                       IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  if (made < 0) return Refused("io_uring", -made);
  for (absl::Span<std::byte> span : memory) ring->buffers.push_back({span.data(), span.size()});
  int result = io_uring_register_files(&ring->ring, &fd, 1);
  if (result < 0) return Refused("registering a file with io_uring", -result);
  result = io_uring_register_buffers(&ring->ring, ring->buffers.data(),
                                     static_cast<unsigned>(ring->buffers.size()));
  if (result < 0) return Refused("registering memory with io_uring", -result);
  return std::unique_ptr<UringFloor>(new UringFloor(std::move(ring)));
}

UringFloor::UringFloor(std::unique_ptr<Ring> ring) : ring_(std::move(ring)) {}
UringFloor::~UringFloor() = default;

absl::Status UringFloor::Read(absl::Span<const FloorRequest> requests, uint32_t depth) {
  return Run(IORING_OP_READ_FIXED, requests, depth);
}

absl::Status UringFloor::Write(absl::Span<const FloorRequest> requests, uint32_t depth) {
  return Run(IORING_OP_WRITE_FIXED, requests, depth);
}

absl::Status UringFloor::Run(int opcode, absl::Span<const FloorRequest> requests, uint32_t depth) {
  io_uring& ring = ring_->ring;
  size_t begun = 0;
  for (size_t ended = 0; ended < requests.size();) {
    for (; begun < requests.size() && begun - ended < depth; ++begun) {
      const FloorRequest& request = requests[begun];
      io_uring_sqe* sqe = io_uring_get_sqe(&ring);
      io_uring_prep_rw(opcode, sqe, 0, request.bytes.data(),
                       static_cast<unsigned>(request.bytes.size()), request.offset);
      sqe->buf_index = static_cast<uint16_t>(ring_->BufferOf(request.bytes));
      io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
      io_uring_sqe_set_data64(sqe, request.bytes.size());
    }
    const int submitted = io_uring_submit_and_wait(&ring, 1);
    if (submitted < 0 && submitted != -EINTR) return Refused("io_uring", -submitted);
    io_uring_cqe* cqes[kEntries];
    const unsigned count = io_uring_peek_batch_cqe(&ring, cqes, kEntries);
    for (unsigned i = 0; i < count; ++i) {
      const int result = cqes[i]->res;
      if (result < 0 || static_cast<uint64_t>(result) != cqes[i]->user_data) {
        return Refused("a transfer of the bare loop", result < 0 ? -result : EIO);
      }
    }
    io_uring_cq_advance(&ring, count);
    ended += count;
  }
  return absl::OkStatus();
}

}  // namespace kvd
