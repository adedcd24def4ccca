// A segment tier over devices in memory, driven by a manual clock, with an owner that remembers
// what it was told. Payload is a function of its key, so any answer can be checked.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "tests/testing/memory_nvme_device.h"
#include "tiers/nvme_buffer.h"
#include "tiers/segment_tier.h"

namespace kvd {

inline ChainHash TestKey(uint64_t number) {
  ChainHash key;
  std::memcpy(key.bytes.data(), &number, sizeof(number));
  key.bytes[31] = std::byte{0x5a};
  return key;
}

// Fills `bytes` with what the part of `key` holds.
inline void FillTestPayload(uint64_t key, absl::Span<std::byte> bytes) {
  uint64_t state = key * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < bytes.size(); i += sizeof(state)) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(bytes.data() + i, &state, std::min(sizeof(state), bytes.size() - i));
  }
}

class NvmeHarness final : public NvmeTier::Owner {
 public:
  struct Known {
    RecordInfo info;
    RecordPlace place;
    std::optional<NvmeOutcome> written;
    std::unique_ptr<NvmeBuffer> payload;
  };

  explicit NvmeHarness(std::vector<MediaBytes> media) : media_(std::move(media)) { Plug(); }
  explicit NvmeHarness(uint64_t bytes = 64u << 20)
      : NvmeHarness(std::vector<MediaBytes>{NewMedia(bytes)}) {}

  // New device objects on the same media.
  void Plug() {
    tier.reset();
    devices.clear();
    for (size_t i = 0; i < media_.size(); ++i) {
      devices.push_back(
          std::make_unique<MemoryNvmeDevice>(media_[i], "memory-" + std::to_string(i)));
    }
  }
  // Opens, and adopts all that was found. The status of opening.
  absl::Status Open() {
    SegmentTierOptions with = options;
    with.devices.clear();
    for (const std::unique_ptr<MemoryNvmeDevice>& device : devices) {
      with.devices.push_back(device.get());
    }
    with.clock = &clock;
    with.owner = this;
    with.run_blocking = [this](std::function<void()> task) {
      if (defer_blocking) {
        blocking.push_back(std::move(task));
      } else {
        task();
      }
    };
    with.new_id = [this] {
      MediaId id{};
      id[0] = ++ids_;
      return id;
    };
    found.clear();
    report = {};
    known.clear();
    ended.clear();
    absl::StatusOr<std::unique_ptr<SegmentTier>> opened = OpenSegmentTier(with, found, report);
    if (!opened.ok()) return opened.status();
    tier = *std::move(opened);
    for (const RecoveredRecord& record : found) {
      const uint32_t occupant = ++next_occupant_;
      KVD_CHECK(tier->Adopt(record.place, occupant));
      Known& k = known[occupant];
      k.info = record.info;
      k.place = record.place;
      k.written = NvmeOutcome::kOk;
    }
    if (!found.empty() || !tier->scopes().empty()) scope = 1;
    return absl::OkStatus();
  }
  // As a kill: nothing is told to anybody.
  absl::Status Restart() {
    Plug();
    return Open();
  }

  void Turn(uint32_t turns = 1) {
    for (uint32_t i = 0; i < turns; ++i) {
      for (const std::unique_ptr<MemoryNvmeDevice>& device : devices) device->Run();
      tier->Poll(clock.Now());
    }
  }

  void MustAddScope() {
    scope = *tier->AddScope("domain", "namespace");
    Turn(2);
  }
  RecordInfo InfoFor(uint64_t key, uint32_t length) {
    NvmeBuffer payload(length);
    FillTestPayload(key, payload.span(0, length));
    RecordInfo info;
    info.scope = scope;
    info.key = TestKey(key);
    info.has_parent = key > 0;
    if (info.has_parent) info.parent = TestKey(key - 1);
    info.depth = static_cast<uint32_t>(key);
    info.length = length;
    info.sum = Crc32c(payload.span(0, length));
    info.generation = 7;
    return info;
  }
  // The occupant; empty: no room. The payload stays as long as this.
  std::optional<uint32_t> Append(uint64_t key, uint32_t length) {
    const uint32_t occupant = next_occupant_ + 1;
    Known k;
    k.info = InfoFor(key, length);
    k.payload = std::make_unique<NvmeBuffer>(length);
    FillTestPayload(key, k.payload->span(0, length));
    // What a slot's tail holds is anybody's: it must not reach the media.
    std::memset(k.payload->data() + length, 0xee, k.payload->size() - length);
    const std::optional<RecordPlace> place =
        tier->Append(k.info, k.payload->span(), occupant, occupant);
    if (!place) return std::nullopt;
    ++next_occupant_;
    k.place = *place;
    known[occupant] = std::move(k);
    return occupant;
  }
  uint32_t MustAppend(uint64_t key, uint32_t length) {
    const std::optional<uint32_t> occupant = Append(key, length);
    KVD_CHECK(occupant.has_value()) << "no room for " << key;
    for (int i = 0; i < 4 && !known[*occupant].written; ++i) Turn();
    KVD_CHECK(known[*occupant].written == NvmeOutcome::kOk) << key;
    return *occupant;
  }
  void Drop(uint32_t occupant) {
    tier->Drop(known.at(occupant).place, known.at(occupant).info.length);
    known.erase(occupant);
  }

  // What a read ended with. Checks that what it read is what belongs to the key.
  NvmeOutcome Read(uint32_t occupant) {
    return Read(known.at(occupant).place, known.at(occupant).info);
  }
  NvmeOutcome Read(RecordPlace place, const RecordInfo& info) {
    NvmeBuffer target(info.length);
    const uint64_t tag = kReadTag | ++next_read_;
    if (!tier->Read(place, info, target.span(), INT64_MAX, tag)) return NvmeOutcome::kExpired;
    for (int i = 0; i < 4 && !ended.contains(tag); ++i) Turn();
    KVD_CHECK(ended.contains(tag)) << "a read did not end";
    const NvmeOutcome outcome = ended.at(tag).outcome;
    if (outcome == NvmeOutcome::kOk) {
      uint64_t key = 0;
      std::memcpy(&key, info.key.bytes.data(), sizeof(key));
      NvmeBuffer expected(info.length);
      FillTestPayload(key, expected.span(0, info.length));
      KVD_CHECK(std::memcmp(expected.data(), target.data(), info.length) == 0) << "WRONG BYTES";
    }
    return outcome;
  }
  // The keys of what was found.
  std::set<uint64_t> FoundKeys() const {
    std::set<uint64_t> keys;
    for (const RecoveredRecord& record : found) {
      uint64_t key = 0;
      std::memcpy(&key, record.info.key.bytes.data(), sizeof(key));
      keys.insert(key);
    }
    return keys;
  }
  // Reads all that is known. How many were fine, of those that stayed.
  uint32_t ReadAll() {
    uint32_t fine = 0;
    std::vector<uint32_t> occupants;
    for (const auto& [occupant, k] : known) occupants.push_back(occupant);
    for (const uint32_t occupant : occupants) {
      if (!known.contains(occupant)) continue;  // Lost while others were read.
      fine += Read(occupant) == NvmeOutcome::kOk;
    }
    return fine;
  }

  // --- NvmeTier::Owner
  // ----------------------------------------------------------------------------
  void NvmeEnded(const NvmeTier::Completion& completion) override {
    KVD_CHECK(!ended.contains(completion.tag)) << "ended twice: " << completion.tag;
    ended[completion.tag] = completion;
    const auto k = known.find(static_cast<uint32_t>(completion.tag));
    if ((completion.tag & kReadTag) == 0 && k != known.end()) {
      k->second.written = completion.outcome;
      k->second.payload.reset();
      if (completion.outcome != NvmeOutcome::kOk) known.erase(k);
    }
  }
  void NvmeMoved(uint32_t occupant, RecordPlace to) override {
    ++moved;
    known.at(occupant).place = to;
  }
  void NvmeLost(uint32_t occupant, NvmeOutcome outcome) override {
    lost[occupant] = outcome;
    known.erase(occupant);
  }

  // The tasks that block: kept here instead of being run.
  bool defer_blocking = false;
  std::vector<std::function<void()>> blocking;

  SegmentTierOptions options;
  ManualClock clock;
  std::vector<std::unique_ptr<MemoryNvmeDevice>> devices;
  std::unique_ptr<SegmentTier> tier;  // Before its devices goes.
  ScopeNumber scope = 0;
  std::map<uint32_t, Known> known;
  std::map<uint64_t, NvmeTier::Completion> ended;
  std::map<uint32_t, NvmeOutcome> lost;
  uint32_t moved = 0;
  std::vector<RecoveredRecord> found;
  RecoveryReport report;

 private:
  static constexpr uint64_t kReadTag = uint64_t{1} << 40;

  std::vector<MediaBytes> media_;
  uint32_t next_occupant_ = 0;
  uint64_t next_read_ = 0;
  uint8_t ids_ = 0;
};

}  // namespace kvd
