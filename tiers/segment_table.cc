#include "tiers/segment_table.h"

#include <algorithm>
#include <utility>

#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kLargestSegment = 64 * kMiB;
constexpr uint64_t kSmallestSegment = 4 * kMiB;
constexpr uint64_t kSegmentsWanted = 64;
constexpr uint32_t kLivePerMille = 800;

}  // namespace

uint64_t SegmentGeometry::SegmentBytesFor(uint64_t device_bytes) {
  const uint64_t wanted = device_bytes / kSegmentsWanted / kMiB * kMiB;
  return std::clamp(wanted, kSmallestSegment, kLargestSegment);
}

SegmentGeometry SegmentGeometry::Of(uint64_t device_bytes, uint64_t segment_bytes) {
  const uint64_t room = device_bytes > kSuperblockBytes ? device_bytes - kSuperblockBytes : 0;
  return {segment_bytes, static_cast<uint32_t>(room / segment_bytes)};
}

SegmentTable::SegmentTable(SegmentGeometry geometry)
    : geometry_(geometry), segments_(geometry.segments), released_(geometry.segments) {
  KVD_CHECK(geometry.segments >= kMinSegments) << geometry.segments;
  for (uint32_t i = 0; i < geometry.segments; ++i) free_.push_back(i);
  counts_[static_cast<size_t>(SegmentState::kFree)] = geometry.segments;
}

uint64_t SegmentTable::live_capacity_bytes() const {
  const uint64_t segments = std::min<uint64_t>(uint64_t{geometry_.segments} * kLivePerMille / 1000,
                                               geometry_.segments - kSegmentsForReclaim);
  return segments * (geometry_.segment_bytes - std::min(largest_room_, geometry_.segment_bytes));
}

void SegmentTable::Become(uint32_t segment, SegmentState state) {
  Segment& s = segments_[segment];
  --counts_[static_cast<size_t>(s.state)];
  s.state = state;
  ++counts_[static_cast<size_t>(state)];
}

void SegmentTable::Restore(uint32_t segment, uint64_t incarnation) {
  KVD_CHECK(segments_[segment].state == SegmentState::kFree) << segment;
  free_.erase(std::find(free_.begin(), free_.end(), segment));
  Become(segment, SegmentState::kSealed);
  segments_[segment].incarnation = incarnation;
}

void SegmentTable::RestoreRecord(uint32_t segment, const SegmentRecord& record) {
  std::vector<SegmentRecord>& records = segments_[segment].records;
  KVD_CHECK(records.empty() || records.back().page < record.page) << record.page;
  records.push_back(record);
  records.back().occupant = 0;
}

bool SegmentTable::Adopt(RecordPlace place, uint32_t occupant) {
  KVD_CHECK(occupant != 0);
  SegmentRecord* record = FindRecord(place);
  if (record == nullptr || record->occupant != 0) return false;
  record->occupant = occupant;
  const uint64_t room = NvmeTier::RoomOf(record->length);
  largest_room_ = std::max(largest_room_, room);
  segments_[place.segment].live_bytes += room;
  live_bytes_ += room;
  return true;
}

std::optional<uint32_t> SegmentTable::Open(uint64_t incarnation, uint32_t keep) {
  if (free_.size() <= keep) return std::nullopt;
  const uint32_t segment = free_.front();
  free_.pop_front();
  Become(segment, SegmentState::kOpen);
  segments_[segment].incarnation = incarnation;
  return segment;
}

void SegmentTable::Add(uint32_t segment, const SegmentRecord& record) {
  KVD_CHECK(segments_[segment].state == SegmentState::kOpen) << segment;
  segments_[segment].records.push_back(record);
  const uint64_t room = NvmeTier::RoomOf(record.length);
  largest_room_ = std::max(largest_room_, room);
  segments_[segment].live_bytes += room;
  live_bytes_ += room;
}

void SegmentTable::Sealed(uint32_t segment) {
  Become(segment, SegmentState::kSealed);
  FreeIfEmpty(segment);
}

SegmentRecord* SegmentTable::FindRecord(RecordPlace place) {
  if (place.segment >= segments_.size()) return nullptr;
  std::vector<SegmentRecord>& records = segments_[place.segment].records;
  const auto found = std::lower_bound(
      records.begin(), records.end(), place.page,
      [](const SegmentRecord& record, uint32_t page) { return record.page < page; });
  if (found == records.end() || found->page != place.page) return nullptr;
  return &*found;
}

const SegmentRecord* SegmentTable::Find(RecordPlace place) const {
  const SegmentRecord* record = const_cast<SegmentTable*>(this)->FindRecord(place);
  return record != nullptr && record->occupant != 0 ? record : nullptr;
}

bool SegmentTable::Drop(RecordPlace place) {
  SegmentRecord* record = FindRecord(place);
  if (record == nullptr || record->occupant == 0) return false;
  record->occupant = 0;
  const uint64_t room = NvmeTier::RoomOf(record->length);
  segments_[place.segment].live_bytes -= room;
  live_bytes_ -= room;
  FreeIfEmpty(place.segment);
  return true;
}

void SegmentTable::EndRead(uint32_t segment) {
  KVD_CHECK(segments_[segment].readers > 0) << segment;
  --segments_[segment].readers;
  FreeIfEmpty(segment);
}

void SegmentTable::FreeIfEmpty(uint32_t segment) {
  Segment& s = segments_[segment];
  const bool over =
      s.state == SegmentState::kSealed || (s.state == SegmentState::kDrained && released_[segment]);
  if (!over || s.live_bytes != 0 || s.readers != 0) return;
  Become(segment, SegmentState::kFree);
  s.records = {};
  released_[segment] = false;
  free_.push_back(segment);
  freed_.push_back(segment);
}

std::optional<uint32_t> SegmentTable::BeginReclaim() {
  std::optional<uint32_t> best;
  for (uint32_t i = 0; i < segments_.size(); ++i) {
    if (segments_[i].state != SegmentState::kSealed) continue;
    if (!best || segments_[i].live_bytes < segments_[*best].live_bytes) best = i;
  }
  // Where hardly anything is dead, copying would only move the tails about.
  if (!best || segments_[*best].live_bytes + largest_room_ > geometry_.segment_bytes) {
    return std::nullopt;
  }
  Become(*best, SegmentState::kReclaiming);
  return best;
}

void SegmentTable::Drained(uint32_t segment) {
  KVD_CHECK(segments_[segment].state == SegmentState::kReclaiming &&
            segments_[segment].live_bytes == 0)
      << segment;
  Become(segment, SegmentState::kDrained);
}

void SegmentTable::Release(uint32_t segment) {
  KVD_CHECK(segments_[segment].state == SegmentState::kDrained) << segment;
  released_[segment] = true;
  FreeIfEmpty(segment);
}

void SegmentTable::AbandonReclaim(uint32_t segment) {
  KVD_CHECK(segments_[segment].state == SegmentState::kReclaiming) << segment;
  Become(segment, SegmentState::kSealed);
  FreeIfEmpty(segment);
}

std::vector<uint32_t> SegmentTable::TakeFreed() { return std::exchange(freed_, {}); }

}  // namespace kvd
