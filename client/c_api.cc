// The C interface over kvd::Client: arguments checked and converted, results written, exceptions
// kept inside. It adds no state but the text of a thread's last error.

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/async_lookup.h"
#include "client/c_structs.h"
#include "client/client.h"
#include "client/kvd.h"
#include "proto/types/limits.h"

struct kvd_client {
  explicit kvd_client(kvd::ClientOptions options) : client(std::move(options)) {}
  ~kvd_client() { lookups->Stop(); }

  kvd::Client client;
  // Shared with what it started. Stopped first, while the client is there.
  const std::shared_ptr<kvd::AsyncLookups> lookups = std::make_shared<kvd::AsyncLookups>(client);
  uint64_t serial = 0;  // Of all clients of this process.
  uint32_t forks = 0;   // Those that this process had gone through.
};

struct kvd_namespace {
  kvd::Namespace value;
  uint64_t client = 0;  // The serial of the one that knows it.
};

struct kvd_chain {
  kvd::LoadedChain chain;
  uint32_t forks = 0;
};

struct kvd_pending {
  std::shared_ptr<kvd::AsyncLookups> lookups;
  kvd::AsyncLookups::Ticket ticket;
  uint32_t forks = 0;
};

namespace {

using absl::InvalidArgumentError;
using absl::StrCat;
using kvd::ReadStruct;
using kvd::ResultOf;

constexpr uint64_t kMaxSpinUs = 10'000;  // Beyond this a sleep costs nothing beside it.

// A buffer, not a std::string: telling of an error must not fail, nor run at the end of a thread.
constexpr size_t kMessageBytes = 512;
thread_local char last_message[kMessageBytes] = "";

// Counters.
std::atomic<uint64_t> clients_made{0};
// Forks between this process and the one that loaded the library. Written before the child has a
// second thread.
std::atomic<uint32_t> forks{0};

kvd_status Tell(const absl::Status& status) noexcept {
  if (status.ok()) return KVD_OK;
  const absl::string_view text = status.message();
  const size_t size = std::min(text.size(), kMessageBytes - 1);
  std::memcpy(last_message, text.data(), size);
  last_message[size] = '\0';
  return static_cast<kvd_status>(status.code());
}

// Runs `call`, which returns a status, and keeps every exception.
template <typename Callable>
kvd_status Guarded(Callable call) noexcept {
  try {
    return Tell(call());
  } catch (const std::bad_alloc&) {
    std::strcpy(last_message, "out of memory");
    return KVD_RESOURCE_EXHAUSTED;
  } catch (const std::exception& error) {
    std::strncpy(last_message, error.what(), kMessageBytes - 1);
    return KVD_INTERNAL;
  } catch (...) {
    std::strcpy(last_message, "an exception of an unknown kind");
    return KVD_INTERNAL;
  }
}

// ---- arguments ----------------------------------------------------------------------------------

// Far beyond every bound of the daemon, and short enough to be added to a time.
constexpr uint64_t kForeverUs = uint64_t{365} * 24 * 3600 * 1'000'000;

absl::Duration Microseconds(uint64_t us) {
  return absl::Microseconds(static_cast<int64_t>(std::min(us, kForeverUs)));
}

std::string_view Text(const char* text) { return text == nullptr ? "" : text; }

absl::Status CheckClient(const kvd_client* client) {
  if (client == nullptr) return InvalidArgumentError("client: null");
  if (client->forks != forks.load(std::memory_order_relaxed)) {
    return absl::FailedPreconditionError(
        "client: made before fork(), which it does not survive; make one in the child");
  }
  return absl::OkStatus();
}

absl::Status CheckChain(const kvd_chain* chain) {
  if (chain == nullptr) return InvalidArgumentError("chain: null");
  if (chain->forks != forks.load(std::memory_order_relaxed)) {
    return absl::FailedPreconditionError("chain: loaded before fork(), by another process");
  }
  return absl::OkStatus();
}

// The start of every call about a namespace.
absl::Status CheckCall(const kvd_client* client, const kvd_namespace* ns) {
  if (absl::Status status = CheckClient(client); !status.ok()) return status;
  if (ns == nullptr) return InvalidArgumentError("ns: null");
  if (ns->client != client->serial) {
    return InvalidArgumentError("ns: registered by another client");
  }
  return absl::OkStatus();
}

// Bounds first: the product below must not overflow.
absl::Status ReadKeys(const kvd_namespace& ns, const void* keys, size_t blocks,
                      std::string_view& packed) {
  if (blocks > kvd::kMaxLookupBlocks) {
    return InvalidArgumentError(
        StrCat("blocks: ", blocks, " is more than ", kvd::kMaxLookupBlocks));
  }
  if (keys == nullptr && blocks != 0) return InvalidArgumentError("keys: null");
  packed = {static_cast<const char*>(keys), blocks * ns.value.hash_bytes};
  return absl::OkStatus();
}

std::string_view ReadParent(const kvd_namespace& ns, const void* parent) {
  if (parent == nullptr) return "";
  return {static_cast<const char*>(parent), ns.value.hash_bytes};
}

absl::Status ReadParts(const kvd_part* parts, size_t count, std::vector<kvd::PartId>& ids) {
  if (count > kvd::kMaxPartsPerBlock) {
    return InvalidArgumentError(
        StrCat("part_count: ", count, " is more than ", kvd::kMaxPartsPerBlock));
  }
  if (parts == nullptr && count != 0) return InvalidArgumentError("parts: null");
  for (size_t i = 0; i < count; ++i) ids.push_back({parts[i].group, parts[i].shard});
  return absl::OkStatus();
}

// As spans of Byte, from kvd_buffer or kvd_const_buffer.
template <typename Byte, typename Buffer>
absl::Status ReadBuffers(const Buffer* buffers, size_t count, const char* name,
                         std::vector<absl::Span<Byte>>& spans) {
  if (count > kvd::kMaxPageExtents) {
    return InvalidArgumentError(StrCat(name, ": ", count, " are more than ", kvd::kMaxPageExtents));
  }
  if (buffers == nullptr && count != 0) return InvalidArgumentError(StrCat(name, ": null"));
  spans.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (buffers[i].data == nullptr && buffers[i].size != 0) {
      return InvalidArgumentError(StrCat(name, "[", i, "].data: null"));
    }
    spans.emplace_back(static_cast<Byte*>(buffers[i].data), buffers[i].size);
  }
  return absl::OkStatus();
}

absl::Status ReadGroups(const kvd_namespace_descriptor& given,
                        std::vector<kvd::GroupDescriptor>& groups) {
  if (given.group_count > kvd::kMaxGroups) {
    return InvalidArgumentError(
        StrCat("group_count: ", given.group_count, " is more than ", kvd::kMaxGroups));
  }
  if (given.groups == nullptr && given.group_count != 0) {
    return InvalidArgumentError("groups: null");
  }
  for (size_t i = 0; i < given.group_count; ++i) {
    const kvd_group& group = given.groups[i];
    if (group.kind > KVD_GROUP_STATE) {
      return InvalidArgumentError(StrCat("groups[", i, "].kind: ", group.kind, " is no kind"));
    }
    groups.push_back(
        {.kind = static_cast<kvd::GroupKind>(std::max(group.kind, uint32_t{KVD_GROUP_FULL})),
         .window_tokens = group.window_tokens,
         .shards = group.shards == 0 ? 1 : group.shards,
         .block_tokens = group.block_tokens,
         .part_bytes = group.part_bytes});
  }
  return absl::OkStatus();
}

absl::Status ReadDescriptor(const kvd_namespace_descriptor* descriptor,
                            kvd::NamespaceDescriptor& known) {
  if (descriptor == nullptr) return InvalidArgumentError("descriptor: null");
  kvd_namespace_descriptor given;
  if (absl::Status status = ReadStruct(descriptor, "descriptor", given); !status.ok()) {
    return status;
  }
  known.model = Text(given.model);
  known.weights_revision = Text(given.weights_revision);
  known.kv_dtype = Text(given.kv_dtype);
  known.quantization = Text(given.quantization);
  known.page_layout = Text(given.page_layout);
  known.engine_family = Text(given.engine_family);
  known.draft_model = Text(given.draft_model);
  known.hash_algorithm = Text(given.hash_algorithm);
  known.hash_seed = Text(given.hash_seed);
  if (given.hash_bytes != 0) known.hash_bytes = given.hash_bytes;
  if (given.tensor_parallel != 0) known.tensor_parallel = given.tensor_parallel;
  if (given.pipeline_parallel != 0) known.pipeline_parallel = given.pipeline_parallel;
  if (given.context_parallel != 0) known.context_parallel = given.context_parallel;
  if (given.extra_count > kvd::kMaxExtra) {
    return InvalidArgumentError(
        StrCat("extra_count: ", given.extra_count, " is more than ", kvd::kMaxExtra));
  }
  if (given.extra == nullptr && given.extra_count != 0) return InvalidArgumentError("extra: null");
  for (size_t i = 0; i < given.extra_count; ++i) {
    const std::string name(Text(given.extra[i].name));
    if (!known.extra.emplace(name, Text(given.extra[i].value)).second) {
      return InvalidArgumentError(StrCat("extra[", i, "].name: \"", name, "\" is there twice"));
    }
  }
  return ReadGroups(given, known.groups);
}

// `count` must be what `blocks` blocks from `first` on have in parts.
absl::Status CheckRange(const kvd_chain& chain, uint32_t first, uint32_t blocks, const void* list,
                        size_t count) {
  const uint32_t there = chain.chain.blocks();
  if (first > there || blocks > there - first) {
    return absl::OutOfRangeError(StrCat("first_block: blocks ", first, " to ",
                                        uint64_t{first} + blocks, " of a chain of ", there));
  }
  const size_t parts = size_t{blocks} * chain.chain.parts();
  if (count != parts) {
    return InvalidArgumentError(
        StrCat("count: ", count, " for ", blocks, " blocks, which have ", parts, " parts"));
  }
  if (list == nullptr && count != 0) return InvalidArgumentError("a list is null");
  return absl::OkStatus();
}

// What the two ways to look up have in common.
absl::Status ReadLookup(const kvd_client* client, const kvd_namespace* ns, const void* keys,
                        size_t blocks, const kvd_lookup_options* options, std::string_view& packed,
                        kvd::LookupOptions& known) {
  if (absl::Status status = CheckCall(client, ns); !status.ok()) return status;
  kvd_lookup_options given;
  if (absl::Status status = ReadStruct(options, "options", given); !status.ok()) return status;
  known = {.timeout = Microseconds(given.timeout_us),
           .lease = Microseconds(given.lease_us),
           .parent = ReadParent(*ns, given.parent)};
  return ReadKeys(*ns, keys, blocks, packed);
}

absl::Status TellLookup(const kvd::LookupResult& found, ResultOf<kvd_lookup_result>& told) {
  told->hit_blocks = found.hit_blocks;
  told->lease_id = found.lease_id;
  told->load_time_us = static_cast<uint64_t>(absl::ToInt64Microseconds(found.load_time));
  static_assert(sizeof told->tier_blocks == sizeof found.tier_blocks);
  std::copy(found.tier_blocks.begin(), found.tier_blocks.end(), told->tier_blocks);
  return found.status;
}

absl::Status CheckPending(const kvd_pending* pending) {
  if (pending == nullptr) return InvalidArgumentError("pending: null");
  if (pending->forks != forks.load(std::memory_order_relaxed)) {
    return absl::FailedPreconditionError("pending: started before fork(), by another process");
  }
  return absl::OkStatus();
}

// Before the first client.
void NoticeForks() {
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  });
}

}  // namespace

// ---- status -------------------------------------------------------------------------------------

const char* kvd_error_message(void) { return last_message; }

const char* kvd_status_name(kvd_status status) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  if (status < 0 || static_cast<size_t>(status) >= std::size(kNames)) return "UNKNOWN";
  return kNames[status];
}

const char* kvd_version(void) { return KVD_VERSION; }

// ---- clients ------------------------------------------------------------------------------------

kvd_status kvd_client_create(const kvd_client_options* options, kvd_client** client) {
  return Guarded([&]() -> absl::Status {
    if (client == nullptr) return InvalidArgumentError("client: null");
    *client = nullptr;
    kvd_client_options given;
    if (absl::Status status = ReadStruct(options, "options", given); !status.ok()) return status;
    kvd::ClientOptions known;
    if (given.endpoint != nullptr) known.endpoint = given.endpoint;
    if (given.timeout_us != 0) known.timeout = Microseconds(given.timeout_us);
    if (given.reconnect_interval_us != 0) {
      known.reconnect_interval = Microseconds(given.reconnect_interval_us);
    }
    if (given.staging_bytes > kvd::kMaxStagingBytes) {
      return InvalidArgumentError(StrCat("options.staging_bytes: ", given.staging_bytes,
                                         " is more than ", kvd::kMaxStagingBytes));
    }
    if (given.staging_bytes != 0) known.staging_bytes = given.staging_bytes;
    known.copy_loop = Text(given.copy_loop);
    known.tls.certificate = Text(given.tls_certificate);
    known.tls.key = Text(given.tls_key);
    known.tls.authority = Text(given.tls_authority);
    known.tls.server_name = Text(given.tls_server_name);
    if (given.spin_us > kMaxSpinUs) {
      return InvalidArgumentError(
          StrCat("options.spin_us: ", given.spin_us, " is more than ", kMaxSpinUs));
    }
    known.spin = Microseconds(given.spin_us);
    NoticeForks();
    auto made = std::make_unique<kvd_client>(std::move(known));
    made->serial = clients_made.fetch_add(1, std::memory_order_relaxed) + 1;
    made->forks = forks.load(std::memory_order_relaxed);
    *client = made.release();
    return absl::OkStatus();
  });
}

void kvd_client_destroy(kvd_client* client) {
  // In a child its threads do not exist, and its locks may be held by them.
  if (!CheckClient(client).ok()) return;
  delete client;
}

kvd_status kvd_client_stats(const kvd_client* client, kvd_stats* stats) {
  return Guarded([&] {
    ResultOf known(stats);
    if (absl::Status status = known.Open("stats"); !status.ok()) return status;
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    const kvd::ClientStats counted = client->client.stats();
    known->calls = counted.calls;
    known->failed_calls = counted.failed_calls;
    known->reconnects = counted.reconnects;
    known->damaged_parts = counted.damaged_parts;
    known->bad_extents = counted.bad_extents;
    known->dropped_releases = counted.dropped_releases;
    return absl::OkStatus();
  });
}

const char* kvd_client_copy_loops(const kvd_client* client) {
  return client == nullptr ? nullptr : client->client.copy_loops().c_str();
}

kvd_status kvd_client_connect(kvd_client* client, uint64_t timeout_us) {
  return Guarded([&] {
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    return client->client.Connect(Microseconds(timeout_us));
  });
}

kvd_status kvd_flush(kvd_client* client, uint64_t timeout_us) {
  return Guarded([&] {
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    return client->client.Flush(Microseconds(timeout_us));
  });
}

// ---- namespaces ---------------------------------------------------------------------------------

kvd_status kvd_namespace_register(kvd_client* client, const kvd_namespace_descriptor* descriptor,
                                  uint64_t timeout_us, kvd_namespace** ns) {
  return Guarded([&]() -> absl::Status {
    if (ns == nullptr) return InvalidArgumentError("ns: null");
    *ns = nullptr;
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    kvd::NamespaceDescriptor known;
    if (absl::Status status = ReadDescriptor(descriptor, known); !status.ok()) return status;
    absl::StatusOr<kvd::Namespace> registered =
        client->client.RegisterNamespace(known, Microseconds(timeout_us));
    if (!registered.ok()) return registered.status();
    *ns = new kvd_namespace{.value = *std::move(registered), .client = client->serial};
    return absl::OkStatus();
  });
}

void kvd_namespace_destroy(kvd_namespace* ns) { delete ns; }

uint32_t kvd_namespace_hash_bytes(const kvd_namespace* ns) {
  return ns == nullptr ? 0 : ns->value.hash_bytes;
}

uint32_t kvd_namespace_parts(const kvd_namespace* ns) {
  return ns == nullptr ? 0 : static_cast<uint32_t>(ns->value.parts.size());
}

uint32_t kvd_namespace_part(const kvd_namespace* ns, uint32_t index, kvd_part* part) {
  if (index >= kvd_namespace_parts(ns)) return 0;
  if (part != nullptr) *part = {ns->value.parts[index].group, ns->value.parts[index].shard};
  return ns->value.part_bytes[index];
}

// ---- lookup -------------------------------------------------------------------------------------

kvd_status kvd_lookup(kvd_client* client, const kvd_namespace* ns, const void* keys, size_t blocks,
                      const kvd_lookup_options* options, kvd_lookup_result* result) {
  return Guarded([&] {
    ResultOf told(result);
    if (absl::Status status = told.Open("result"); !status.ok()) return status;
    std::string_view packed;
    kvd::LookupOptions known;
    absl::Status status = ReadLookup(client, ns, keys, blocks, options, packed, known);
    if (!status.ok()) return status;
    return TellLookup(client->client.Lookup(ns->value, packed, known), told);
  });
}

kvd_status kvd_lookup_start(kvd_client* client, const kvd_namespace* ns, const void* keys,
                            size_t blocks, const kvd_lookup_options* options,
                            kvd_pending** pending) {
  return Guarded([&]() -> absl::Status {
    if (pending == nullptr) return InvalidArgumentError("pending: null");
    *pending = nullptr;
    std::string_view packed;
    kvd::LookupOptions known;
    absl::Status status = ReadLookup(client, ns, keys, blocks, options, packed, known);
    if (!status.ok()) return status;
    auto made = std::make_unique<kvd_pending>();
    absl::StatusOr<kvd::AsyncLookups::Ticket> ticket =
        client->lookups->Start(ns->value, packed, known);
    if (!ticket.ok()) return ticket.status();
    made->lookups = client->lookups;
    made->ticket = *std::move(ticket);
    made->forks = client->forks;
    *pending = made.release();
    return absl::OkStatus();
  });
}

kvd_status kvd_lookup_poll(kvd_pending* pending, int32_t* done, kvd_lookup_result* result) {
  return Guarded([&] {
    if (done == nullptr) return InvalidArgumentError("done: null");
    *done = 0;
    ResultOf told(result);
    if (absl::Status status = told.Open("result"); !status.ok()) return status;
    if (absl::Status status = CheckPending(pending); !status.ok()) return status;
    const std::optional<kvd::LookupResult> found = pending->lookups->Poll(pending->ticket);
    if (!found.has_value()) return absl::OkStatus();
    *done = 1;
    return TellLookup(*found, told);
  });
}

void kvd_pending_destroy(kvd_pending* pending) {
  if (!CheckPending(pending).ok()) return;  // In a child its locks may be held by nobody.
  pending->lookups->Leave(pending->ticket);
  delete pending;
}

void kvd_release_lease(kvd_client* client, uint64_t lease_id) {
  if (lease_id == 0) return;
  Guarded([&] {
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    client->client.ReleaseLease(lease_id);
    return absl::OkStatus();
  });
}

// ---- get ----------------------------------------------------------------------------------------

kvd_status kvd_get(kvd_client* client, const kvd_namespace* ns, const void* keys, size_t blocks,
                   const kvd_buffer* targets, size_t target_count, const kvd_get_options* options,
                   kvd_get_result* result) {
  return Guarded([&] {
    ResultOf told(result);
    if (absl::Status status = told.Open("result"); !status.ok()) return status;
    if (absl::Status status = CheckCall(client, ns); !status.ok()) return status;
    kvd_get_options given;
    if (absl::Status status = ReadStruct(options, "options", given); !status.ok()) return status;
    std::string_view packed;
    if (absl::Status status = ReadKeys(*ns, keys, blocks, packed); !status.ok()) return status;
    std::vector<absl::Span<std::byte>> spans;
    if (absl::Status status = ReadBuffers(targets, target_count, "targets", spans); !status.ok()) {
      return status;
    }
    kvd::GetOptions known{.timeout = Microseconds(given.timeout_us),
                          .lease = Microseconds(given.lease_us),
                          .parent = ReadParent(*ns, given.parent),
                          .max_blocks = given.max_blocks};
    if (absl::Status status = ReadParts(given.parts, given.part_count, known.parts); !status.ok()) {
      return status;
    }
    const kvd::GetResult got = client->client.Get(ns->value, packed, spans, known);
    told->hit_blocks = got.hit_blocks;
    told->blocks = got.blocks;
    told->damaged = got.damaged;
    told->lease_id = got.lease_id;
    return got.status;
  });
}

// ---- load ---------------------------------------------------------------------------------------

kvd_status kvd_load(kvd_client* client, const kvd_namespace* ns, const void* keys, size_t blocks,
                    const kvd_load_options* options, kvd_chain** chain) {
  return Guarded([&]() -> absl::Status {
    if (chain == nullptr) return InvalidArgumentError("chain: null");
    *chain = nullptr;
    if (absl::Status status = CheckCall(client, ns); !status.ok()) return status;
    kvd_load_options given;
    if (absl::Status status = ReadStruct(options, "options", given); !status.ok()) return status;
    std::string_view packed;
    if (absl::Status status = ReadKeys(*ns, keys, blocks, packed); !status.ok()) return status;
    kvd::LoadOptions known{.timeout = Microseconds(given.timeout_us),
                           .range_offset = given.range_offset,
                           .range_bytes = given.range_bytes};
    if (absl::Status status = ReadParts(given.parts, given.part_count, known.parts); !status.ok()) {
      return status;
    }
    kvd::LoadResult loaded = client->client.Load(ns->value, packed, known);
    if (!loaded.status.ok()) return loaded.status;
    *chain = new kvd_chain{.chain = std::move(loaded.chain), .forks = client->forks};
    return absl::OkStatus();
  });
}

uint32_t kvd_chain_blocks(const kvd_chain* chain) {
  return chain == nullptr ? 0 : chain->chain.blocks();
}

uint32_t kvd_chain_parts(const kvd_chain* chain) {
  return chain == nullptr ? 0 : chain->chain.parts();
}

kvd_status kvd_chain_views(const kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                           kvd_const_buffer* views, size_t view_count) {
  return Guarded([&] {
    if (absl::Status status = CheckChain(chain); !status.ok()) return status;
    if (absl::Status status = CheckRange(*chain, first_block, blocks, views, view_count);
        !status.ok()) {
      return status;
    }
    const uint32_t parts = chain->chain.parts();
    for (size_t i = 0; i < view_count; ++i) {
      const absl::Span<const std::byte> part = chain->chain.part(
          first_block + static_cast<uint32_t>(i / parts), static_cast<uint32_t>(i % parts));
      views[i] = {part.empty() ? nullptr : part.data(), part.size()};
    }
    return absl::OkStatus();
  });
}

kvd_status kvd_chain_verify(kvd_chain* chain, uint32_t first_block, uint32_t blocks, uint8_t* good,
                            size_t good_count) {
  return Guarded([&] {
    if (absl::Status status = CheckChain(chain); !status.ok()) return status;
    if (absl::Status status = CheckRange(*chain, first_block, blocks, good, good_count);
        !status.ok()) {
      return status;
    }
    const uint32_t parts = chain->chain.parts();
    for (size_t i = 0; i < good_count; ++i) {
      good[i] = chain->chain.Verify(first_block + static_cast<uint32_t>(i / parts),
                                    static_cast<uint32_t>(i % parts));
    }
    return absl::OkStatus();
  });
}

kvd_status kvd_chain_copy(kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                          const kvd_buffer* targets, uint8_t* good, size_t target_count) {
  return Guarded([&] {
    if (absl::Status status = CheckChain(chain); !status.ok()) return status;
    for (const void* list : {static_cast<const void*>(targets), static_cast<const void*>(good)}) {
      if (absl::Status status = CheckRange(*chain, first_block, blocks, list, target_count);
          !status.ok()) {
        return status;
      }
    }
    std::vector<absl::Span<std::byte>> spans;
    if (absl::Status status = ReadBuffers(targets, target_count, "targets", spans); !status.ok()) {
      return status;
    }
    std::fill_n(good, target_count, 0);
    const uint32_t parts = chain->chain.parts();
    const auto block = [&](size_t i) { return first_block + static_cast<uint32_t>(i / parts); };
    const auto part = [&](size_t i) { return static_cast<uint32_t>(i % parts); };
    for (size_t i = 0; i < target_count; ++i) {  // All of them, before any is written.
      const size_t there = chain->chain.part(block(i), part(i)).size();
      if (there != 0 && !spans[i].empty() && spans[i].size() != there) {
        return InvalidArgumentError(
            StrCat("targets[", i, "].size: ", spans[i].size(), " for a part of ", there, " bytes"));
      }
    }
    for (size_t i = 0; i < target_count; ++i) {
      if (!spans[i].empty()) good[i] = chain->chain.CopyTo(block(i), part(i), spans[i]);
    }
    return absl::OkStatus();
  });
}

void kvd_chain_release(kvd_chain* chain) {
  if (!CheckChain(chain).ok()) return;  // As kvd_client_destroy().
  delete chain;
}

// ---- put ----------------------------------------------------------------------------------------

kvd_status kvd_adopt_memory(kvd_client* client, int fd, const void* data, size_t size,
                            uint64_t timeout_us) {
  return Guarded([&] {
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    if (data == nullptr) return InvalidArgumentError("data: null");
    return client->client.AdoptMemory(fd, {static_cast<const std::byte*>(data), size},
                                      Microseconds(timeout_us));
  });
}

kvd_status kvd_put(kvd_client* client, const kvd_namespace* ns, const void* keys, size_t blocks,
                   const kvd_const_buffer* sources, size_t source_count,
                   const kvd_put_options* options, kvd_put_result* result) {
  return Guarded([&] {
    ResultOf told(result);
    if (absl::Status status = told.Open("result"); !status.ok()) return status;
    uint8_t* const states = told->block_states = told.Given().block_states;
    const size_t capacity = told->state_capacity = told.Given().state_capacity;
    if (absl::Status status = CheckCall(client, ns); !status.ok()) return status;
    kvd_put_options given;
    if (absl::Status status = ReadStruct(options, "options", given); !status.ok()) return status;
    std::string_view packed;
    if (absl::Status status = ReadKeys(*ns, keys, blocks, packed); !status.ok()) return status;
    std::vector<absl::Span<const std::byte>> spans;
    if (absl::Status status = ReadBuffers(sources, source_count, "sources", spans); !status.ok()) {
      return status;
    }
    std::vector<absl::Span<const std::byte>> announced;
    if (absl::Status status =
            ReadBuffers(given.announce, given.announce_count, "options.announce", announced);
        !status.ok()) {
      return status;
    }
    std::vector<std::string> announce;
    announce.reserve(announced.size());
    for (const auto& bytes : announced) {
      announce.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    kvd::PutOptions known{.timeout = Microseconds(given.timeout_us),
                          .parent = ReadParent(*ns, given.parent),
                          .wait = Microseconds(given.wait_us),
                          .announce = announce};
    if (absl::Status status = ReadParts(given.parts, given.part_count, known.parts); !status.ok()) {
      return status;
    }
    const kvd::PutResult put = client->client.Put(ns->value, packed, spans, known);
    told->stored = put.stored;
    told->present = put.present;
    if (states != nullptr) {
      told->state_count = std::min(put.results.size(), capacity);
      std::transform(put.results.begin(), put.results.begin() + told->state_count, states,
                     [](kvd::CommitResult state) { return static_cast<uint8_t>(state); });
    }
    return put.status;
  });
}

// ---- pins ---------------------------------------------------------------------------------------

kvd_status kvd_pin(kvd_client* client, const kvd_namespace* ns, const void* key,
                   const kvd_pin_options* options, kvd_pin_result* result) {
  return Guarded([&] {
    ResultOf told(result);
    if (absl::Status status = told.Open("result"); !status.ok()) return status;
    if (absl::Status status = CheckCall(client, ns); !status.ok()) return status;
    kvd_pin_options given;
    if (absl::Status status = ReadStruct(options, "options", given); !status.ok()) return status;
    std::string_view packed;
    if (absl::Status status = ReadKeys(*ns, key, 1, packed); !status.ok()) return status;
    kvd::PinOptions known{.timeout = Microseconds(given.timeout_us),
                          .owner = std::string(Text(given.owner))};
    if (given.budget_bytes != 0) known.budget_bytes = given.budget_bytes;
    if (given.ttl_us != 0) known.ttl = Microseconds(given.ttl_us);
    const absl::StatusOr<kvd::PinResult> pin = client->client.Pin(ns->value, packed, known);
    if (!pin.ok()) return pin.status();
    told->pin_id = pin->pin_id;
    told->bytes = pin->bytes;
    told->blocks = pin->blocks;
    return absl::OkStatus();
  });
}

kvd_status kvd_unpin(kvd_client* client, uint64_t pin_id, uint64_t timeout_us) {
  return Guarded([&] {
    if (absl::Status status = CheckClient(client); !status.ok()) return status;
    return client->client.Unpin(pin_id, Microseconds(timeout_us));
  });
}

// The numbers of the header are those of our nouns.
static_assert(KVD_UNAUTHENTICATED == static_cast<int>(absl::StatusCode::kUnauthenticated));
static_assert(KVD_UNAVAILABLE == static_cast<int>(absl::StatusCode::kUnavailable));
static_assert(KVD_GROUP_STATE == static_cast<int>(kvd::GroupKind::kState));
static_assert(KVD_PUT_STORED == static_cast<int>(kvd::CommitResult::kCommitted));
static_assert(KVD_PUT_FAILED == static_cast<int>(kvd::CommitResult::kFailed));
