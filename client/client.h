// The C++ client of kvd: what an inference engine links.
//
//   kvd::Client client({.endpoint = "unix:/run/kvd/kvd.sock"});
//   absl::StatusOr<kvd::Namespace> ns = client.RegisterNamespace(descriptor, deadline);
//   kvd::PutResult put = client.Put(*ns, keys, sources, {});
//   kvd::GetResult got = client.Get(*ns, keys, targets, {});     // copied and verified
//   kvd::LookupResult hit = client.Lookup(*ns, keys, {.lease = absl::Seconds(30)});
//   absl::StatusOr<kvd::PinResult> pin = client.Pin(*ns, last_key, {.owner = "system-prompts"});
//
// It never throws and never blocks past the deadline of a call. It reconnects by itself, at most
// once in Options::reconnect_interval and always within the deadline of some call. While the daemon
// is away every call is a prompt miss: the answer says zero blocks, and `status` says why. A miss
// without trouble has an OK status.
//
// Threads: everything is safe from any thread. Calls of one client share one session; what the
// session gave (leases, holds) ends with it, and a later call opens another. One background thread
// gives back what is owed to the daemon when no call comes along to take it.
// Memory: keys are packed hashes (namespace's hash_bytes each, root first); targets and sources are
// the caller's, and are not touched after a call returned.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/types/block.h"
#include "proto/types/endpoint.h"
#include "proto/types/namespace_descriptor.h"
#include "proto/types/packed.h"

namespace kvd {

// Of a daemon on another host: PEM files. The identity in the certificate is who the daemon takes
// this client for.
struct ClientTls {
  std::string certificate;
  std::string key;
  std::string authority;    // Whoever it vouches for is believed to be the daemon.
  std::string server_name;  // That the daemon's certificate must have; empty: the host's.
};

struct ClientOptions {
  // As the daemon's --listen. "tcp:HOST:PORT" (its --tcp, with `tls`) and "stream:unix:PATH" (the
  // PATH of its --listen) use no shared memory: bytes are streamed, and Load is refused.
  std::string endpoint = FindEndpoint();
  ClientTls tls;
  absl::Duration timeout = absl::Milliseconds(1000);  // Of a call that names none.
  absl::Duration reconnect_interval = absl::Milliseconds(100);
  uint64_t staging_bytes = 16u << 20;  // Memory for puts, at most 16 MiB.
  std::string copy_loop;               // Empty: calibrate, once in a process.
  // How long a get or a lookup looks for its answer before the thread sleeps: it saves being woken
  // up, which takes tens of microseconds where idle CPUs sleep deeply, and costs as much CPU time.
  // Worth 60 us where the caller has a CPU for itself; only the engine knows whether it has.
  absl::Duration spin = absl::ZeroDuration();
};

// A namespace as this client knows it. It stays good across reconnects. A plain value.
struct Namespace {
  uint32_t index = 0;  // Of the client's table; not the daemon's number.
  uint32_t hash_bytes = kMaxHashBytes;
  std::vector<PartId> parts;         // Of one block, in the order of groups, then shards.
  std::vector<uint32_t> part_bytes;  // Of each of them.
};

struct LookupOptions {
  absl::Duration timeout = absl::ZeroDuration();  // Zero: the client's.
  absl::Duration lease = absl::ZeroDuration();    // Zero: none.
  std::string_view parent;                        // Hash before the first key, or empty.
};

struct LookupResult {
  absl::Status status;       // Why it is a miss, when something is wrong.
  uint32_t hit_blocks = 0;   // Longest prefix that every group can serve.
  uint64_t lease_id = 0;     // 0: none. End it by ReleaseLease(), or let it run out.
  absl::Duration load_time;  // The daemon's estimate.
  // Blocks of the prefix by the coldest tier of their parts, at the numbers of the wire's Tier.
  std::array<uint32_t, 8> tier_blocks{};
};

// Extents of a prefix, held until this object goes. Move-only. Reading them in place is as safe as
// copying, once Verify() said so. The bytes stay good when the session ends, the daemon dies or the
// client is destroyed: the memory stays mapped, and a daemon does not reuse room that a living
// process holds.
class LoadedChain {
 public:
  LoadedChain() noexcept;  // Holds nothing.
  LoadedChain(LoadedChain&& other) noexcept;
  LoadedChain& operator=(LoadedChain&& other) noexcept;
  ~LoadedChain();  // Ends the hold; the release rides on a later call.

  uint32_t blocks() const { return blocks_; }
  uint32_t parts() const { return parts_; }
  // The bytes of one part (of its range, when one was asked for), in the daemon's memory,
  // read-only. Empty: the part is not there.
  absl::Span<const std::byte> part(uint32_t block, uint32_t part) const;
  // Whether the bytes are what was committed; reads the whole part, also where a range was asked
  // for, because its sum covers all of it. A damaged part is reported with the release, and must be
  // treated as a miss.
  bool Verify(uint32_t block, uint32_t part);
  // Copies a part and verifies it in the same pass. False: damaged, not there, or of another size
  // than `target`, which holds garbage then.
  bool CopyTo(uint32_t block, uint32_t part, absl::Span<std::byte> target);

 private:
  friend class Client;
  struct Impl;
  LoadedChain(std::unique_ptr<Impl> impl, uint32_t blocks, uint32_t parts);
  std::unique_ptr<Impl> impl_;
  uint32_t blocks_ = 0;
  uint32_t parts_ = 0;
};

struct LoadOptions {
  absl::Duration timeout = absl::ZeroDuration();
  std::vector<PartId> parts;  // Empty: all of the namespace.
  uint32_t range_offset = 0;  // Bytes into every part; below the size of each of them.
  uint32_t range_bytes = 0;   // From there, as far as the part goes. 0: to its end.
};

struct LoadResult {
  absl::Status status;
  LoadedChain chain;  // blocks() may be fewer than asked: a miss, or too many bytes held.
};

struct GetOptions {
  absl::Duration timeout = absl::ZeroDuration();
  std::vector<PartId> parts;                    // Empty: all of the namespace.
  absl::Duration lease = absl::ZeroDuration();  // Zero: none.
  std::string_view parent;                      // Hash before the first key, or empty.
  // Copied of the list, from its start; 0: all. The rest of it still says how deep the caller means
  // to read: what only a shorter prefix would need, of a window or a state, may be missing.
  uint32_t max_blocks = 0;
};

struct GetResult {
  absl::Status status;
  uint32_t hit_blocks = 0;  // What the lookup found.
  // Copied and verified, from the start of the list. What every group needs at that depth is there;
  // a part of a window or a state that is not needed may be missing, and its target untouched.
  uint32_t blocks = 0;
  uint32_t damaged = 0;  // Parts that did not verify; `blocks` ends before the first that counts.
  uint64_t lease_id = 0;
};

struct PutOptions {
  absl::Duration timeout = absl::ZeroDuration();
  std::string_view parent;    // Hash before the first key; empty: the first key is a root.
  std::vector<PartId> parts;  // Those that this caller brings; empty: all.
  absl::Duration wait = absl::ZeroDuration();  // For blocks that others are producing.
  // What cache-aware routers are told of each block, in the form of proto/types/announcement.h:
  // none, or one for each; empty of one: nothing.
  absl::Span<const std::string> announce;
};

struct PutResult {
  absl::Status status;
  std::vector<CommitResult> results;  // One a block; short when status is not OK.
  uint32_t stored = 0;                // Made visible by this call.
  uint32_t present = 0;               // Were there, or are being produced by somebody else.
};

struct PinOptions {
  absl::Duration timeout = absl::ZeroDuration();
  std::string owner;
  uint64_t budget_bytes = UINT64_MAX;
  absl::Duration ttl = absl::Hours(1);
};

struct PinResult {
  uint64_t pin_id = 0;
  uint32_t blocks = 0;
  uint64_t bytes = 0;
};

// Counters of one client, since it was made.
struct ClientStats {
  uint64_t calls = 0;
  uint64_t failed_calls = 0;
  uint64_t reconnects = 0;     // Sessions after the first.
  uint64_t damaged_parts = 0;  // Did not verify, and were reported.
  uint64_t bad_extents = 0;    // Lay outside their region, or could not be checked: misses.
  uint64_t dropped_releases = 0;
  uint64_t own_bytes = 0;  // Stored straight from adopted memory, without a copy on this side.
};

class Client {
 public:
  // Never fails and does not connect: the first call does. The first client of a process calibrates
  // the copy loops, which takes some milliseconds.
  explicit Client(ClientOptions options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // The one call whose failure is an error: kInvalidArgument names the field, kUnavailable means
  // that the daemon is away now. The namespace is registered anew after each reconnect.
  absl::StatusOr<Namespace> RegisterNamespace(const NamespaceDescriptor& descriptor,
                                              absl::Duration timeout = absl::ZeroDuration());

  // The longest stored prefix of up to 32,768 keys.
  LookupResult Lookup(const Namespace& ns, std::string_view keys,
                      const LookupOptions& options = {});

  // Extents of up to 2,048 blocks, to be read in place or copied.
  LoadResult Load(const Namespace& ns, std::string_view keys, const LoadOptions& options = {});

  // Lookup, copy and verify in one round trip. `targets` are block by block, in the order of the
  // parts. Of a longer list, the first 2,048 blocks are copied (or as many as make 16,384 parts, or
  // max_blocks), and only they need targets. Blocks after result.blocks hold garbage.
  GetResult Get(const Namespace& ns, std::string_view keys,
                absl::Span<const absl::Span<std::byte>> targets, const GetOptions& options = {});

  // Stores what is missing of up to 2,048 blocks; `sources` as `targets` above. A put of at most
  // 256 KiB is one call; a larger one asks first, so that what is present is not copied (but for
  // at most 2 MiB at its start, which are staged while the answer is on its way).
  PutResult Put(const Namespace& ns, std::string_view keys,
                absl::Span<const absl::Span<const std::byte>> sources,
                const PutOptions& options = {});

  // Shows the daemon memory of the caller, so that a put whose sources all lie in it is not copied
  // on this side: the daemon reads them where they lie. `fd` is a memfd (it stays the caller's),
  // and `memory` where its first bytes are mapped with MAP_SHARED, until this client is gone. It
  // must be sealed against shrinking; one of huge pages also against new writable mappings
  // (F_SEAL_FUTURE_WRITE, after mapping it), and taken whole. Once in a client, and handed over
  // again after each reconnect; a daemon that does not take it then gets copies, as without it.
  //
  // The bytes of such a put must not change until it returns. If they do, each byte is stored as it
  // was at some time during the call, under the sum of what was stored: readers all get the same
  // bytes, and nothing tells them. What changes after Put() returned, with whatever status, is
  // never stored. A put of at most 256 KiB is copied all the same: that is quicker than to ask.
  //
  //   kInvalidArgument     says what is wrong with `fd` or `memory`
  //   kFailedPrecondition  adopted before, an endpoint without shared memory, or an older daemon
  //   kResourceExhausted   the daemon maps too much already
  //   kUnavailable         the daemon is away now
  // After an error nothing is adopted.
  absl::Status AdoptMemory(int fd, absl::Span<const std::byte> memory,
                           absl::Duration timeout = absl::ZeroDuration());

  void ReleaseLease(uint64_t lease_id);                               // Rides on a later call.
  absl::Status Flush(absl::Duration timeout = absl::ZeroDuration());  // Sends releases now.

  absl::StatusOr<PinResult> Pin(const Namespace& ns, std::string_view key,
                                const PinOptions& options);
  absl::Status Unpin(uint64_t pin_id, absl::Duration timeout = absl::ZeroDuration());

  // OK when there is a session, opening one if need be. No call needs it first.
  absl::Status Connect(absl::Duration timeout = absl::ZeroDuration());

  // The loops that calibration chose, for a log line.
  const std::string& copy_loops() const;
  ClientStats stats() const;

 private:
  friend class LoadedChain;
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvd
