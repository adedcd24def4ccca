#include "tiers/segment_tier.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "proto/types/thread_role.h"
#include "proto/types/view.h"
#include "tiers/superblock.h"
#include "tiers/task_thread.h"

namespace kvd {
namespace {

// Incarnations and sequences of a run begin here, so no run ever gives a number again, even where
// nothing is left that would tell which were given.
constexpr int kRunShift = 40;
constexpr Nanos kSuperblockRetry = kSecond;

MediaId RandomId() {
  MediaId id;
  KVD_CHECK(getrandom(id.data(), id.size(), 0) == static_cast<ssize_t>(id.size()));
  return id;
}

// One device of the set: what its superblock is to say, and where the next copy of it goes.
struct Member {
  NvmeDevice* device = nullptr;
  Superblock superblock;  // Without scopes, generation and run, which all have in common.
  uint32_t next_copy = 0;
  bool is_new = false;
  SegmentGeometry geometry;
};

// The set as its superblocks tell it.
struct MediaSet {
  std::vector<Member> members;
  std::vector<StoredScope> scopes;
  uint64_t generation = 0;
  uint64_t run = 0;
};

// --- opening -------------------------------------------------------------------------------------

absl::Status ReadMember(NvmeDevice& device, MediaSet& set, RecoveryReport& report) {
  absl::StatusOr<std::optional<LoadedSuperblock>> loaded = LoadSuperblock(device);
  if (!loaded.ok()) return loaded.status();
  Member member;
  member.device = &device;
  member.is_new = !loaded->has_value();
  if (member.is_new) {
    member.superblock.segment_bytes = SegmentGeometry::SegmentBytesFor(device.size_bytes());
    ++report.devices_new;
  } else {
    Superblock& superblock = (*loaded)->superblock;
    if ((*loaded)->copy_lost) ++report.superblock_copies_lost;
    member.next_copy = (*loaded)->next_copy;
    // Each table is whole; where a crash came between two devices, the newer one counts.
    if (superblock.generation >= set.generation) {
      set.generation = superblock.generation;
      set.scopes = std::move(superblock.scopes);
    }
    set.run = std::max(set.run, superblock.run);
    superblock.scopes.clear();
    member.superblock = std::move(superblock);
  }
  const uint64_t segment_bytes = member.superblock.segment_bytes;
  if (segment_bytes == 0 || segment_bytes % kNvmePageBytes != 0 ||
      segment_bytes > (uint64_t{1} << 40)) {
    return absl::DataLossError(absl::StrCat(
        View(device.name()), ": its superblock names segments of ", segment_bytes, " bytes"));
  }
  member.geometry = SegmentGeometry::Of(device.size_bytes(), segment_bytes);
  if (member.geometry.segments < SegmentTable::kMinSegments ||
      member.geometry.segments >= 1u << kSegmentOrdinalShift) {
    return absl::InvalidArgumentError(absl::StrCat(
        View(device.name()), ": ", device.size_bytes(), " bytes are not between ",
        kSuperblockBytes + SegmentTable::kMinSegments * segment_bytes, " and ",
        kSuperblockBytes + ((uint64_t{1} << kSegmentOrdinalShift) - 1) * segment_bytes));
  }
  set.members.push_back(std::move(member));
  return absl::OkStatus();
}

// Refuses devices that do not belong together, and gives the new ones their places.
absl::Status Assemble(MediaSet& set, const std::function<MediaId()>& new_id, RecordIndex* index) {
  const Member* known = nullptr;
  std::vector<bool> taken(kMaxNvmeDevices);
  for (const Member& member : set.members) {
    if (member.is_new) continue;
    const Superblock& superblock = member.superblock;
    if (known == nullptr) known = &member;
    if (superblock.set != known->superblock.set) {
      return absl::FailedPreconditionError(
          absl::StrCat(View(member.device->name()), " belongs to the set ",
                       MediaIdText(superblock.set), ", ", View(known->device->name()), " to ",
                       MediaIdText(known->superblock.set), "; nothing was changed"));
    }
    if (superblock.ordinal >= kMaxNvmeDevices || taken[superblock.ordinal]) {
      return absl::InvalidArgumentError(
          absl::StrCat(View(member.device->name()), ": device ", superblock.ordinal,
                       " of its set was given already, or is a copy of another"));
    }
    taken[superblock.ordinal] = true;
  }
  const std::string indexed = index != nullptr ? index->owner() : "";
  if (known != nullptr && !indexed.empty() && indexed != MediaIdText(known->superblock.set)) {
    return absl::FailedPreconditionError(absl::StrCat(
        View(known->device->name()), " belongs to the set ", MediaIdText(known->superblock.set),
        ", the data directory to ", indexed, "; nothing was changed"));
  }
  const MediaId id = known != nullptr ? known->superblock.set : new_id();
  for (Member& member : set.members) {
    if (!member.is_new) continue;
    const auto free = std::find(taken.begin(), taken.end(), false);
    *free = true;
    member.superblock.set = id;
    member.superblock.device = new_id();
    member.superblock.ordinal = static_cast<uint32_t>(free - taken.begin());
  }
  for (Member& member : set.members) {
    member.superblock.devices = static_cast<uint32_t>(set.members.size());
  }
  if (index == nullptr) return absl::OkStatus();
  if (known == nullptr && !indexed.empty()) {  // Its media are gone.
    const absl::Status reset = index->Reset();
    if (!reset.ok()) return reset;
  }
  index->SetOwner(MediaIdText(id));
  return absl::OkStatus();
}

// Tells every superblock. Blocks.
absl::Status StoreAll(std::vector<Member>& members, const std::vector<StoredScope>& scopes,
                      uint64_t generation, uint64_t run) {
  absl::Status first = absl::OkStatus();
  for (Member& member : members) {
    Superblock superblock = member.superblock;
    superblock.scopes = scopes;
    superblock.generation = generation;
    superblock.run = run;
    const absl::Status status = StoreSuperblock(*member.device, superblock, member.next_copy);
    if (status.ok()) {
      member.next_copy = 1 - member.next_copy;  // The copy just written is the good one now.
    } else if (first.ok()) {
      first = status;
    }
  }
  return first;
}

// --- the tier ------------------------------------------------------------------------------------

class SegmentTierImpl final : public SegmentTier {
 public:
  SegmentTierImpl(const SegmentTierOptions& options, MediaSet set,
                  std::shared_ptr<NvmeCompletions> completions)
      : options_(options),
        owner_(options.owner),
        completions_(std::move(completions)),
        media_(std::make_shared<std::vector<Member>>(std::move(set.members))),
        generation_(set.generation),
        run_(set.run) {
    shared_.index = options.index;
    shared_.durability = options.durability;
    shared_.scopes = ScopeLedger(std::move(set.scopes));
    shared_.next_sequence = shared_.next_incarnation = run_ << kRunShift | 1;
    set_id_ = MediaIdText(media_->front().superblock.set);
    for (const Member& member : *media_) {
      SegmentDevice::Options device = options.device;
      device.ordinal = member.superblock.ordinal;
      device.geometry = member.geometry;
      devices_.push_back(std::make_unique<SegmentDevice>(*member.device, shared_, device));
    }
    if (!options_.run_blocking) maintenance_ = std::make_unique<TaskThread>();
  }

  void Restore(const Recovered& recovered) {
    for (const RecoveredSegment& segment : recovered.segments) {
      Of(segment.segment).Restore(LocalSegment(segment.segment), segment.incarnation);
    }
    for (const RecoveredRecord& record : recovered.records) {
      const uint32_t local = LocalSegment(record.place.segment);
      Of(record.place.segment)
          .RestoreRecord(
              local,
              {.page = record.place.page, .length = record.info.length, .sum = record.info.sum});
    }
  }

  absl::StatusOr<ScopeNumber> AddScope(const std::string& domain,
                                       const std::string& canonical) override;
  absl::Status PurgeScope(ScopeNumber scope, std::function<void(absl::Status)> done) override;

  uint32_t max_payload_bytes() const override;
  bool Adopt(RecordPlace place, uint32_t occupant) override {
    return Of(place.segment).Adopt(place, occupant);
  }
  std::optional<RecordPlace> Append(const RecordInfo& info, absl::Span<std::byte> payload,
                                    uint32_t occupant, uint64_t tag) override;
  bool Read(RecordPlace place, const RecordInfo& info, absl::Span<std::byte> target, Nanos deadline,
            uint64_t tag) override {
    control_.AssertHeld();
    return Of(place.segment).Read(place, info, target, deadline, tag, options_.clock->Now());
  }
  void Drop(RecordPlace place, uint32_t /*length*/) override {
    control_.AssertHeld();
    Of(place.segment).Drop(place);
  }
  void ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after) override {
    for (const auto& device : devices_) device->ReplaceMemory(before, after);
  }
  void Poll(Nanos now) override;
  Nanos NextDeadline() const override;

  uint64_t live_capacity_bytes() const override {
    return Sum([](const SegmentDevice& d) { return d.table().live_capacity_bytes(); });
  }
  uint64_t live_bytes() const override {
    return Sum([](const SegmentDevice& d) { return d.table().live_bytes(); });
  }
  bool writable() const override {
    return Any([](const SegmentDevice& d) { return d.has_room(); });
  }
  bool making_room() const override {
    return Any([](const SegmentDevice& d) { return d.making_room(); });
  }
  bool readable() const override {
    return Any([](const SegmentDevice& d) { return !d.out(); });
  }
  uint32_t in_flight() const override {
    return static_cast<uint32_t>(Sum([](const SegmentDevice& d) { return d.in_flight(); }));
  }
  uint64_t EstimateReadUs(uint64_t bytes) const override;

  void SetOwner(Owner* owner) override { owner_ = owner; }
  const std::vector<StoredScope>& scopes() const override { return shared_.scopes.scopes(); }
  std::string set_id() const override { return set_id_; }
  const NvmeTierCounters& counters() const override { return shared_.counters; }
  std::vector<NvmeDeviceState> devices() const override;
  absl::Status Close(absl::Duration timeout) override;

 private:
  struct Purge {
    uint64_t version = 0;
    std::function<void(absl::Status)> done;
  };

  SegmentDevice& Of(uint32_t segment) const {
    for (const std::unique_ptr<SegmentDevice>& device : devices_) {
      if (device->ordinal() == OrdinalOf(segment)) return *device;
    }
    KVD_CHECK(false) << "no device has segment " << segment;
    return *devices_.front();
  }
  template <typename F>
  uint64_t Sum(F of) const {
    uint64_t sum = 0;
    for (const std::unique_ptr<SegmentDevice>& device : devices_) sum += of(*device);
    return sum;
  }
  template <typename F>
  bool Any(F of) const {
    return std::any_of(devices_.begin(), devices_.end(),
                       [&](const std::unique_ptr<SegmentDevice>& device) { return of(*device); });
  }
  void MaybeWriteSuperblocks(Nanos now);
  void SuperblocksWritten(uint64_t version, const absl::Status& status);
  void TellOwner();

  const SegmentTierOptions options_;
  ThreadRole control_;
  Owner* owner_;
  std::shared_ptr<NvmeCompletions> completions_;
  SegmentShared shared_;
  std::vector<std::unique_ptr<SegmentDevice>> devices_;
  std::string set_id_;
  NvmeCompletions::Batch batch_;
  // Taken from shared_ while the owner is told.
  std::vector<Completion> ended_;
  std::vector<SegmentShared::Moved> moved_;
  std::vector<SegmentShared::Lost> lost_;

  // Superblocks. The members are the maintenance's while a write is under way.
  std::shared_ptr<std::vector<Member>> media_;
  uint64_t generation_;
  const uint64_t run_;
  bool writing_superblocks_ = false;
  uint64_t attempted_version_ = 0;
  Nanos superblock_retry_at_ = INT64_MAX;
  std::vector<Purge> purges_;
  std::unique_ptr<TaskThread> maintenance_;  // Last: its tasks use what is above.
};

absl::StatusOr<ScopeNumber> SegmentTierImpl::AddScope(const std::string& domain,
                                                      const std::string& canonical) {
  control_.AssertHeld();
  if (const std::optional<ScopeNumber> known = shared_.scopes.Find(domain, canonical)) {
    return *known;
  }
  Superblock with_it = {.scopes = shared_.scopes.scopes()};
  with_it.scopes.push_back({domain, canonical, 1});
  if (with_it.scopes.size() > kMaxScopes || !EncodeSuperblock(with_it)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the superblock has no room for another namespace: it has ",
                     shared_.scopes.scopes().size()));
  }
  const ScopeNumber number = shared_.scopes.Add(domain, canonical);
  KVD_KILL_POINT("scope.added");
  MaybeWriteSuperblocks(options_.clock->Now());
  return number;
}

absl::Status SegmentTierImpl::PurgeScope(ScopeNumber scope,
                                         std::function<void(absl::Status)> done) {
  control_.AssertHeld();
  if (!shared_.scopes.Has(scope)) {
    return absl::NotFoundError(absl::StrCat("no scope has the number ", scope));
  }
  shared_.scopes.Purge(scope);
  KVD_KILL_POINT("scope.purged");
  purges_.push_back({shared_.scopes.version(), std::move(done)});
  MaybeWriteSuperblocks(options_.clock->Now());
  return absl::OkStatus();
}

void SegmentTierImpl::MaybeWriteSuperblocks(Nanos now) {
  if (writing_superblocks_) return;
  if (now >= superblock_retry_at_) {
    superblock_retry_at_ = INT64_MAX;
    shared_.scopes.Again();
  }
  const uint64_t version = shared_.scopes.version();
  if (version == attempted_version_) return;
  writing_superblocks_ = true;
  attempted_version_ = version;
  ++generation_;
  ++shared_.counters.superblock_writes;
  auto task = [this, media = media_, completions = completions_, scopes = shared_.scopes.scopes(),
               generation = generation_, run = run_, version] {
    const absl::Status status = StoreAll(*media, scopes, generation, run);
    completions->Post([this, version, status] { SuperblocksWritten(version, status); });
  };
  if (maintenance_ != nullptr) {
    maintenance_->Run(std::move(task));
  } else {
    options_.run_blocking(std::move(task));
  }
}

void SegmentTierImpl::SuperblocksWritten(uint64_t version, const absl::Status& status) {
  writing_superblocks_ = false;
  shared_.scopes.Written(version, status.ok());
  if (!status.ok()) {
    ++shared_.counters.superblock_errors;
    superblock_retry_at_ = options_.clock->Now() + kSuperblockRetry;
  }
  std::vector<Purge> purges = std::move(purges_);
  purges_.clear();
  for (Purge& purge : purges) {
    if (purge.version > version) {
      purges_.push_back(std::move(purge));
    } else if (purge.done) {
      purge.done(status);
      KVD_KILL_POINT("scope.purge_told");
    }
  }
}

uint32_t SegmentTierImpl::max_payload_bytes() const {
  uint32_t most = 0;
  for (const std::unique_ptr<SegmentDevice>& device : devices_) {
    most = std::max(most, device->max_payload_bytes());
  }
  return most;
}

std::optional<RecordPlace> SegmentTierImpl::Append(const RecordInfo& info,
                                                   absl::Span<std::byte> payload, uint32_t occupant,
                                                   uint64_t tag) {
  control_.AssertHeld();
  KVD_CHECK(shared_.scopes.Has(info.scope)) << info.scope;
  // Fewest bytes in flight first; each device is asked once.
  absl::InlinedVector<SegmentDevice*, 8> order;
  for (const std::unique_ptr<SegmentDevice>& device : devices_) order.push_back(device.get());
  std::sort(order.begin(), order.end(), [](const SegmentDevice* a, const SegmentDevice* b) {
    const auto key = [](const SegmentDevice* d) {
      return std::pair(d->write_bytes_in_flight(), d->table().live_bytes());
    };
    return key(a) < key(b);
  });
  const Nanos now = options_.clock->Now();
  for (SegmentDevice* device : order) {
    const std::optional<RecordPlace> place = device->Append(info, payload, occupant, tag, now);
    if (place) return place;
  }
  return std::nullopt;
}

void SegmentTierImpl::Poll(Nanos now) {
  control_.AssertHeld();
  completions_->Take(batch_);
  for (const NvmeCompletions::Entry& entry : batch_.entries) {
    devices_[entry.device]->Ended(entry.done, now);
  }
  for (const std::function<void()>& task : batch_.tasks) task();
  MaybeWriteSuperblocks(now);
  for (const std::unique_ptr<SegmentDevice>& device : devices_) device->Poll(now);
  TellOwner();
}

// Nothing of the tier is in the midst of anything here, so the owner may call it.
void SegmentTierImpl::TellOwner() {
  std::swap(ended_, shared_.ended);
  std::swap(moved_, shared_.moved);
  std::swap(lost_, shared_.lost);
  for (const SegmentShared::Moved& moved : moved_) owner_->NvmeMoved(moved.occupant, moved.to);
  for (const SegmentShared::Lost& lost : lost_) owner_->NvmeLost(lost.occupant, lost.outcome);
  for (const Completion& completion : ended_) owner_->NvmeEnded(completion);
  ended_.clear();
  moved_.clear();
  lost_.clear();
}

Nanos SegmentTierImpl::NextDeadline() const {
  Nanos next = writing_superblocks_ ? INT64_MAX : superblock_retry_at_;
  for (const std::unique_ptr<SegmentDevice>& device : devices_) {
    next = std::min(next, device->NextDeadline());
  }
  return next;
}

// That of the busiest device: nobody knows yet which one will be asked.
uint64_t SegmentTierImpl::EstimateReadUs(uint64_t bytes) const {
  uint64_t most = 0;
  for (const std::unique_ptr<SegmentDevice>& device : devices_) {
    if (!device->out()) most = std::max(most, device->EstimateReadUs(bytes / devices_.size()));
  }
  return readable() ? most : UINT64_MAX;
}

std::vector<NvmeDeviceState> SegmentTierImpl::devices() const {
  std::vector<NvmeDeviceState> states;
  for (const std::unique_ptr<SegmentDevice>& device : devices_) {
    const SegmentTable& table = device->table();
    NvmeDeviceState state = {
        .name = device->device().name(),
        .engine = device->device().engine(),
        .out = device->out(),
        .live_bytes = table.live_bytes(),
        .capacity_bytes = table.geometry().segments * table.geometry().segment_bytes,
        .write_bytes_in_flight = device->write_bytes_in_flight()};
    for (size_t s = 0; s < kSegmentStates; ++s) {
      state.segments[s] = table.count(static_cast<SegmentState>(s));
    }
    states.push_back(state);
  }
  return states;
}

absl::Status SegmentTierImpl::Close(absl::Duration timeout) {
  control_.AssertHeld();
  const Nanos until = options_.clock->Now() + absl::ToInt64Nanoseconds(timeout);
  for (const std::unique_ptr<SegmentDevice>& device : devices_) {
    device->SealAll(options_.clock->Now());
  }
  const auto busy = [this] {
    return writing_superblocks_ ||
           Any([](const SegmentDevice& d) { return !d.quiet() && !d.out(); });
  };
  while (busy()) {
    const Nanos now = options_.clock->Now();
    if (now >= until) return absl::DeadlineExceededError("the NVMe tier is still writing");
    Poll(now);
    if (!busy()) break;
    if (options_.pump) {
      options_.pump();
    } else {
      completions_->Wait(absl::Milliseconds(5));
    }
  }
  absl::Status status = absl::OkStatus();
  for (Member& member : *media_) status.Update(member.device->SyncNow());
  if (options_.index != nullptr) status.Update(options_.index->Flush());
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentTier>> OpenSegmentTier(const SegmentTierOptions& options,
                                                             std::vector<RecoveredRecord>& found,
                                                             RecoveryReport& report) {
  if (options.devices.empty() || options.devices.size() > kMaxNvmeDevices) {
    return absl::InvalidArgumentError(
        absl::StrCat("an NVMe tier has 1 to ", kMaxNvmeDevices, " devices"));
  }
  const Nanos begun = options.clock->Now();
  MediaSet set;
  for (NvmeDevice* device : options.devices) {
    const absl::Status status = ReadMember(*device, set, report);
    if (!status.ok()) return status;
  }
  absl::Status status = Assemble(set, options.new_id ? options.new_id : RandomId, options.index);
  if (!status.ok()) return status;
  // Every start leaves its number before it writes anything else.
  status = StoreAll(set.members, set.scopes, ++set.generation, ++set.run);
  if (!status.ok()) return status;

  auto completions = std::make_shared<NvmeCompletions>(options.wake);
  RecoveryInput input;
  for (uint32_t i = 0; i < set.members.size(); ++i) {
    const Member& member = set.members[i];
    member.device->SetSink([completions, i](const NvmeDone& done) { completions->Push(i, done); });
    input.devices.push_back({member.device, member.superblock.ordinal, member.geometry});
  }
  input.scopes = set.scopes;
  input.index = options.index;
  input.completions = completions.get();
  input.pump = options.pump;
  Recovered recovered = Recover(input, report);
  KVD_KILL_POINT("recover.scanned");
  if (options.index != nullptr) {
    // What the index will not take is found again on the media by the next start.
    report.index_repaired = RepairIndex(*options.index, set.scopes, recovered).ok();
  }
  auto tier = std::make_unique<SegmentTierImpl>(options, std::move(set), std::move(completions));
  KVD_KILL_POINT("recover.index_repaired");
  tier->Restore(recovered);
  found = std::move(recovered.records);
  report.took_ms = (options.clock->Now() - begun) / kMillisecond;
  return tier;
}

}  // namespace kvd
