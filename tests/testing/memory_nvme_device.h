// An NvmeDevice in memory that does what it is told, at once or when Run() is called, and fails or
// hangs where a test says so. Its bytes outlive it, so that a test can start again on them. What
// power loss does to a device is sim_device.h's.
//
// Threads: one.

#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/status.h"
#include "tiers/nvme_device.h"

namespace kvd {

using MediaBytes = std::shared_ptr<std::vector<std::byte>>;
inline MediaBytes NewMedia(uint64_t bytes) {
  return std::make_shared<std::vector<std::byte>>(bytes);
}

class MemoryNvmeDevice final : public NvmeDevice {
 public:
  explicit MemoryNvmeDevice(MediaBytes media, std::string name = "memory")
      : media_(std::move(media)), name_(std::move(name)) {}

  void SetSink(Sink sink) override { sink_ = std::move(sink); }
  bool Submit(NvmeJob job) override {
    if (waiting_.size() >= max_jobs) return false;
    waiting_.push_back(std::move(job));
    if (at_once) Run();
    return true;
  }
  uint64_t size_bytes() const override { return media_->size(); }
  std::string_view name() const override { return name_; }
  std::string_view engine() const override { return "memory"; }
  absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) override {
    if (read_now_error != 0) return ErrnoStatus(read_now_error, name_);
    std::memcpy(bytes.data(), media_->data() + offset, bytes.size());
    return absl::OkStatus();
  }
  absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) override {
    if (write_now_error != 0) return ErrnoStatus(write_now_error, name_);
    std::memcpy(media_->data() + offset, bytes.data(), bytes.size());
    ++writes_now;
    return absl::OkStatus();
  }
  absl::Status SyncNow() override { return absl::OkStatus(); }

  // Ends what waits and is not held. How many.
  uint32_t Run() {
    std::deque<NvmeJob> held;
    uint32_t ended = 0;
    while (!waiting_.empty()) {
      NvmeJob job = std::move(waiting_.front());
      waiting_.pop_front();
      if (hold && hold(job)) {
        held.push_back(std::move(job));
        continue;
      }
      sink_(End(job));
      ++ended;
    }
    waiting_ = std::move(held);
    return ended;
  }
  size_t waiting() const { return waiting_.size(); }
  std::vector<std::byte>& media() { return *media_; }

  // --- what a test may set ----------------------------------------------------------------------
  bool at_once = true;  // Jobs end in Submit(); else in Run().
  size_t max_jobs = 1024;
  std::function<bool(const NvmeJob&)> hold;  // Such jobs wait.
  std::function<int(const NvmeJob&)> fail;   // The errno of a job; 0: it goes well.
  int read_now_error = 0;
  int write_now_error = 0;
  // --- what it may look at ----------------------------------------------------------------------
  uint32_t reads = 0;
  uint32_t writes = 0;
  uint32_t syncs = 0;
  uint32_t writes_now = 0;
  uint64_t bytes_of_largest_write = 0;

 private:
  NvmeDone End(const NvmeJob& job) {
    NvmeDone done = {.tag = job.tag, .took = 1000};
    done.error = fail ? fail(job) : 0;
    if (done.error != 0) {
      done.outcome = NvmeOutcome::kError;
      return done;
    }
    uint64_t offset = job.offset;
    switch (job.kind) {
      case NvmeJob::Kind::kSync:
        ++syncs;
        break;
      case NvmeJob::Kind::kWrite:
        ++writes;
        for (const absl::Span<std::byte> piece : job.pieces) {
          KVD_CHECK(offset + piece.size() <= media_->size()) << offset;
          std::memcpy(media_->data() + offset, piece.data(), piece.size());
          offset += piece.size();
        }
        bytes_of_largest_write = std::max(bytes_of_largest_write, offset - job.offset);
        break;
      case NvmeJob::Kind::kRead:
        ++reads;
        for (size_t i = 0; i < job.pieces.size(); ++i) {
          const absl::Span<std::byte> piece = job.pieces[i];
          KVD_CHECK(offset + piece.size() <= media_->size()) << offset;
          std::memcpy(piece.data(), media_->data() + offset, piece.size());
          offset += piece.size();
          if (!job.sums.empty() && Crc32c(piece) != job.sums[i]) {
            done.outcome = NvmeOutcome::kCorrupt;
          }
        }
        break;
    }
    return done;
  }

  MediaBytes media_;
  std::string name_;
  Sink sink_;
  std::deque<NvmeJob> waiting_;
};

}  // namespace kvd
