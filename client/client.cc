// Top to bottom: what a session is made of, connecting, calls, then the paths: lookup, get, load,
// put, pins. The public functions at the end only forward.

#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/convert.h"
#include "client/release_queue.h"
#include "client/session.h"
#include "client/staging.h"
#include "client/turn.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/types/checksum.h"
#include "proto/types/limits.h"
#include "proto/types/verified_copy.h"

namespace kvd {
namespace {

using v1::Engine;

constexpr absl::Duration kMaxTimeout = absl::Hours(1);
constexpr absl::Duration kFarewell = absl::Milliseconds(100);       // Of the last Release.
constexpr absl::Duration kFlushTimeout = absl::Milliseconds(1000);  // Of one in the background.
constexpr size_t kMaxNamespaces = 4096;                             // Of one client.
constexpr size_t kMaxFinishedSessions = 16;  // Remembered, to tell the daemon.
constexpr int kMaxReceiveBytes = 4 << 20;
// A put up to this size is one call: to ask first would cost more than to copy for nothing.
constexpr uint64_t kMaxOneCallBytes = 256 << 10;
constexpr uint32_t kMaxOneCallParts = 64;

// Some parts of a namespace's blocks, in the order in which a caller brings or wants them.
struct Selection {
  std::string packed;                          // For the wire; empty: all.
  std::vector<uint32_t> bytes;                 // Of each part.
  std::vector<const GroupDescriptor*> groups;  // Of each part.

  size_t size() const { return bytes.size(); }
};

// A namespace that was registered once. Immutable, and lives as long as the client.
struct KnownNamespace {
  NamespaceDescriptor descriptor;
  std::string canonical;
  Namespace value;
  Selection all;
};

// One session: its socket, its own channel, and what the daemon told on them. Shared by the calls
// and chains that use it; gone when the last of them is, so the memory they read stays mapped.
struct Link {
  uint64_t number = 0;  // Of the sessions of this client, from 1.
  std::unique_ptr<Session> session;
  std::unique_ptr<Engine::Stub> stub;

  Turn opening_staging;
  absl::Mutex mu;
  std::vector<std::optional<uint32_t>> namespace_ids ABSL_GUARDED_BY(mu);  // By Namespace::index.
  std::unique_ptr<Staging> staging ABSL_GUARDED_BY(mu);                    // Set once.
};

// A new channel for each session, shared with nobody: one that outlived its daemon would refuse
// calls for as long as its backoff lasts, although the next daemon is there.
std::unique_ptr<Engine::Stub> MakeStub(const std::string& endpoint) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  return Engine::NewStub(
      grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), args));
}

// What the path of `unix:PATH` is; empty when it is something else.
std::string PathOf(const std::string& endpoint) {
  constexpr std::string_view kScheme = "unix:";
  if (endpoint.rfind(kScheme, 0) != 0) return "";
  return endpoint.substr(kScheme.size());
}

// Calibration takes milliseconds and its outcome is a property of the machine, so all clients of a
// process share it. A client that names a loop has its own.
std::shared_ptr<const Copier> MakeCopier(const std::string& loop) {
  if (!loop.empty()) {
    Copier::Options options;
    options.loop = loop;
    return std::make_shared<const Copier>(options);
  }
  static const auto& calibrated =
      *new std::shared_ptr<const Copier>(std::make_shared<const Copier>());
  return calibrated;
}

absl::StatusOr<uint32_t> Milliseconds(absl::Duration duration, uint64_t max, const char* field) {
  if (duration < absl::ZeroDuration() || duration > absl::Milliseconds(max)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must be 0 to ", max, " ms"));
  }
  return static_cast<uint32_t>(
      absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1))));
}

absl::StatusOr<uint32_t> CountKeys(const KnownNamespace& ns, std::string_view keys, uint32_t max) {
  const uint32_t hash_bytes = ns.descriptor.hash_bytes;
  const size_t count = keys.size() / hash_bytes;
  if (count == 0 || keys.size() % hash_bytes != 0 || count > max) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: must be 1 to ", max, " hashes of ", hash_bytes, " bytes"));
  }
  return static_cast<uint32_t>(count);
}

absl::Status CheckParent(const KnownNamespace& ns, std::string_view parent) {
  if (parent.empty() || parent.size() == ns.descriptor.hash_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError("parent: must be empty or one hash");
}

// Blocks of what answers or takes extents, with so many parts each.
uint32_t PageBlocks(size_t parts) {
  return std::min<uint32_t>(kMaxPageBlocks, kMaxPageExtents / static_cast<uint32_t>(parts));
}

Selection SelectAll(const KnownNamespace& ns) {
  Selection all;
  all.bytes = ns.value.part_bytes;
  for (PartId part : ns.value.parts) all.groups.push_back(&ns.descriptor.groups[part.group]);
  return all;
}

absl::StatusOr<Selection> Select(const KnownNamespace& ns, const std::vector<PartId>& parts) {
  if (parts.empty()) return ns.all;
  Selection selection;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::vector<PartId>& known = ns.value.parts;
    const auto found = std::find(known.begin(), known.end(), parts[i]);
    if (found == known.end()) return absl::InvalidArgumentError("parts: not of this namespace");
    if (std::find(parts.begin(), parts.begin() + i, parts[i]) != parts.begin() + i) {
      return absl::InvalidArgumentError("parts: one is named twice");
    }
    selection.bytes.push_back(ns.value.part_bytes[found - known.begin()]);
    selection.groups.push_back(&ns.descriptor.groups[parts[i].group]);
  }
  selection.packed = PackParts(parts);
  return selection;
}

// The deepest n, at most `blocks`, that every group can serve from the parts in `usable` (block by
// block). Needed only where the daemon's own answer no longer holds, because a part turned out
// damaged or the prefix was cut.
uint32_t ServableBlocks(const Selection& parts, const std::vector<bool>& usable, uint32_t blocks) {
  std::vector<uint32_t> run(parts.size(), 0);  // Usable blocks on end, up to the one looked at.
  uint32_t servable = 0;
  for (uint32_t block = 0; block < blocks; ++block) {
    bool all = true;
    for (size_t part = 0; part < parts.size(); ++part) {
      run[part] = usable[block * parts.size() + part] ? run[part] + 1 : 0;
      const GroupDescriptor& group = *parts.groups[part];
      uint32_t needed = 1;
      if (group.kind == GroupKind::kFull) needed = block + 1;
      if (group.kind == GroupKind::kWindow) {
        needed = std::min(block + 1, group.window_blocks());
      }
      all &= run[part] >= needed;
    }
    if (all) servable = block + 1;
  }
  return servable;
}

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

// Whether the daemon may still act on a call that ended like this.
bool OutcomeUnknown(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnavailable:
      return true;
    default:
      return false;
  }
}

}  // namespace

class Client::Impl {
 public:
  explicit Impl(ClientOptions options)
      : options_(std::move(options)),
        path_(PathOf(options_.endpoint)),
        copier_(MakeCopier(options_.copy_loop)) {
    try {
      flusher_ = std::thread([this] { FlushInBackground(); });
    } catch (const std::system_error&) {
      // Releases then ride on calls only.
    }
  }

  void Shutdown();

  absl::StatusOr<Namespace> RegisterNamespace(const NamespaceDescriptor& descriptor,
                                              absl::Duration timeout);
  LookupResult Lookup(const Namespace& ns, std::string_view keys, const LookupOptions& options);
  LoadResult Load(const Namespace& ns, std::string_view keys, const LoadOptions& options,
                  const std::shared_ptr<Impl>& self);
  GetResult Get(const Namespace& ns, std::string_view keys,
                absl::Span<const absl::Span<std::byte>> targets, const GetOptions& options);
  PutResult Put(const Namespace& ns, std::string_view keys,
                absl::Span<const absl::Span<const std::byte>> sources, const PutOptions& options);
  absl::Status Flush(absl::Duration timeout);
  absl::Status Connect(absl::Duration timeout) { return Connected(DeadlineOf(timeout)).status(); }
  absl::StatusOr<PinResult> Pin(const Namespace& ns, std::string_view key,
                                const PinOptions& options);
  absl::Status Unpin(uint64_t pin_id, absl::Duration timeout);

  ReleaseQueue& releases() { return releases_; }
  const Copier& copier() const { return *copier_; }
  void CountDamaged() { damaged_parts_.fetch_add(1, std::memory_order_relaxed); }
  ClientStats stats() const;

 private:
  using LinkPtr = std::shared_ptr<Link>;
  // A put whose arguments are good.
  struct PutCall {
    const KnownNamespace& ns;
    std::string_view keys;
    uint32_t blocks;
    const Selection& parts;
    absl::Span<const absl::Span<const std::byte>> sources;
    const PutOptions& options;
    uint64_t total_bytes;
    absl::Time deadline;
  };

  absl::Time DeadlineOf(absl::Duration timeout) const;
  absl::StatusOr<LinkPtr> Connected(absl::Time deadline);
  LinkPtr CurrentLink();
  void Retire(const LinkPtr& link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  SessionToken FinishedSession();

  absl::StatusOr<const KnownNamespace*> Find(const Namespace& ns);
  absl::StatusOr<const KnownNamespace*> Remember(const NamespaceDescriptor& descriptor);
  absl::StatusOr<uint32_t> NamespaceId(Link& link, const KnownNamespace& ns, absl::Time deadline);
  absl::StatusOr<Staging*> StagingOf(Link& link, absl::Time deadline);

  template <typename Request, typename Reply>
  absl::Status Call(Link& link,
                    grpc::Status (Engine::Stub::*method)(grpc::ClientContext*, const Request&,
                                                         Reply*),
                    Request& request, Reply* reply, absl::Time deadline);

  absl::StatusOr<PutCall> CheckPut(const KnownNamespace& ns, std::string_view keys,
                                   const Selection& parts,
                                   absl::Span<const absl::Span<const std::byte>> sources,
                                   const PutOptions& options, absl::Time deadline) const;
  PutResult PutInOneCall(Link& link, Staging& staging, uint32_t namespace_id, const PutCall& put);
  PutResult PutReserved(Link& link, Staging& staging, uint32_t namespace_id, const PutCall& put);
  absl::Status FillGranted(Link& link, Staging& staging, const PutCall& put,
                           const v1::ReserveReply& reserved);

  void FlushInBackground();
  absl::Status SendOwed(Link& link, absl::Time deadline);

  // Constant after construction.
  const ClientOptions options_;
  const std::string path_;
  const std::shared_ptr<const Copier> copier_;
  std::thread flusher_;  // Joined by Shutdown().

  ReleaseQueue releases_;
  Turn connecting_;
  absl::Mutex mu_;
  LinkPtr link_ ABSL_GUARDED_BY(mu_);
  std::deque<KnownNamespace> namespaces_ ABSL_GUARDED_BY(mu_);  // Elements never move or change.
  std::deque<std::pair<SessionToken, std::weak_ptr<Link>>> finished_ ABSL_GUARDED_BY(mu_);
  uint64_t sessions_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time next_attempt_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Status last_failure_ ABSL_GUARDED_BY(mu_);
  bool shut_down_ ABSL_GUARDED_BY(mu_) = false;

  std::atomic<uint64_t> calls_{0};
  std::atomic<uint64_t> failed_calls_{0};
  std::atomic<uint64_t> reconnects_{0};
  std::atomic<uint64_t> damaged_parts_{0};
  std::atomic<uint64_t> bad_extents_{0};
};

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

// ---- connecting ---------------------------------------------------------------------------------

absl::Time Client::Impl::DeadlineOf(absl::Duration timeout) const {
  if (timeout <= absl::ZeroDuration()) timeout = options_.timeout;
  return absl::Now() + std::clamp(timeout, absl::ZeroDuration(), kMaxTimeout);
}

// The session to use, opened anew if need be: by one thread at a time, and not again within the
// reconnect interval, so that calls to a daemon that is away end at once.
absl::StatusOr<Client::Impl::LinkPtr> Client::Impl::Connected(absl::Time deadline) {
  if (LinkPtr link = CurrentLink(); link != nullptr && !link->session->ended()) return link;
  TurnLock turn(connecting_, deadline);
  if (!turn.held()) return absl::DeadlineExceededError("the daemon does not answer");
  if (LinkPtr link = CurrentLink(); link != nullptr && !link->session->ended()) return link;
  {
    absl::MutexLock lock(&mu_);
    if (shut_down_) return absl::CancelledError("the client is being destroyed");
    if (absl::Now() < next_attempt_) return last_failure_;
    if (link_ != nullptr) Retire(std::exchange(link_, nullptr));
  }

  absl::StatusOr<std::unique_ptr<Session>> session =
      path_.empty() ? absl::InvalidArgumentError("endpoint: must be unix:PATH")
                    : Session::Open(path_ + ".session", FinishedSession(), deadline);
  absl::MutexLock lock(&mu_);
  next_attempt_ = absl::Now() + options_.reconnect_interval;
  if (!session.ok()) return last_failure_ = session.status();
  last_failure_ = absl::UnavailableError("the session ended just after it was opened");
  auto link = std::make_shared<Link>();
  link->number = ++sessions_;
  link->session = *std::move(session);
  link->stub = MakeStub(options_.endpoint);
  if (link->number > 1) reconnects_.fetch_add(1, std::memory_order_relaxed);
  releases_.StartSession(link->number);
  link_ = link;
  return link;
}

Client::Impl::LinkPtr Client::Impl::CurrentLink() {
  absl::MutexLock lock(&mu_);
  return link_;
}

void Client::Impl::Retire(const LinkPtr& link) {
  link->session->End();
  releases_.EndSession(link->number);
  finished_.emplace_back(link->session->token(), link);
  if (finished_.size() > kMaxFinishedSessions) finished_.pop_front();
}

// A session of ours that has ended and that no call and no chain reads any more, or zeros. It is
// told once; if that gets lost, its holds end with this process.
SessionToken Client::Impl::FinishedSession() {
  absl::MutexLock lock(&mu_);
  for (auto it = finished_.begin(); it != finished_.end(); ++it) {
    if (!it->second.expired()) continue;
    const SessionToken token = it->first;
    finished_.erase(it);
    return token;
  }
  return {};
}

void Client::Impl::Shutdown() {
  {
    absl::MutexLock lock(&mu_);
    shut_down_ = true;
  }
  releases_.Stop();
  if (flusher_.joinable()) flusher_.join();
  LinkPtr link = CurrentLink();
  if (link == nullptr) return;
  if (!link->session->ended()) SendOwed(*link, absl::Now() + kFarewell).IgnoreError();
  releases_.EndSession(link->number);
  link->session->End();  // Chains may keep the link, but the session is over.
  absl::MutexLock lock(&mu_);
  link_ = nullptr;
}

// ---- calls --------------------------------------------------------------------------------------

template <typename Request, typename Reply>
absl::Status Client::Impl::Call(Link& link,
                                grpc::Status (Engine::Stub::*method)(grpc::ClientContext*,
                                                                     const Request&, Reply*),
                                Request& request, Reply* reply, absl::Time deadline) {
  constexpr bool kTakesReleases = requires { request.mutable_releases(); };
  request.set_session(link.session->token().data(), link.session->token().size());
  Owed owed;
  if constexpr (kTakesReleases) {
    owed = releases_.Take(link.number);
    if (!owed.empty()) *request.mutable_releases() = ToProto(owed);
  }
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  const absl::Status status = ToAbsl((link.stub.get()->*method)(&context, request, reply));
  calls_.fetch_add(1, std::memory_order_relaxed);
  if (status.ok()) return status;

  failed_calls_.fetch_add(1, std::memory_order_relaxed);
  if (absl::IsUnauthenticated(status) || absl::IsUnavailable(status)) link.session->End();
  releases_.GiveBack(link.number, std::move(owed));  // It may not have heard them.
  return status;
}

absl::StatusOr<const KnownNamespace*> Client::Impl::Find(const Namespace& ns) {
  absl::MutexLock lock(&mu_);
  if (ns.index >= namespaces_.size()) {
    return absl::InvalidArgumentError("namespace: not registered by this client");
  }
  return &namespaces_[ns.index];
}

absl::StatusOr<const KnownNamespace*> Client::Impl::Remember(
    const NamespaceDescriptor& descriptor) {
  const std::string canonical = descriptor.Canonical();
  absl::MutexLock lock(&mu_);
  for (const KnownNamespace& known : namespaces_) {
    if (known.canonical == canonical) return &known;
  }
  if (namespaces_.size() >= kMaxNamespaces) {
    return absl::ResourceExhaustedError("namespace: this client knows 4,096 already");
  }
  KnownNamespace& known = namespaces_.emplace_back();
  known.descriptor = descriptor;
  known.canonical = canonical;
  known.value.index = static_cast<uint32_t>(namespaces_.size() - 1);
  known.value.hash_bytes = descriptor.hash_bytes;
  for (size_t group = 0; group < descriptor.groups.size(); ++group) {
    for (uint32_t shard = 0; shard < descriptor.groups[group].shards; ++shard) {
      known.value.parts.push_back({static_cast<uint8_t>(group), static_cast<uint8_t>(shard)});
      known.value.part_bytes.push_back(descriptor.groups[group].part_bytes);
    }
  }
  known.all = SelectAll(known);
  return &known;
}

// The daemon's number of a namespace, which it gives anew in each session.
absl::StatusOr<uint32_t> Client::Impl::NamespaceId(Link& link, const KnownNamespace& ns,
                                                   absl::Time deadline) {
  const uint32_t index = ns.value.index;
  {
    absl::MutexLock lock(&link.mu);
    if (index < link.namespace_ids.size() && link.namespace_ids[index].has_value()) {
      return *link.namespace_ids[index];
    }
  }
  v1::RegisterNamespaceRequest request;
  *request.mutable_describes() = ToProto(ns.descriptor);
  v1::RegisterNamespaceReply reply;
  absl::Status status = Call(link, &Engine::Stub::RegisterNamespace, request, &reply, deadline);
  if (!status.ok()) return status;
  absl::MutexLock lock(&link.mu);
  if (link.namespace_ids.size() <= index) link.namespace_ids.resize(index + 1);
  link.namespace_ids[index] = reply.namespace_id();
  return reply.namespace_id();
}

absl::StatusOr<Namespace> Client::Impl::RegisterNamespace(const NamespaceDescriptor& descriptor,
                                                          absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  if (absl::Status status = descriptor.Validate(); !status.ok()) return status;
  absl::StatusOr<const KnownNamespace*> known = Remember(descriptor);
  if (!known.ok()) return known.status();
  absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return id.status();
  return (*known)->value;
}

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
  result.status = Call(**link, &Engine::Stub::Lookup, request, &reply, deadline);
  if (!result.status.ok()) return result;
  result.hit_blocks = std::min(reply.hit_blocks(), *count);
  if (reply.lease() == v1::LEASE_GRANTED) result.lease_id = reply.lease_id();
  result.load_time = absl::Microseconds(reply.load_time_us());
  return result;
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
  const uint32_t wanted = std::min(*count, PageBlocks(parts->size()));
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

  v1::LookupRequest request;
  request.set_namespace_id(*id);
  request.set_keys(keys.data(), keys.size());
  request.set_parent(options.parent.data(), options.parent.size());
  request.set_lease_ms(*lease_ms);
  request.set_extent_blocks(wanted);
  request.set_parts(parts->packed);
  v1::LookupReply reply;
  result.status = Call(**link, &Engine::Stub::Lookup, request, &reply, deadline);
  if (!result.status.ok()) return result;
  result.hit_blocks = std::min(reply.hit_blocks(), *count);
  if (reply.lease() == v1::LEASE_GRANTED) result.lease_id = reply.lease_id();
  const uint32_t blocks = std::min({reply.extent_blocks(), result.hit_blocks, wanted});
  if (reply.extents().size() != reply.extent_blocks() * parts->size() * sizeof(PackedExtent)) {
    releases_.AddHold((*link)->number, reply.hold_id(), {});
    result.status = absl::InternalError("extents: not as many as announced");
    return result;
  }

  // Copy and verify in one pass. A full part that is missing or damaged ends the prefix; one of a
  // window or a state may only make it shorter, which is worked out afterwards.
  ExtentReader extents(*(*link)->session, reply.extents(), deadline);
  std::vector<bool> usable(blocks * parts->size(), false);
  std::vector<uint32_t> damaged;
  bool as_promised = blocks == result.hit_blocks;
  uint32_t copied = 0;
  for (bool whole = true; whole && copied < blocks; copied += whole) {
    if (absl::Now() > deadline) {
      result.status = absl::DeadlineExceededError("get: ran out of time while copying");
      break;
    }
    for (size_t part = 0; whole && part < parts->size(); ++part) {
      const size_t i = copied * parts->size() + part;
      const ExtentReader::Outcome outcome = extents.Read(i, parts->bytes[part]);
      if (outcome == ExtentReader::Outcome::kBytes) {
        usable[i] =
            copier_->CopySum(targets[i], extents.bytes(), CopyUse::kMemory) == extents.sum();
        if (!usable[i]) damaged.push_back(static_cast<uint32_t>(i));
      }
      if (outcome == ExtentReader::Outcome::kWrong) {
        bad_extents_.fetch_add(1, std::memory_order_relaxed);
      }
      if (usable[i]) continue;
      as_promised &= outcome == ExtentReader::Outcome::kAbsent;
      whole = parts->groups[part]->kind != GroupKind::kFull && extents.status().ok();
    }
  }
  as_promised &= copied == blocks;
  result.blocks = as_promised ? blocks : ServableBlocks(*parts, usable, copied);
  result.damaged = static_cast<uint32_t>(damaged.size());
  if (result.status.ok()) result.status = extents.status();
  damaged_parts_.fetch_add(damaged.size(), std::memory_order_relaxed);
  releases_.AddHold((*link)->number, reply.hold_id(), std::move(damaged));
  return result;
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
  absl::Status status = Call(**link, &Engine::Stub::Load, request, &reply, deadline);
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

// ---- put ----------------------------------------------------------------------------------------

PutResult Client::Impl::Put(const Namespace& ns, std::string_view keys,
                            absl::Span<const absl::Span<const std::byte>> sources,
                            const PutOptions& options) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return {known.status()};
  const absl::StatusOr<Selection> parts = Select(**known, options.parts);
  if (!parts.ok()) return {parts.status()};
  const absl::StatusOr<PutCall> put = CheckPut(**known, keys, *parts, sources, options, deadline);
  if (!put.ok()) return {put.status()};

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return {link.status()};
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return {id.status()};
  const absl::StatusOr<Staging*> staging = StagingOf(**link, deadline);
  if (!staging.ok()) return {staging.status()};
  const uint32_t largest = *std::max_element(parts->bytes.begin(), parts->bytes.end());
  if (largest > (*staging)->size()) {
    return {absl::InvalidArgumentError(absl::StrCat("part_bytes: ", largest, " do not fit in ",
                                                    (*staging)->size(), " of staging memory"))};
  }

  const bool one_call = put->total_bytes <= std::min(kMaxOneCallBytes, (*staging)->size()) &&
                        sources.size() <= kMaxOneCallParts && options.wait == absl::ZeroDuration();
  PutResult result = one_call ? PutInOneCall(**link, **staging, *id, *put)
                              : PutReserved(**link, **staging, *id, *put);
  if ((*staging)->broken()) (*link)->session->End();
  result.present = static_cast<uint32_t>(
      std::count(result.results.begin(), result.results.end(), CommitResult::kPresent));
  return result;
}

absl::StatusOr<Client::Impl::PutCall> Client::Impl::CheckPut(
    const KnownNamespace& ns, std::string_view keys, const Selection& parts,
    absl::Span<const absl::Span<const std::byte>> sources, const PutOptions& options,
    absl::Time deadline) const {
  const absl::StatusOr<uint32_t> blocks = CountKeys(ns, keys, PageBlocks(parts.size()));
  if (!blocks.ok()) return blocks.status();
  if (absl::Status status = CheckParent(ns, options.parent); !status.ok()) return status;
  if (sources.size() != *blocks * parts.size()) {
    return absl::InvalidArgumentError("sources: must be blocks times parts");
  }
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sources[i].size() != parts.bytes[i % parts.size()]) {
      return absl::InvalidArgumentError(absl::StrCat("sources[", i, "]: not part_bytes long"));
    }
    total_bytes += sources[i].size();
  }
  if (!options.announce.empty() && options.announce.size() != *blocks) {
    return absl::InvalidArgumentError("announce: must be empty or one for each block");
  }
  uint64_t announced_bytes = keys.size();
  for (const std::string& announce : options.announce) {
    if (announce.size() > kMaxAnnounceBytes) {
      return absl::InvalidArgumentError("announce: one is longer than 16 KiB");
    }
    announced_bytes += announce.size() + 8;
  }
  // Releases and the rest of the message need far less than the quarter that is left for them.
  if (announced_bytes > kMaxMessageBytes / 4 * 3) {
    return absl::InvalidArgumentError("announce: too many bytes for one call; put fewer blocks");
  }
  return PutCall{ns, keys, *blocks, parts, sources, options, total_bytes, deadline};
}

absl::StatusOr<Staging*> Client::Impl::StagingOf(Link& link, absl::Time deadline) {
  TurnLock turn(link.opening_staging, deadline);
  if (!turn.held()) return absl::DeadlineExceededError("staging: others are asking");
  {
    absl::MutexLock lock(&link.mu);
    if (link.staging != nullptr) return link.staging.get();
  }
  absl::StatusOr<StagingMemory> memory = link.session->OpenStaging(
      std::min<uint64_t>(options_.staging_bytes, kMaxStagingBytes), deadline);
  if (!memory.ok()) return memory.status();
  absl::MutexLock lock(&link.mu);
  link.staging = std::make_unique<Staging>(*std::move(memory), *copier_);
  return link.staging.get();
}

// Few bytes: copied into staging and committed by one call. The answer says what was present.
PutResult Client::Impl::PutInOneCall(Link& link, Staging& staging, uint32_t namespace_id,
                                     const PutCall& put) {
  PutResult result;
  StagingSlot slot;
  std::vector<uint32_t> sums;
  {
    Staging::Filling filling(staging, put.deadline);
    if (!filling.held()) return {absl::DeadlineExceededError("put: others are putting")};
    absl::StatusOr<StagingSlot> staged = filling.Stage(put.sources, put.total_bytes, sums);
    if (!staged.ok()) return {staged.status()};
    slot = *staged;
  }

  v1::CommitRequest request;
  request.set_namespace_id(namespace_id);
  request.set_keys(put.keys.data(), put.keys.size());
  request.set_parent(put.options.parent.data(), put.options.parent.size());
  request.set_parts(put.parts.packed);
  std::string& staged = *request.mutable_staged();
  staged.resize(put.sources.size() * sizeof(PackedStaged));
  uint64_t offset = slot.offset;
  for (size_t i = 0; i < put.sources.size(); ++i) {
    PackAt(staged, i, PackedStaged{offset, static_cast<uint32_t>(put.sources[i].size()), sums[i]});
    offset += put.sources[i].size();
  }
  request.set_staged_sums(true);
  for (const std::string& announce : put.options.announce) request.add_announce(announce);
  v1::CommitReply reply;
  result.status = Call(link, &Engine::Stub::Commit, request, &reply, put.deadline);
  if (OutcomeUnknown(result.status)) {
    // The daemon may read the slot at any later time. To use it again could store other bytes under
    // these keys; so the session ends, and its staging memory with it.
    link.session->End();
    return result;
  }
  staging.Free(slot);
  if (!result.status.ok()) return result;
  if (reply.results().size() != put.blocks) {
    result.status = absl::InternalError("results: not one a block");
    return result;
  }
  for (char committed : reply.results()) {
    result.results.push_back(static_cast<CommitResult>(committed));
  }
  result.stored = reply.stored();
  return result;
}

// Many bytes: reserve, fill what is missing, commit.
PutResult Client::Impl::PutReserved(Link& link, Staging& staging, uint32_t namespace_id,
                                    const PutCall& put) {
  v1::ReserveRequest request;
  request.set_namespace_id(namespace_id);
  request.set_keys(put.keys.data(), put.keys.size());
  request.set_parent(put.options.parent.data(), put.options.parent.size());
  request.set_parts(put.parts.packed);
  const absl::Duration left = std::max(put.deadline - absl::Now(), absl::ZeroDuration());
  const absl::Duration wait = std::clamp(put.options.wait, absl::ZeroDuration(), left);
  request.set_wait_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(wait)));
  for (const std::string& announce : put.options.announce) request.add_announce(announce);
  v1::ReserveReply reserved;
  PutResult result;
  result.status = Call(link, &Engine::Stub::Reserve, request, &reserved, put.deadline);
  if (!result.status.ok()) return result;
  if (reserved.states().size() != put.blocks) {
    releases_.AddAbort(link.number, reserved.reservation_id());
    result.status = absl::InternalError("states: not one a block");
    return result;
  }

  std::vector<CommitResult> results;
  for (char state : reserved.states()) {
    switch (static_cast<ReserveState>(state)) {
      case ReserveState::kGranted:
        results.push_back(CommitResult::kNotFilled);  // Until the commit says more.
        break;
      case ReserveState::kPresent:
      case ReserveState::kInProduction:
        results.push_back(CommitResult::kPresent);
        break;
      case ReserveState::kNoRoom:
        results.push_back(CommitResult::kNoRoom);
        break;
      case ReserveState::kNoParent:
        results.push_back(CommitResult::kNoParent);
        break;
      default:
        results.push_back(CommitResult::kFailed);
    }
  }
  if (reserved.reservation_id() == 0) {  // Nothing to send.
    result.results = std::move(results);
    return result;
  }

  result.status = FillGranted(link, staging, put, reserved);
  if (!result.status.ok()) {
    releases_.AddAbort(link.number, reserved.reservation_id());
    return result;
  }

  v1::CommitRequest commit;
  commit.set_reservation_id(reserved.reservation_id());
  v1::CommitReply committed;
  result.status = Call(link, &Engine::Stub::Commit, commit, &committed, put.deadline);
  if (!result.status.ok()) {
    releases_.AddAbort(link.number, reserved.reservation_id());
    return result;
  }
  if (committed.results().size() != put.blocks) {
    result.status = absl::InternalError("results: not one a block");
    return result;
  }
  for (uint32_t block = 0; block < put.blocks; ++block) {
    if (static_cast<ReserveState>(reserved.states()[block]) != ReserveState::kGranted) continue;
    results[block] = static_cast<CommitResult>(committed.results()[block]);
  }
  result.results = std::move(results);
  result.stored = committed.stored();
  return result;
}

// The copy. This side fills slots while the daemon's copier empties them; both are at work until
// the last part.
absl::Status Client::Impl::FillGranted(Link& link, Staging& staging, const PutCall& put,
                                       const v1::ReserveReply& reserved) {
  Staging::Filling filling(staging, put.deadline);
  if (!filling.held()) return absl::DeadlineExceededError("put: others are putting");
  const size_t parts = put.parts.size();
  for (uint32_t block = 0; block < put.blocks; ++block) {
    if (static_cast<ReserveState>(reserved.states()[block]) != ReserveState::kGranted) continue;
    if (link.session->ended()) return absl::UnavailableError("put: the session has ended");
    if (absl::Now() > put.deadline) return absl::DeadlineExceededError("put: ran out of time");
    for (size_t part = 0; part < parts; ++part) {
      const auto index = static_cast<uint32_t>(block * parts + part);
      absl::Status status = filling.Fill(reserved.reservation_id(), index, put.sources[index]);
      if (!status.ok()) return status;
    }
  }
  return filling.Finish();
}

// ---- what is owed -------------------------------------------------------------------------------

// Sends releases and aborts until none is left or a call fails.
absl::Status Client::Impl::SendOwed(Link& link, absl::Time deadline) {
  for (uint64_t reservation_id : releases_.TakeAborts(link.number)) {
    v1::AbortRequest request;
    request.set_reservation_id(reservation_id);
    v1::AbortReply reply;
    // Best effort: what is lost here runs out by itself.
    Call(link, &Engine::Stub::Abort, request, &reply, deadline).IgnoreError();
  }
  while (!releases_.empty()) {
    v1::ReleaseRequest request;
    v1::ReleaseReply reply;
    absl::Status status = Call(link, &Engine::Stub::Release, request, &reply, deadline);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Client::Impl::Flush(absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  if (releases_.empty()) return absl::OkStatus();
  LinkPtr link = CurrentLink();  // What is owed is owed in this session; another has no use for it.
  if (link == nullptr || link->session->ended()) return absl::OkStatus();
  return SendOwed(*link, deadline);
}

void Client::Impl::FlushInBackground() {
  while (releases_.WaitUntilDue()) {
    LinkPtr link = CurrentLink();
    if (link == nullptr) continue;
    if (link->session->ended()) {
      releases_.EndSession(link->number);  // Nobody to tell: the daemon has ended it all.
      continue;
    }
    SendOwed(*link, absl::Now() + std::min(options_.timeout, kFlushTimeout)).IgnoreError();
  }
}

// ---- pins ---------------------------------------------------------------------------------------

absl::StatusOr<PinResult> Client::Impl::Pin(const Namespace& ns, std::string_view key,
                                            const PinOptions& options) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return known.status();
  const absl::StatusOr<uint32_t> count = CountKeys(**known, key, 1);
  if (!count.ok()) return count.status();
  if (options.owner.empty() || options.owner.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError("owner: must be 1 to 256 bytes");
  }
  const absl::StatusOr<uint32_t> ttl_ms = Milliseconds(options.ttl, kMaxPinMs, "ttl");
  if (!ttl_ms.ok()) return ttl_ms.status();
  if (*ttl_ms == 0) return absl::InvalidArgumentError("ttl: must be longer than zero");

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return id.status();
  v1::PinRequest request;
  request.set_namespace_id(*id);
  request.set_key(key.data(), key.size());
  request.set_owner(options.owner);
  request.set_budget_bytes(options.budget_bytes);
  request.set_ttl_ms(*ttl_ms);
  v1::PinReply reply;
  absl::Status status = Call(**link, &Engine::Stub::Pin, request, &reply, deadline);
  if (!status.ok()) return status;
  return PinResult{reply.pin_id(), reply.blocks(), reply.bytes()};
}

absl::Status Client::Impl::Unpin(uint64_t pin_id, absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  v1::UnpinRequest request;
  request.set_pin_id(pin_id);
  v1::UnpinReply reply;
  return Call(**link, &Engine::Stub::Unpin, request, &reply, deadline);
}

ClientStats Client::Impl::stats() const {
  ClientStats stats;
  stats.calls = calls_.load(std::memory_order_relaxed);
  stats.failed_calls = failed_calls_.load(std::memory_order_relaxed);
  stats.reconnects = reconnects_.load(std::memory_order_relaxed);
  stats.damaged_parts = damaged_parts_.load(std::memory_order_relaxed);
  stats.bad_extents = bad_extents_.load(std::memory_order_relaxed);
  stats.dropped_releases = releases_.dropped();
  return stats;
}

// ---- chains -------------------------------------------------------------------------------------

LoadedChain::LoadedChain(std::unique_ptr<Impl> impl, uint32_t blocks, uint32_t parts)
    : impl_(std::move(impl)), blocks_(blocks), parts_(parts) {}
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

// ---- the public functions -----------------------------------------------------------------------

namespace {

// Runs `call` and turns an exception of a library (std::bad_alloc, in practice) into a status.
template <typename Result, typename Callable>
Result NoThrow(Callable call) {
  absl::Status status;
  try {
    return call();
  } catch (const std::exception& error) {
    status = absl::ResourceExhaustedError(error.what());
  }
  if constexpr (std::is_constructible_v<Result, absl::Status>) {
    return Result(std::move(status));
  } else {
    Result result;
    result.status = std::move(status);
    return result;
  }
}

}  // namespace

Client::Client(ClientOptions options) : impl_(std::make_shared<Impl>(std::move(options))) {}
Client::~Client() { impl_->Shutdown(); }

absl::StatusOr<Namespace> Client::RegisterNamespace(const NamespaceDescriptor& descriptor,
                                                    absl::Duration timeout) {
  return NoThrow<absl::StatusOr<Namespace>>(
      [&] { return impl_->RegisterNamespace(descriptor, timeout); });
}
LookupResult Client::Lookup(const Namespace& ns, std::string_view keys,
                            const LookupOptions& options) {
  return NoThrow<LookupResult>([&] { return impl_->Lookup(ns, keys, options); });
}
LoadResult Client::Load(const Namespace& ns, std::string_view keys, const LoadOptions& options) {
  return NoThrow<LoadResult>([&] { return impl_->Load(ns, keys, options, impl_); });
}
GetResult Client::Get(const Namespace& ns, std::string_view keys,
                      absl::Span<const absl::Span<std::byte>> targets, const GetOptions& options) {
  return NoThrow<GetResult>([&] { return impl_->Get(ns, keys, targets, options); });
}
PutResult Client::Put(const Namespace& ns, std::string_view keys,
                      absl::Span<const absl::Span<const std::byte>> sources,
                      const PutOptions& options) {
  return NoThrow<PutResult>([&] { return impl_->Put(ns, keys, sources, options); });
}
void Client::ReleaseLease(uint64_t lease_id) { impl_->releases().AddLease(lease_id); }
absl::Status Client::Flush(absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->Flush(timeout); });
}
absl::Status Client::Connect(absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->Connect(timeout); });
}
absl::StatusOr<PinResult> Client::Pin(const Namespace& ns, std::string_view key,
                                      const PinOptions& options) {
  return NoThrow<absl::StatusOr<PinResult>>([&] { return impl_->Pin(ns, key, options); });
}
absl::Status Client::Unpin(uint64_t pin_id, absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->Unpin(pin_id, timeout); });
}
const std::string& Client::copy_loops() const { return impl_->copier().description(); }
ClientStats Client::stats() const { return impl_->stats(); }

}  // namespace kvd
