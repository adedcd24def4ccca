/* The C interface of kvd: what an engine in any language links or loads (libkvd.so.0).
 *
 *   kvd_client* client;
 *   kvd_namespace* ns;
 *   if (kvd_client_create(NULL, &client) != KVD_OK) ...
 *   if (kvd_namespace_register(client, &descriptor, 0, &ns) != KVD_OK) ...
 *   kvd_put(client, ns, keys, blocks, sources, parts, NULL, &put);
 *   kvd_get(client, ns, keys, blocks, targets, parts, NULL, &got);   copied and verified
 *
 * Shapes. A block is named by the engine's chain hash of it, hash_bytes long; `keys` are such
 *   hashes back to back, root first. A block has one part for each group and shard of its
 *   namespace; lists of parts stand block by block, in the namespace's order. One call carries a
 *   whole chain: nothing is called once for each block.
 * Units. Sizes are bytes, times are microseconds, and 0 means the default.
 * Errors. Every call that can fail returns a kvd_status and says more in kvd_error_message(). A
 *   miss is no error: the call returns KVD_OK and says zero blocks. Results are always written,
 *   also beside an error, and then say zero blocks. No call throws, and none ends the process.
 * Time. No call takes longer than its timeout. While the daemon is away calls fail at once with
 *   KVD_UNAVAILABLE, which a caller treats as a miss; a later call connects again by itself.
 * Memory. What a call is given belongs to the caller and is not touched after it returned. What it
 *   gives (client, namespace, chain) is the caller's to end, in any order; pointers got from such
 *   an object are good until then.
 * Threads. Everything is safe from any thread, but for what destroys an object: no other call with
 *   that object may be under way; and one chain is used by one thread at a time. Calls block
 * without calling back, so a language with a global lock may let go of it. Fork. A client does not
 * survive fork(): in the child every call with it answers KVD_FAILED_PRECONDITION, and destroying
 * it does nothing. gRPC too must not have been used before a fork whose child will use it: make the
 * first client after it, or have the child exec. Growth. Structures that may grow begin with
 * struct_size. Set it with the matching _INIT; what a caller does not know is then 0, the default.
 * Numbers and names here never change meaning under one soname.
 */

#ifndef KVD_H_
#define KVD_H_

#include <stddef.h>
#include <stdint.h>

/* The version of this header; kvd_version() is that of the library. */
#define KVD_VERSION_MAJOR 0
#define KVD_VERSION_MINOR 1
#define KVD_VERSION_PATCH 0

#if defined(__GNUC__)
#define KVD_API __attribute__((visibility("default")))
#else
#define KVD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status ----------------------------------------------------------------------------------*/

/* The canonical codes, as everywhere in gRPC. */
typedef int32_t kvd_status;
enum {
  KVD_OK = 0,
  KVD_CANCELLED = 1,
  KVD_UNKNOWN = 2,
  KVD_INVALID_ARGUMENT = 3, /* A mistake of the caller; the message names the field. */
  KVD_DEADLINE_EXCEEDED = 4,
  KVD_NOT_FOUND = 5,
  KVD_ALREADY_EXISTS = 6,
  KVD_PERMISSION_DENIED = 7,
  KVD_RESOURCE_EXHAUSTED = 8, /* A bound was met: of the daemon, or of this process's memory. */
  KVD_FAILED_PRECONDITION = 9,
  KVD_ABORTED = 10,
  KVD_OUT_OF_RANGE = 11,
  KVD_UNIMPLEMENTED = 12, /* The caller set what this library or daemon does not know. */
  KVD_INTERNAL = 13,
  KVD_UNAVAILABLE = 14, /* The daemon is away: a miss. */
  KVD_DATA_LOSS = 15,
  KVD_UNAUTHENTICATED = 16
};

/* What the last call of this thread that did not return KVD_OK had to say; "" before one. Good
 * until the next such call of this thread. Never null. */
KVD_API const char* kvd_error_message(void);

/* The name of a code, as "UNAVAILABLE"; "UNKNOWN" for any other number. Never null. */
KVD_API const char* kvd_status_name(kvd_status status);

/* "MAJOR.MINOR.PATCH" of the library. Never null. */
KVD_API const char* kvd_version(void);

/* ---- Memory that a call reads or writes -------------------------------------------------------*/

typedef struct kvd_buffer {
  void* data;
  size_t size;
} kvd_buffer;

typedef struct kvd_const_buffer {
  const void* data; /* Null with size 0: not there. */
  size_t size;
} kvd_const_buffer;

/* ---- Clients ----------------------------------------------------------------------------------*/

typedef struct kvd_client kvd_client;

typedef struct kvd_client_options {
  size_t struct_size;
  const char*
      endpoint; /* "unix:PATH", "stream:unix:PATH", "tcp:HOST:PORT"; null: $KVD_ENDPOINT, or where a
                   daemon of this user listens by default, or that of the package. */
  uint64_t timeout_us;            /* Of a call that names none; 0: 1 s. */
  uint64_t reconnect_interval_us; /* At most one attempt in this time; 0: 0.1 s. */
  uint64_t staging_bytes;         /* Memory for puts; 0: 16 MiB, which is also the most. */
  const char* copy_loop;          /* Null: calibrated, once in a process. */
  /* Of "tcp:HOST:PORT", PEM files; null for other endpoints. The identity in the certificate is who
   * the daemon takes this client for. */
  const char* tls_certificate;
  const char* tls_key;
  const char* tls_authority;   /* Whoever it vouches for is believed to be the daemon. */
  const char* tls_server_name; /* That the daemon's certificate must have; null: the host's. */
  uint64_t spin_us; /* How long a get or a lookup looks for its answer before the thread sleeps: as
                       much CPU time for a wake-up less. 60 where the caller has a CPU for itself;
                       0: it sleeps at once. At most 10,000. */
} kvd_client_options;
#define KVD_CLIENT_OPTIONS_INIT \
  { sizeof(kvd_client_options), NULL, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, 0 }

/* Does not connect: the first call does. `options` may be null. The first client of a process
 * calibrates the copy loops, which takes some milliseconds. */
KVD_API kvd_status kvd_client_create(const kvd_client_options* options, kvd_client** client);

/* Ends the client and its session: its leases end; chains stay good. Null is ignored. */
KVD_API void kvd_client_destroy(kvd_client* client);

/* Counters since the client was made. */
typedef struct kvd_stats {
  size_t struct_size;
  uint64_t calls;
  uint64_t failed_calls;
  uint64_t reconnects;    /* Sessions after the first. */
  uint64_t damaged_parts; /* Did not verify, and were reported. */
  uint64_t bad_extents;   /* Lay outside their region, or could not be checked: misses. */
  uint64_t dropped_releases;
} kvd_stats;
#define KVD_STATS_INIT \
  { sizeof(kvd_stats), 0, 0, 0, 0, 0, 0 }

KVD_API kvd_status kvd_client_stats(const kvd_client* client, kvd_stats* stats);

/* The loops that calibration chose, for a log line. Null only for a null client. */
KVD_API const char* kvd_client_copy_loops(const kvd_client* client);

/* KVD_OK when there is a session with the daemon, connecting if need be: what a readiness probe
 * asks. No call needs it first. */
KVD_API kvd_status kvd_client_connect(kvd_client* client, uint64_t timeout_us);

/* Sends now what is owed to the daemon (ended holds and leases), which otherwise rides on later
 * calls. KVD_OK also when there is nothing to send, or no session that could be told. */
KVD_API kvd_status kvd_flush(kvd_client* client, uint64_t timeout_us);

/* ---- Namespaces: what the bytes of a block mean -----------------------------------------------*/

typedef struct kvd_namespace kvd_namespace;

enum {
  KVD_GROUP_FULL = 1,   /* Attention over the whole prefix: every block's part is needed. */
  KVD_GROUP_WINDOW = 2, /* Sliding window: the last window_tokens are needed. */
  KVD_GROUP_STATE = 3   /* Recurrent state: only the part at the very end is needed. */
};

/* One KV-cache group of a (possibly hybrid) model. At most 16. This structure does not grow. */
typedef struct kvd_group {
  uint32_t kind;          /* 0: KVD_GROUP_FULL. */
  uint32_t window_tokens; /* Of a KVD_GROUP_WINDOW, else 0. */
  uint32_t shards;        /* Parts of this group; 0: 1, replicated. */
  uint32_t block_tokens;  /* Tokens of one block. */
  uint32_t part_bytes;    /* Of every part of the group. */
} kvd_group;

/* One thing more that an engine must tell apart. This structure does not grow. */
typedef struct kvd_extra {
  const char* name;
  const char* value;
} kvd_extra;

/* Everything that, if it differed, would make the bytes wrong. Strings are at most 256 bytes; null
 * is the empty one. */
typedef struct kvd_namespace_descriptor {
  size_t struct_size;
  const char* model;
  const char* weights_revision;
  const char* kv_dtype;
  const char* quantization;
  const char* page_layout;
  const char* engine_family;
  const char* draft_model;
  const char* hash_algorithm;
  const char* hash_seed;
  uint32_t hash_bytes;        /* 8 to 32; 0: 32. */
  uint32_t tensor_parallel;   /* 0: 1. */
  uint32_t pipeline_parallel; /* 0: 1. */
  uint32_t context_parallel;  /* 0: 1. */
  const kvd_group* groups;
  size_t group_count;
  const kvd_extra* extra;
  size_t extra_count; /* At most 64. */
} kvd_namespace_descriptor;
#define KVD_NAMESPACE_DESCRIPTOR_INIT                                                             \
  {                                                                                               \
    sizeof(kvd_namespace_descriptor), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, \
        0, 0, NULL, 0, NULL, 0                                                                    \
  }

/* The one call whose failure an engine should show to somebody: KVD_INVALID_ARGUMENT names the
 * field, KVD_UNAVAILABLE means that the daemon is away now. The namespace stays good across
 * reconnects, and serves only the client that registered it. */
KVD_API kvd_status kvd_namespace_register(kvd_client* client,
                                          const kvd_namespace_descriptor* descriptor,
                                          uint64_t timeout_us, kvd_namespace** ns);

/* Forgets the handle; what is stored stays. Null is ignored. */
KVD_API void kvd_namespace_destroy(kvd_namespace* ns);

/* One part of a block: a group and a shard of it. */
typedef struct kvd_part {
  uint8_t group;
  uint8_t shard;
} kvd_part;

/* Bytes of one key. 0 for a null namespace, as below. */
KVD_API uint32_t kvd_namespace_hash_bytes(const kvd_namespace* ns);
/* Parts of one block. */
KVD_API uint32_t kvd_namespace_parts(const kvd_namespace* ns);
/* Which part stands at place `index` of a block, and its bytes; 0 bytes when there is none. `part`
 * may be null. */
KVD_API uint32_t kvd_namespace_part(const kvd_namespace* ns, uint32_t index, kvd_part* part);

/* ---- Lookup -----------------------------------------------------------------------------------*/

typedef struct kvd_lookup_options {
  size_t struct_size;
  uint64_t timeout_us; /* 0: the client's. */
  uint64_t lease_us;   /* The chain found stays findable so long; 0: no lease. At most 10 min. */
  const void* parent;  /* Hash before the first key, or null: the first key is a root. */
} kvd_lookup_options;
#define KVD_LOOKUP_OPTIONS_INIT \
  { sizeof(kvd_lookup_options), 0, 0, NULL }

typedef struct kvd_lookup_result {
  size_t struct_size;
  uint32_t hit_blocks;   /* Longest prefix that every group can serve. */
  uint32_t reserved;     /* 0. */
  uint64_t lease_id;     /* 0: none. End it by kvd_release_lease(), or let it run out. */
  uint64_t load_time_us; /* The daemon's estimate of what a get of them takes. */
  /* Since 0.2: blocks of the prefix by the coldest tier of their parts, at KVD_TIER_ numbers. All 0
   * where the daemon does not say. */
  uint32_t tier_blocks[8];
} kvd_lookup_result;
#define KVD_LOOKUP_RESULT_INIT                   \
  {                                              \
    sizeof(kvd_lookup_result), 0, 0, 0, 0, { 0 } \
  }

/* Media, from the hottest. */
enum {
  KVD_TIER_HBM = 1,
  KVD_TIER_DRAM = 2,
  KVD_TIER_FAR = 3,
  KVD_TIER_NVME = 4,
  KVD_TIER_POOL = 5
};

/* The longest stored prefix of up to 32,768 blocks. `options` may be null. */
KVD_API kvd_status kvd_lookup(kvd_client* client, const kvd_namespace* ns, const void* keys,
                              size_t blocks, const kvd_lookup_options* options,
                              kvd_lookup_result* result);

/* Ends a lease; the news rides on a later call. 0 is ignored. */
KVD_API void kvd_release_lease(kvd_client* client, uint64_t lease_id);

/* A lookup that nobody sits out, for a thread that must not wait. Since 0.2. */
typedef struct kvd_pending kvd_pending;

/* Starts a lookup and returns without waiting for the daemon; takes copies of what it is given. Its
 * timeout counts from now. One thread of the client makes them one after another.
 * KVD_RESOURCE_EXHAUSTED: 256 wait already. */
KVD_API kvd_status kvd_lookup_start(kvd_client* client, const kvd_namespace* ns, const void* keys,
                                    size_t blocks, const kvd_lookup_options* options,
                                    kvd_pending** pending);

/* Whether it has ended; never waits. *done becomes 0, beside KVD_OK and an empty result, or 1,
 * beside what kvd_lookup() would have returned: the lease is then the caller's to release. Asked
 * again it says the same. */
KVD_API kvd_status kvd_lookup_poll(kvd_pending* pending, int32_t* done, kvd_lookup_result* result);

/* Ends it, at any time, also after its client; the lease of an answer that was not polled, or that
 * comes yet, is released. Null is ignored. */
KVD_API void kvd_pending_destroy(kvd_pending* pending);

/* ---- Get: into the caller's memory ------------------------------------------------------------*/

typedef struct kvd_get_options {
  size_t struct_size;
  uint64_t timeout_us;
  uint64_t lease_us;
  const void* parent;
  const kvd_part* parts; /* Which parts of each block; null: all. */
  size_t part_count;
  /* Since 0.2: copy so many blocks of the list, from its start, and no more; 0: all. The rest of
   * the list still says how deep the caller means to read, so that what only a shorter prefix would
   * need (of a window or a state) may be missing. */
  uint32_t max_blocks;
  uint32_t reserved; /* 0. */
} kvd_get_options;
#define KVD_GET_OPTIONS_INIT \
  { sizeof(kvd_get_options), 0, 0, NULL, NULL, 0, 0, 0 }

typedef struct kvd_get_result {
  size_t struct_size;
  uint32_t hit_blocks; /* What the lookup found. */
  /* Copied and verified, from the start of the list. What every group needs at that depth is there;
   * a part of a window or a state that is not needed may be missing, and its target untouched. */
  uint32_t blocks;
  uint32_t damaged;  /* Parts that did not verify; `blocks` ends before the first that counts. */
  uint32_t reserved; /* 0. */
  uint64_t lease_id;
} kvd_get_result;
#define KVD_GET_RESULT_INIT \
  { sizeof(kvd_get_result), 0, 0, 0, 0, 0 }

/* Looks up, copies and verifies in one round trip. `targets` are block by block, in the order of
 * the parts, each as large as its part. Of a longer list the first 2,048 blocks are copied (or as
 * many as make 16,384 parts, or max_blocks), and only they need targets. Targets after `blocks`
 * hold garbage. */
KVD_API kvd_status kvd_get(kvd_client* client, const kvd_namespace* ns, const void* keys,
                           size_t blocks, const kvd_buffer* targets, size_t target_count,
                           const kvd_get_options* options, kvd_get_result* result);

/* ---- Load: in place, in the daemon's memory ---------------------------------------------------*/

/* A prefix whose room is held until kvd_chain_release(). The bytes stay readable when the session
 * ends, the daemon dies or the client is destroyed. */
typedef struct kvd_chain kvd_chain;

typedef struct kvd_load_options {
  size_t struct_size;
  uint64_t timeout_us;
  const kvd_part* parts;
  size_t part_count;
  uint32_t range_offset; /* Bytes into every part; below the size of each of them. */
  uint32_t range_bytes;  /* From there, as far as the part goes. 0: to its end. */
} kvd_load_options;
#define KVD_LOAD_OPTIONS_INIT \
  { sizeof(kvd_load_options), 0, NULL, 0, 0, 0 }

/* Holds the stored prefix of up to 2,048 blocks. *chain is always set where KVD_OK is returned, and
 * may have fewer blocks than asked, or none: a miss, or too many bytes held. */
KVD_API kvd_status kvd_load(kvd_client* client, const kvd_namespace* ns, const void* keys,
                            size_t blocks, const kvd_load_options* options, kvd_chain** chain);

/* Its blocks, and the parts of each of them. 0 for null. */
KVD_API uint32_t kvd_chain_blocks(const kvd_chain* chain);
KVD_API uint32_t kvd_chain_parts(const kvd_chain* chain);

/* Where the parts lie, read-only, of `blocks` blocks from `first_block` on; or the range of each,
 * where one was asked for. A part that is not there has size 0. Trust no byte before
 * kvd_chain_verify(). `view_count` must be blocks times parts. */
KVD_API kvd_status kvd_chain_views(const kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                                   kvd_const_buffer* views, size_t view_count);

/* Whether the bytes are what was put: good[i] becomes 1, or 0 for a part that is damaged or not
 * there, which must be treated as a miss. Reads whole parts, also where a range was asked for.
 * Damage is reported to the daemon with the release. */
KVD_API kvd_status kvd_chain_verify(kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                                    uint8_t* good, size_t good_count);

/* Copies and verifies in one pass; `good` as above, and the target of a part that is not good holds
 * garbage. A target with size 0 is skipped (good[i] = 0); another wrong size is an error. */
KVD_API kvd_status kvd_chain_copy(kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                                  const kvd_buffer* targets, uint8_t* good, size_t target_count);

/* Ends the hold; no view of it may be read after this. The news rides on a later call. Null is
 * ignored. */
KVD_API void kvd_chain_release(kvd_chain* chain);

/* ---- Put --------------------------------------------------------------------------------------*/

/* What became of one block. */
enum {
  KVD_PUT_STORED = 1,     /* Visible now, or waiting only for parts of other shards. */
  KVD_PUT_PRESENT = 2,    /* Was there, or is being produced by somebody else. */
  KVD_PUT_PARKED = 3,     /* Below a parent still in production: visible when that one is. */
  KVD_PUT_NOT_FILLED = 4, /* Some part was never filled. */
  KVD_PUT_NO_ROOM = 5,    /* Nothing can be evicted now. */
  KVD_PUT_NO_PARENT = 6,  /* The parent is not there. */
  KVD_PUT_FAILED = 7      /* The bytes changed while they were being taken. */
};

typedef struct kvd_put_options {
  size_t struct_size;
  uint64_t timeout_us;
  uint64_t wait_us;      /* For blocks that others are producing; 0: not. */
  const void* parent;    /* Hash before the first key, or null: the first key is a root. */
  const kvd_part* parts; /* Those that this caller brings; null: all. */
  size_t part_count;
  /* What cache-aware routers are told, one a block or null: a MessagePack map of block_hashes,
     parent_block_hash, token_ids, block_size and more, as in vLLM's BlockStored. */
  const kvd_const_buffer* announce;
  size_t announce_count;
} kvd_put_options;
#define KVD_PUT_OPTIONS_INIT \
  { sizeof(kvd_put_options), 0, 0, NULL, NULL, 0, NULL, 0 }

typedef struct kvd_put_result {
  size_t struct_size;
  uint32_t stored;       /* Blocks made visible by this call. */
  uint32_t present;      /* Blocks that were there, or are being produced by somebody else. */
  uint8_t* block_states; /* In: room for `state_capacity` KVD_PUT_ values, or null. */
  size_t state_capacity;
  size_t state_count; /* Out: how many were written, fewer than blocks where an error came. */
} kvd_put_result;
#define KVD_PUT_RESULT_INIT \
  { sizeof(kvd_put_result), 0, 0, NULL, 0, 0 }

/* Shows the daemon memory of the caller, so that a put whose sources all lie in it is not copied by
 * this library: the daemon reads them where they lie. `fd` is a memfd, which stays the caller's,
 * sealed against shrinking (F_SEAL_SHRINK); one of huge pages also against new writable mappings
 * (F_SEAL_FUTURE_WRITE, once it is mapped), and taken whole. `data` is where its first `size` bytes
 * are mapped with MAP_SHARED, and stay so until the client is destroyed. Once for a client; it is
 * handed over again after each reconnect. A put of at most 256 KiB is copied all the same.
 *
 * The bytes of such a put must not change until it returns. If they do, each byte is stored as it
 * was at some time during the call, under the sum of what was stored: readers all get the same
 * bytes, and nothing tells them. What changes after the put returned, with whatever status, is
 * never stored.
 *
 * KVD_INVALID_ARGUMENT says what is wrong with the memory; KVD_FAILED_PRECONDITION: adopted before,
 * or an endpoint or daemon that cannot; KVD_RESOURCE_EXHAUSTED: the daemon maps too much already;
 * KVD_UNAVAILABLE: it is away now. After an error nothing is adopted, and puts are copied. */
KVD_API kvd_status kvd_adopt_memory(kvd_client* client, int fd, const void* data, size_t size,
                                    uint64_t timeout_us);

/* Stores what is missing of up to 2,048 blocks; `sources` as the targets of kvd_get(). A part may
 * be larger than the staging memory: it travels in pieces. */
KVD_API kvd_status kvd_put(kvd_client* client, const kvd_namespace* ns, const void* keys,
                           size_t blocks, const kvd_const_buffer* sources, size_t source_count,
                           const kvd_put_options* options, kvd_put_result* result);

/* ---- Pins -------------------------------------------------------------------------------------*/

typedef struct kvd_pin_options {
  size_t struct_size;
  uint64_t timeout_us;
  const char* owner;     /* Whom an operator would ask; at most 256 bytes. Null: "". */
  uint64_t budget_bytes; /* Pinning more than this is refused; 0: no bound. */
  uint64_t ttl_us;       /* 0: an hour. At most a week. */
} kvd_pin_options;
#define KVD_PIN_OPTIONS_INIT \
  { sizeof(kvd_pin_options), 0, NULL, 0, 0 }

typedef struct kvd_pin_result {
  size_t struct_size;
  uint64_t pin_id;
  uint64_t bytes;
  uint32_t blocks; /* The chain's, up to its root. */
  uint32_t reserved;
} kvd_pin_result;
#define KVD_PIN_RESULT_INIT \
  { sizeof(kvd_pin_result), 0, 0, 0, 0 }

/* Keeps the chain that ends at `key` until unpinned, or for its time to live; longer than the
 * session. KVD_NOT_FOUND: no such block. */
KVD_API kvd_status kvd_pin(kvd_client* client, const kvd_namespace* ns, const void* key,
                           const kvd_pin_options* options, kvd_pin_result* result);
KVD_API kvd_status kvd_unpin(kvd_client* client, uint64_t pin_id, uint64_t timeout_us);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* KVD_H_ */
