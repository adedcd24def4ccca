/* client/kvd.h of version 0.1 without its comments. Programs that were compiled with it go on
 * working with every libkvd.so.0: this file never changes. */

#ifndef KVD_H_
#define KVD_H_

#include <stddef.h>
#include <stdint.h>

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

typedef int32_t kvd_status;
enum {
  KVD_OK = 0,
  KVD_CANCELLED = 1,
  KVD_UNKNOWN = 2,
  KVD_INVALID_ARGUMENT = 3,
  KVD_DEADLINE_EXCEEDED = 4,
  KVD_NOT_FOUND = 5,
  KVD_ALREADY_EXISTS = 6,
  KVD_PERMISSION_DENIED = 7,
  KVD_RESOURCE_EXHAUSTED = 8,
  KVD_FAILED_PRECONDITION = 9,
  KVD_ABORTED = 10,
  KVD_OUT_OF_RANGE = 11,
  KVD_UNIMPLEMENTED = 12,
  KVD_INTERNAL = 13,
  KVD_UNAVAILABLE = 14,
  KVD_DATA_LOSS = 15,
  KVD_UNAUTHENTICATED = 16
};

KVD_API const char* kvd_error_message(void);

KVD_API const char* kvd_status_name(kvd_status status);

KVD_API const char* kvd_version(void);

typedef struct kvd_buffer {
  void* data;
  size_t size;
} kvd_buffer;

typedef struct kvd_const_buffer {
  const void* data;
  size_t size;
} kvd_const_buffer;

typedef struct kvd_client kvd_client;

typedef struct kvd_client_options {
  size_t struct_size;
  const char* endpoint;
  uint64_t timeout_us;
  uint64_t reconnect_interval_us;
  uint64_t staging_bytes;
  const char* copy_loop;
} kvd_client_options;
#define KVD_CLIENT_OPTIONS_INIT \
  { sizeof(kvd_client_options), NULL, 0, 0, 0, NULL }

KVD_API kvd_status kvd_client_create(const kvd_client_options* options, kvd_client** client);

KVD_API void kvd_client_destroy(kvd_client* client);

typedef struct kvd_stats {
  size_t struct_size;
  uint64_t calls;
  uint64_t failed_calls;
  uint64_t reconnects;
  uint64_t damaged_parts;
  uint64_t bad_extents;
  uint64_t dropped_releases;
} kvd_stats;
#define KVD_STATS_INIT \
  { sizeof(kvd_stats), 0, 0, 0, 0, 0, 0 }

KVD_API kvd_status kvd_client_stats(const kvd_client* client, kvd_stats* stats);

KVD_API const char* kvd_client_copy_loops(const kvd_client* client);

KVD_API kvd_status kvd_client_connect(kvd_client* client, uint64_t timeout_us);

KVD_API kvd_status kvd_flush(kvd_client* client, uint64_t timeout_us);

typedef struct kvd_namespace kvd_namespace;

enum { KVD_GROUP_FULL = 1, KVD_GROUP_WINDOW = 2, KVD_GROUP_STATE = 3 };

typedef struct kvd_group {
  uint32_t kind;
  uint32_t window_tokens;
  uint32_t shards;
  uint32_t block_tokens;
  uint32_t part_bytes;
} kvd_group;

typedef struct kvd_extra {
  const char* name;
  const char* value;
} kvd_extra;

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
  uint32_t hash_bytes;
  uint32_t tensor_parallel;
  uint32_t pipeline_parallel;
  uint32_t context_parallel;
  const kvd_group* groups;
  size_t group_count;
  const kvd_extra* extra;
  size_t extra_count;
} kvd_namespace_descriptor;
#define KVD_NAMESPACE_DESCRIPTOR_INIT                                                             \
  {                                                                                               \
    sizeof(kvd_namespace_descriptor), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, \
        0, 0, NULL, 0, NULL, 0                                                                    \
  }

KVD_API kvd_status kvd_namespace_register(kvd_client* client,
                                          const kvd_namespace_descriptor* descriptor,
                                          uint64_t timeout_us, kvd_namespace** ns);

KVD_API void kvd_namespace_destroy(kvd_namespace* ns);

typedef struct kvd_part {
  uint8_t group;
  uint8_t shard;
} kvd_part;

KVD_API uint32_t kvd_namespace_hash_bytes(const kvd_namespace* ns);

KVD_API uint32_t kvd_namespace_parts(const kvd_namespace* ns);

KVD_API uint32_t kvd_namespace_part(const kvd_namespace* ns, uint32_t index, kvd_part* part);

typedef struct kvd_lookup_options {
  size_t struct_size;
  uint64_t timeout_us;
  uint64_t lease_us;
  const void* parent;
} kvd_lookup_options;
#define KVD_LOOKUP_OPTIONS_INIT \
  { sizeof(kvd_lookup_options), 0, 0, NULL }

typedef struct kvd_lookup_result {
  size_t struct_size;
  uint32_t hit_blocks;
  uint32_t reserved;
  uint64_t lease_id;
  uint64_t load_time_us;
} kvd_lookup_result;
#define KVD_LOOKUP_RESULT_INIT \
  { sizeof(kvd_lookup_result), 0, 0, 0, 0 }

KVD_API kvd_status kvd_lookup(kvd_client* client, const kvd_namespace* ns, const void* keys,
                              size_t blocks, const kvd_lookup_options* options,
                              kvd_lookup_result* result);

KVD_API void kvd_release_lease(kvd_client* client, uint64_t lease_id);

typedef struct kvd_get_options {
  size_t struct_size;
  uint64_t timeout_us;
  uint64_t lease_us;
  const void* parent;
  const kvd_part* parts;
  size_t part_count;
} kvd_get_options;
#define KVD_GET_OPTIONS_INIT \
  { sizeof(kvd_get_options), 0, 0, NULL, NULL, 0 }

typedef struct kvd_get_result {
  size_t struct_size;
  uint32_t hit_blocks;

  uint32_t blocks;
  uint32_t damaged;
  uint32_t reserved;
  uint64_t lease_id;
} kvd_get_result;
#define KVD_GET_RESULT_INIT \
  { sizeof(kvd_get_result), 0, 0, 0, 0, 0 }

KVD_API kvd_status kvd_get(kvd_client* client, const kvd_namespace* ns, const void* keys,
                           size_t blocks, const kvd_buffer* targets, size_t target_count,
                           const kvd_get_options* options, kvd_get_result* result);

typedef struct kvd_chain kvd_chain;

typedef struct kvd_load_options {
  size_t struct_size;
  uint64_t timeout_us;
  const kvd_part* parts;
  size_t part_count;
  uint32_t range_offset;
  uint32_t range_bytes;
} kvd_load_options;
#define KVD_LOAD_OPTIONS_INIT \
  { sizeof(kvd_load_options), 0, NULL, 0, 0, 0 }

KVD_API kvd_status kvd_load(kvd_client* client, const kvd_namespace* ns, const void* keys,
                            size_t blocks, const kvd_load_options* options, kvd_chain** chain);

KVD_API uint32_t kvd_chain_blocks(const kvd_chain* chain);
KVD_API uint32_t kvd_chain_parts(const kvd_chain* chain);

KVD_API kvd_status kvd_chain_views(const kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                                   kvd_const_buffer* views, size_t view_count);

KVD_API kvd_status kvd_chain_verify(kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                                    uint8_t* good, size_t good_count);

KVD_API kvd_status kvd_chain_copy(kvd_chain* chain, uint32_t first_block, uint32_t blocks,
                                  const kvd_buffer* targets, uint8_t* good, size_t target_count);

KVD_API void kvd_chain_release(kvd_chain* chain);

enum {
  KVD_PUT_STORED = 1,
  KVD_PUT_PRESENT = 2,
  KVD_PUT_PARKED = 3,
  KVD_PUT_NOT_FILLED = 4,
  KVD_PUT_NO_ROOM = 5,
  KVD_PUT_NO_PARENT = 6,
  KVD_PUT_FAILED = 7
};

typedef struct kvd_put_options {
  size_t struct_size;
  uint64_t timeout_us;
  uint64_t wait_us;
  const void* parent;
  const kvd_part* parts;
  size_t part_count;
  const kvd_const_buffer* announce;
  size_t announce_count;
} kvd_put_options;
#define KVD_PUT_OPTIONS_INIT \
  { sizeof(kvd_put_options), 0, 0, NULL, NULL, 0, NULL, 0 }

typedef struct kvd_put_result {
  size_t struct_size;
  uint32_t stored;
  uint32_t present;
  uint8_t* block_states;
  size_t state_capacity;
  size_t state_count;
} kvd_put_result;
#define KVD_PUT_RESULT_INIT \
  { sizeof(kvd_put_result), 0, 0, NULL, 0, 0 }

KVD_API kvd_status kvd_put(kvd_client* client, const kvd_namespace* ns, const void* keys,
                           size_t blocks, const kvd_const_buffer* sources, size_t source_count,
                           const kvd_put_options* options, kvd_put_result* result);

typedef struct kvd_pin_options {
  size_t struct_size;
  uint64_t timeout_us;
  const char* owner;
  uint64_t budget_bytes;
  uint64_t ttl_us;
} kvd_pin_options;
#define KVD_PIN_OPTIONS_INIT \
  { sizeof(kvd_pin_options), 0, NULL, 0, 0 }

typedef struct kvd_pin_result {
  size_t struct_size;
  uint64_t pin_id;
  uint64_t bytes;
  uint32_t blocks;
  uint32_t reserved;
} kvd_pin_result;
#define KVD_PIN_RESULT_INIT \
  { sizeof(kvd_pin_result), 0, 0, 0, 0 }

KVD_API kvd_status kvd_pin(kvd_client* client, const kvd_namespace* ns, const void* key,
                           const kvd_pin_options* options, kvd_pin_result* result);
KVD_API kvd_status kvd_unpin(kvd_client* client, uint64_t pin_id, uint64_t timeout_us);

#ifdef __cplusplus
}
#endif

#endif
