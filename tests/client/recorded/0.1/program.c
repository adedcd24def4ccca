/* tests/client/c_api_program.c of version 0.1: never changes, as kvd.h beside it. */

#include <kvd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kBlocks = 3, kStored = 2, kPartBytes = 4096, kHashBytes = 32 };

static void Expect(int good, const char* what) {
  if (good) return;
  fprintf(stderr, "not so: %s (%s)\n", what, kvd_error_message());
  exit(1);
}
#define EXPECT(condition) Expect((condition), #condition)

int main(int argc, char** argv) {
  static unsigned char source[kBlocks][kPartBytes], target[kBlocks][kPartBytes];
  unsigned char keys[kBlocks * kHashBytes], good[kBlocks] = {0}, states[kBlocks] = {0};
  kvd_client_options client_options = KVD_CLIENT_OPTIONS_INIT;
  kvd_namespace_descriptor descriptor = KVD_NAMESPACE_DESCRIPTOR_INIT;
  kvd_group group = {0, 0, 0, 16, kPartBytes};
  kvd_lookup_options lookup_options = KVD_LOOKUP_OPTIONS_INIT;
  kvd_pin_options pin_options = KVD_PIN_OPTIONS_INIT;
  kvd_put_result put = KVD_PUT_RESULT_INIT;
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  kvd_get_result got = KVD_GET_RESULT_INIT;
  kvd_pin_result pin = KVD_PIN_RESULT_INIT;
  kvd_stats stats = KVD_STATS_INIT;
  kvd_const_buffer sources[kBlocks], views[kBlocks];
  kvd_buffer targets[kBlocks];
  kvd_client* client = NULL;
  kvd_namespace* ns = NULL;
  kvd_chain* chain = NULL;
  int i;

  if (argc != 2) {
    fprintf(stderr, "usage: %s unix:PATH\n", argv[0]);
    return 2;
  }
  for (i = 0; i < kBlocks; ++i) {
    memset(keys + i * kHashBytes, 'a' + i, kHashBytes);
    memset(source[i], 1 + i, kPartBytes);
    sources[i].data = source[i];
    sources[i].size = kPartBytes;
    targets[i].data = target[i];
    targets[i].size = kPartBytes;
  }

  client_options.endpoint = argv[1];
  EXPECT(kvd_client_create(&client_options, &client) == KVD_OK);
  EXPECT(kvd_client_connect(client, 0) == KVD_OK);
  descriptor.model = "example/c";
  descriptor.hash_algorithm = "example";
  descriptor.groups = &group;
  descriptor.group_count = 1;
  EXPECT(kvd_namespace_register(client, &descriptor, 0, &ns) == KVD_OK);
  EXPECT(kvd_namespace_hash_bytes(ns) == kHashBytes);
  EXPECT(kvd_namespace_parts(ns) == 1);
  EXPECT(kvd_namespace_part(ns, 0, NULL) == kPartBytes);

  put.block_states = states;
  put.state_capacity = kBlocks;
  EXPECT(kvd_put(client, ns, keys, kStored, sources, kStored, NULL, &put) == KVD_OK);
  EXPECT(put.stored + put.present == kStored && put.state_count == kStored);
  EXPECT(states[0] == KVD_PUT_STORED || states[0] == KVD_PUT_PRESENT);

  lookup_options.lease_us = 10 * 1000 * 1000;
  EXPECT(kvd_lookup(client, ns, keys, kBlocks, &lookup_options, &found) == KVD_OK);
  EXPECT(found.hit_blocks == kStored && found.lease_id != 0);

  EXPECT(kvd_get(client, ns, keys, kBlocks, targets, kBlocks, NULL, &got) == KVD_OK);
  EXPECT(got.blocks == kStored && got.damaged == 0);
  EXPECT(memcmp(source, target, kStored * kPartBytes) == 0);

  EXPECT(kvd_load(client, ns, keys, kBlocks, NULL, &chain) == KVD_OK);
  EXPECT(kvd_chain_blocks(chain) == kStored && kvd_chain_parts(chain) == 1);
  EXPECT(kvd_chain_views(chain, 0, kStored, views, kStored) == KVD_OK);
  EXPECT(kvd_chain_verify(chain, 0, kStored, good, kStored) == KVD_OK);
  for (i = 0; i < kStored; ++i) {
    EXPECT(good[i] == 1 && views[i].size == kPartBytes);
    EXPECT(memcmp(views[i].data, source[i], kPartBytes) == 0);
  }
  memset(target, 0, sizeof target);
  EXPECT(kvd_chain_copy(chain, 1, 1, targets, good, 1) == KVD_OK);
  EXPECT(good[0] == 1 && memcmp(target[0], source[1], kPartBytes) == 0);

  pin_options.owner = "c_api_program";
  EXPECT(kvd_pin(client, ns, keys + kHashBytes, &pin_options, &pin) == KVD_OK);
  EXPECT(pin.blocks == kStored && pin.bytes >= kStored * kPartBytes);
  EXPECT(kvd_unpin(client, pin.pin_id, 0) == KVD_OK);

  kvd_release_lease(client, found.lease_id);
  EXPECT(kvd_flush(client, 0) == KVD_OK);
  EXPECT(kvd_client_stats(client, &stats) == KVD_OK);
  EXPECT(stats.calls > 0 && stats.failed_calls == 0 && stats.damaged_parts == 0);
  EXPECT(strlen(kvd_client_copy_loops(client)) > 0);

  kvd_client_destroy(client); /* The chain does not need it. */
  EXPECT(memcmp(views[0].data, source[0], kPartBytes) == 0);
  kvd_chain_release(chain);
  kvd_namespace_destroy(ns);
  printf("good %s\n", kvd_version());
  return 0;
}
