/* The first steps in C, over libkvd.so: put a chain of two blocks, look it up, get it back, pin it.
 *   cc first_steps.c $(pkg-config --cflags --libs kvd) && ./a.out unix:/run/kvd/kvd.sock */

#include <kvd.h>
#include <stdio.h>
#include <string.h>

enum { kPartBytes = 4096, kHashBytes = 32 };
static char source[2][kPartBytes], target[2][kPartBytes];

static int Fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, kvd_error_message());
  return 1;
}

int main(int argc, char** argv) {
  kvd_client_options options = KVD_CLIENT_OPTIONS_INIT;
  options.endpoint = argc > 1 ? argv[1] : "unix:/run/kvd/kvd.sock";
  kvd_client* client = NULL;
  if (kvd_client_create(&options, &client) != KVD_OK) return Fail("client");

  const kvd_group group = {.block_tokens = 16, .part_bytes = kPartBytes};
  kvd_namespace_descriptor model = KVD_NAMESPACE_DESCRIPTOR_INIT;
  model.model = "example/8b"; /* And whatever else, if it differed, would make the bytes wrong. */
  model.hash_algorithm = "example";
  model.groups = &group;
  model.group_count = 1;
  kvd_namespace* ns = NULL;
  if (kvd_namespace_register(client, &model, 0, &ns) != KVD_OK) return Fail("namespace");

  char keys[2 * kHashBytes]; /* Root first. */
  memset(keys, 'a', kHashBytes);
  memset(keys + kHashBytes, 'b', kHashBytes);
  memset(source, 42, sizeof source);
  const kvd_const_buffer sources[] = {{source[0], kPartBytes}, {source[1], kPartBytes}};
  const kvd_buffer targets[] = {{target[0], kPartBytes}, {target[1], kPartBytes}};
  kvd_put_result put = KVD_PUT_RESULT_INIT;
  kvd_lookup_options lease = KVD_LOOKUP_OPTIONS_INIT;
  lease.lease_us = 30 * 1000 * 1000;
  kvd_lookup_result hit = KVD_LOOKUP_RESULT_INIT;
  kvd_get_result got = KVD_GET_RESULT_INIT;
  kvd_pin_options owner = KVD_PIN_OPTIONS_INIT;
  owner.owner = "first-steps";
  kvd_pin_result pin = KVD_PIN_RESULT_INIT;
  if (kvd_put(client, ns, keys, 2, sources, 2, NULL, &put) != KVD_OK) return Fail("put");
  if (kvd_lookup(client, ns, keys, 2, &lease, &hit) != KVD_OK) return Fail("lookup");
  if (kvd_get(client, ns, keys, 2, targets, 2, NULL, &got) != KVD_OK) return Fail("get");
  if (kvd_pin(client, ns, keys + kHashBytes, &owner, &pin) != KVD_OK) return Fail("pin");

  const int equal = memcmp(source, target, sizeof source) == 0;
  printf("stored %u, present %u, hit %u, got %u %s, pinned %u blocks\n", put.stored, put.present,
         hit.hit_blocks, got.blocks, equal ? "equal" : "other", pin.blocks);
  kvd_namespace_destroy(ns);
  kvd_client_destroy(client); /* Its leases end; what is stored and pinned stays. */
  return got.blocks == 2 && equal ? 0 : 1;
}
