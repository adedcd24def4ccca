// A RecordIndex in memory that loses what a crash would make RocksDB lose: everything after some
// point of its log, or, where it is damaged, all of it.
//
// Threads: one.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tiers/record_index.h"

namespace kvd {

class SimIndex final : public RecordIndex {
 public:
  absl::Status Load(const Visitor& visitor) override {
    if (damaged_) return absl::DataLossError("the simulated index is damaged");
    for (const auto& [number, segment] : Applied(log_.size())) {
      if (segment.row.has_value()) visitor.segment(*segment.row);
      for (const auto& [page, header] : segment.records) {
        const std::optional<RecordHeader> unpacked = UnpackHeader(header);
        if (unpacked.has_value()) {
          visitor.record({number, page}, *unpacked);
        } else {
          visitor.damaged();
        }
      }
    }
    return absl::OkStatus();
  }
  absl::Status Reset() override {
    log_.clear();
    durable_ = 0;
    damaged_ = false;
    return absl::OkStatus();
  }
  std::string owner() const override { return owner_; }
  void SetOwner(const std::string& set) override { owner_ = set; }
  void PutRecord(RecordPlace place, const PackedHeader& header) override {
    Log([place, header](Rows& rows) { rows[place.segment].records[place.page] = header; });
  }
  void EraseRecord(RecordPlace place) override {
    Log([place](Rows& rows) { rows[place.segment].records.erase(place.page); });
  }
  void PutSegment(const SegmentRow& row) override {
    Log([row](Rows& rows) { rows[row.segment].row = row; });
  }
  void EraseSegment(uint32_t segment) override {
    Log([segment](Rows& rows) { rows.erase(segment); });
  }
  absl::Status Flush() override {
    durable_ = log_.size();
    return absl::OkStatus();
  }

  // What is left of it after a crash: a prefix; now and then it is damaged.
  SimIndex AfterCrash(std::mt19937_64& random) const {
    SimIndex left = *this;
    const size_t open = log_.size() - durable_;
    left.log_.resize(durable_ + (random() % 3 == 0 ? open : random() % (open + 1)));
    left.durable_ = left.log_.size();
    left.damaged_ = random() % 16 == 0;
    return left;
  }

 private:
  struct SegmentRows {
    std::optional<SegmentRow> row;
    std::map<uint32_t, PackedHeader> records;  // By page.
  };
  using Rows = std::map<uint32_t, SegmentRows>;

  void Log(std::function<void(Rows&)> operation) { log_.push_back(std::move(operation)); }
  Rows Applied(size_t operations) const {
    Rows rows;
    for (size_t i = 0; i < operations; ++i) log_[i](rows);
    return rows;
  }

  std::vector<std::function<void(Rows&)>> log_;
  size_t durable_ = 0;  // Of log_.
  bool damaged_ = false;
  std::string owner_;
};

}  // namespace kvd
