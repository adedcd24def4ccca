// An NVMe tier in memory that does nothing until a test tells it to: jobs end when, and how, the
// test says. What it stores it really stores, under the record's whole description, and a read that
// asks for another record gets kCorrupt, as the real tier gives.
//
// It checks what its caller owes it: a record lives while it is read, dies once, and live records
// stay below the capacity. Threads: one, the test's.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "tiers/nvme_tier.h"

namespace kvd {

class FakeNvmeTier final : public NvmeTier {
 public:
  explicit FakeNvmeTier(uint64_t live_capacity_bytes) : capacity_(live_capacity_bytes) {}

  void SetOwner(Owner* owner) { owner_ = owner; }

  // --- the tier ----------------------------------------------------------------------------------

  absl::StatusOr<ScopeNumber> AddScope(const std::string& domain,
                                       const std::string& canonical) override {
    const auto [it, added] = scopes_.try_emplace({domain, canonical}, 0);
    if (added) it->second = static_cast<ScopeNumber>(scopes_.size());
    return it->second;
  }
  absl::Status PurgeScope(ScopeNumber scope, std::function<void(absl::Status)> done) override {
    purged_.insert(scope);
    done(absl::OkStatus());
    return absl::OkStatus();
  }

  void ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after) override {
    KVD_CHECK(before.size() == after.size() && before.data() != after.data());
    ++replaced_memory;
  }

  uint32_t max_payload_bytes() const override { return 1u << 20; }
  // What a test has put here by Seed().
  bool Adopt(RecordPlace place, uint32_t occupant) override {
    const auto it = records_.find(Number(place));
    if (it == records_.end()) return false;
    it->second.occupant = occupant;
    live_ += RoomOf(it->second.info.length);
    return true;
  }

  std::optional<RecordPlace> Append(const RecordInfo& info, absl::Span<std::byte> payload,
                                    uint32_t occupant, uint64_t tag) override {
    KVD_CHECK(info.scope != 0 && occupant != 0 && payload.size() >= info.length);
    if (!takes_writes || jobs_.size() >= max_jobs) return std::nullopt;
    const RecordPlace place{.segment = 1 + next_ / 16, .page = next_ % 16};
    ++next_;
    records_[Number(place)] = {.info = info, .occupant = occupant};
    live_ += RoomOf(info.length);
    KVD_CHECK(live_ <= capacity_) << live_ << " of " << capacity_;
    jobs_.push_back({.write = true,
                     .place = place,
                     .info = info,
                     .payload = payload,
                     .sum = Crc32c(payload.first(info.length)),
                     .tag = tag});
    ++appends_;
    return place;
  }

  bool Read(RecordPlace place, const RecordInfo& info, absl::Span<std::byte> target, Nanos deadline,
            uint64_t tag) override {
    if (!takes_reads || jobs_.size() >= max_jobs) return false;
    ++records_.at(Number(place)).readers;
    std::memset(target.data(), kUntouched, target.size());
    jobs_.push_back(
        {.place = place, .info = info, .payload = target, .deadline = deadline, .tag = tag});
    ++reads_;
    return true;
  }

  void Drop(RecordPlace place, uint32_t length) override {
    const auto it = records_.find(Number(place));
    KVD_CHECK(it != records_.end()) << "a record died twice";
    KVD_CHECK(it->second.written && it->second.readers == 0 && it->second.info.length == length);
    live_ -= RoomOf(length);
    records_.erase(it);
  }

  void Poll(Nanos) override {
    std::vector<Completion> ended;
    std::swap(ended, ended_);
    for (const auto& [which, lost] : std::exchange(reclaims_, {})) ReclaimNow(which, lost);
    for (const ChainHash& key : std::exchange(given_up_, {})) {
      for (const auto& [number, record] : records_) {
        if (record.info.key == key) owner_->NvmeLost(record.occupant, NvmeOutcome::kExpired);
      }
    }
    for (const Completion& completion : ended) owner_->NvmeEnded(completion);
  }
  Nanos NextDeadline() const override { return INT64_MAX; }

  uint64_t live_capacity_bytes() const override { return capacity_; }
  uint64_t live_bytes() const override { return live_; }
  bool writable() const override { return writable_; }
  bool making_room() const override { return making_room_; }
  bool readable() const override { return readable_; }
  uint32_t in_flight() const override { return static_cast<uint32_t>(jobs_.size()); }
  uint64_t EstimateReadUs(uint64_t bytes) const override {
    return queue_us + static_cast<uint64_t>(static_cast<double>(bytes) * us_per_byte);
  }

  // --- what tests do -----------------------------------------------------------------------------

  size_t jobs() const { return jobs_.size(); }
  bool is_write(size_t i) const { return jobs_[i].write; }
  const RecordInfo& info(size_t i) const { return jobs_[i].info; }

  // A record that an earlier process left; it lives when it is adopted.
  RecordPlace Seed(const RecordInfo& info, absl::Span<const std::byte> payload) {
    const RecordPlace place{.segment = 1 + next_ / 16, .page = next_ % 16};
    ++next_;
    Record record{.info = info, .written = true};
    record.bytes.assign(payload.begin(), payload.end());
    records_[Number(place)] = std::move(record);
    return place;
  }

  // Ends job `i`; its owner hears of it at the next Poll().
  void End(size_t i, NvmeOutcome outcome = NvmeOutcome::kOk) {
    const Job job = jobs_[i];
    jobs_.erase(jobs_.begin() + static_cast<ptrdiff_t>(i));
    Record& record = records_.at(Number(job.place));
    if (job.write) {
      payloads_changed_ += Crc32c(job.payload.first(job.info.length)) != job.sum;
      if (outcome == NvmeOutcome::kOk) {
        record.written = true;
        record.bytes.assign(job.payload.begin(), job.payload.begin() + job.info.length);
      } else {
        live_ -= RoomOf(job.info.length);
        records_.erase(Number(job.place));
      }
    } else {
      --record.readers;
      for (const std::byte byte : job.payload) {
        KVD_CHECK(byte == std::byte{kUntouched}) << "somebody wrote where a read goes";
      }
      if (outcome == NvmeOutcome::kOk) outcome = Deliver(record, job);
      // After an error the target holds garbage.
      if (outcome != NvmeOutcome::kOk) std::memset(job.payload.data(), 0xee, job.payload.size());
    }
    ended_.push_back({.tag = job.tag, .outcome = outcome});
  }
  // Ends all jobs there are, oldest first. Returns how many.
  size_t EndAll() {
    const size_t n = jobs_.size();
    while (!jobs_.empty()) End(0);
    return n;
  }
  // Turns a byte of a record around. Which: a number that any number may be.
  bool Damage(uint64_t which) {
    std::vector<Record*> written;
    for (auto& [number, record] : records_) {
      if (record.written) written.push_back(&record);
    }
    if (written.empty()) return false;
    Record& record = *written[which % written.size()];
    record.bytes[which % record.bytes.size()] ^= std::byte{0x10};
    return true;
  }
  // At the next Poll(): copies a record forward that nobody reads, as reclaim does, or loses it so.
  // Which: a number that any number may be.
  void Reclaim(uint64_t which, std::optional<NvmeOutcome> lost = std::nullopt) {
    reclaims_.emplace_back(which, lost);
  }
  // At the next Poll(): reclaim finds no room to copy the record of `key` to.
  void GiveUp(const ChainHash& key) { given_up_.push_back(key); }
  void set_readable(bool readable) { readable_ = readable; }
  void set_writable(bool writable) { writable_ = writable; }
  void set_making_room(bool making_room) { making_room_ = making_room; }

  size_t records() const { return records_.size(); }
  // Writes under which the payload became another: its room was used again, or a test damaged it.
  uint64_t payloads_changed() const { return payloads_changed_; }
  uint64_t appends() const { return appends_; }
  uint64_t reads() const { return reads_; }
  bool purged(ScopeNumber scope) const { return purged_.contains(scope); }

  size_t max_jobs = 1000;  // Beyond it, jobs are refused.
  bool takes_writes = true;
  bool takes_reads = true;
  uint64_t queue_us = 0;
  uint64_t replaced_memory = 0;  // Regions.
  double us_per_byte = 0.001;

 private:
  static constexpr int kUntouched = 0xcd;

  struct Record {
    RecordInfo info;
    uint32_t occupant = 0;
    uint32_t readers = 0;
    bool written = false;
    std::vector<std::byte> bytes;
  };
  struct Job {
    bool write = false;
    RecordPlace place;
    RecordInfo info;
    absl::Span<std::byte> payload;
    uint32_t sum = 0;  // Of a write's payload when it began.
    Nanos deadline = 0;
    uint64_t tag = 0;
  };

  void ReclaimNow(uint64_t which, std::optional<NvmeOutcome> lost) {
    std::vector<uint64_t> idle;
    for (const auto& [number, record] : records_) {
      if (record.written && record.readers == 0) idle.push_back(number);
    }
    if (idle.empty()) return;
    const uint64_t number = idle[which % idle.size()];
    const Record record = records_.at(number);
    if (lost.has_value()) return owner_->NvmeLost(record.occupant, *lost);
    const RecordPlace to{.segment = 1 + next_ / 16, .page = next_ % 16};
    ++next_;
    records_.erase(number);
    records_[Number(to)] = record;
    owner_->NvmeMoved(record.occupant, to);
  }

  static uint64_t Number(RecordPlace place) { return uint64_t{place.segment} << 32 | place.page; }

  static NvmeOutcome Deliver(const Record& record, const Job& job) {
    const RecordInfo& is = record.info;
    const RecordInfo& asked = job.info;
    const bool same = is.scope == asked.scope && is.key == asked.key && is.id == asked.id &&
                      is.depth == asked.depth && is.has_parent == asked.has_parent &&
                      is.parent == asked.parent && is.length == asked.length &&
                      is.sum == asked.sum && is.generation == asked.generation;
    if (!same) return NvmeOutcome::kCorrupt;
    std::memcpy(job.payload.data(), record.bytes.data(), record.bytes.size());
    return Crc32c(job.payload.first(is.length)) == is.sum ? NvmeOutcome::kOk
                                                          : NvmeOutcome::kCorrupt;
  }

  const uint64_t capacity_;
  Owner* owner_ = nullptr;
  uint64_t live_ = 0;
  uint32_t next_ = 0;
  std::map<std::pair<std::string, std::string>, ScopeNumber> scopes_;
  std::set<ScopeNumber> purged_;
  std::map<uint64_t, Record> records_;
  std::deque<Job> jobs_;
  std::vector<Completion> ended_;
  std::vector<std::pair<uint64_t, std::optional<NvmeOutcome>>> reclaims_;
  std::vector<ChainHash> given_up_;
  uint64_t payloads_changed_ = 0;
  uint64_t appends_ = 0;
  uint64_t reads_ = 0;
  bool writable_ = true;
  bool making_room_ = false;
  bool readable_ = true;
};

}  // namespace kvd
