// Hostile messages on the fill channel: a real copier, a real socket pair. A message is one byte
// that says what to put right, one of length, and the bytes. Each well-formed message gets one
// reply for each of its fills, any other ends the channel, and no byte moves outside the parts of
// the session's own reservations.

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/copier_pool.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

constexpr uint32_t kSession = 5;
constexpr uint32_t kPart = 64;
constexpr uint32_t kParts = 8;
constexpr std::byte kGuard{0xee};

class MemoryStaging final : public StagedBytes {
 public:
  MemoryStaging() : memory_(1000) {
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = static_cast<std::byte>(i * 7);
  }
  absl::Span<const std::byte> bytes() const override { return memory_; }

 private:
  std::vector<std::byte> memory_;
};

void RunOneChannel(const uint8_t* data, size_t size) {
  static Inbox inbox;
  static Copier copier({.loop = "plain"});
  static FillBoard board(8);
  static CopierPool copiers(board, inbox, copier, {.threads = 1, .pages = PageKind::kSmall});
  static std::vector<InboxEvent> events;

  // Every second slot is a guard.
  std::vector<std::byte> arena(2 * kPart * kParts, kGuard);
  std::vector<FillBoard::Room> rooms;
  for (uint32_t i = 0; i < kParts; ++i) rooms.push_back({&arena[2 * i * kPart], kPart});
  const uint64_t mine = board.Open(kSession);
  board.Append(mine, rooms);
  std::vector<std::byte> other(kPart, kGuard);
  const uint64_t theirs = board.Open(kSession + 1);
  board.Append(theirs, {{other.data(), kPart}});

  int channel[2];
  KVD_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) == 0);
  const timeval patience{.tv_sec = 8};
  setsockopt(channel[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  auto staging = std::make_shared<MemoryStaging>();
  // The first message also says of which protocol the session is. Its requests of version 1 are the
  // first fields of today's.
  const bool old = size > 0 && (data[0] & 128) != 0;
  const size_t each = old ? sizeof(FillRequestV1) : sizeof(FillRequest);
  const auto read = [old, each](const uint8_t* bytes) {
    FillRequest request{.whole = old ? 1u : 0u};
    std::memcpy(&request, bytes, each);
    return request;
  };
  copiers.AddChannel(kSession, channel[0], staging, old ? 1 : kProtocolVersion);

  bool open = true;
  std::vector<uint32_t> filled(kParts);  // Bytes.
  while (open && size >= 2) {
    std::vector<uint8_t> message(std::min<size_t>(data[1] * 4, size - 2));
    std::copy(data + 2, data + 2 + message.size(), message.begin());
    for (size_t at = 0; at + each <= message.size(); at += each) {
      FillRequest request = read(&message[at]);
      if ((data[0] & 1) != 0) request.reservation_id = (data[0] & 2) != 0 ? theirs : mine;
      if ((data[0] & 4) != 0) request.length = kPart;
      if ((data[0] & 8) != 0) request.index %= kParts;
      if ((data[0] & 16) != 0) request.staging_offset %= 1024;
      if ((data[0] & 32) != 0) request.part_offset = 0;
      if ((data[0] & 64) != 0) {  // The next piece of its part, or about that.
        request.length %= kPart;
        if (request.index < kParts) request.part_offset = filled[request.index];
      }
      std::memcpy(&message[at], &request, each);
    }
    data += 2 + message.size();
    size -= 2 + message.size();
    if (send(channel[1], message.data(), message.size(), MSG_NOSIGNAL) < 0) break;
    const size_t fills = message.size() / each;
    const bool fine =
        !message.empty() && message.size() % each == 0 && fills <= kMaxFillsPerMessage;
    size_t answered = 0;
    while (answered < fills || !fine) {
      FillReply replies[kMaxFillsPerMessage];
      ssize_t got;
      do {
        got = recv(channel[1], replies, sizeof replies, 0);
      } while (got < 0 && errno == EINTR);  // libFuzzer's own clock.
      KVD_CHECK(got >= 0 || errno == ECONNRESET) << "no answer: " << std::strerror(errno);
      if (got <= 0) {
        KVD_CHECK(!fine) << "it hung up on a well-formed message";
        open = false;
        break;
      }
      KVD_CHECK(fine) << "an answer to nonsense";
      for (size_t i = 0; i < static_cast<size_t>(got) / sizeof(FillReply); ++i, ++answered) {
        const FillRequest request = read(&message[answered * each]);
        const FillReply& reply = replies[i];
        KVD_CHECK(reply.index == request.index);
        const bool right = request.reservation_id == mine && request.index < kParts &&
                           request.part_offset == filled[request.index] && request.length > 0 &&
                           request.length <= kPart - filled[request.index] &&
                           (request.whole == 0 || request.length == kPart) &&
                           request.staging_offset <= staging->bytes().size() - request.length;
        KVD_CHECK((reply.status == FillStatus::kOk) == right);
        if (!right) continue;
        const auto source = staging->bytes().subspan(request.staging_offset, request.length);
        KVD_CHECK(reply.sum == Crc32c(source));
        KVD_CHECK(std::memcmp(rooms[request.index].address + request.part_offset, source.data(),
                              source.size()) == 0);
        filled[request.index] += request.length;
      }
    }
  }
  close(channel[1]);
  for (uint32_t i = 0; i < kParts; ++i) {
    for (uint32_t j = 0; j < 2 * kPart; ++j) {
      if (j < filled[i]) continue;
      KVD_CHECK(arena[2 * i * kPart + j] == kGuard) << i << " " << j;
    }
  }
  for (const std::byte byte : other) KVD_CHECK(byte == kGuard);
  KVD_CHECK(board.copying() == 0);
  KVD_CHECK(board.Close(mine) && board.Close(theirs));
  inbox.Drain(events);
}

}  // namespace
}  // namespace kvd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvd::RunOneChannel(data, size);
  return 0;
}
