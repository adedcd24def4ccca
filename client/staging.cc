#include "client/staging.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/types/checksum.h"
#include "proto/types/packed.h"

namespace kvd {
namespace {

constexpr absl::Duration kLookOn = absl::Microseconds(100);  // About a copy of 2 MiB.

}  // namespace

// ---- the ring -----------------------------------------------------------------------------------

std::optional<StagingSlot> StagingRing::Allocate(uint64_t length) {
  if (slots_.empty()) {
    next_ = 0;
    span_ = std::min(size_, std::max(window_, 2 * length));
  }
  // Used room is one run from the oldest slot to next_, perhaps around the end. A part lies in one
  // piece, so what is left before the end may be skipped.
  uint64_t offset = next_;
  uint64_t limit = span_;
  if (!slots_.empty()) {
    const uint64_t oldest = slots_.front().offset;
    if (next_ <= oldest) {
      limit = oldest;
    } else if (next_ + length > span_) {
      offset = 0;
      limit = oldest;
    }
  }
  if (offset + length > limit) return std::nullopt;
  slots_.push_back({offset, length, false});
  next_ = offset + length;
  return StagingSlot{first_number_ + slots_.size() - 1, offset};
}

void StagingRing::Free(uint64_t number) {
  slots_[number - first_number_].freed = true;
  while (!slots_.empty() && slots_.front().freed) {
    slots_.pop_front();
    ++first_number_;
  }
}

// ---- the fill channel ---------------------------------------------------------------------------

absl::StatusOr<size_t> ReceiveFillReplies(int channel, absl::Span<FillReply> replies,
                                          absl::Time deadline, absl::Duration look_on) {
  const size_t room = replies.size() * sizeof(FillReply);
  std::vector<UniqueFd> no_fds;
  const absl::Time until = std::min(deadline, absl::Now() + look_on);
  absl::StatusOr<size_t> size =
      ReceiveMessage(channel, replies.data(), room, no_fds, absl::InfinitePast());
  while (absl::IsDeadlineExceeded(size.status()) && absl::Now() < until) {
    sched_yield();
    size = ReceiveMessage(channel, replies.data(), room, no_fds, absl::InfinitePast());
  }
  if (absl::IsDeadlineExceeded(size.status()) && deadline != absl::InfinitePast()) {
    size = ReceiveMessage(channel, replies.data(), room, no_fds, deadline);
  }
  if (!size.ok()) return size.status();
  if (*size % sizeof(FillReply) != 0) return absl::InternalError("fill channel: not an answer");
  return *size / sizeof(FillReply);
}

// ---- filling ------------------------------------------------------------------------------------

Staging::Staging(StagingMemory memory, const Copier& copier)
    : memory_(std::move(memory.memory)),
      channel_(std::move(memory.fill_channel)),
      copier_(copier),
      ring_(memory_.size(), kWindowBytes) {}

void Staging::Free(const StagingSlot& slot) {
  absl::MutexLock lock(&mu_);
  ring_.Free(slot.number);
  freed_.SignalAll();
}

uint32_t Staging::Filling::PieceBytes(uint64_t left_of_part) const {
  uint64_t most = kSmallPieceBytes;
  if (done_bytes_ >= kRampBytes && left_bytes_ > kRampBytes) {
    most = std::min(kPieceBytes, left_bytes_ - kRampBytes);
  }
  return static_cast<uint32_t>(std::min({left_of_part, most, (staging_.size() + 1) / 2}));
}

// Copies the next `bytes` of a part into `slot`.
void Staging::Filling::Stage(uint32_t index, absl::Span<const std::byte> part, uint64_t bytes,
                             const StagingSlot& slot, std::string& sums) {
  const uint64_t offset = index == part_ ? part_bytes_ : 0;
  // The sum costs next to nothing in the same pass, and shows whether what the copier stored is
  // what was staged: anybody in this process could write into staging memory in between.
  const uint32_t sum =
      staging_.copier_.CopySum(absl::MakeSpan(staging_.memory_.data() + slot.offset, bytes),
                               part.subspan(offset, bytes), CopyUse::kCache);
  const uint32_t before = UnpackAt<uint32_t>(sums, index);
  PackAt(sums, index, offset == 0 ? sum : Crc32cConcat(before, sum, bytes));
  pending_.push_back({.request = {.reservation_id = reservation_id_,
                                  .staging_offset = slot.offset,
                                  .index = index,
                                  .length = static_cast<uint32_t>(bytes),
                                  .part_offset = static_cast<uint32_t>(offset)},
                      .sum = sum,
                      .slot = slot.number});
  pending_bytes_ += bytes;
  part_ = index;
  part_bytes_ = offset + bytes;
  done_bytes_ += bytes;
  left_bytes_ -= bytes;
}

void Staging::Filling::StageAhead(absl::Span<const absl::Span<const std::byte>> parts,
                                  uint64_t total_bytes, std::string& sums,
                                  absl::FunctionRef<bool()> enough) {
  left_bytes_ = total_bytes;
  for (uint32_t index = 0; index < parts.size(); ++index) {
    for (uint64_t offset = 0; offset < parts[index].size();) {
      const uint64_t bytes = PieceBytes(parts[index].size() - offset);
      const size_t fills = staging_.in_flight_.size() + pending_.size();
      if (done_bytes_ + bytes > kAheadBytes || fills >= kMaxFillsPerMessage || enough()) return;
      std::optional<StagingSlot> slot;
      {
        absl::MutexLock lock(&staging_.mu_);
        slot = staging_.ring_.Allocate(bytes);
      }
      if (!slot.has_value()) return;
      Stage(index, parts[index], bytes, *slot, sums);
      offset += bytes;
    }
  }
}

void Staging::Filling::Begin(uint64_t reservation_id, uint64_t bytes,
                             absl::FunctionRef<bool(uint32_t)> wanted) {
  reservation_id_ = reservation_id;
  pending_bytes_ = 0;
  size_t kept = 0;
  for (Pending& piece : pending_) {
    if (!wanted(piece.request.index)) {
      staging_.Free({piece.slot, 0});
      continue;
    }
    piece.request.reservation_id = reservation_id;
    pending_bytes_ += piece.request.length;
    pending_[kept++] = piece;
  }
  pending_.resize(kept);
  done_bytes_ = pending_bytes_;
  left_bytes_ = bytes - pending_bytes_;
}

absl::Status Staging::Filling::Fill(uint32_t index, absl::Span<const std::byte> part,
                                    std::string& sums) {
  while (index >= part_ && !(index == part_ && part_bytes_ == part.size())) {
    const uint64_t staged = index == part_ ? part_bytes_ : 0;
    const uint64_t bytes = PieceBytes(part.size() - staged);
    absl::StatusOr<StagingSlot> slot = Allocate(bytes);
    if (!slot.ok()) return slot.status();
    if (pending_.size() == kMaxFillsPerMessage) {
      if (absl::Status status = Send(); !status.ok()) return status;
    }
    Stage(index, part, bytes, *slot, sums);
    const bool on_ramp = done_bytes_ <= kRampBytes || left_bytes_ < kRampBytes;
    if (pending_bytes_ < (on_ramp ? kSmallPieceBytes : kMessageBytes) &&
        pending_.size() < kMaxFillsPerMessage) {
      continue;
    }
    if (absl::Status status = Send(); !status.ok()) return status;
    // Takes what has come, without waiting, so that slots are free in time and errors known early.
    if (absl::Status status = ReceiveReplies(absl::InfinitePast()); !status.ok()) return status;
  }
  // What was staged ahead is sent as soon as there is a reservation.
  if (pending_bytes_ >= kMessageBytes) {
    if (absl::Status status = Send(); !status.ok()) return status;
  }
  return failed_;
}

absl::Status Staging::Filling::Finish() {
  if (absl::Status status = Send(); !status.ok()) return status;
  while (!staging_.in_flight_.empty()) {
    if (absl::Status status = ReceiveReplies(deadline_); !status.ok()) return status;
  }
  return failed_;
}

absl::StatusOr<StagingSlot> Staging::Filling::Stage(
    absl::Span<const absl::Span<const std::byte>> sources, uint64_t total_bytes,
    std::vector<uint32_t>& sums) {
  absl::StatusOr<StagingSlot> slot = Allocate(total_bytes);
  if (!slot.ok()) return slot;
  std::byte* target = staging_.memory_.data() + slot->offset;
  for (absl::Span<const std::byte> source : sources) {
    sums.push_back(
        staging_.copier_.CopySum(absl::MakeSpan(target, source.size()), source, CopyUse::kCache));
    target += source.size();
  }
  return slot;
}

absl::StatusOr<StagingSlot> Staging::Filling::Allocate(uint64_t length) {
  while (true) {
    if (staging_.in_flight_.size() + pending_.size() < kMaxFillsInFlight) {
      absl::MutexLock lock(&staging_.mu_);
      if (std::optional<StagingSlot> slot = staging_.ring_.Allocate(length)) return *slot;
      if (staging_.in_flight_.empty() && pending_.empty()) {
        // Only slots that wait for somebody's Commit are in the way.
        if (staging_.freed_.WaitWithDeadline(&staging_.mu_, deadline_)) {
          return absl::DeadlineExceededError("staging: no room");
        }
        continue;
      }
    }
    // Waits for the copier before it is sent more: to send at once whatever has become free would
    // make a message of each part.
    const bool copier_is_idle = staging_.in_flight_.empty();
    absl::Status status = copier_is_idle ? Send() : ReceiveReplies(deadline_);
    if (!status.ok()) return status;
  }
}

absl::Status Staging::Filling::Send() {
  if (pending_.empty()) return absl::OkStatus();
  std::array<FillRequest, kMaxFillsPerMessage> message;
  for (size_t i = 0; i < pending_.size(); ++i) message[i] = pending_[i].request;
  const size_t bytes = pending_.size() * sizeof(FillRequest);
  absl::Status status = SendMessage(staging_.channel_.get(), message.data(), bytes, deadline_);
  if (!status.ok()) {
    if (!absl::IsDeadlineExceeded(status)) staging_.broken_.store(true, std::memory_order_relaxed);
    DropPending();
    return status;
  }
  for (const Pending& piece : pending_) {
    staging_.in_flight_.push_back(
        {piece.request.reservation_id, piece.request.index, piece.sum, piece.slot});
  }
  pending_.clear();
  pending_bytes_ = 0;
  return absl::OkStatus();
}

// Forgets what the copier was never told of.
void Staging::Filling::DropPending() {
  for (const Pending& piece : pending_) staging_.Free({piece.slot, 0});
  pending_.clear();
  pending_bytes_ = 0;
}

// Takes the replies of one message, if one has come by `deadline`. With a deadline in the past it
// does not wait, and that none has come is no error.
absl::Status Staging::Filling::ReceiveReplies(absl::Time deadline) {
  if (staging_.in_flight_.empty()) return absl::OkStatus();
  std::array<FillReply, kMaxFillsInFlight> replies;
  const absl::StatusOr<size_t> count = ReceiveFillReplies(
      staging_.channel_.get(), absl::MakeSpan(replies).first(staging_.in_flight_.size()), deadline,
      kLookOn);
  if (!count.ok()) {
    if (!absl::IsDeadlineExceeded(count.status())) {
      staging_.broken_.store(true, std::memory_order_relaxed);
      return count.status();
    }
    return deadline == absl::InfinitePast() ? absl::OkStatus() : count.status();
  }
  for (size_t i = 0; i < *count; ++i) {
    const InFlight sent = staging_.in_flight_.front();
    if (replies[i].index != sent.index) {
      staging_.broken_.store(true, std::memory_order_relaxed);
      return absl::InternalError("fill channel: an answer out of order");
    }
    staging_.in_flight_.pop_front();
    staging_.Free({sent.slot, 0});
    if (sent.reservation_id != reservation_id_ || !failed_.ok()) continue;
    if (replies[i].status == FillStatus::kGone) {
      failed_ = absl::AbortedError("the reservation has ended");
    } else if (replies[i].status != FillStatus::kOk) {
      failed_ = absl::InternalError(absl::StrCat("the copier refused part ", sent.index));
    } else if (replies[i].sum != sent.sum) {
      failed_ = absl::DataLossError(absl::StrCat("part ", sent.index, " changed in staging"));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvd
