#include "tests/sim/sim_device.h"

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "proto/types/check.h"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

constexpr size_t kSectorBytes = 512;

std::vector<std::byte> Gather(const NvmeJob& job) {
  std::vector<std::byte> bytes;
  for (absl::Span<std::byte> piece : job.pieces) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
  }
  return bytes;
}

bool CanBefall(SimFault fault, NvmeJob::Kind kind) {
  switch (fault) {
    case SimFault::kReadError:
      return kind == NvmeJob::Kind::kRead;
    case SimFault::kHang:
      return true;
    case SimFault::kShort:
      return kind != NvmeJob::Kind::kSync;
    default:
      return kind == NvmeJob::Kind::kWrite;
  }
}

// Writes some units of `bytes`: the first ones, or any.
void WriteTorn(MediaImage& image, uint64_t offset, absl::Span<const std::byte> bytes,
               std::mt19937_64& random) {
  const size_t unit = random() % 2 == 0 ? kSectorBytes : kNvmePageBytes;
  const size_t units = bytes.size() / unit;
  if (random() % 2 == 0) {
    image.Write(offset, bytes.first(random() % (units + 1) * unit));
    return;
  }
  for (size_t i = 0; i < units; ++i) {
    if (random() % 2 == 0) image.Write(offset + i * unit, bytes.subspan(i * unit, unit));
  }
}

}  // namespace

SimDevice::SimDevice(const Clock& clock, Options options)
    : SimDevice(clock, options, MediaImage(options.bytes)) {}

SimDevice::SimDevice(const Clock& clock, Options options, MediaImage image)
    : clock_(clock),
      options_(std::move(options)),
      random_(options_.seed),
      volatile_(image),
      durable_(std::move(image)) {
  KVD_CHECK(options_.bytes % kNvmePageBytes == 0 && durable_.size_bytes() == options_.bytes);
  KVD_CHECK(options_.latency_min > 0 && options_.latency_max >= options_.latency_min);
}

void SimDevice::SetSink(Sink sink) { sink_ = std::move(sink); }

uint64_t SimDevice::BytesOf(const NvmeJob& job) {
  return std::accumulate(job.pieces.begin(), job.pieces.end(), uint64_t{0},
                         [](uint64_t sum, const auto& piece) { return sum + piece.size(); });
}

bool SimDevice::Submit(NvmeJob job) {
  const std::lock_guard lock(mu_);
  const uint64_t bytes = BytesOf(job);
  KVD_CHECK(job.offset % kNvmePageBytes == 0 && job.offset + bytes <= options_.bytes) << job.offset;
  for (absl::Span<std::byte> piece : job.pieces) {
    KVD_CHECK(piece.size() % kNvmePageBytes == 0) << piece.size();
  }
  KVD_CHECK((job.kind == NvmeJob::Kind::kSync) == (bytes == 0)) << bytes;
  if (waiting_.size() + running_.size() >= options_.max_jobs ||
      bytes_in_flight_ + bytes > options_.max_bytes) {
    return false;
  }
  bytes_in_flight_ += bytes;
  waiting_.push_back({.job = std::move(job),
                      .submitted = clock_.Now(),
                      .order = next_order_++,
                      .covers = writes_ended_});
  return true;
}

absl::Status SimDevice::ReadNow(uint64_t offset, absl::Span<std::byte> bytes) {
  const std::lock_guard lock(mu_);
  if (offset + bytes.size() > options_.bytes) return absl::DataLossError("short read");
  volatile_.Read(offset, bytes);
  return absl::OkStatus();
}

absl::Status SimDevice::WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) {
  const std::lock_guard lock(mu_);
  if (offset + bytes.size() > options_.bytes) return absl::DataLossError("short write");
  Store(offset, {bytes.begin(), bytes.end()});
  return absl::OkStatus();
}

absl::Status SimDevice::SyncNow() {
  const std::lock_guard lock(mu_);
  Flush(writes_ended_);
  return absl::OkStatus();
}

uint32_t SimDevice::Run() {
  uint32_t ended = 0;
  while (true) {
    std::vector<NvmeDone> over;
    {
      const std::lock_guard lock(mu_);
      BeginSome(over);
      const auto first =
          std::min_element(running_.begin(), running_.end(), [](const auto& a, const auto& b) {
            return std::pair(a.due, a.order) < std::pair(b.due, b.order);
          });
      if (first != running_.end() && first->due <= clock_.Now()) {
        Running running = std::move(*first);
        running_.erase(first);
        over.push_back(End(running));
      }
    }
    if (over.empty()) return ended;
    ended += static_cast<uint32_t>(over.size());
    for (const NvmeDone& done : over) sink_(done);  // It may submit.
  }
}

std::optional<Nanos> SimDevice::NextDue() const {
  const std::lock_guard lock(mu_);
  if (!waiting_.empty() && running_.size() < options_.parallel) return clock_.Now();
  Nanos first = kHung;
  for (const Running& running : running_) first = std::min(first, running.due);
  if (first == kHung) return std::nullopt;
  return first;
}

uint32_t SimDevice::in_flight() const {
  const std::lock_guard lock(mu_);
  return static_cast<uint32_t>(waiting_.size() + running_.size());
}

void SimDevice::SetRate(SimFault fault, uint32_t per_million) {
  const std::lock_guard lock(mu_);
  rates_[static_cast<size_t>(fault)] = per_million;
}

void SimDevice::Force(SimFault fault, uint32_t jobs) {
  const std::lock_guard lock(mu_);
  forced_[static_cast<size_t>(fault)] += jobs;
}

uint64_t SimDevice::count(SimFault fault) const {
  const std::lock_guard lock(mu_);
  return counts_[static_cast<size_t>(fault)];
}

void SimDevice::ReleaseHung() {
  const std::lock_guard lock(mu_);
  for (Running& running : running_) {
    if (running.due == kHung) running.due = clock_.Now();
  }
}

// At most one fault a job; the dice are rolled for each that can befall it, so that one rate does
// not change what another does.
std::optional<SimFault> SimDevice::FaultFor(const NvmeJob& job) {
  std::optional<SimFault> found;
  for (size_t i = 0; i < kSimFaults; ++i) {
    if (!CanBefall(static_cast<SimFault>(i), job.kind)) continue;
    const bool rolled = Dice(1'000'000) < rates_[i];
    if (found.has_value()) continue;
    if (forced_[i] > 0) {
      --forced_[i];
    } else if (!rolled) {
      continue;
    }
    ++counts_[i];
    found = static_cast<SimFault>(i);
  }
  return found;
}

// Begins what there is room for. What nobody wants any more goes to `over`.
void SimDevice::BeginSome(std::vector<NvmeDone>& over) {
  const auto urgency = [](const Running& r) {
    return std::tuple(r.job.kind == NvmeJob::Kind::kRead ? 0 : 1, r.job.deadline, r.order);
  };
  while (running_.size() < options_.parallel && !waiting_.empty()) {
    const auto next =
        std::min_element(waiting_.begin(), waiting_.end(),
                         [&](const auto& a, const auto& b) { return urgency(a) < urgency(b); });
    Running running = std::move(*next);
    waiting_.erase(next);
    if (running.job.deadline < clock_.Now()) {
      bytes_in_flight_ -= BytesOf(running.job);
      over.push_back({.tag = running.job.tag,
                      .outcome = NvmeOutcome::kExpired,
                      .took = clock_.Now() - running.submitted});
      continue;
    }
    Begin(std::move(running));
  }
}

void SimDevice::Begin(Running running) {
  running.fault = FaultFor(running.job);
  const uint64_t spread = static_cast<uint64_t>(options_.latency_max - options_.latency_min) + 1;
  running.due = running.fault == SimFault::kHang
                    ? kHung
                    : clock_.Now() + options_.latency_min + static_cast<Nanos>(Dice(spread));
  running_.push_back(std::move(running));
}

NvmeDone SimDevice::End(Running& running) {
  NvmeDone done{.tag = running.job.tag, .took = clock_.Now() - running.submitted};
  bytes_in_flight_ -= BytesOf(running.job);
  switch (running.job.kind) {
    case NvmeJob::Kind::kRead:
      EndRead(running, done);
      break;
    case NvmeJob::Kind::kWrite:
      EndWrite(running, done);
      break;
    case NvmeJob::Kind::kSync:
      Flush(running.covers);
      break;
  }
  return done;
}

void SimDevice::EndRead(Running& running, NvmeDone& done) {
  const bool fails = running.fault == SimFault::kReadError || running.fault == SimFault::kShort;
  uint64_t offset = running.job.offset;
  for (size_t i = 0; i < running.job.pieces.size(); ++i) {
    const absl::Span<std::byte> piece = running.job.pieces[i];
    volatile_.Read(offset, piece);
    offset += piece.size();
    if (fails) {  // Whoever uses the bytes all the same is to be found out.
      std::fill(piece.begin() + static_cast<ptrdiff_t>(Dice(piece.size())), piece.end(),
                std::byte{0xEE});
    } else if (i < running.job.sums.size() && Crc32c(piece) != running.job.sums[i]) {
      done.outcome = NvmeOutcome::kCorrupt;
    }
  }
  if (!fails) return;
  done.outcome = NvmeOutcome::kError;
  done.error = EIO;
}

void SimDevice::EndWrite(Running& running, NvmeDone& done) {
  std::vector<std::byte> bytes = Gather(running.job);
  uint64_t offset = running.job.offset;
  switch (running.fault.value_or(SimFault::kHang)) {
    case SimFault::kNoSpace:
      done.outcome = NvmeOutcome::kError;
      done.error = ENOSPC;
      return;
    case SimFault::kWriteError:
    case SimFault::kShort:
      done.outcome = NvmeOutcome::kError;
      done.error = EIO;
      bytes.resize(Dice(bytes.size() / kNvmePageBytes) * kNvmePageBytes);
      break;
    case SimFault::kMisdirected:
      offset = Elsewhere(offset, bytes.size());
      break;
    case SimFault::kLost:
      return;
    case SimFault::kFlipped:
      bytes[Dice(bytes.size())] ^= static_cast<std::byte>(1u << Dice(8));
      break;
    default:  // None, or it hung and was released.
      break;
  }
  Store(offset, std::move(bytes));
}

// Requires: the device is larger than `bytes`.
uint64_t SimDevice::Elsewhere(uint64_t offset, uint64_t bytes) {
  const uint64_t places = (options_.bytes - bytes) / kNvmePageBytes + 1;
  return (offset / kNvmePageBytes + 1 + Dice(places - 1)) % places * kNvmePageBytes;
}

void SimDevice::Store(uint64_t offset, std::vector<std::byte> bytes) {
  volatile_.Write(offset, bytes);
  cached_.push_back({.ended = ++writes_ended_, .offset = offset, .bytes = std::move(bytes)});
}

void SimDevice::Flush(uint64_t up_to) {
  while (!cached_.empty() && cached_.front().ended <= up_to) {
    durable_.Write(cached_.front().offset, cached_.front().bytes);
    cached_.pop_front();
  }
}

MediaImage SimDevice::ImageAfterPowerLoss(uint64_t seed, PowerLoss* what) const {
  const std::lock_guard lock(mu_);
  std::mt19937_64 random(seed ^ options_.seed);
  std::vector<std::pair<uint64_t, std::vector<std::byte>>> open;
  for (const Cached& cached : cached_) open.emplace_back(cached.offset, cached.bytes);
  for (const Running& running : running_) {
    if (running.job.kind != NvmeJob::Kind::kWrite) continue;
    open.emplace_back(running.job.offset, Gather(running.job));
  }
  std::shuffle(open.begin(), open.end(), random);
  // Now and then the cache was written back almost whole, or hardly at all.
  const uint64_t kept_of_8 = random() % 9;
  MediaImage image = durable_;
  PowerLoss loss;
  for (const auto& [offset, bytes] : open) {
    if (random() % 8 < kept_of_8) {
      ++loss.kept;
      image.Write(offset, bytes);
    } else if (random() % 2 == 0) {
      ++loss.torn;
      WriteTorn(image, offset, bytes, random);
    } else {
      ++loss.dropped;
    }
  }
  if (what != nullptr) *what = loss;
  return image;
}

MediaImage SimDevice::ImageAfterKill(uint64_t seed) const {
  const std::lock_guard lock(mu_);
  std::mt19937_64 random(seed ^ options_.seed);
  MediaImage image = volatile_;
  for (const Running& running : running_) {
    if (running.job.kind != NvmeJob::Kind::kWrite || random() % 2 == 0) continue;
    image.Write(running.job.offset, Gather(running.job));
  }
  return image;
}

}  // namespace kvd
