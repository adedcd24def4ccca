// Copiers that do nothing until a test tells them to. Then they really copy, through the fill board
// and with the sum of the bytes, as the daemon's own do, and tell the inbox.
//
// Threads: one, the test's.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "daemon/fill_board.h"
#include "daemon/inbox.h"
#include "daemon/mover.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"

namespace kvd {

class FakeMover final : public Mover {
 public:
  struct RegionRequest {
    uint32_t region = 0;
    uint64_t bytes = 0;
  };

  FakeMover(FillBoard& board, Inbox& inbox) : board_(board), inbox_(inbox) {}

  bool Fill(FillJob job) override {
    if (fills_.size() >= max_jobs) return false;
    fills_.push_back(std::move(job));
    return true;
  }
  bool Verify(VerifyJob job) override {
    if (verifies_.size() >= max_jobs) return false;
    verifies_.push_back(job);
    return true;
  }
  void MakeRegion(uint32_t region, uint64_t bytes) override { regions_.push_back({region, bytes}); }

  // --- what a client's own fills do --------------------------------------------------------------

  // A copy under way: the room is being written until EndCopy().
  struct Copy {
    FillStatus status = FillStatus::kGone;
    FillRequest fill;
    absl::Span<std::byte> room;
    absl::Span<const std::byte> source;
  };
  Copy BeginCopy(uint32_t session, const StagedBytes& staging, const FillRequest& fill) {
    Copy copy{.fill = fill};
    const absl::Span<const std::byte> bytes = staging.bytes();
    if (fill.staging_offset > bytes.size() || fill.length > bytes.size() - fill.staging_offset) {
      copy.status = FillStatus::kInvalid;
      return copy;
    }
    const FillBoard::Ticket ticket = board_.Begin(
        session, fill.reservation_id, {fill.index, fill.part_offset, fill.length, fill.whole != 0});
    copy.status = ticket.status;
    if (ticket.status != FillStatus::kOk) return copy;
    copy.room = {ticket.address, fill.length};
    copy.source = bytes.subspan(fill.staging_offset, fill.length);
    ++copies_under_way_;
    return copy;
  }
  // Requires: copy.status is kOk.
  void EndCopy(const Copy& copy) {
    KVD_CHECK(copy.status == FillStatus::kOk);
    std::memcpy(copy.room.data(), copy.source.data(), copy.source.size());
    --copies_under_way_;
    const uint64_t id = copy.fill.reservation_id;
    if (board_.End(id, copy.fill.index, Crc32c(copy.room))) {
      inbox_.Post(FillsDone{.reservation_id = id});
    }
  }
  FillStatus CopyNow(uint32_t session, const StagedBytes& staging, const FillRequest& fill) {
    const Copy copy = BeginCopy(session, staging, fill);
    if (copy.status == FillStatus::kOk) EndCopy(copy);
    return copy.status;
  }

  // --- jobs of the control thread, oldest first; false: there is none ----------------------------

  bool CompleteFill() {
    if (fills_.empty()) return false;
    const FillJob job = std::move(fills_.front());
    fills_.pop_front();
    for (const FillRequest& fill : job.fills) CopyNow(job.session, *job.staging, fill);
    inbox_.Post(FillsDone{.reservation_id = job.reservation_id});
    return true;
  }
  bool CompleteVerify() {
    if (verifies_.empty()) return false;
    const VerifyJob job = verifies_.front();
    verifies_.pop_front();
    inbox_.Post(Verified{.part = job.part, .intact = Crc32c(job.bytes) == job.sum});
    return true;
  }
  bool CompleteRegion() {
    if (regions_.empty()) return false;
    const RegionRequest request = regions_.front();
    regions_.pop_front();
    inbox_.Post(RegionMade{.region = request.region,
                           .memory = MemoryRegion::Create(request.bytes, PageKind::kSmall)});
    return true;
  }
  bool FailRegion() {
    if (regions_.empty()) return false;
    inbox_.Post(RegionMade{.region = regions_.front().region,
                           .memory = absl::ResourceExhaustedError("no memory, says the test")});
    regions_.pop_front();
    return true;
  }
  void CompleteAll() {
    while (CompleteFill() || CompleteVerify() || CompleteRegion()) {
    }
  }

  size_t fills() const { return fills_.size(); }
  size_t verifies() const { return verifies_.size(); }
  size_t regions() const { return regions_.size(); }
  int copies_under_way() const { return copies_under_way_; }

  size_t max_jobs = 1000;  // Beyond it, jobs are refused.

 private:
  FillBoard& board_;
  Inbox& inbox_;
  std::deque<FillJob> fills_;
  std::deque<VerifyJob> verifies_;
  std::deque<RegionRequest> regions_;
  int copies_under_way_ = 0;
};

}  // namespace kvd
