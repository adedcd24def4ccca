// The way out: lookup, get, load, and chains that are read in place.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client_impl.h"
#include "proto/types/checksum.h"
#include "proto/types/limits.h"
#include "proto/types/packed.h"

namespace kvd {
namespace {

using v1::Engine;

// Turns the extents of one answer into bytes. Nothing outside its region is ever touched, and
// nothing that could not be verified is ever returned.
class ExtentReader {
 public:
  enum class Outcome { kBytes, kAbsent, kWrong };

  ExtentReader(Session& session, std::string_view extents, absl::Time deadline)
      : session_(session), extents_(extents), deadline_(deadline) {}

  // Extent `i`, which must be `length` bytes of the part it stands for. Sets bytes() and sum().
  Outcome Read(size_t i, uint32_t length) {
    const PackedExtent extent = UnpackAt<PackedExtent>(extents_, i);
    if (extent.length == 0) return Outcome::kAbsent;
    const bool checkable = extent.codec == 0 && extent.sum_algorithm == kSumCrc32c &&
                           (extent.sum_chunk == 0 || extent.sum_chunk >= extent.stored_length);
    if (!checkable || extent.length != length || extent.stored_length != length) {
      return Outcome::kWrong;
    }
    if (regions_.empty() || regions_.back()->number() != extent.region) {
      absl::StatusOr<std::shared_ptr<const Region>> region =
          session_.GetRegion(extent.region, deadline_);
      if (!region.ok()) {
        status_ = region.status();
        return Outcome::kWrong;
      }
      regions_.push_back(*std::move(region));
    }
    const Region& region = *regions_.back();
    if (extent.offset > region.size() || length > region.size() - extent.offset) {
      return Outcome::kWrong;
    }
    bytes_ = region.Bytes(extent);
    sum_ = extent.sum;
    return Outcome::kBytes;
  }

  absl::Span<const std::byte> bytes() const { return bytes_; }
  uint32_t sum() const { return sum_; }
  // Why a region could not be had, if so.
  const absl::Status& status() const { return status_; }
  // The regions met, which keep bytes() mapped.
  std::vector<std::shared_ptr<const Region>> TakeRegions() { return std::move(regions_); }

 private:
  Session& session_;
  const std::string_view extents_;
  const absl::Time deadline_;
  std::vector<std::shared_ptr<const Region>> regions_;  // In the order met; few repeat.
  absl::Span<const std::byte> bytes_;
  uint32_t sum_ = 0;
  absl::Status status_;
};

}  // namespace

struct LoadedChain::Impl {
  struct Piece {
    absl::Span<const std::byte> bytes;  // The whole part. Empty: not there.
    absl::Span<const std::byte> range;  // What was asked for of it.
    uint32_t sum = 0;                   // Of the whole part.
  };

  ~Impl() { client->releases().AddHold(link->number, hold_id, std::move(damaged)); }

  const Piece* Find(uint32_t block, uint32_t part, uint32_t parts) const {
    const size_t at = size_t{block} * parts + part;
    return part < parts && at < pieces.size() ? &pieces[at] : nullptr;
  }
  void Report(uint32_t extent) {
    client->CountDamaged();
    absl::MutexLock lock(&mu);
    if (std::find(damaged.begin(), damaged.end(), extent) == damaged.end()) {
      damaged.push_back(extent);
    }
  }

  std::shared_ptr<Client::Impl> client;
  std::shared_ptr<Link> link;
  uint64_t hold_id = 0;
  std::vector<Piece> pieces;
  std::vector<std::shared_ptr<const Region>> regions;  // Keep the pieces mapped.
  absl::Mutex mu;
  std::vector<uint32_t> damaged ABSL_GUARDED_BY(mu);
};

// ---- lookup -------------------------------------------------------------------------------------

LookupResult Client::Impl::Lookup(const Namespace& ns, std::string_view keys,
                                  const LookupOptions& options) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return {known.status()};
  const absl::StatusOr<uint32_t> count = CountKeys(**known, keys, kMaxLookupBlocks);
  if (!count.ok()) return {count.status()};
  if (absl::Status status = CheckParent(**known, options.parent); !status.ok()) return {status};
  const absl::StatusOr<uint32_t> lease_ms = Milliseconds(options.lease, kMaxLeaseMs, "lease");
  if (!lease_ms.ok()) return {lease_ms.status()};

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return {link.status()};
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return {id.status()};

  v1::LookupRequest request;
  request.set_namespace_id(*id);
  request.set_keys(keys.data(), keys.size());
  request.set_parent(options.parent.data(), options.parent.size());
  request.set_lease_ms(*lease_ms);
  v1::LookupReply reply;
  LookupResult result;
  result.status = CallToGet<PendingLookup>(
      *link, &Engine::Stub::AsyncLookup, request, &reply, deadline,
      [this](Link& late, const v1::LookupReply& answer) { GiveBackLate(late, answer); });
  if (!result.status.ok()) return result;
  result.hit_blocks = std::min(reply.hit_blocks(), *count);
  if (reply.lease() == v1::LEASE_GRANTED) result.lease_id = reply.lease_id();
  result.load_time = absl::Microseconds(reply.load_time_us());
  for (const v1::TierShare& share : reply.tiers()) {  // A newer daemon may have more tiers.
    const auto tier = static_cast<size_t>(share.tier());
    if (tier < result.tier_blocks.size()) result.tier_blocks[tier] = share.blocks();
  }
  return result;
}

void Client::Impl::GiveBackLate(const Link& link, const v1::LookupReply& reply) {
  releases_.AddHold(link.number, reply.hold_id(), {});
  if (reply.lease() == v1::LEASE_GRANTED) releases_.AddLease(reply.lease_id());
}

// ---- get ----------------------------------------------------------------------------------------

GetResult Client::Impl::Get(const Namespace& ns, std::string_view keys,
                            absl::Span<const absl::Span<std::byte>> targets,
                            const GetOptions& options) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  GetResult result;
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return {known.status()};
  const absl::StatusOr<uint32_t> count = CountKeys(**known, keys, kMaxLookupBlocks);
  if (!count.ok()) return {count.status()};
  if (absl::Status status = CheckParent(**known, options.parent); !status.ok()) return {status};
  const absl::StatusOr<uint32_t> lease_ms = Milliseconds(options.lease, kMaxLeaseMs, "lease");
  if (!lease_ms.ok()) return {lease_ms.status()};
  const absl::StatusOr<Selection> parts = Select(**known, options.parts);
  if (!parts.ok()) return {parts.status()};
  uint32_t wanted = std::min(*count, PageBlocks(parts->size()));
  if (options.max_blocks > 0) wanted = std::min(wanted, options.max_blocks);
  if (targets.size() < wanted * parts->size()) {
    return {absl::InvalidArgumentError("targets: fewer than blocks times parts")};
  }
  for (size_t i = 0; i < wanted * parts->size(); ++i) {
    if (targets[i].size() != parts->bytes[i % parts->size()]) {
      return {absl::InvalidArgumentError(absl::StrCat("targets[", i, "]: not part_bytes long"))};
    }
  }

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return {link.status()};
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return {id.status()};

  if (remote_.has_value()) {
    v1::GetRequest request;
    request.set_session((*link)->session->token().data(), (*link)->session->token().size());
    request.set_namespace_id(*id);
    request.set_keys(keys.data(), keys.size());
    request.set_parent(options.parent.data(), options.parent.size());
    request.set_parts(parts->packed);
    request.set_lease_ms(*lease_ms);
    request.set_max_blocks(wanted);
    result = GetStreamed(**link, request, *parts, targets.first(wanted * parts->size()), deadline);
    result.hit_blocks = std::min(result.hit_blocks, *count);
    return result;
  }

  v1::LookupRequest request;
  request.set_namespace_id(*id);
  request.set_keys(keys.data(), keys.size());
  request.set_parent(options.parent.data(), options.parent.size());
  request.set_lease_ms(*lease_ms);
  request.set_extent_blocks(wanted);
  request.set_parts(parts->packed);
  v1::LookupReply reply;
  result.status = CallToGet<PendingLookup>(
      *link, &Engine::Stub::AsyncLookup, request, &reply, deadline,
      [this](Link& late, const v1::LookupReply& answer) { GiveBackLate(late, answer); });
  if (!result.status.ok()) return result;
  result.hit_blocks = std::min(reply.hit_blocks(), *count);
  if (reply.lease() == v1::LEASE_GRANTED) result.lease_id = reply.lease_id();
  GetProgress progress{.parts = *parts,
                       .targets = targets.first(wanted * parts->size()),
                       .hash_bytes = (*known)->descriptor.hash_bytes,
                       .deadline = deadline,
                       .blocks = std::min(result.hit_blocks, wanted)};
  progress.usable.resize(progress.blocks * parts->size());
  CopyExtents(**link, reply.extents(), reply.extent_blocks(), reply.hold_id(), progress);
  const bool on_nvme =
      std::any_of(reply.tiers().begin(), reply.tiers().end(), [](const v1::TierShare& share) {
        return share.tier() != v1::TIER_DRAM && share.blocks() > 0;
      });
  if (on_nvme) LoadRest(*link, *id, keys, progress);
  // All that was looked up, or all that was asked for of it.
  const uint32_t promised = options.max_blocks > 0 ? progress.blocks : result.hit_blocks;
  const bool as_promised = progress.as_promised && progress.copied == promised;
  result.blocks =
      as_promised ? progress.copied : ServableBlocks(*parts, progress.usable, progress.copied);
  result.damaged = progress.damaged;
  result.status = progress.status;
  damaged_parts_.fetch_add(progress.damaged, std::memory_order_relaxed);
  return result;
}

// Copies the blocks of one answer, which follow those that were copied before, and gives its hold
// back. Copy and sum are one pass. A full part that is missing or damaged ends the prefix; one of a
// window or a state may only make it shorter, which is worked out afterwards.
void Client::Impl::CopyExtents(Link& link, std::string_view packed, uint32_t blocks,
                               uint64_t hold_id, GetProgress& get) {
  const size_t parts = get.parts.size();
  if (packed.size() != blocks * parts * sizeof(PackedExtent)) {
    releases_.AddHold(link.number, hold_id, {});
    get.status = absl::InternalError("extents: not as many as announced");
    return;
  }
  blocks = std::min(blocks, get.blocks - get.copied);
  ExtentReader extents(*link.session, packed, get.deadline);
  std::vector<uint32_t> damaged;
  uint32_t copied = 0;
  bool whole = true;
  for (; whole && copied < blocks; copied += whole) {
    if (absl::Now() > get.deadline) {
      get.status = absl::DeadlineExceededError("get: ran out of time while copying");
      break;
    }
    for (size_t part = 0; whole && part < parts; ++part) {
      const size_t i = copied * parts + part;
      const size_t target = get.copied * parts + i;
      const ExtentReader::Outcome outcome = extents.Read(i, get.parts.bytes[part]);
      if (outcome == ExtentReader::Outcome::kBytes) {
        get.usable[target] = copier_->CopySum(get.targets[target], extents.bytes(),
                                              CopyUse::kMemory) == extents.sum();
        if (!get.usable[target]) damaged.push_back(static_cast<uint32_t>(i));
      }
      if (outcome == ExtentReader::Outcome::kWrong) {
        bad_extents_.fetch_add(1, std::memory_order_relaxed);
      }
      if (get.usable[target]) continue;
      get.as_promised &= outcome == ExtentReader::Outcome::kAbsent;
      whole = get.parts.groups[part]->kind != GroupKind::kFull && extents.status().ok();
    }
  }
  get.copied += copied;
  get.whole &= whole;
  get.damaged += static_cast<uint32_t>(damaged.size());
  if (get.status.ok()) get.status = extents.status();
  releases_.AddHold(link.number, hold_id, std::move(damaged));
}

// What is not in DRAM comes by loads, which wait for it. Each gives back what the one before it
// held.
void Client::Impl::LoadRest(const LinkPtr& link, uint32_t namespace_id, std::string_view keys,
                            GetProgress& get) {
  const size_t hash_bytes = get.hash_bytes;
  while (get.status.ok() && get.whole && get.copied < get.blocks) {
    v1::LoadRequest request;
    request.set_namespace_id(namespace_id);
    const std::string_view rest =
        keys.substr(get.copied * hash_bytes, (get.blocks - get.copied) * hash_bytes);
    request.set_keys(rest.data(), rest.size());
    request.set_parts(get.parts.packed);
    v1::LoadReply reply;
    get.status =
        CallToGet<PendingLoad>(link, &Engine::Stub::AsyncLoad, request, &reply, get.deadline,
                               [this](Link& late, const v1::LoadReply& answer) {
                                 releases_.AddHold(late.number, answer.hold_id(), {});
                               });
    if (!get.status.ok()) return;
    CopyExtents(*link, reply.extents(), reply.blocks(), reply.hold_id(), get);
    const bool more = reply.outcome() != v1::LOAD_MISS;
    if (reply.blocks() == 0 || !more) return;
  }
}

// ---- load ---------------------------------------------------------------------------------------

LoadResult Client::Impl::Load(const Namespace& ns, std::string_view keys,
                              const LoadOptions& options, const std::shared_ptr<Impl>& self) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  LoadResult result;
  const auto fail = [&result](absl::Status status) {
    result.status = std::move(status);
    return std::move(result);
  };
  if (remote_.has_value()) {
    return fail(absl::FailedPreconditionError(
        "load: this endpoint has no shared memory to read in place; use Get, which streams"));
  }
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return fail(known.status());
  const absl::StatusOr<Selection> parts = Select(**known, options.parts);
  if (!parts.ok()) return fail(parts.status());
  const absl::StatusOr<uint32_t> count = CountKeys(**known, keys, PageBlocks(parts->size()));
  if (!count.ok()) return fail(count.status());
  for (const uint32_t part_bytes : parts->bytes) {
    if (options.range_offset >= part_bytes) {
      return fail(absl::InvalidArgumentError("range_offset: beyond a part"));
    }
  }

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return fail(link.status());
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return fail(id.status());

  v1::LoadRequest request;
  request.set_namespace_id(*id);
  request.set_keys(keys.data(), keys.size());
  request.set_parts(parts->packed);
  request.set_range_offset(options.range_offset);
  request.set_range_bytes(options.range_bytes);
  v1::LoadReply reply;
  absl::Status status =
      CallToGet<PendingLoad>(*link, &Engine::Stub::AsyncLoad, request, &reply, deadline,
                             [this](Link& late, const v1::LoadReply& answer) {
                               releases_.AddHold(late.number, answer.hold_id(), {});
                             });
  if (!status.ok()) return fail(std::move(status));

  auto chain = std::make_unique<LoadedChain::Impl>();
  chain->client = self;
  chain->link = *link;
  chain->hold_id = reply.hold_id();  // From here on its destructor gives the hold back.
  if (reply.blocks() > *count ||
      reply.extents().size() != reply.blocks() * parts->size() * sizeof(PackedExtent)) {
    return fail(absl::InternalError("extents: not as many as announced"));
  }

  // Everything is checked and mapped now, so that reading needs no daemon. The chain ends before
  // the first block with an extent that will not do, or without a full part.
  ExtentReader extents(*(*link)->session, reply.extents(), deadline);
  chain->pieces.resize(reply.blocks() * parts->size());
  uint32_t blocks = 0;
  for (bool whole = true; whole && blocks < reply.blocks(); blocks += whole) {
    for (size_t part = 0; whole && part < parts->size(); ++part) {
      const size_t i = blocks * parts->size() + part;
      switch (extents.Read(i, parts->bytes[part])) {
        case ExtentReader::Outcome::kBytes:
          chain->pieces[i] = {
              extents.bytes(),
              extents.bytes().subspan(options.range_offset, reply.range_bytes() > 0
                                                                ? reply.range_bytes()
                                                                : absl::Span<std::byte>::npos),
              extents.sum()};
          break;
        case ExtentReader::Outcome::kAbsent:
          whole = parts->groups[part]->kind != GroupKind::kFull;
          break;
        case ExtentReader::Outcome::kWrong:
          bad_extents_.fetch_add(1, std::memory_order_relaxed);
          whole = false;
          break;
      }
    }
  }
  chain->pieces.resize(blocks * parts->size());
  chain->regions = extents.TakeRegions();
  result.status = extents.status();
  result.chain = LoadedChain(std::move(chain), blocks, static_cast<uint32_t>(parts->size()));
  return result;
}

// ---- chains -------------------------------------------------------------------------------------

LoadedChain::LoadedChain(std::unique_ptr<Impl> impl, uint32_t blocks, uint32_t parts)
    : impl_(std::move(impl)), blocks_(blocks), parts_(parts) {}
LoadedChain::LoadedChain() noexcept = default;
LoadedChain::LoadedChain(LoadedChain&& other) noexcept
    : impl_(std::move(other.impl_)),
      blocks_(std::exchange(other.blocks_, 0)),
      parts_(std::exchange(other.parts_, 0)) {}
LoadedChain& LoadedChain::operator=(LoadedChain&& other) noexcept {
  impl_ = std::move(other.impl_);
  blocks_ = std::exchange(other.blocks_, 0);
  parts_ = std::exchange(other.parts_, 0);
  return *this;
}
LoadedChain::~LoadedChain() = default;

absl::Span<const std::byte> LoadedChain::part(uint32_t block, uint32_t part) const {
  const Impl::Piece* piece = impl_ == nullptr ? nullptr : impl_->Find(block, part, parts_);
  return piece == nullptr ? absl::Span<const std::byte>() : piece->range;
}

bool LoadedChain::Verify(uint32_t block, uint32_t part) {
  const Impl::Piece* piece = impl_ == nullptr ? nullptr : impl_->Find(block, part, parts_);
  if (piece == nullptr || piece->bytes.empty()) return false;
  if (impl_->client->copier().Sum(piece->bytes) == piece->sum) return true;
  impl_->Report(block * parts_ + part);
  return false;
}

bool LoadedChain::CopyTo(uint32_t block, uint32_t part, absl::Span<std::byte> target) {
  const Impl::Piece* piece = impl_ == nullptr ? nullptr : impl_->Find(block, part, parts_);
  if (piece == nullptr || piece->bytes.empty() || target.size() != piece->range.size()) {
    return false;
  }
  const Copier& copier = impl_->client->copier();
  uint32_t sum = copier.CopySum(target, piece->range, CopyUse::kMemory);
  if (piece->range.size() < piece->bytes.size()) {
    // The sum covers the whole part: what is not copied is read.
    const size_t before = static_cast<size_t>(piece->range.data() - piece->bytes.data());
    const auto after = piece->bytes.subspan(before + piece->range.size());
    sum = Crc32cConcat(copier.Sum(piece->bytes.first(before)), sum, piece->range.size());
    sum = Crc32cConcat(sum, copier.Sum(after), after.size());
  }
  if (sum == piece->sum) return true;
  impl_->Report(block * parts_ + part);
  return false;
}

}  // namespace kvd
