#include "tests/client/fake_daemon.h"

#include <fcntl.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

constexpr uint32_t kRegion = 7;

UniqueFd MakeMemory(uint64_t size) {
  UniqueFd fd(memfd_create("fake", MFD_CLOEXEC));
  KVD_CHECK(fd.get() >= 0 && ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

UniqueFd ReopenReadOnly(const UniqueFd& fd) {
  return UniqueFd(open(absl::StrCat("/proc/self/fd/", fd.get()).c_str(), O_RDONLY | O_CLOEXEC));
}

void SendWithFds(int fd, const void* data, size_t size, const std::vector<int>& fds) {
  iovec bytes{const_cast<void*>(data), size};
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  (void)!sendmsg(fd, &message, MSG_NOSIGNAL);
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "kvd-XXXXXX").string();
  KVD_CHECK(mkdtemp(name.data()) != nullptr);
  path_ = name;
}
TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

FakeDaemon::FakeDaemon(const std::string& path, uint64_t region_bytes)
    : region_bytes_(region_bytes),
      path_(path),
      copier_({.loop = "", .calibration_bytes = 0}),
      listener_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)),
      arena_fd_(MakeMemory(region_bytes)),
      short_fd_(MakeMemory(4096)),
      arena_(*Mapping::Map(arena_fd_.get(), region_bytes, Mapping::Access::kReadWrite)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string session_path = path + ".session";
  KVD_CHECK(session_path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, session_path.data(), session_path.size());
  unlink(session_path.c_str());
  KVD_CHECK(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  KVD_CHECK(listen(listener_.get(), 16) == 0);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  KVD_CHECK(server_ != nullptr);
  acceptor_ = std::thread([this] { Accept(); });
}

FakeDaemon::~FakeDaemon() {
  stopping_ = true;
  shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  HangUp();
  Resume();  // Also makes those who wait look at stopping_.
  server_->Shutdown(std::chrono::system_clock::now());
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mu_);
    threads = std::move(session_threads_);
  }
  for (std::thread& thread : threads) thread.join();
  unlink((path_ + ".session").c_str());
}

FakeDaemon::Seen FakeDaemon::seen() const {
  absl::MutexLock lock(&mu_);
  return seen_;
}

bool FakeDaemon::WaitUntilSeen(const std::function<bool(const Seen&)>& condition,
                               absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  const auto holds = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return condition(seen_); };
  return mu_.AwaitWithTimeout(absl::Condition(&holds), timeout);
}

void FakeDaemon::Damage(const std::string& key, uint32_t part) {
  absl::MutexLock lock(&mu_);
  const Part& stored = blocks_.at(key).parts.at(part);
  arena_.data()[stored.offset + stored.length / 2] ^= std::byte{4};
}

void FakeDaemon::HangUp() {
  absl::MutexLock lock(&mu_);
  for (auto& session : sessions_) {
    session->token.clear();
    shutdown(session->socket.get(), SHUT_RDWR);
    for (auto& staging : session->stagings) shutdown(staging->channel.get(), SHUT_RDWR);
  }
}

void FakeDaemon::ForgetSessions() {
  absl::MutexLock lock(&mu_);
  for (auto& session : sessions_) session->token.clear();
}

void FakeDaemon::Pause() {
  absl::MutexLock lock(&mu_);
  paused_ = true;
}
void FakeDaemon::Resume() {
  absl::MutexLock lock(&mu_);
  paused_ = false;
}

uint64_t FakeDaemon::holds() const {
  absl::MutexLock lock(&mu_);
  return holds_.size();
}

// ---- the session socket -------------------------------------------------------------------------

void FakeDaemon::Accept() {
  while (!stopping_) {
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.get() < 0) return;
    absl::MutexLock lock(&mu_);
    sessions_.push_back(std::make_unique<FakeSession>());
    FakeSession* session = sessions_.back().get();
    session->socket = std::move(socket);
    session_threads_.emplace_back([this, session] { Serve(*session); });
  }
}

void FakeDaemon::Serve(FakeSession& session) {
  std::array<char, 64> message;
  const int fd = session.socket.get();
  while (!stopping_) {
    std::vector<UniqueFd> fds;
    absl::StatusOr<size_t> size =
        ReceiveMessage(fd, message.data(), message.size(), fds, absl::InfiniteFuture());
    if (!size.ok()) return;
    if (faults_.silent_socket) continue;
    if (*size == sizeof(SessionHello)) {
      SessionHello hello;
      std::memcpy(&hello, message.data(), sizeof(hello));
      SessionWelcome welcome;
      welcome.version = faults_.welcome_version;
      absl::MutexLock lock(&mu_);
      const uint64_t id = ++next_id_;
      std::memcpy(welcome.token.data(), &id, sizeof(id));
      session.token.assign(reinterpret_cast<const char*>(welcome.token.data()), 16);
      ++seen_.sessions;
      if (hello.finished_session != SessionToken{}) {
        seen_.finished_sessions.push_back(hello.finished_session);
      }
      (void)!send(fd, &welcome, sizeof(welcome), MSG_NOSIGNAL);
    } else if (*size == sizeof(RegionRequest)) {
      RegionRequest request;
      std::memcpy(&request, message.data(), sizeof(request));
      RegionReply reply;
      reply.region = request.region;
      reply.size_bytes = region_bytes_;
      const UniqueFd shared = ReopenReadOnly(faults_.short_regions ? short_fd_ : arena_fd_);
      SendWithFds(fd, &reply, sizeof(reply), {shared.get()});
    } else if (*size == sizeof(StagingRequest)) {
      StagingRequest request;
      std::memcpy(&request, message.data(), sizeof(request));
      GiveStaging(session, request, fds.empty() ? UniqueFd() : std::move(fds[0]));
    }
  }
}

void FakeDaemon::GiveStaging(FakeSession& session, const StagingRequest& request,
                             const UniqueFd& own) {
  StagingReply reply;
  if (request.own != 0 && faults_.refuses_own_memory) {
    reply.status = SessionStatus::kInvalid;
    (void)!send(session.socket.get(), &reply, sizeof(reply), MSG_NOSIGNAL);
    return;
  }
  const UniqueFd made = request.own != 0 ? UniqueFd() : MakeMemory(request.size_bytes);
  const int memory = request.own != 0 ? own.get() : made.get();
  int channel[2];
  KVD_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) == 0);
  const UniqueFd theirs(channel[1]);
  auto staging = std::make_unique<FakeStaging>();
  staging->channel = UniqueFd(channel[0]);
  staging->own = request.own != 0;
  staging->memory = *Mapping::Map(memory, request.size_bytes, Mapping::Access::kRead);
  {
    absl::MutexLock lock(&mu_);
    seen_.own_memories += staging->own;
    session_threads_.emplace_back([this, &staging = *staging] { CopyFills(staging); });
    session.stagings.push_back(std::move(staging));
  }
  reply.size_bytes = request.size_bytes;
  if (request.own != 0) {
    SendWithFds(session.socket.get(), &reply, sizeof(reply), {theirs.get()});
  } else {
    SendWithFds(session.socket.get(), &reply, sizeof(reply), {memory, theirs.get()});
  }
}

void FakeDaemon::CopyFills(FakeStaging& staging) {
  std::array<FillRequest, kMaxFillsPerMessage> fills;
  std::vector<UniqueFd> no_fds;
  const int fd = staging.channel.get();
  while (!stopping_) {
    absl::StatusOr<size_t> size =
        ReceiveMessage(fd, fills.data(), sizeof(fills), no_fds, absl::InfiniteFuture());
    if (!size.ok()) return;
    {
      absl::MutexLock lock(&mu_);
      ++seen_.fill_messages;
    }
    if (faults_.silent_copier) continue;
    for (size_t i = 0; i < *size / sizeof(FillRequest); ++i) {
      const FillReply reply = FillOne(staging, fills[i]);
      (void)!send(fd, &reply, sizeof(reply), MSG_NOSIGNAL);
    }
  }
}

FillReply FakeDaemon::FillOne(const FakeStaging& staging, const FillRequest& fill) {
  FillReply reply;
  reply.index = fill.index;
  std::byte* target = nullptr;
  {
    absl::MutexLock lock(&mu_);
    seen_.fills_of_own += staging.own;
    seen_.longest_fill = std::max(seen_.longest_fill, fill.length);
    auto found = reservations_.find(fill.reservation_id);
    if (found == reservations_.end() || faults_.refuses_fills) {
      reply.status = FillStatus::kGone;
      return reply;
    }
    Reservation& reservation = found->second;
    const size_t parts = reservation.part_indexes.size();
    if (fill.index >= reservation.filled.size() || !reservation.granted[fill.index / parts] ||
        fill.staging_offset + fill.length > staging.memory.size()) {
      reply.status = FillStatus::kInvalid;
      return reply;
    }
    Part& part = reservation.filled[fill.index];
    const uint32_t bytes = reservation.part_bytes[fill.index % parts];
    if (fill.part_offset != part.filled || fill.length == 0 || fill.length > bytes - part.filled) {
      reply.status = FillStatus::kInvalid;
      return reply;
    }
    if (part.filled == 0) part.offset = Allocate(bytes);
    target = arena_.data() + part.offset + part.filled;
  }
  reply.sum =
      copier_.CopySum(absl::MakeSpan(target, fill.length),
                      {staging.memory.data() + fill.staging_offset, fill.length}, CopyUse::kMemory);
  if (faults_.wrong_sums) ++reply.sum;  // As if the bytes had changed before they were copied.
  absl::MutexLock lock(&mu_);
  auto found = reservations_.find(fill.reservation_id);
  if (found == reservations_.end()) return reply;
  Part& part = found->second.filled[fill.index];
  part.sum = part.filled == 0 ? reply.sum : Crc32cConcat(part.sum, reply.sum, fill.length);
  part.filled += fill.length;
  const uint32_t bytes = found->second.part_bytes[fill.index % found->second.part_indexes.size()];
  if (part.filled == bytes) part.length = bytes;
  return reply;
}

// ---- the calls ----------------------------------------------------------------------------------

grpc::Status FakeDaemon::Enter(const char* name, const std::string& session) {
  absl::MutexLock lock(&mu_);
  ++seen_.calls[name];
  const auto may_answer = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return stopping_ || (!paused_ && !faults_.never_answers);
  };
  mu_.Await(absl::Condition(&may_answer));
  for (const auto& known : sessions_) {
    if (!known->token.empty() && known->token == session) return grpc::Status::OK;
  }
  return {grpc::StatusCode::UNAUTHENTICATED, "no such session"};
}

grpc::Status FakeDaemon::RegisterNamespace(Context*, const v1::RegisterNamespaceRequest* request,
                                           v1::RegisterNamespaceReply* reply) {
  if (grpc::Status status = Enter("RegisterNamespace", request->session()); !status.ok()) {
    return status;
  }
  absl::MutexLock lock(&mu_);
  ++seen_.registered;
  namespaces_.push_back(request->describes());
  reply->set_namespace_id(static_cast<uint32_t>(namespaces_.size() - 1));
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Lookup(Context*, const v1::LookupRequest* request,
                                v1::LookupReply* reply) {
  if (grpc::Status status = Enter("Lookup", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  TakeReleases(request->releases());
  const std::vector<std::string> keys = Split(request->namespace_id(), request->keys());
  uint32_t hit = 0;
  while (hit < keys.size() && blocks_.count(keys[hit]) != 0) ++hit;
  reply->set_hit_blocks(hit);
  if (hit > 0 && request->lease_ms() > 0) {
    reply->set_lease(v1::LEASE_GRANTED);
    reply->set_lease_id(++next_id_);
  }
  const uint32_t blocks = std::min(hit, request->extent_blocks());
  if (blocks == 0) return grpc::Status::OK;
  reply->set_extent_blocks(blocks);
  reply->set_extents(Extents(request->namespace_id(), keys, blocks, request->parts()));
  reply->set_hold_id(++next_id_);
  holds_.insert(reply->hold_id());
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Load(Context*, const v1::LoadRequest* request, v1::LoadReply* reply) {
  if (grpc::Status status = Enter("Load", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  TakeReleases(request->releases());
  const std::vector<std::string> keys = Split(request->namespace_id(), request->keys());
  uint32_t blocks = 0;
  while (blocks < keys.size() && blocks_.count(keys[blocks]) != 0) ++blocks;
  reply->set_blocks(blocks);
  reply->set_outcome(blocks == keys.size() ? v1::LOAD_COMPLETE : v1::LOAD_MISS);
  if (blocks == 0) return grpc::Status::OK;
  reply->set_extents(Extents(request->namespace_id(), keys, blocks, request->parts()));
  reply->set_hold_id(++next_id_);
  holds_.insert(reply->hold_id());
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Release(Context*, const v1::ReleaseRequest* request,
                                 v1::ReleaseReply* reply) {
  if (grpc::Status status = Enter("Release", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  TakeReleases(request->releases());
  reply->set_released(static_cast<uint32_t>(request->releases().hold_ids_size()));
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Reserve(Context*, const v1::ReserveRequest* request,
                                 v1::ReserveReply* reply) {
  if (grpc::Status status = Enter("Reserve", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  TakeReleases(request->releases());
  Reservation reservation;
  reservation.keys = Split(request->namespace_id(), request->keys());
  reservation.part_indexes = PartIndexes(request->namespace_id(), request->parts());
  const std::vector<uint32_t> all = PartIndexes(request->namespace_id(), "");
  reservation.parts_of_block = all.size();
  const auto& groups = namespaces_[request->namespace_id()].groups();
  std::vector<uint32_t> bytes;
  for (const v1::Group& group : groups)
    bytes.insert(bytes.end(), group.shards(), group.part_bytes());
  for (uint32_t part : reservation.part_indexes) reservation.part_bytes.push_back(bytes[part]);
  std::string states;
  for (const std::string& key : reservation.keys) {
    const bool present = blocks_.count(key) != 0;
    reservation.granted.push_back(!present);
    states.push_back(static_cast<char>(present ? ReserveState::kPresent : ReserveState::kGranted));
  }
  reservation.filled.resize(reservation.keys.size() * reservation.part_indexes.size());
  const auto granted = std::count(reservation.granted.begin(), reservation.granted.end(), true);
  reply->set_states(states);
  reply->set_granted(static_cast<uint32_t>(granted));
  reply->set_expires_ms(10'000);
  if (granted == 0) return grpc::Status::OK;
  reply->set_reservation_id(++next_id_);
  reservations_[reply->reservation_id()] = std::move(reservation);
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Commit(Context*, const v1::CommitRequest* request,
                                v1::CommitReply* reply) {
  if (grpc::Status status = Enter("Commit", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  TakeReleases(request->releases());
  std::string results;
  uint32_t stored = 0;
  Reservation reservation;
  if (request->reservation_id() != 0) {
    auto found = reservations_.find(request->reservation_id());
    if (found == reservations_.end()) return {grpc::StatusCode::NOT_FOUND, "reservation_id"};
    // It may have overtaken fills.
    const auto filled = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      found = reservations_.find(request->reservation_id());
      if (stopping_ || found == reservations_.end()) return true;
      const std::vector<Part>& parts = found->second.filled;
      return std::count_if(parts.begin(), parts.end(),
                           [](const Part& part) { return part.length > 0; }) >= request->fills();
    };
    mu_.Await(absl::Condition(&filled));
    if (found == reservations_.end()) return {grpc::StatusCode::NOT_FOUND, "reservation_id"};
    reservation = std::move(found->second);
    reservations_.erase(found);
  } else {
    const std::vector<uint32_t> all = PartIndexes(request->namespace_id(), "");
    reservation.keys = Split(request->namespace_id(), request->keys());
    reservation.part_indexes = PartIndexes(request->namespace_id(), request->parts());
    reservation.parts_of_block = all.size();
    for (const std::string& key : reservation.keys) {
      reservation.granted.push_back(blocks_.count(key) == 0);
    }
    FakeSession* session = nullptr;
    for (auto& known : sessions_) {
      if (known->token == request->session()) session = known.get();
    }
    for (size_t i = 0; i < request->staged().size() / sizeof(PackedStaged); ++i) {
      const PackedStaged staged = UnpackAt<PackedStaged>(request->staged(), i);
      Part part{Allocate(staged.length), staged.length, 0};
      part.sum =
          copier_.CopySum(absl::MakeSpan(arena_.data() + part.offset, part.length),
                          {session->stagings.at(0)->memory.data() + staged.offset, staged.length},
                          CopyUse::kMemory);
      reservation.filled.push_back(part);
    }
  }
  const size_t parts = reservation.part_indexes.size();
  for (size_t block = 0; block < reservation.keys.size(); ++block) {
    CommitResult result = CommitResult::kPresent;
    if (reservation.granted[block] && blocks_.count(reservation.keys[block]) == 0) {
      Block made;
      made.parts.resize(reservation.parts_of_block);
      result = CommitResult::kCommitted;
      for (size_t i = 0; i < parts; ++i) {
        const Part& part = reservation.filled[block * parts + i];
        made.parts[reservation.part_indexes[i]] = part;
        if (part.length == 0) {
          result = CommitResult::kNotFilled;
        } else if (!request->sums().empty() &&
                   UnpackAt<uint32_t>(request->sums(), block * parts + i) != part.sum) {
          result = CommitResult::kFailed;
        }
      }
      if (result == CommitResult::kCommitted) {
        blocks_[reservation.keys[block]] = std::move(made);
        ++stored;
      }
    }
    results.push_back(static_cast<char>(result));
  }
  reply->set_results(results);
  reply->set_stored(stored);
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Abort(Context*, const v1::AbortRequest* request, v1::AbortReply*) {
  if (grpc::Status status = Enter("Abort", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  reservations_.erase(request->reservation_id());
  seen_.aborted.insert(request->reservation_id());
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Pin(Context*, const v1::PinRequest* request, v1::PinReply* reply) {
  if (grpc::Status status = Enter("Pin", request->session()); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  if (blocks_.count(request->key()) == 0) return {grpc::StatusCode::NOT_FOUND, "key"};
  reply->set_pin_id(++next_id_);
  reply->set_blocks(1);
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Unpin(Context*, const v1::UnpinRequest* request, v1::UnpinReply*) {
  return Enter("Unpin", request->session());
}

// ---- what the calls share -----------------------------------------------------------------------

void FakeDaemon::TakeReleases(const v1::Releases& releases) {
  for (const v1::Damage& damage : releases.damaged()) {
    seen_.damaged[damage.hold_id()] = {damage.extents().begin(), damage.extents().end()};
  }
  for (uint64_t hold_id : releases.hold_ids()) {
    seen_.released_holds.insert(hold_id);
    holds_.erase(hold_id);
  }
  seen_.released_leases.insert(releases.lease_ids().begin(), releases.lease_ids().end());
}

std::string FakeDaemon::Extents(uint32_t namespace_id, const std::vector<std::string>& keys,
                                uint32_t blocks, const std::string& parts) {
  std::string packed;
  for (uint32_t block = 0; block < blocks; ++block) {
    for (uint32_t index : PartIndexes(namespace_id, parts)) {
      const Part& part = blocks_.at(keys[block]).parts.at(index);
      PackedExtent extent;
      extent.region = kRegion;
      extent.offset = faults_.extents_out_of_bounds ? region_bytes_ - part.length + 1 : part.offset;
      extent.stored_length = extent.length = part.length;
      extent.sum_algorithm = kSumCrc32c;
      extent.sum = part.sum;
      packed.append(reinterpret_cast<const char*>(&extent), sizeof(extent));
    }
  }
  if (faults_.half_the_extents) packed.resize(packed.size() / 2);
  return packed;
}

std::vector<std::string> FakeDaemon::Split(uint32_t namespace_id, const std::string& keys) const {
  const uint32_t hash_bytes = namespaces_[namespace_id].hash_bytes();
  std::vector<std::string> split;
  for (size_t at = 0; at < keys.size(); at += hash_bytes) {
    split.push_back(keys.substr(at, hash_bytes));
  }
  return split;
}

std::vector<uint32_t> FakeDaemon::PartIndexes(uint32_t namespace_id,
                                              const std::string& parts) const {
  std::vector<uint32_t> indexes;
  uint32_t index = 0;
  std::map<std::pair<uint8_t, uint8_t>, uint32_t> known;
  const v1::NamespaceDescriptor& descriptor = namespaces_[namespace_id];
  for (int group = 0; group < descriptor.groups_size(); ++group) {
    for (uint32_t shard = 0; shard < descriptor.groups(group).shards(); ++shard) {
      if (parts.empty()) indexes.push_back(index);
      known[{static_cast<uint8_t>(group), static_cast<uint8_t>(shard)}] = index++;
    }
  }
  for (size_t i = 0; i + 1 < parts.size(); i += 2) {
    indexes.push_back(
        known.at({static_cast<uint8_t>(parts[i]), static_cast<uint8_t>(parts[i + 1])}));
  }
  return indexes;
}

uint64_t FakeDaemon::Allocate(uint32_t length) {
  if (next_offset_ + length > region_bytes_) next_offset_ = 0;  // Tests do not read that far back.
  const uint64_t offset = next_offset_;
  next_offset_ += (length + 4095) / 4096 * 4096;
  return offset;
}

}  // namespace kvd
