// A RecordIndex in memory that outlives a start, may be made to lag behind, and whose rows a test
// may change as it likes.
//
// Threads: one.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "tiers/record_index.h"

namespace kvd {

class MemoryIndex final : public RecordIndex {
 public:
  using Key = std::pair<uint32_t, uint32_t>;  // Segment, page.

  absl::Status Load(const Visitor& visitor) override {
    if (damaged) return absl::DataLossError("the index is damaged");
    for (const auto& [segment, row] : segments) visitor.segment(row);
    for (const auto& [key, header] : records) {
      const std::optional<RecordHeader> unpacked = UnpackHeader(header);
      if (unpacked) {
        visitor.record({key.first, key.second}, *unpacked);
      } else {
        visitor.damaged();
      }
    }
    return absl::OkStatus();
  }
  absl::Status Reset() override {
    damaged = false;
    ++resets;
    segments.clear();
    records.clear();
    return absl::OkStatus();
  }
  std::string owner() const override { return set; }
  void SetOwner(const std::string& owner) override { set = owner; }

  void PutRecord(RecordPlace place, const PackedHeader& header) override {
    Do([=, this] { records[{place.segment, place.page}] = header; });
  }
  void EraseRecord(RecordPlace place) override {
    Do([=, this] { records.erase({place.segment, place.page}); });
  }
  void PutSegment(const SegmentRow& row) override {
    Do([=, this] { segments[row.segment] = row; });
  }
  void EraseSegment(uint32_t segment) override {
    Do([=, this] {
      segments.erase(segment);
      records.erase(records.lower_bound({segment, 0}), records.upper_bound({segment, UINT32_MAX}));
    });
  }
  absl::Status Flush() override { return absl::OkStatus(); }

  bool lags = false;  // Nothing is written any more, as if a crash were to lose it.
  bool damaged = false;
  uint32_t resets = 0;
  std::string set;
  std::map<uint32_t, SegmentRow> segments;
  std::map<Key, PackedHeader> records;

 private:
  void Do(const std::function<void()>& change) {
    if (!lags) change();
  }
};

}  // namespace kvd
