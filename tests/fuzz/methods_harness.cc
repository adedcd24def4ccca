#include "tests/fuzz/methods_harness.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "daemon/methods.h"
#include "policy/lru.h"
#include "proto/types/announcement.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "tests/testing/checking_policy.h"
#include "tests/testing/fake_mover.h"

namespace kvd {
namespace {

constexpr uint32_t kMaxBlocks = 48;
constexpr uint32_t kArenaBytes = 64 << 10;
constexpr uint32_t kRegionBytes = 16 << 10;
constexpr uint32_t kStagingBytes = 8 << 10;
constexpr uint32_t kMaxSessions = 6;
constexpr std::byte kKeyed{0xc5};  // Opens bytes that belong to one key.

Control::Options SmallLimits() {
  Control::Options options;
  options.max_leases = 12;
  options.session_leases = 5;
  options.holds = {.max_holds = 8, .max_extents = 24};
  options.session_hold_bytes = 24 << 10;
  options.max_reservations = 5;
  options.session_reservations = 3;
  options.max_waiters = 3;
  options.max_namespaces = 6;
  options.max_pins = 3;
  options.slice_blocks = 3;
  return options;
}

enum Method : uint8_t {
  kRegister,
  kLookup,
  kLoad,
  kRelease,
  kReserve,
  kCommit,
  kAbort,
  kPin,
  kUnpin,
  kOpenSession,
  kPrefetch,
  kHint,
  kRetain,
  kFill,
  kBeginCopy,
  kEndCopy,
  kAdvance,
  kPoll,
  kMove,
  kEndSession,
  kExit,
  kConnect,
  kDamage,
  kMethods,
};

// What is replaced by something right.
enum Flag : uint8_t {
  kSession = 1,
  kNamespace = 2,
  kIds = 4,
  kKeys = 8,
  kStaged = 16,
  kNumbers = 32,
  kReleases = 64,
  kToTheEnd = 128,
};

struct Operation {
  uint8_t method = 0;
  uint8_t flags = 0;
  uint8_t a = 0;
  uint8_t b = 0;
  uint8_t c = 0;
  uint8_t d = 0;
  bool has(Flag flag) const { return (flags & flag) != 0; }
};

class MemoryStaging final : public StagedBytes {
 public:
  explicit MemoryStaging(size_t size) : memory_(size, std::byte{0x11}) {}
  absl::Span<const std::byte> bytes() const override { return memory_; }
  absl::Span<std::byte> writable() { return absl::MakeSpan(memory_); }

 private:
  std::vector<std::byte> memory_;
};

}  // namespace

class MethodsHarness::Impl {
 public:
  Impl();

  void Run(const uint8_t* data, size_t size);
  void Finish();

  Reached reached;

 private:
  template <typename M>
  class Call;
  struct Client {
    uint32_t serial = 0;
    pid_t pid = 0;
    DomainId domain = 0;
    SessionToken token{};
    bool ended = false;
    bool exited = false;
    std::string name() const { return std::string(token.begin(), token.end()); }
  };
  struct Layout {
    DomainId domain = 0;
    uint32_t hash_bytes = 0;
    std::vector<PartId> parts;
    std::vector<uint32_t> bytes;  // Of each part.
  };
  struct Reserved {
    uint64_t id = 0;
    uint32_t serial = 0;
    uint32_t ns = 0;
    std::string keys;
    std::vector<uint32_t> parts;  // Positions in the layout.
  };
  struct Held {
    uint64_t hold = 0;
    std::string extents;
  };

  void Execute(const Operation& op, const uint8_t* payload, size_t size);
  template <typename M>
  void Invoke(const Operation& op, const uint8_t* payload, size_t size);
  template <typename Request>
  void Substitute(const Operation& op, Request& request);
  void SubstituteReleases(const Operation& op, v1::Releases& releases);
  template <typename Request>
  void SubstituteSums(const Operation& op, const Reserved& reserved, Request& request);
  std::string SumsOf(const Reserved& reserved, size_t first, size_t blocks) const;
  void Fill(const Operation& op);
  void BeginCopy(const Operation& op);
  void EndCopy();
  void Connect(const Operation& op);
  void Damage(const Operation& op);
  void Resume();

  // What a finished call told.
  template <typename Request, typename Reply>
  void Learn(const Request&, const Reply&) {}
  void Learn(const v1::RegisterNamespaceRequest& request, const v1::RegisterNamespaceReply& reply);
  void Learn(const v1::LookupRequest& request, const v1::LookupReply& reply);
  void Learn(const v1::LoadRequest& request, const v1::LoadReply& reply);
  void Learn(const v1::ReserveRequest& request, const v1::ReserveReply& reply);
  void Learn(const v1::CommitRequest& request, const v1::CommitReply& reply);
  void CheckSums(const v1::CommitRequest& request, const v1::CommitReply& reply);
  void Learn(const v1::PinRequest&, const v1::PinReply& reply) { pins_.push_back(reply.pin_id()); }

  uint32_t SerialOf(const std::string& session) const {
    uint32_t serial = 0;
    for (const Client& client : clients_) {
      if (client.name() == session) serial = client.serial;
    }
    return serial;
  }
  std::vector<uint32_t> PartsOf(const Layout& layout, const std::string& parts) const;
  void CheckExtents(uint32_t ns, const std::string& keys, const std::string& parts,
                    const std::string& extents, uint32_t blocks);
  absl::Span<const std::byte> BytesOf(const PackedExtent& extent) const;
  void WriteKeyed(absl::Span<std::byte> target, uint32_t ns, std::string_view key,
                  uint32_t part) const;
  void CheckHolds();
  void Audit() const;

  template <typename List>
  static auto Pick(const List& list, uint8_t which) {
    return list.empty() ? typename List::value_type{} : list[which % list.size()];
  }
  std::string KeyOf(uint32_t hash_bytes, int chain, int depth) const;
  // One that lives, if there is any, and sometimes one that does not.
  Client PickClient(uint8_t which) const {
    std::vector<Client> living;
    for (const Client& client : clients_) {
      if (!client.ended) living.push_back(client);
    }
    return which == 255 || living.empty() ? Pick(clients_, which / 8) : Pick(living, which);
  }

  ManualClock clock_;
  RegionDirectory directory_;
  std::unique_ptr<Arena> arena_;
  LruPolicy lru_{kMaxBlocks};
  CheckingPolicy policy_{lru_, kMaxBlocks};
  const Control::Options limits_ = SmallLimits();
  FillBoard board_{limits_.max_reservations};
  Inbox inbox_;
  FakeMover mover_{board_, inbox_};
  Store store_;
  Control control_;

  std::deque<std::unique_ptr<Resumable>> calls_;  // Not finished.
  std::deque<Resumable*> slices_;
  std::vector<Client> clients_;
  uint32_t serials_ = 0;
  std::map<uint32_t, Layout> layouts_;
  std::vector<uint32_t> namespaces_;
  std::deque<Reserved> reservations_;
  std::vector<uint64_t> leases_;
  std::vector<uint64_t> pins_;
  std::deque<Held> holds_;
  MemoryStaging keyed_{kStagingBytes};
  std::map<std::pair<uint64_t, uint32_t>, uint32_t> filled_;  // Bytes, by reservation and index.
  std::deque<FakeMover::Copy> copies_;
  std::deque<MemoryStaging> copied_from_;
  std::set<const std::byte*> damaged_;
  std::map<uint32_t, std::shared_ptr<MemoryStaging>> staging_;
};

// One call, as the service would run it.
template <typename M>
class MethodsHarness::Impl::Call final : public Resumable {
 public:
  explicit Call(Impl& impl) : impl_(impl) {
    if constexpr (requires(typename M::State s) { s.resumable; }) state.resumable = this;
  }
  void Resume() override {
    KVD_CHECK(!done);
    const absl::StatusOr<Step> step = M::Run(impl_.control_, request, state, reply);
    if (step.ok() && *step == Step::kMore) {
      impl_.slices_.push_back(this);
      return;
    }
    if (step.ok() && *step == Step::kWait) {
      ++impl_.reached.waits;
      if constexpr (std::is_same_v<M, CommitMethod>) {
        impl_.reached.early_commits += request.reservation_id() != 0;
      }
      return;
    }
    done = true;
    if (step.ok()) {
      ++impl_.reached.answered_ok;
      impl_.Learn(request, reply);
    } else {
      KVD_CHECK(!step.status().message().empty());
      KVD_CHECK(step.status().code() != absl::StatusCode::kInternal &&
                step.status().code() != absl::StatusCode::kUnknown)
          << step.status();
    }
    const auto self = std::find_if(impl_.calls_.begin(), impl_.calls_.end(),
                                   [this](const auto& call) { return call.get() == this; });
    impl_.calls_.erase(self);  // Deletes this.
  }

  typename M::Request request;
  typename M::Reply reply;
  typename M::State state;
  bool done = false;

 private:
  Impl& impl_;
};

MethodsHarness::Impl::Impl()
    : arena_(*Arena::Open(
          directory_,
          {.bytes = kArenaBytes, .region_bytes = kRegionBytes, .pages = PageKind::kSmall})),
      store_(policy_, *arena_, {.max_blocks = kMaxBlocks, .max_parts = 128, .secret = 7},
             [this](uint32_t region, uint64_t bytes) { mover_.MakeRegion(region, bytes); }),
      control_(store_, board_, mover_, inbox_, clock_, limits_) {
  mover_.max_jobs = 4;
  // Two tenants; the first has two sessions in different processes, and two layouts.
  for (const uint8_t domain : {1, 2, 1}) Connect({.a = domain});
  v1::NamespaceDescriptor plain;
  plain.set_model("plain");
  plain.set_hash_bytes(8);
  plain.set_tensor_parallel(1);
  plain.set_pipeline_parallel(1);
  plain.set_context_parallel(1);
  v1::Group& full = *plain.add_groups();
  full.set_kind(v1::GROUP_KIND_FULL);
  full.set_shards(1);
  full.set_block_tokens(16);
  full.set_part_bytes(1000);
  v1::NamespaceDescriptor hybrid = plain;
  hybrid.set_model("hybrid");
  hybrid.set_hash_bytes(32);
  hybrid.mutable_groups(0)->set_shards(2);
  *hybrid.add_groups() = full;
  hybrid.mutable_groups(1)->set_kind(v1::GROUP_KIND_WINDOW);
  hybrid.mutable_groups(1)->set_window_tokens(32);
  hybrid.mutable_groups(1)->set_part_bytes(300);
  *hybrid.add_groups() = full;
  hybrid.mutable_groups(2)->set_kind(v1::GROUP_KIND_STATE);
  hybrid.mutable_groups(2)->set_part_bytes(2000);
  for (const auto& [descriptor, client] : {std::pair{&plain, 0}, {&hybrid, 0}, {&plain, 1}}) {
    v1::RegisterNamespaceRequest request;
    request.set_session(clients_[client].name());
    *request.mutable_describes() = *descriptor;
    const std::string bytes = request.SerializeAsString();
    Invoke<RegisterNamespaceMethod>({.flags = kToTheEnd},
                                    reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  KVD_CHECK(namespaces_.size() == 3);
}

void MethodsHarness::Impl::Run(const uint8_t* data, size_t size) {
  while (size >= 7) {
    // What stores comes more often than the rest.
    constexpr uint8_t kOften[] = {kReserve, kFill, kCommit, kFill, kCommit, kLookup, kLoad, kPoll};
    const int choice = data[0] % (kMethods + 8);
    const Operation op{choice < kMethods ? static_cast<uint8_t>(choice) : kOften[choice - kMethods],
                       data[1],
                       data[2],
                       data[3],
                       data[4],
                       data[5]};
    const size_t length = std::min<size_t>(data[6], size - 7);
    Execute(op, data + 7, length);
    data += 7 + length;
    size -= 7 + length;
    Audit();
  }
}

void MethodsHarness::Impl::Execute(const Operation& op, const uint8_t* payload, size_t size) {
  switch (op.method) {
    case kRegister:
      return Invoke<RegisterNamespaceMethod>(op, payload, size);
    case kLookup:
      return Invoke<LookupMethod>(op, payload, size);
    case kLoad:
      return Invoke<LoadMethod>(op, payload, size);
    case kRelease:
      return Invoke<ReleaseMethod>(op, payload, size);
    case kReserve:
      return Invoke<ReserveMethod>(op, payload, size);
    case kCommit:
      return Invoke<CommitMethod>(op, payload, size);
    case kAbort:
      return Invoke<AbortMethod>(op, payload, size);
    case kPin:
      return Invoke<PinMethod>(op, payload, size);
    case kUnpin:
      return Invoke<UnpinMethod>(op, payload, size);
    case kOpenSession:
      return;  // Is the gateway's; its number stays, because programs count methods.
    case kPrefetch:
      return Invoke<UnimplementedMethod<v1::PrefetchRequest, v1::PrefetchReply>>(op, payload, size);
    case kHint:
      return Invoke<HintMethod>(op, payload, size);
    case kRetain:
      return Invoke<UnimplementedMethod<v1::RetainRequest, v1::RetainReply>>(op, payload, size);
    case kFill:
      return Fill(op);
    case kBeginCopy:
      return BeginCopy(op);
    case kEndCopy:
      return EndCopy();
    case kAdvance:
      return clock_.Advance(Nanos{1} << (op.a % 44));  // Up to five hours.
    case kPoll:
      control_.Poll();
      if (op.a % 4 == 1) {  // One slice of a long call, so that others come between.
        if (slices_.empty()) return;
        Resumable* slice = slices_.front();
        slices_.pop_front();
        return slice->Resume();
      }
      Resume();
      return CheckHolds();
    case kMove:
      if (op.a % 4 == 0) mover_.CompleteFill();
      if (op.a % 4 == 1) mover_.CompleteVerify();
      if (op.a % 4 == 2) mover_.CompleteRegion();
      if (op.a % 4 == 3) mover_.FailRegion();
      return;
    case kEndSession:
    case kExit: {
      if (op.d >= 48) return;  // Rarely, or no session would live to see anything.
      Client& client = clients_[op.a % clients_.size()];
      if (!std::exchange(client.ended, true)) inbox_.Post(SessionEnded{client.serial});
      if (op.method == kExit && !std::exchange(client.exited, true)) {
        inbox_.Post(ProcessExited{client.serial});
      }
      return;
    }
    case kConnect:
      return Connect(op);
    case kDamage:
      return Damage(op);
    default:
      return;
  }
}

void MethodsHarness::Impl::Connect(const Operation& op) {
  const auto living = std::count_if(clients_.begin(), clients_.end(),
                                    [](const Client& client) { return !client.ended; });
  if (living >= static_cast<int>(kMaxSessions)) return;
  Client client{.serial = ++serials_, .domain = 1000u + op.a % 3};
  client.pid = 100 + op.b % 4;
  std::memcpy(client.token.data(), &client.serial, sizeof client.serial);
  client.token[15] = 0x7f;
  SessionToken finished{};
  if (op.has(kIds) && !clients_.empty()) {  // A client that comes back.
    const Client& before = clients_[op.c % clients_.size()];
    finished = before.token;
    client.pid = before.pid;
  }
  inbox_.Post(SessionOpened{.serial = client.serial,
                            .token = client.token,
                            .domain = client.domain,
                            .pid = client.pid,
                            .finished = finished});
  inbox_.Post(StagingOpened{
      client.serial, staging_[client.serial] = std::make_shared<MemoryStaging>(kStagingBytes)});
  control_.Poll();
  clients_.push_back(client);
}

template <typename M>
void MethodsHarness::Impl::Invoke(const Operation& op, const uint8_t* payload, size_t size) {
  control_.Poll();  // As the service does before each arrival.
  if (calls_.size() > 16) return;
  auto owned = std::make_unique<Call<M>>(*this);
  Call<M>* call = owned.get();
  calls_.push_back(std::move(owned));
  ++reached.calls;
  (void)call->request.ParsePartialFromArray(payload, static_cast<int>(size));  // What is there.
  Substitute(op, call->request);
  if constexpr (std::is_same_v<M, CommitMethod>) {
    if (op.has(kNumbers)) call->state.remaining_ms = op.d * 64u;  // The caller's deadline.
  }
  call->Resume();
  if (op.has(kToTheEnd)) Resume();
}

void MethodsHarness::Impl::Resume() {
  for (int turns = 0; turns < 10'000; ++turns) {
    if (Resumable* ready = control_.NextReady()) {
      ready->Resume();
    } else if (!slices_.empty()) {
      Resumable* slice = slices_.front();
      slices_.pop_front();
      slice->Resume();
    } else {
      return;
    }
  }
  KVD_CHECK(false) << "a call never ends";
}

template <typename Request>
void MethodsHarness::Impl::Substitute(const Operation& op, Request& request) {
  const Client client = PickClient(op.a);
  std::vector<uint32_t> its;  // Or sometimes anybody's.
  for (const uint32_t known : namespaces_) {
    if (op.a >= 240 || layouts_.at(known).domain == client.domain) its.push_back(known);
  }
  uint32_t ns = Pick(its, op.a / 8);
  if constexpr (requires { request.set_session(""); }) {
    if (op.has(kSession)) request.set_session(client.name());
  }
  if constexpr (requires { request.namespace_id(); }) {
    if (op.has(kNamespace)) request.set_namespace_id(ns);
    ns = request.namespace_id();
  }
  const auto layout = layouts_.find(ns);
  const uint32_t hash_bytes = layout == layouts_.end() ? 8 : layout->second.hash_bytes;
  const int chain = op.b % 4;
  const int start = op.c % 3 == 0 ? 0 : op.c % 8;
  const int count = 1 + op.d % 8;
  if constexpr (requires { request.set_keys(""); }) {
    if (op.has(kKeys)) {
      std::string keys;
      for (int i = 0; i < count; ++i) keys += KeyOf(hash_bytes, chain, start + i);
      request.set_keys(keys);
      if constexpr (requires { request.set_parent(""); }) {
        request.set_parent(start == 0 ? "" : KeyOf(hash_bytes, chain, start - 1));
      }
      if constexpr (requires { request.set_parts(""); }) {
        // Some bring only one part: a shard of a larger whole.
        request.clear_parts();
        if (op.b >= 192 && layout != layouts_.end()) {
          const PartId id = layout->second.parts[op.b % layout->second.parts.size()];
          request.set_parts(std::string{static_cast<char>(id.group), static_cast<char>(id.shard)});
        }
      }
    }
  }
  if constexpr (requires { request.set_key(""); }) {
    if (op.has(kKeys)) request.set_key(KeyOf(hash_bytes, chain, start));
  }
  if constexpr (requires { request.set_reservation_id(0); }) {
    bool by_reservation = op.has(kIds);
    if constexpr (requires { request.set_staged(""); }) {
      by_reservation &= !op.has(kStaged);
      if (by_reservation) {
        request.clear_keys();
        if (op.has(kNumbers)) {
          request.set_first_block(op.c % 8);
          request.set_blocks(op.d % 4);
        }
        if (op.has(kKeys) && op.d % 2 == 0) request.set_fills(1 + op.c % 16);
        if (op.has(kKeys) && op.d % 8 < 4 && !reservations_.empty()) {
          SubstituteSums(op, Pick(reservations_, op.b), request);
        }
      }
      if (op.has(kStaged) && layout != layouts_.end()) {
        request.set_reservation_id(0);
        const auto parts = PartsOf(layout->second, request.parts());
        std::string staged;
        for (size_t i = 0; i < request.keys().size() / hash_bytes; ++i) {
          for (const uint32_t part : parts) {
            const PackedStaged record{op.c * 16u, layout->second.bytes[part], 0};
            staged.append(reinterpret_cast<const char*>(&record), sizeof record);
          }
        }
        request.set_staged(staged);
        if (op.d % 16 == 14) request.set_first_block(op.b * 1000u);
      }
    }
    if constexpr (requires { request.set_staged_sums(true); }) {
      if (op.has(kNumbers) && op.d % 16 == 15) request.set_staged_sums(true);
    }
    if (by_reservation) request.set_reservation_id(Pick(reservations_, op.b).id);
  }
  if constexpr (requires { request.set_pin_id(0); }) {
    if (op.has(kIds)) request.set_pin_id(Pick(pins_, op.b));
  }
  if constexpr (requires { request.set_owner(""); }) {
    if (op.has(kNumbers)) {
      request.set_owner(op.b % 2 == 0 ? "even" : "odd");
      request.set_budget_bytes(op.d * 256u);
      request.set_ttl_ms(1u << op.c % 16);
    }
  }
  if constexpr (requires { request.set_lease_ms(0); }) {
    if (op.has(kNumbers)) {
      request.set_lease_ms(op.c % 2 == 0 ? 0 : op.c);
      request.set_extent_blocks(op.b % 8);
    }
  }
  if constexpr (requires { request.set_wait_ms(0); }) {
    if (op.has(kNumbers)) request.set_wait_ms(op.c % 2 == 0 ? 0 : op.c * 16u);
  }
  if constexpr (requires { request.clear_announce(); }) {
    if (op.has(kNumbers)) {
      request.clear_announce();
      const uint64_t hashes[] = {op.b};
      const uint32_t tokens[] = {op.c};
      const std::string announced =
          WriteAnnouncement({.hashes = hashes, .tokens = tokens, .block_tokens = 1});
      for (size_t i = 0; op.c % 3 == 0 && i < request.keys().size() / hash_bytes; ++i) {
        request.add_announce(i % 2 == 0 ? announced : std::string());
      }
    }
  }
  if constexpr (requires { request.mutable_releases(); }) {
    if (op.has(kReleases)) SubstituteReleases(op, *request.mutable_releases());
  }
  if constexpr (std::is_same_v<Request, v1::ReleaseRequest>) {
    if (op.has(kIds)) SubstituteReleases(op, *request.mutable_releases());
  }
}

void MethodsHarness::Impl::SubstituteReleases(const Operation& op, v1::Releases& releases) {
  if (op.c % 2 == 0) releases.add_lease_ids(Pick(leases_, op.b));
  if (op.c % 4 < 2) {
    v1::Damage& damage = *releases.add_damaged();
    damage.set_hold_id(Pick(holds_, op.d).hold);
    damage.add_extents(op.b);
    damage.add_extents(op.b % 3);
    damage.add_extents(op.b % 3);
  }
  if (op.c % 8 < 6) releases.add_hold_ids(Pick(holds_, op.d).hold);
}

// Those of the range, and sometimes all those of one block turned around.
template <typename Request>
void MethodsHarness::Impl::SubstituteSums(const Operation& op, const Reserved& reserved,
                                          Request& request) {
  const Layout& layout = layouts_.at(reserved.ns);
  const size_t size = reserved.keys.size() / layout.hash_bytes;
  const size_t first = std::min<size_t>(request.first_block(), size);
  const size_t rest = size - first;
  const size_t blocks = request.blocks() == 0 ? rest : std::min<size_t>(request.blocks(), rest);
  std::string sums = SumsOf(reserved, first, blocks);
  const size_t block_bytes = reserved.parts.size() * sizeof(uint32_t);
  if (op.a % 3 == 0 && blocks > 0) {
    const size_t from = op.c % blocks * block_bytes;
    for (size_t i = from; i < from + block_bytes; ++i) sums[i] = static_cast<char>(~sums[i]);
  }
  request.set_sums(sums);
}

// Of `blocks` blocks from the `first` on, filled with the bytes of their keys.
std::string MethodsHarness::Impl::SumsOf(const Reserved& reserved, size_t first,
                                         size_t blocks) const {
  const Layout& layout = layouts_.at(reserved.ns);
  std::string sums;
  std::vector<std::byte> bytes;
  for (size_t block = first; block < first + blocks; ++block) {
    const auto key =
        std::string_view(reserved.keys).substr(block * layout.hash_bytes, layout.hash_bytes);
    for (const uint32_t part : reserved.parts) {
      bytes.resize(layout.bytes[part]);
      WriteKeyed(absl::MakeSpan(bytes), reserved.ns, key, part);
      const uint32_t sum = Crc32c(bytes);
      sums.append(reinterpret_cast<const char*>(&sum), sizeof sum);
    }
  }
  return sums;
}

// Chains 1 to 3 leave chain 0 after 2, 4 and 6 blocks.
std::string MethodsHarness::Impl::KeyOf(uint32_t hash_bytes, int chain, int depth) const {
  std::string key =
      (depth < 2 * chain ? "0:" : std::to_string(chain) + ":") + std::to_string(depth);
  key.resize(hash_bytes, '.');
  return key;
}

std::vector<uint32_t> MethodsHarness::Impl::PartsOf(const Layout& layout,
                                                    const std::string& parts) const {
  std::vector<uint32_t> positions;
  for (uint32_t i = 0; i < layout.parts.size() && parts.empty(); ++i) positions.push_back(i);
  for (size_t p = 0; p + 1 < parts.size(); p += 2) {
    const PartId id{static_cast<uint8_t>(parts[p]), static_cast<uint8_t>(parts[p + 1])};
    const auto it = std::find(layout.parts.begin(), layout.parts.end(), id);
    if (it == layout.parts.end()) continue;
    positions.push_back(static_cast<uint32_t>(it - layout.parts.begin()));
  }
  return positions;
}

// ---- bytes --------------------------------------------------------------------------------------

void MethodsHarness::Impl::WriteKeyed(absl::Span<std::byte> target, uint32_t ns,
                                      std::string_view key, uint32_t part) const {
  uint64_t state = 0xcbf29ce484222325u ^ ns * 31u ^ part * 977u;
  for (const char c : key) state = (state ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  for (size_t i = 0; i < target.size(); ++i) {
    target[i] = static_cast<std::byte>(state >> (i % 8 * 8));
  }
  target[0] = kKeyed;
}

// Fills a part of a reservation as its client would, with the bytes of its key.
void MethodsHarness::Impl::Fill(const Operation& op) {
  if (reservations_.empty()) return;
  const Reserved& reserved = reservations_[op.b % reservations_.size()];
  const Layout& layout = layouts_[reserved.ns];
  const auto blocks = static_cast<uint32_t>(reserved.keys.size() / layout.hash_bytes);
  // One part, or all of them.
  const auto parts = static_cast<uint32_t>(reserved.parts.size());
  const uint32_t first = op.has(kToTheEnd) ? 0 : op.c % (blocks * parts + 1);
  const uint32_t last = op.has(kToTheEnd) ? blocks * parts : first + 1;
  for (uint32_t index = first; index < last; ++index) {
    const uint32_t part = reserved.parts[index % parts];
    const uint32_t block = index / parts;
    const uint32_t whole = layout.bytes[part];
    if (whole > kStagingBytes) continue;
    uint32_t& filled = filled_[{reserved.id, index}];
    // What is left of it, or a piece of that, or too much.
    uint32_t length = whole - filled;
    if (op.has(kStaged) && length > 1) length = 1 + op.d * 8u % (length - 1);
    length += op.d == 77;
    const std::string_view key =
        block < blocks
            ? std::string_view(reserved.keys).substr(block * layout.hash_bytes, layout.hash_bytes)
            : "";
    WriteKeyed(keyed_.writable().first(whole), reserved.ns, key, part);
    const FakeMover::Copy copy = mover_.BeginCopy(reserved.serial, keyed_,
                                                  {.reservation_id = reserved.id,
                                                   .staging_offset = filled,
                                                   .index = index,
                                                   .length = length,
                                                   .part_offset = filled});
    if (copy.status != FillStatus::kOk) continue;
    KVD_CHECK(length > 0 && filled + length <= whole);
    damaged_.erase(copy.room.data());
    mover_.EndCopy(copy);
    filled += length;
    ++reached.fills;
    reached.pieces += length < whole;
  }
}

// A copy that takes its time.
void MethodsHarness::Impl::BeginCopy(const Operation& op) {
  if (copies_.size() >= 4) return;
  std::deque<Reserved> candidates = reservations_;
  if (op.has(kIds)) {  // Or one whose number was not told yet: it can be guessed.
    for (const auto& pending : calls_) {
      const auto* call = dynamic_cast<const Call<ReserveMethod>*>(pending.get());
      if (call == nullptr || !call->state.started || call->state.reservation_id == 0) continue;
      candidates.push_front(
          {call->state.reservation_id, SerialOf(call->request.session()),
           call->request.namespace_id(), call->request.keys(),
           PartsOf(layouts_.at(call->request.namespace_id()), call->request.parts())});
    }
  }
  if (candidates.empty()) return;
  const Reserved& reserved = candidates[op.has(kIds) ? 0 : op.b % candidates.size()];
  const Layout& layout = layouts_[reserved.ns];
  const auto blocks = static_cast<uint32_t>(reserved.keys.size() / layout.hash_bytes);
  const auto parts = static_cast<uint32_t>(reserved.parts.size());
  const uint32_t index = op.c % (blocks * parts);
  const uint32_t part = reserved.parts[index % parts];
  if (layout.bytes[part] > kStagingBytes) return;
  copied_from_.emplace_back(layout.bytes[part]);
  WriteKeyed(
      copied_from_.back().writable(), reserved.ns,
      std::string_view(reserved.keys).substr(index / parts * layout.hash_bytes, layout.hash_bytes),
      part);
  const auto before = filled_.find({reserved.id, index});
  const uint32_t filled = before == filled_.end() ? 0 : before->second;
  const FakeMover::Copy copy = mover_.BeginCopy(reserved.serial, copied_from_.back(),
                                                {.reservation_id = reserved.id,
                                                 .staging_offset = filled,
                                                 .index = index,
                                                 .length = layout.bytes[part] - filled,
                                                 .part_offset = filled});
  if (copy.status == FillStatus::kOk) {
    damaged_.erase(copy.room.data());
    copies_.push_back(copy);
  } else {
    copied_from_.pop_back();
  }
}

void MethodsHarness::Impl::EndCopy() {
  if (copies_.empty()) return;
  const FillRequest& fill = copies_.front().fill;
  mover_.EndCopy(copies_.front());
  filled_[{fill.reservation_id, fill.index}] += fill.length;
  copies_.pop_front();
  copied_from_.pop_front();
  ++reached.fills;
}

void MethodsHarness::Impl::Damage(const Operation& op) {
  if (holds_.empty()) return;
  const Held& held = holds_[op.b % holds_.size()];
  if (held.extents.empty()) return;
  const auto extent =
      UnpackAt<PackedExtent>(held.extents, op.c % (held.extents.size() / sizeof(PackedExtent)));
  const absl::Span<const std::byte> bytes = BytesOf(extent);
  // Only what is held: other room may be somebody else's by now.
  bool open = false;
  for (uint32_t i = 0; i < 64; ++i) open |= control_.holds().Has(held.hold, i);
  if (!open || bytes.empty()) return;
  const_cast<std::byte*>(bytes.data())[op.d % bytes.size()] ^= std::byte{0x40};
  damaged_.insert(bytes.data());
  ++reached.damaged;
}

absl::Span<const std::byte> MethodsHarness::Impl::BytesOf(const PackedExtent& extent) const {
  const std::optional<uint32_t> region = arena_->IndexOf(extent.region);
  if (!region.has_value() || extent.stored_length == 0) return {};
  KVD_CHECK(extent.offset + extent.stored_length <= kRegionBytes);
  return {arena_->Address(*region, 0) + extent.offset, extent.stored_length};
}

void MethodsHarness::Impl::CheckExtents(uint32_t ns, const std::string& keys,
                                        const std::string& parts, const std::string& extents,
                                        uint32_t blocks) {
  const Layout& layout = layouts_.at(ns);
  const std::vector<uint32_t> positions = PartsOf(layout, parts);
  KVD_CHECK(extents.size() == sizeof(PackedExtent) * blocks * positions.size());
  for (size_t i = 0; i < blocks * positions.size(); ++i) {
    const auto extent = UnpackAt<PackedExtent>(extents, i);
    if (extent.length == 0) continue;
    const uint32_t part = positions[i % positions.size()];
    KVD_CHECK(extent.length == layout.bytes[part]);
    const absl::Span<const std::byte> bytes = BytesOf(extent);
    KVD_CHECK(!bytes.empty());
    ++reached.extents;
    if (damaged_.count(bytes.data()) != 0) continue;
    KVD_CHECK(Crc32c(bytes) == extent.sum);
    if (bytes[0] != kKeyed) continue;  // Of a put in one call.
    std::vector<std::byte> expected(bytes.size());
    const size_t block = i / positions.size();
    WriteKeyed(absl::MakeSpan(expected), ns,
               std::string_view(keys).substr(block * layout.hash_bytes, layout.hash_bytes), part);
    KVD_CHECK(bytes == absl::MakeConstSpan(expected)) << "the bytes of another block";
  }
}

// Room under an open hold is what it was.
void MethodsHarness::Impl::CheckHolds() {
  for (const Held& held : holds_) {
    bool open = false;
    for (uint32_t i = 0; i < 64; ++i) open |= control_.holds().Has(held.hold, i);
    if (!open) continue;
    for (size_t i = 0; i < held.extents.size() / sizeof(PackedExtent); ++i) {
      const auto extent = UnpackAt<PackedExtent>(held.extents, i);
      const absl::Span<const std::byte> bytes = BytesOf(extent);
      if (extent.length == 0 || damaged_.count(bytes.data()) != 0) continue;
      KVD_CHECK(!bytes.empty() && Crc32c(bytes) == extent.sum) << "held room was used again";
    }
  }
}

// ---- what is learnt -----------------------------------------------------------------------------

void MethodsHarness::Impl::Learn(const v1::RegisterNamespaceRequest& request,
                                 const v1::RegisterNamespaceReply& reply) {
  KVD_CHECK(reply.namespace_id() != 0 && reply.fingerprint().size() == 16);
  Layout layout{.hash_bytes = request.describes().hash_bytes()};
  for (const Client& client : clients_) {
    if (client.name() == request.session()) layout.domain = client.domain;
  }
  for (int g = 0; g < request.describes().groups_size(); ++g) {
    const v1::Group& group = request.describes().groups(g);
    KVD_CHECK(v1::GroupKind_IsValid(group.kind()));
    for (uint32_t s = 0; s < group.shards(); ++s) {
      layout.parts.push_back({static_cast<uint8_t>(g), static_cast<uint8_t>(s)});
      layout.bytes.push_back(group.part_bytes());
    }
  }
  if (layouts_.emplace(reply.namespace_id(), layout).second) {
    namespaces_.push_back(reply.namespace_id());
  }
}

void MethodsHarness::Impl::Learn(const v1::LookupRequest& request, const v1::LookupReply& reply) {
  KVD_CHECK(reply.extent_blocks() <= reply.hit_blocks());
  KVD_CHECK((reply.lease_id() != 0) == (reply.lease() == v1::LEASE_GRANTED));
  KVD_CHECK((reply.hold_id() != 0) == (reply.extent_blocks() != 0));
  CheckExtents(request.namespace_id(), request.keys(), request.parts(), reply.extents(),
               reply.extent_blocks());
  if (reply.lease_id() != 0) leases_.push_back(reply.lease_id());
  if (reply.hold_id() != 0) holds_.push_back({reply.hold_id(), reply.extents()});
  if (holds_.size() > 8) holds_.pop_front();
}

void MethodsHarness::Impl::Learn(const v1::LoadRequest& request, const v1::LoadReply& reply) {
  KVD_CHECK((reply.hold_id() != 0) == (reply.blocks() != 0));
  CheckExtents(request.namespace_id(), request.keys(), request.parts(), reply.extents(),
               reply.blocks());
  if (reply.hold_id() != 0) holds_.push_back({reply.hold_id(), reply.extents()});
  if (holds_.size() > 8) holds_.pop_front();
}

void MethodsHarness::Impl::Learn(const v1::ReserveRequest& request, const v1::ReserveReply& reply) {
  const Layout& layout = layouts_.at(request.namespace_id());
  KVD_CHECK(reply.states().size() == request.keys().size() / layout.hash_bytes);
  const auto granted = std::count(reply.states().begin(), reply.states().end(),
                                  static_cast<char>(ReserveState::kGranted));
  if (reply.reservation_id() == 0) return;
  KVD_CHECK(granted > 0 && granted == reply.granted());
  reservations_.push_back({reply.reservation_id(), SerialOf(request.session()),
                           request.namespace_id(), request.keys(),
                           PartsOf(layout, request.parts())});
  if (reservations_.size() > 6) reservations_.pop_front();
}

void MethodsHarness::Impl::Learn(const v1::CommitRequest& request, const v1::CommitReply& reply) {
  if (request.reservation_id() == 0) {
    const Layout& layout = layouts_.at(request.namespace_id());
    KVD_CHECK(reply.results().size() == request.keys().size() / layout.hash_bytes);
  } else if (!request.sums().empty()) {
    CheckSums(request, reply);
  }
  reached.stored += reply.stored();
}

// Where every sum of a block is wrong, neither it nor what follows is stored; where all are right,
// nothing fails, because clients fill with nothing but the bytes of the key.
void MethodsHarness::Impl::CheckSums(const v1::CommitRequest& request,
                                     const v1::CommitReply& reply) {
  const auto reserved = std::find_if(
      reservations_.begin(), reservations_.end(),
      [&request](const Reserved& known) { return known.id == request.reservation_id(); });
  if (reserved == reservations_.end()) return;  // Forgotten.
  const std::string right = SumsOf(*reserved, request.first_block(), reply.results().size());
  KVD_CHECK(request.sums().size() == right.size());
  const size_t parts = reserved->parts.size();
  bool may_fail = false;
  bool must_fail = false;
  for (size_t block = 0; block < reply.results().size(); ++block) {
    size_t wrong = 0;
    for (size_t i = block * parts; i < (block + 1) * parts; ++i) {
      wrong += UnpackAt<uint32_t>(request.sums(), i) != UnpackAt<uint32_t>(right, i);
    }
    may_fail |= wrong > 0;
    const auto result = static_cast<CommitResult>(reply.results()[block]);
    const bool stored = result == CommitResult::kCommitted || result == CommitResult::kParked;
    KVD_CHECK(result != CommitResult::kFailed || may_fail) << "right sums were refused";
    KVD_CHECK(!stored || (wrong < parts && !must_fail)) << "other bytes than were summed";
    must_fail |= result == CommitResult::kFailed;
    reached.sums_differ += result == CommitResult::kFailed;
  }
}

void MethodsHarness::Impl::Audit() const {
  const Residency& index = store_.residency();
  const Residency::AuditResult audit = index.Audit(1, index.max_blocks());
  KVD_CHECK(audit.errors == 0) << audit.first_error;
  KVD_CHECK(audit.stranded == 0);
  KVD_CHECK(arena_->reserved_bytes() <= arena_->capacity_bytes());
  KVD_CHECK(control_.holds().total_bytes() <= limits_.session_hold_bytes * 64);
}

void MethodsHarness::Impl::Finish() {
  control_.EndWaits();
  for (int round = 0; round < 100; ++round) {
    control_.Poll();
    Resume();
    mover_.CompleteAll();
  }
  KVD_CHECK(calls_.empty()) << "a call waits although all waits were ended";
  CheckHolds();
  for (Client& client : clients_) {
    if (!client.ended) inbox_.Post(SessionEnded{client.serial});
    if (!client.exited) inbox_.Post(ProcessExited{client.serial});
  }
  for (int round = 0; round < 10; ++round) {
    control_.Poll();
    while (!copies_.empty()) EndCopy();
    mover_.CompleteAll();
    clock_.Advance(Nanos{kMaxPinMs} * kMillisecond);
  }
  KVD_CHECK(control_.sessions() == 0);
  KVD_CHECK(control_.reservations() == 0);
  KVD_CHECK(board_.copying() == 0);
  KVD_CHECK(control_.leases() == 0 && control_.pins() == 0);
  KVD_CHECK(control_.holds().total_extents() == 0 && control_.holds().total_bytes() == 0);
  Audit();
  KVD_CHECK(store_.residency().counts().quarantined_parts == 0);
  // Nothing keeps anything any more: all of it can leave.
  while (store_.residency().EvictNext()) {
  }
  KVD_CHECK(store_.residency().counts().used == 0) << store_.residency().counts().used;
  KVD_CHECK(store_.residency().counts().parts == 0);
  KVD_CHECK(arena_->reserved_bytes() == 0);
  Audit();
}

MethodsHarness::MethodsHarness() : impl_(std::make_unique<Impl>()) {}
MethodsHarness::~MethodsHarness() = default;
void MethodsHarness::Run(const uint8_t* data, size_t size) { impl_->Run(data, size); }
void MethodsHarness::Finish() { impl_->Finish(); }
const MethodsHarness::Reached& MethodsHarness::reached() const { return impl_->reached; }

}  // namespace kvd
