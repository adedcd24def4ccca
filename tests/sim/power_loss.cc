#include "tests/sim/power_loss.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/payload.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

constexpr uint64_t kSegment = 4u << 20;
constexpr uint64_t kSuperblocks = 8u << 20;
constexpr uint32_t kLengths[] = {512, 4096, 20'000, 65'536, 100'001, 262'144};
constexpr uint64_t kReadTag = uint64_t{1} << 40;
// After which an asynchronous append has been synced: one second, and the sync's own time.
constexpr Nanos kDurableAfter = kSecond + 200 * kMillisecond;

ChainHash KeyOfNumber(uint64_t number) {
  ChainHash key;
  const auto bytes = KeyOf(number, 0);
  std::memcpy(key.bytes.data(), bytes.data(), bytes.size());
  return key;
}

struct KeyOrder {
  bool operator()(const ChainHash& a, const ChainHash& b) const { return a.bytes < b.bytes; }
};

// What was ever appended.
struct Written {
  RecordInfo info;
  std::string scope;        // Canonical form.
  uint32_t purges = 0;      // Of its scope, when it was appended.
  Nanos acknowledged = -1;  // -1: never.
  bool durable = false;     // Promised to survive: it was found by a start.
  bool dropped = false;     // May be gone, may come back.
};

// Scopes as the oracle sees them.
struct Scope {
  ScopeNumber number = 0;
  uint32_t purges = 0;       // Asked for.
  uint32_t purges_told = 0;  // Of which the tier said that they are durable.
};

// What outlives a life: what was written, and which of it must be there.
struct Oracle {
  std::map<ChainHash, Written, KeyOrder> written;
  std::map<std::string, Scope> scopes;
  uint64_t next_number = 1;
};

void Fail(PowerLossResult& result, const std::string& what) {
  if (result.first_failure.empty()) result.first_failure = what;
}

// The media and the index at one instant.
struct Media {
  std::vector<MediaImage> images;
  SimIndex index;
};

// A tier that is open on some media, with the devices below it.
class Life final : public NvmeTier::Owner {
 public:
  Life(ManualClock& clock, Oracle& oracle, PowerLossResult& result, NvmeDurability durability,
       uint64_t seed)
      : clock_(clock), oracle_(oracle), result_(result), durability_(durability), random_(seed) {}

  absl::Status Open(Media media) {
    index_ = std::move(media.index);
    SegmentTierOptions options;
    for (size_t i = 0; i < media.images.size(); ++i) {
      const SimDevice::Options device{.bytes = media.images[i].size_bytes(),
                                      .seed = random_(),
                                      .name = absl::StrCat("simulated-", i),
                                      .max_jobs = 256};
      devices_.push_back(std::make_unique<SimDevice>(clock_, device, std::move(media.images[i])));
      options.devices.push_back(devices_.back().get());
    }
    options.index = &index_;
    options.clock = &clock_;
    options.owner = this;
    options.durability = durability_;
    options.pump = [this] { Advance(); };
    options.run_blocking = [](std::function<void()> task) { task(); };
    options.new_id = [this] {
      MediaId id;
      for (uint8_t& byte : id) byte = static_cast<uint8_t>(random_());
      return id;
    };
    options.device.max_records = 64;
    options.device.max_jobs = 96;
    RecoveryReport report;
    absl::StatusOr<std::unique_ptr<SegmentTier>> opened = OpenSegmentTier(options, found_, report);
    if (!opened.ok()) return opened.status();
    tier_ = *std::move(opened);
    return absl::OkStatus();
  }

  // --- what was found ----------------------------------------------------------------------------

  // Adopts all that may live; counts what must be there and is not, and what must not be.
  void Judge(Nanos lost_at, bool killed, bool lied_to) {
    std::set<ChainHash, KeyOrder> promised;
    for (const auto& [key, written] : oracle_.written) {
      if (!lied_to && MustBeThere(written, lost_at, killed)) promised.insert(key);
    }
    std::set<ChainHash, KeyOrder> readable;
    for (const RecoveredRecord& record : found_) {
      const auto it = oracle_.written.find(record.info.key);
      if (it == oracle_.written.end() || !SameInfo(it->second, record.info)) {
        ++result_.wrong_blocks;
        Fail(result_, "a record was found that nobody wrote");
        continue;
      }
      Written& written = it->second;
      if (written.purges < oracle_.scopes[written.scope].purges_told) {
        ++result_.resurrected;
        Fail(result_, absl::StrCat("a record of ", written.scope, " came back after its purge"));
        continue;
      }
      KVD_CHECK(tier_->Adopt(record.place, Occupy(record.info.key, record.place)));
    }
    given_up_.clear();
    const std::map<uint32_t, ChainHash> adopted = live_;
    std::map<ChainHash, NvmeOutcome, KeyOrder> unreadable;
    for (const auto& [occupant, key] : adopted) {
      if (!live_.contains(occupant)) continue;  // Lost while others were read.
      const NvmeOutcome outcome = ReadNow(occupant);
      if (outcome == NvmeOutcome::kOk) {
        readable.insert(key);
      } else {
        unreadable[key] = outcome;
        if (live_.contains(occupant)) Drop(occupant);
      }
    }
    for (const auto& [key, written] : oracle_.written) {
      if (!promised.contains(key)) continue;
      ++result_.records_promised;
      // Found, and then given up so that others could be copied.
      if (readable.contains(key) || given_up_.contains(key)) continue;
      ++result_.records_lost;
      const auto damaged = unreadable.find(key);
      Fail(result_, absl::StrCat("a record was lost that had been acknowledged ",
                                 (lost_at - written.acknowledged) / kMillisecond, " ms before a ",
                                 killed ? "kill" : "power loss", ": ",
                                 damaged == unreadable.end()
                                     ? "it was not found"
                                     : absl::StrCat("its read ended with ",
                                                    static_cast<int>(damaged->second))));
    }
  }

  // What was found is what there is from now on.
  void TakeOver() {
    std::set<ChainHash, KeyOrder> here;
    for (const auto& [occupant, key] : live_) here.insert(key);
    for (auto& [key, written] : oracle_.written) {
      written.durable = here.contains(key);
      written.dropped |= !written.durable;
    }
    for (auto& [canonical, scope] : oracle_.scopes) scope.number = 0;
  }

  // --- the load ----------------------------------------------------------------------------------

  void Step() {
    const uint64_t dice = random_() % 32;
    if (dice < 18) {
      Append();
    } else if (dice < 21) {
      DropOne();
    } else if (dice < 25) {
      if (!live_.empty()) (void)ReadNow(AnyLive());
    } else if (dice == 25 && random_() % 8 == 0) {
      Purge();
    } else if (dice == 26 && random_() % 2 == 0) {
      Idle(static_cast<Nanos>(random_() % 1500) * kMillisecond);
    } else {
      Turn();
    }
    while (tier_->live_bytes() > tier_->live_capacity_bytes() && !live_.empty()) DropOldest();
  }

  Media Crash(bool killed, PowerLoss& writes) {
    Media media;
    for (const auto& device : devices_) {
      PowerLoss what;
      media.images.push_back(killed ? device->ImageAfterKill(random_())
                                    : device->ImageAfterPowerLoss(random_(), &what));
      writes.kept += what.kept;
      writes.dropped += what.dropped;
      writes.torn += what.torn;
    }
    media.index = index_.AfterCrash(random_);
    return media;
  }

  SimDevice& device(size_t i) { return *devices_[i]; }
  size_t devices() const { return devices_.size(); }
  void CountUp() {
    result_.reclaimed_segments += tier_->counters().segments_freed;
    for (const auto& device : devices_) {
      for (size_t i = 0; i < kSimFaults; ++i) {
        const auto fault = static_cast<SimFault>(i);
        result_.faults[fault] += device->count(fault);
      }
    }
  }

  // --- NvmeTier::Owner ---------------------------------------------------------------------------

  void NvmeEnded(const NvmeTier::Completion& completion) override {
    if ((completion.tag & kReadTag) != 0) {
      reads_[completion.tag] = completion.outcome;
      return;
    }
    const auto occupant = static_cast<uint32_t>(completion.tag);
    payloads_.erase(occupant);
    if (!live_.contains(occupant)) return;  // Dropped meanwhile.
    if (completion.outcome == NvmeOutcome::kOk) {
      oracle_.written[live_[occupant]].acknowledged = clock_.Now();
    } else {
      Forget(occupant);
    }
  }
  void NvmeMoved(uint32_t occupant, RecordPlace to) override {
    ++result_.moved;
    if (live_.contains(occupant)) places_[occupant] = to;
  }
  void NvmeLost(uint32_t occupant, NvmeOutcome outcome) override {
    if (!live_.contains(occupant)) return;
    if (outcome == NvmeOutcome::kExpired) {
      ++result_.given_up;
      given_up_.insert(live_[occupant]);
    }
    Forget(occupant);
  }

 private:
  static bool SameInfo(const Written& written, const RecordInfo& found) {
    const RecordInfo& info = written.info;
    return info.parent == found.parent && info.has_parent == found.has_parent &&
           info.depth == found.depth && info.id == found.id && info.length == found.length &&
           info.sum == found.sum;
  }

  bool MustBeThere(const Written& written, Nanos lost_at, bool killed) const {
    if (written.dropped || written.purges < oracle_.scopes.at(written.scope).purges) return false;
    if (written.durable) return true;
    if (written.acknowledged < 0) return false;
    return killed || durability_ == NvmeDurability::kSync ||
           written.acknowledged + kDurableAfter < lost_at;
  }

  uint32_t Occupy(const ChainHash& key, RecordPlace place) {
    const uint32_t occupant = ++next_occupant_;
    live_[occupant] = key;
    places_[occupant] = place;
    return occupant;
  }
  // The record of `occupant` is no more, or is not promised.
  void Forget(uint32_t occupant) {
    oracle_.written[live_[occupant]].dropped = true;
    live_.erase(occupant);
    places_.erase(occupant);
  }
  uint32_t AnyLive() {
    auto it = live_.lower_bound(1 + static_cast<uint32_t>(random_() % next_occupant_));
    return it == live_.end() ? live_.begin()->first : it->first;
  }

  void Append() {
    const std::string canonical = absl::StrCat("namespace-", random_() % 4);
    Scope& scope = oracle_.scopes[canonical];
    if (scope.number == 0) scope.number = *tier_->AddScope("domain", canonical);
    const uint64_t number = oracle_.next_number++;
    const ChainHash key = KeyOfNumber(number);
    Written written{.scope = canonical, .purges = scope.purges};
    RecordInfo& info = written.info;
    info.scope = scope.number;
    info.key = key;
    info.has_parent = number % 3 != 0;
    if (info.has_parent) info.parent = KeyOfNumber(number - 1);
    info.depth = static_cast<uint32_t>(number % 3);
    info.length = kLengths[random_() % std::size(kLengths)];
    auto payload = std::make_unique<NvmeBuffer>(info.length);
    FillPayload(key.bytes, 0, 0, payload->span(0, info.length));
    info.sum = Crc32c(payload->span(0, info.length));
    const uint32_t occupant = next_occupant_ + 1;
    const std::optional<RecordPlace> place =
        tier_->Append(info, payload->span(), occupant, occupant);
    if (!place.has_value()) return Turn();
    ++result_.appended;
    payloads_[occupant] = std::move(payload);
    oracle_.written[key] = std::move(written);
    Occupy(key, *place);
  }

  void DropOne() {
    if (!live_.empty()) Drop(AnyLive());
  }
  void DropOldest() { Drop(live_.begin()->first); }
  void Drop(uint32_t occupant) {
    tier_->Drop(places_[occupant], oracle_.written[live_[occupant]].info.length);
    Forget(occupant);
  }

  void Purge() {
    const auto it = std::next(oracle_.scopes.begin(),
                              static_cast<ptrdiff_t>(random_() % (oracle_.scopes.size() + 1)));
    if (it == oracle_.scopes.end() || it->second.number == 0) return;
    ++result_.purges;
    Scope& scope = it->second;
    const uint32_t purge = ++scope.purges;
    KVD_CHECK(tier_
                  ->PurgeScope(scope.number,
                               [&scope, purge](const absl::Status& status) {
                                 if (status.ok())
                                   scope.purges_told = std::max(scope.purges_told, purge);
                               })
                  .ok());
    std::vector<uint32_t> gone;
    for (const auto& [occupant, key] : live_) {
      if (oracle_.written[key].scope == it->first) gone.push_back(occupant);
    }
    for (const uint32_t occupant : gone) Drop(occupant);
  }

  // Of a record that lives; every byte is compared.
  NvmeOutcome ReadNow(uint32_t occupant) {
    const ChainHash key = live_[occupant];
    const RecordInfo info = [&] {
      RecordInfo of = oracle_.written[key].info;
      of.scope = tier_scope(oracle_.written[key].scope);
      return of;
    }();
    NvmeBuffer target(info.length);
    const uint64_t tag = kReadTag | ++next_read_;
    if (!tier_->Read(places_[occupant], info, target.span(), INT64_MAX, tag)) {
      return NvmeOutcome::kExpired;
    }
    for (int turns = 0; turns < 10'000 && !reads_.contains(tag); ++turns) Turn();
    if (!reads_.contains(tag)) {
      kept_.push_back(std::move(target));  // It hangs; the device may still write there.
      return NvmeOutcome::kExpired;
    }
    const NvmeOutcome outcome = reads_[tag];
    reads_.erase(tag);
    if (outcome != NvmeOutcome::kOk) return outcome;
    ++result_.records_verified;
    if (CheckPayload(key.bytes, 0, 0, target.span(0, info.length)) != kPayloadMatches) {
      ++result_.wrong_blocks;
      Fail(result_, "a read was good and its bytes are not what was written");
    }
    return outcome;
  }
  ScopeNumber tier_scope(const std::string& canonical) {
    return *tier_->AddScope("domain", canonical);
  }

  void Turn() {
    tier_->Poll(clock_.Now());
    Advance();
    tier_->Poll(clock_.Now());
  }
  // Nothing comes for so long; what is due is done when it is due.
  void Idle(Nanos time) {
    const Nanos until = clock_.Now() + time;
    while (clock_.Now() < until) {
      tier_->Poll(clock_.Now());
      const Nanos due = std::max(clock_.Now() + kMillisecond, tier_->NextDeadline());
      Advance(std::min(until, due));
    }
  }
  void Advance() { Advance(clock_.Now() + kMillisecond); }
  // To the next thing that a device does, at most to `until`.
  void Advance(Nanos until) {
    Nanos next = until;
    for (const auto& device : devices_) next = std::min(next, device->NextDue().value_or(next));
    clock_.Advance(std::max<Nanos>(0, next - clock_.Now()));
    for (const auto& device : devices_) device->Run();
  }

  ManualClock& clock_;
  Oracle& oracle_;
  PowerLossResult& result_;
  const NvmeDurability durability_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<SimDevice>> devices_;
  SimIndex index_;
  std::map<uint32_t, std::unique_ptr<NvmeBuffer>> payloads_;  // Being written, by occupant.
  std::vector<NvmeBuffer> kept_;
  std::vector<RecoveredRecord> found_;
  std::unique_ptr<SegmentTier> tier_;   // Goes before what it borrows.
  std::map<uint32_t, ChainHash> live_;  // By occupant.
  std::map<uint32_t, RecordPlace> places_;
  std::set<ChainHash, KeyOrder> given_up_;  // Since the last start.
  std::map<uint64_t, NvmeOutcome> reads_;
  uint32_t next_occupant_ = 0;
  uint64_t next_read_ = 0;
};

// What a seed chooses once.
struct Setup {
  NvmeDurability durability = NvmeDurability::kAsync;
  std::vector<MediaImage> media;
  bool errors = false;  // Jobs fail, and it is told.
  bool lies = false;    // Writes go astray, and it is not told.
};

Setup SetUp(uint64_t seed) {
  Setup setup;
  if (seed % 2 == 0) setup.durability = NvmeDurability::kSync;
  setup.errors = seed % 4 == 1;
  setup.lies = seed % 8 == 3;
  const int devices = seed % 5 == 0 ? 2 : 1;
  const uint64_t segments = devices == 2 ? 6 : 8 + seed % 3;
  for (int i = 0; i < devices; ++i) setup.media.emplace_back(kSuperblocks + segments * kSegment);
  return setup;
}

void SetFaults(const Setup& setup, SimDevice& device) {
  if (setup.errors) {
    device.SetRate(SimFault::kReadError, 2000);
    device.SetRate(SimFault::kWriteError, 2000);
    device.SetRate(SimFault::kNoSpace, 500);
    device.SetRate(SimFault::kShort, 1000);
  }
  if (setup.lies) {
    device.SetRate(SimFault::kMisdirected, 1000);
    device.SetRate(SimFault::kLost, 3000);
    device.SetRate(SimFault::kFlipped, 3000);
  }
}

}  // namespace

PowerLossResult RunPowerLoss(const PowerLossOptions& options) {
  PowerLossResult result;
  const Setup setup = SetUp(options.seed);
  std::mt19937_64 random(options.seed);
  ManualClock clock;
  Oracle oracle;
  Media media{.images = setup.media, .index = {}};
  Nanos lost_at = clock.Now();
  bool killed = true;
  const bool lied_to = setup.lies || setup.errors;
  while (result.images < options.images && result.ok()) {
    Life life(clock, oracle, result, setup.durability, random());
    if (absl::Status opened = life.Open(std::move(media)); !opened.ok()) {
      ++result.failed_opens;
      Fail(result, std::string(opened.message()));
      return result;
    }
    life.Judge(lost_at, killed, lied_to);
    life.TakeOver();
    for (size_t i = 0; i < life.devices(); ++i) SetFaults(setup, life.device(i));
    for (uint32_t i = 0; i < options.images_of_a_life && result.ok(); ++i) {
      for (uint64_t n = random() % (2 * options.steps_to_an_image); n > 0; --n) life.Step();
      ++result.images;
      killed = random() % 4 == 0;
      lost_at = clock.Now();
      media = life.Crash(killed, result.writes);
      if (i + 1 == options.images_of_a_life) break;  // The next life begins on this one.
      // A start of its own, which leaves no trace in this life.
      Oracle oracle_of_image = oracle;
      ManualClock clock_of_image = clock;
      Life start(clock_of_image, oracle_of_image, result, setup.durability, random());
      if (absl::Status opened = start.Open(std::move(media)); !opened.ok()) {
        ++result.failed_opens;
        Fail(result, std::string(opened.message()));
        return result;
      }
      start.Judge(lost_at, killed, lied_to);
    }
    life.CountUp();
  }
  return result;
}

}  // namespace kvd
