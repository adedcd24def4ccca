// The way in of one streamed put: chunks are put together to parts in staging memory, each part's
// sum is compared with the sender's, and a copier fills the reservation from there, as it does for
// a client that stages by itself. It owns the sender's end of a fill channel.
//
// Bounded: 16 MiB of address space, of which it touches 4 MiB or three parts; when they are full,
// Add() waits for the copier, and the sender for us.
//
// Threads: one at a time, the stream's. Errors: kInvalidArgument names the field of PartBytes;
// kDataLoss: the bytes do not have their sum; kAborted: the reservation ended meanwhile.

#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "daemon/copier_pool.h"
#include "daemon/mover.h"
#include "proto/types/limits.h"
#include "proto/types/verified_copy.h"

namespace kvd {

class PutBuffer {
 public:
  // Some bytes of a part, as PartBytes of stream.proto.
  struct Chunk {
    uint32_t index = 0;
    uint32_t length = 0;
    uint32_t offset = 0;
    std::string_view data;
    uint32_t sum = 0;  // Of the whole part, in its last chunk.
  };

  // For `reservation_id` of the session `serial`. Collaborators must outlive this.
  static absl::StatusOr<std::unique_ptr<PutBuffer>> Open(CopierPool& copiers, const Copier& copier,
                                                         uint32_t serial, uint64_t reservation_id,
                                                         absl::Time deadline);
  ~PutBuffer();  // Hangs up. Copies under way still end; they keep the memory.
  PutBuffer(const PutBuffer&) = delete;

  // Takes the next chunk. `keep` false: checks and forgets it, because nobody wants this part.
  absl::Status Add(const Chunk& chunk, bool keep);
  // All has come. Returns when the copier is done.
  absl::Status Finish();

  // The first part that the reservation did not want: it is there already, or has another length.
  std::optional<uint32_t> unwanted() const { return unwanted_; }

 private:
  class Memory;
  struct Filling {
    uint32_t offset = 0;  // In the memory.
    uint32_t index = 0;
    uint32_t sum = 0;
  };

  PutBuffer(const Copier& copier, uint64_t reservation_id, absl::Time deadline);
  absl::Status BeginPart(const Chunk& chunk, bool keep);
  absl::Status MakeRoom(uint32_t length);
  absl::Status SendFill();
  absl::Status AwaitOldest();

  const Copier& copier_;
  const uint64_t reservation_id_;
  const absl::Time deadline_;
  std::shared_ptr<Memory> memory_;
  int channel_ = -1;

  // The part that is coming; length_ 0: none.
  uint32_t index_ = 0;
  uint32_t length_ = 0;
  uint32_t received_ = 0;
  uint32_t sum_ = 0;
  bool keep_ = false;

  uint32_t limit_ = 0;  // Of the memory, in use as a ring.
  uint32_t head_ = 0;   // Where the coming part lies.
  std::deque<Filling> filling_;
  std::optional<uint32_t> unwanted_;
};

}  // namespace kvd
