// What the C interface adds to the C++ one (client_test.cc): mistakes that only C can make, growing
// structures, texts of errors by thread, fork; and a C program over the shared library.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/certificates.h"
#include "client/kvd.h"
#include "proto/types/check.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr uint32_t kPartBytes = 4096;

class CApiTest : public testing::Test {
 protected:
  CApiTest() {
    auto daemon = DaemonProcess::Start();
    KVD_CHECK(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    client_ = MakeClient();
    ns_ = Register(client_);
  }
  ~CApiTest() override {
    kvd_namespace_destroy(ns_);
    kvd_client_destroy(client_);
  }

  kvd_client* MakeClient(kvd_client_options options = KVD_CLIENT_OPTIONS_INIT) {
    const std::string endpoint = daemon_->endpoint();
    options.endpoint = endpoint.c_str();
    options.timeout_us = 10'000'000;
    kvd_client* client = nullptr;
    EXPECT_EQ(kvd_client_create(&options, &client), KVD_OK) << kvd_error_message();
    return client;
  }
  // Two groups: one part of attention, and a window of two blocks in two shards.
  static kvd_namespace* Register(kvd_client* client) {
    const kvd_group groups[] = {{.block_tokens = 16, .part_bytes = kPartBytes},
                                {.kind = KVD_GROUP_WINDOW,
                                 .window_tokens = 32,
                                 .shards = 2,
                                 .block_tokens = 16,
                                 .part_bytes = kPartBytes / 2}};
    kvd_namespace_descriptor descriptor = KVD_NAMESPACE_DESCRIPTOR_INIT;
    descriptor.model = "example";
    descriptor.groups = groups;
    descriptor.group_count = 2;
    kvd_namespace* ns = nullptr;
    EXPECT_EQ(kvd_namespace_register(client, &descriptor, 0, &ns), KVD_OK) << kvd_error_message();
    return ns;
  }
  // A chain of `blocks`, and room for its parts.
  struct Chain {
    explicit Chain(uint32_t blocks)
        : keys(blocks * 32, '\0'), bytes(blocks * 2 * kPartBytes, '\0') {
      for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<char>('a' + i / 32);
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i / 512);
      for (uint32_t i = 0; i < blocks; ++i) {
        char* block = bytes.data() + i * 2 * kPartBytes;
        for (const auto& [from, size] :
             {std::pair{0u, kPartBytes}, std::pair{kPartBytes, kPartBytes / 2},
              std::pair{kPartBytes / 2 * 3, kPartBytes / 2}}) {
          sources.push_back({block + from, size});
          targets.push_back({block + from, size});
        }
      }
    }
    std::string keys;
    std::string bytes;
    std::vector<kvd_const_buffer> sources;
    std::vector<kvd_buffer> targets;
  };
  void Put(const Chain& chain) {
    kvd_put_result put = KVD_PUT_RESULT_INIT;
    ASSERT_EQ(kvd_put(client_, ns_, chain.keys.data(), chain.keys.size() / 32, chain.sources.data(),
                      chain.sources.size(), nullptr, &put),
              KVD_OK)
        << kvd_error_message();
    ASSERT_EQ(put.stored, chain.keys.size() / 32);
  }

  std::unique_ptr<DaemonProcess> daemon_;
  kvd_client* client_ = nullptr;
  kvd_namespace* ns_ = nullptr;
};

TEST_F(CApiTest, ACProgramOverTheSharedLibraryGetsWhatItPut) {
  ChildProcess program(KVD_C_API_PROGRAM, {daemon_->endpoint()});

  EXPECT_EQ(program.ReadLine(), absl::StrCat("good ", kvd_version()));
  EXPECT_EQ(program.Wait(), 0) << program.Errors();
}

TEST_F(CApiTest, AProgramOfTheFirstVersionGetsWhatItPut) {
  ChildProcess program(KVD_C_API_PROGRAM_0_1, {daemon_->endpoint()});

  EXPECT_EQ(program.ReadLine(), absl::StrCat("good ", kvd_version()));
  EXPECT_EQ(program.Wait(), 0) << program.Errors();
}

TEST_F(CApiTest, AProcessMayHaveBothClients) {
  ChildProcess program(KVD_C_API_BESIDE_CXX, {daemon_->endpoint()});

  EXPECT_EQ(program.ReadLine(), absl::StrCat("good ", kvd_version()));
  EXPECT_EQ(program.Wait(), 0) << program.Errors();
}

// The examples that the READMEs show. The same blocks: what the one stores, the other finds.
TEST_F(CApiTest, TheFirstStepsInCppAndInCSayWhatTheyDid) {
  for (const char* stored : {"stored 2, present 0", "stored 0, present 2"}) {
    const bool first = stored[7] == '2';
    ChildProcess program(first ? KVD_FIRST_STEPS_C : KVD_FIRST_STEPS, {daemon_->endpoint()});

    EXPECT_EQ(program.ReadLine(), absl::StrCat(stored, ", hit 2, got 2 equal, pinned 2 blocks"));
    EXPECT_EQ(program.Wait(), 0) << program.Errors();
  }
}

TEST_F(CApiTest, TheFirstStepsWithoutADaemonSayWhatIsMissing) {
  for (const char* example : {KVD_FIRST_STEPS_C, KVD_FIRST_STEPS}) {
    ChildProcess program(example, {daemon_->endpoint() + ".nobody"});

    EXPECT_EQ(program.Wait(), 1);
    EXPECT_THAT(program.Errors(), testing::HasSubstr("No such file or directory"));
  }
}

TEST_F(CApiTest, PartsOfSeveralGroupsGoWhereTheNamespaceSays) {
  kvd_part part;
  EXPECT_EQ(kvd_namespace_parts(ns_), 3u);
  EXPECT_EQ(kvd_namespace_part(ns_, 0, &part), kPartBytes);
  EXPECT_EQ(kvd_namespace_part(ns_, 2, &part), kPartBytes / 2);
  EXPECT_EQ(part.group, 1);
  EXPECT_EQ(part.shard, 1);
  EXPECT_EQ(kvd_namespace_part(ns_, 3, &part), 0u);
  const Chain chain(4);
  Put(chain);

  Chain copy(4);
  copy.bytes.assign(copy.bytes.size(), '\0');
  kvd_get_result got = KVD_GET_RESULT_INIT;
  ASSERT_EQ(kvd_get(client_, ns_, copy.keys.data(), 4, copy.targets.data(), copy.targets.size(),
                    nullptr, &got),
            KVD_OK);

  EXPECT_EQ(got.blocks, 4u);
  // Blocks whose window is not needed at this depth are not asked for; the last two are whole.
  EXPECT_EQ(std::memcmp(copy.bytes.data() + 4 * kPartBytes, chain.bytes.data() + 4 * kPartBytes,
                        4 * kPartBytes),
            0);
  EXPECT_EQ(std::memcmp(copy.bytes.data(), chain.bytes.data(), kPartBytes), 0);
}

// A window of two blocks: of a chain of four, what the first two have of it is not needed.
TEST_F(CApiTest, APieceOfAPrefixIsGotAsWhatItIsThePrefixFor) {
  Chain chain(4);
  const kvd_part full[] = {{0, 0}};
  kvd_put_options only_full = KVD_PUT_OPTIONS_INIT;
  only_full.parts = full;
  only_full.part_count = 1;
  kvd_put_result put = KVD_PUT_RESULT_INIT;
  const kvd_const_buffer heads[] = {chain.sources[0], chain.sources[3]};
  ASSERT_EQ(kvd_put(client_, ns_, chain.keys.data(), 2, heads, 2, &only_full, &put), KVD_OK);
  kvd_put_options below = KVD_PUT_OPTIONS_INIT;
  below.parent = chain.keys.data() + 32;
  ASSERT_EQ(kvd_put(client_, ns_, chain.keys.data() + 64, 2, &chain.sources[6], 6, &below, &put),
            KVD_OK);
  ASSERT_EQ(put.stored, 2u);
  const std::string stored = std::exchange(chain.bytes, std::string(chain.bytes.size(), 'x'));
  for (size_t i = 0; i < chain.targets.size(); ++i) {  // Where the bytes are now.
    chain.targets[i].data =
        chain.bytes.data() + (static_cast<const char*>(chain.sources[i].data) - stored.data());
  }
  kvd_get_options options = KVD_GET_OPTIONS_INIT;
  options.parts = full;
  options.part_count = 1;
  kvd_get_result got = KVD_GET_RESULT_INIT;
  const kvd_buffer targets[] = {chain.targets[0], chain.targets[3]};

  ASSERT_EQ(kvd_get(client_, ns_, chain.keys.data(), 2, targets, 2, &options, &got), KVD_OK);
  EXPECT_EQ(got.blocks, 0u);  // A prefix of two has no window.
  options.max_blocks = 2;
  ASSERT_EQ(kvd_get(client_, ns_, chain.keys.data(), 4, targets, 2, &options, &got), KVD_OK)
      << kvd_error_message();

  EXPECT_EQ(got.hit_blocks, 4u);
  EXPECT_EQ(got.blocks, 2u);
  for (const size_t block : {0, 1}) {
    const size_t from = block * 2 * kPartBytes;
    EXPECT_EQ(chain.bytes.substr(from, kPartBytes), stored.substr(from, kPartBytes));
  }
}

TEST_F(CApiTest, SomePartsAndARangeOfThemCanBeReadInPlace) {
  const Chain chain(2);
  Put(chain);
  const kvd_part second_shard = {1, 1};
  kvd_load_options options = KVD_LOAD_OPTIONS_INIT;
  options.parts = &second_shard;
  options.part_count = 1;
  options.range_offset = 512;
  options.range_bytes = 1024;

  kvd_chain* loaded = nullptr;
  ASSERT_EQ(kvd_load(client_, ns_, chain.keys.data(), 2, &options, &loaded), KVD_OK);

  ASSERT_EQ(kvd_chain_blocks(loaded), 2u);
  ASSERT_EQ(kvd_chain_parts(loaded), 1u);
  std::vector<kvd_const_buffer> views(2);
  ASSERT_EQ(kvd_chain_views(loaded, 0, 2, views.data(), 2), KVD_OK);
  uint8_t good[2] = {};
  ASSERT_EQ(kvd_chain_verify(loaded, 0, 2, good, 2), KVD_OK);
  EXPECT_THAT(good, Each(1));
  ASSERT_EQ(views[1].size, 1024u);
  EXPECT_EQ(std::memcmp(views[1].data, chain.bytes.data() + 2 * kPartBytes + 6144 + 512, 1024), 0);
  kvd_chain_release(loaded);
}

TEST_F(CApiTest, AChainSaysWhereAListDoesNotFitIt) {
  Chain chain(2);
  Put(chain);
  kvd_chain* loaded = nullptr;
  ASSERT_EQ(kvd_load(client_, ns_, chain.keys.data(), 2, nullptr, &loaded), KVD_OK);
  std::vector<uint8_t> good(6, 7);

  EXPECT_EQ(kvd_chain_verify(loaded, 1, 2, good.data(), 6), KVD_OUT_OF_RANGE);
  EXPECT_THAT(kvd_error_message(), HasSubstr("blocks 1 to 3 of a chain of 2"));
  EXPECT_EQ(kvd_chain_verify(loaded, UINT32_MAX, 2, good.data(), 6), KVD_OUT_OF_RANGE);
  EXPECT_EQ(kvd_chain_verify(loaded, 0, 2, good.data(), 5), KVD_INVALID_ARGUMENT);
  EXPECT_EQ(kvd_chain_verify(loaded, 0, 2, nullptr, 6), KVD_INVALID_ARGUMENT);
  EXPECT_THAT(good, Each(7));  // Untouched.

  chain.targets[3].size = 17;
  EXPECT_EQ(kvd_chain_copy(loaded, 0, 2, chain.targets.data(), good.data(), 6),
            KVD_INVALID_ARGUMENT);
  EXPECT_STREQ(kvd_error_message(), "targets[3].size: 17 for a part of 4096 bytes");
  chain.targets[3].size = 0;
  EXPECT_EQ(kvd_chain_copy(loaded, 0, 2, chain.targets.data(), good.data(), 6), KVD_OK);
  EXPECT_THAT(good, ElementsAre(1, 1, 1, 0, 1, 1));
  kvd_chain_release(loaded);
}

TEST_F(CApiTest, AMissIsNoErrorAndADaemonAwayIsOne) {
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  const Chain chain(1);
  EXPECT_EQ(kvd_lookup(client_, ns_, chain.keys.data(), 1, nullptr, &found), KVD_OK);
  EXPECT_EQ(found.hit_blocks, 0u);

  daemon_->Kill();
  found.hit_blocks = 99;

  EXPECT_EQ(kvd_lookup(client_, ns_, chain.keys.data(), 1, nullptr, &found), KVD_UNAVAILABLE);
  EXPECT_EQ(found.hit_blocks, 0u);
  EXPECT_NE(std::string(kvd_error_message()), "");
  EXPECT_EQ(kvd_client_connect(client_, 0), KVD_UNAVAILABLE);
}

TEST_F(CApiTest, ALookupSaysFromWhichTiersItWouldBeServed) {
  const Chain chain(3);
  Put(chain);
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;

  ASSERT_EQ(kvd_lookup(client_, ns_, chain.keys.data(), 3, nullptr, &found), KVD_OK);

  EXPECT_EQ(found.hit_blocks, 3u);
  EXPECT_EQ(found.tier_blocks[KVD_TIER_DRAM], 3u);
  EXPECT_EQ(found.tier_blocks[KVD_TIER_NVME], 0u);
}

TEST_F(CApiTest, ALookupThatNobodySitsOutEndsAsOneThatIs) {
  const Chain chain(3);
  Put(chain);
  kvd_lookup_options options = KVD_LOOKUP_OPTIONS_INIT;
  options.lease_us = 60'000'000;
  kvd_pending* pending = nullptr;
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  int32_t done = 0;

  ASSERT_EQ(kvd_lookup_start(client_, ns_, chain.keys.data(), 3, &options, &pending), KVD_OK)
      << kvd_error_message();
  for (const absl::Time end = absl::Now() + absl::Seconds(20); !done && absl::Now() < end;) {
    ASSERT_EQ(kvd_lookup_poll(pending, &done, &found), KVD_OK) << kvd_error_message();
  }

  EXPECT_EQ(done, 1);
  EXPECT_EQ(found.hit_blocks, 3u);
  EXPECT_EQ(found.tier_blocks[KVD_TIER_DRAM], 3u);
  EXPECT_NE(found.lease_id, 0u);
  kvd_release_lease(client_, found.lease_id);
  kvd_pending_destroy(pending);
}

TEST_F(CApiTest, ALookupThatNobodySitsOutSaysWhyItFailed) {
  const Chain chain(1);
  kvd_pending* pending = nullptr;
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  int32_t done = 0;
  daemon_->Kill();

  ASSERT_EQ(kvd_lookup_start(client_, ns_, chain.keys.data(), 1, nullptr, &pending), KVD_OK);
  kvd_status status = KVD_OK;
  for (const absl::Time end = absl::Now() + absl::Seconds(20); !done && absl::Now() < end;) {
    status = kvd_lookup_poll(pending, &done, &found);
  }
  EXPECT_EQ(status, KVD_UNAVAILABLE);
  EXPECT_EQ(done, 1);

  kvd_client* const other = MakeClient();
  kvd_pending_destroy(pending);
  pending = nullptr;
  EXPECT_EQ(kvd_lookup_start(other, ns_, chain.keys.data(), 1, nullptr, &pending),
            KVD_INVALID_ARGUMENT);
  EXPECT_EQ(pending, nullptr);
  kvd_client_destroy(other);
}

TEST_F(CApiTest, ALookupOutlivesItsClient) {
  const Chain chain(1);
  kvd_pending* pending = nullptr;
  ASSERT_EQ(kvd_lookup_start(client_, ns_, chain.keys.data(), 1, nullptr, &pending), KVD_OK);
  kvd_client_destroy(std::exchange(client_, nullptr));
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  int32_t done = 0;

  kvd_lookup_poll(pending, &done, &found);

  EXPECT_EQ(done, 1);
  kvd_pending_destroy(pending);
}

TEST_F(CApiTest, PutSaysWhatBecameOfEachBlock) {
  Put(Chain(1));
  const Chain chain(3);
  uint8_t states[2] = {};
  kvd_put_result put = KVD_PUT_RESULT_INIT;
  put.block_states = states;
  put.state_capacity = 2;

  ASSERT_EQ(kvd_put(client_, ns_, chain.keys.data(), 3, chain.sources.data(), 9, nullptr, &put),
            KVD_OK);

  EXPECT_EQ(put.stored, 2u);
  EXPECT_EQ(put.present, 1u);
  EXPECT_EQ(put.state_count, 2u);  // As many as there is room for.
  EXPECT_THAT(states, ElementsAre(KVD_PUT_PRESENT, KVD_PUT_STORED));
}

TEST_F(CApiTest, AdoptedMemoryIsPutFromAndOtherMemoryRefusedByName) {
  constexpr size_t kBlocks = 40;  // More than a put in one call takes.
  constexpr size_t kBytes = kBlocks * 2 * kPartBytes;
  const int fd = memfd_create("own", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(fd, kBytes), 0);
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(memory, MAP_FAILED);
  EXPECT_EQ(kvd_adopt_memory(client_, fd, memory, kBytes, 0), KVD_INVALID_ARGUMENT);
  EXPECT_THAT(kvd_error_message(), HasSubstr("F_SEAL_SHRINK"));
  ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_EQ(kvd_adopt_memory(client_, fd, memory, kBytes, 0), KVD_OK) << kvd_error_message();
  EXPECT_EQ(kvd_adopt_memory(client_, fd, memory, kBytes, 0), KVD_FAILED_PRECONDITION);

  std::string keys;
  std::vector<kvd_const_buffer> sources;
  std::vector<kvd_buffer> targets;
  std::vector<char> got_bytes(kBytes);
  size_t at = 0;
  for (size_t block = 0; block < kBlocks; ++block) {
    std::string key = absl::StrCat("own-", block);
    key.resize(kvd_namespace_hash_bytes(ns_), '.');
    keys += key;
    for (uint32_t part = 0; part < kvd_namespace_parts(ns_); ++part) {
      const uint32_t size = kvd_namespace_part(ns_, part, nullptr);
      char* place = static_cast<char*>(memory) + at;
      std::memset(place, static_cast<int>(block * 3 + part + 1), size);
      sources.push_back({place, size});
      targets.push_back({got_bytes.data() + at, size});
      at += size;
    }
  }
  kvd_put_result put = KVD_PUT_RESULT_INIT;
  ASSERT_EQ(
      kvd_put(client_, ns_, keys.data(), kBlocks, sources.data(), sources.size(), nullptr, &put),
      KVD_OK)
      << kvd_error_message();
  EXPECT_EQ(put.stored, kBlocks);
  const kvd_part full = {0, 0};
  kvd_get_options options = KVD_GET_OPTIONS_INIT;
  options.parts = &full;
  options.part_count = 1;
  std::vector<kvd_buffer> of_full;
  for (size_t i = 0; i < targets.size(); i += 3) of_full.push_back(targets[i]);
  kvd_get_result got = KVD_GET_RESULT_INIT;
  ASSERT_EQ(
      kvd_get(client_, ns_, keys.data(), kBlocks, of_full.data(), of_full.size(), &options, &got),
      KVD_OK)
      << kvd_error_message();
  EXPECT_EQ(got.blocks, kBlocks);
  for (size_t i = 0; i < targets.size(); i += 3) {
    EXPECT_EQ(std::memcmp(targets[i].data, sources[i].data, sources[i].size), 0) << i;
  }
  munmap(memory, kBytes);
  close(fd);
}

TEST_F(CApiTest, WhatIsNullIsNamed) {
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  kvd_get_result got = KVD_GET_RESULT_INIT;
  const Chain chain(1);
  const auto expect = [](kvd_status status, const char* text) {
    EXPECT_EQ(status, KVD_INVALID_ARGUMENT);
    EXPECT_STREQ(kvd_error_message(), text);
  };

  expect(kvd_client_create(nullptr, nullptr), "client: null");
  expect(kvd_lookup(nullptr, ns_, chain.keys.data(), 1, nullptr, &found), "client: null");
  expect(kvd_lookup(client_, nullptr, chain.keys.data(), 1, nullptr, &found), "ns: null");
  expect(kvd_lookup(client_, ns_, nullptr, 1, nullptr, &found), "keys: null");
  expect(kvd_lookup(client_, ns_, chain.keys.data(), 1, nullptr, nullptr), "result: null");
  expect(kvd_get(client_, ns_, chain.keys.data(), 1, nullptr, 3, nullptr, &got), "targets: null");
  const kvd_buffer nowhere[3] = {{nullptr, 4096}, {nullptr, 2048}, {nullptr, 2048}};
  expect(kvd_get(client_, ns_, chain.keys.data(), 1, nowhere, 3, nullptr, &got),
         "targets[0].data: null");
  expect(kvd_load(client_, ns_, chain.keys.data(), 1, nullptr, nullptr), "chain: null");
  int32_t done = 1;
  expect(kvd_lookup_start(client_, ns_, chain.keys.data(), 1, nullptr, nullptr), "pending: null");
  expect(kvd_lookup_poll(nullptr, nullptr, &found), "done: null");
  expect(kvd_lookup_poll(nullptr, &done, &found), "pending: null");
  EXPECT_EQ(done, 0);
  kvd_pending_destroy(nullptr);
  expect(kvd_chain_views(nullptr, 0, 0, nullptr, 0), "chain: null");
  expect(kvd_adopt_memory(nullptr, 0, nowhere, 1, 0), "client: null");
  expect(kvd_adopt_memory(client_, 0, nullptr, 1, 0), "data: null");
  kvd_client_destroy(nullptr);
  kvd_namespace_destroy(nullptr);
  kvd_chain_release(nullptr);
  EXPECT_EQ(kvd_chain_blocks(nullptr), 0u);
  EXPECT_EQ(kvd_namespace_parts(nullptr), 0u);
}

TEST_F(CApiTest, SizesThatCannotBeAreRefusedBeforeAnyListIsRead) {
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
  kvd_get_result got = KVD_GET_RESULT_INIT;
  const Chain chain(1);

  EXPECT_EQ(kvd_lookup(client_, ns_, chain.keys.data(), SIZE_MAX, nullptr, &found),
            KVD_INVALID_ARGUMENT);
  EXPECT_EQ(
      kvd_get(client_, ns_, chain.keys.data(), 1, chain.targets.data(), SIZE_MAX, nullptr, &got),
      KVD_INVALID_ARGUMENT);
  kvd_get_options options = KVD_GET_OPTIONS_INIT;
  options.part_count = SIZE_MAX;
  EXPECT_EQ(kvd_get(client_, ns_, chain.keys.data(), 1, chain.targets.data(), 3, &options, &got),
            KVD_INVALID_ARGUMENT);
  EXPECT_THAT(kvd_error_message(), StartsWith("part_count"));
}

TEST_F(CApiTest, ANamespaceServesOnlyTheClientThatRegisteredIt) {
  kvd_client* other = MakeClient();
  kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;

  EXPECT_EQ(kvd_lookup(other, ns_, "", 0, nullptr, &found), KVD_INVALID_ARGUMENT);

  EXPECT_STREQ(kvd_error_message(), "ns: registered by another client");
  kvd_client_destroy(other);
}

TEST_F(CApiTest, AThreadThatSpinsGetsWhatOneThatSleepsGets) {
  kvd_client_options options = KVD_CLIENT_OPTIONS_INIT;
  options.spin_us = 10'000;
  kvd_client* client = MakeClient(options);
  kvd_namespace* ns = Register(client);
  Chain chain(2);
  Put(chain);
  const std::string put = chain.bytes;
  std::fill(chain.bytes.begin(), chain.bytes.end(), '\0');
  kvd_get_result got = KVD_GET_RESULT_INIT;

  EXPECT_EQ(kvd_get(client, ns, chain.keys.data(), 2, chain.targets.data(), chain.targets.size(),
                    nullptr, &got),
            KVD_OK)
      << kvd_error_message();

  EXPECT_EQ(got.blocks, 2u);
  EXPECT_EQ(chain.bytes, put);
  kvd_namespace_destroy(ns);
  kvd_client_destroy(client);
}

TEST_F(CApiTest, ASpinThatIsLongerThanASleepIsRefused) {
  kvd_client_options options = KVD_CLIENT_OPTIONS_INIT;
  options.spin_us = 10'001;
  kvd_client* client = nullptr;

  EXPECT_EQ(kvd_client_create(&options, &client), KVD_INVALID_ARGUMENT);

  EXPECT_STREQ(kvd_error_message(), "options.spin_us: 10001 is more than 10000");
}

TEST(CApiTlsTest, AClientOfAnotherHostNamesItsFiles) {
  const TestFolder folder;
  ASSERT_TRUE(MakeCertificates(folder.path()).ok());
  const auto file = [&](const char* name) { return folder.path() + "/" + name; };
  const auto daemon =
      DaemonProcess::Start({.arguments = {"--dram", "64MiB", "--tcp", "127.0.0.1:0",
                                          "--tls-certificate", file("server.pem"), "--tls-key",
                                          file("server.key"), "--tls-client-ca", file("ca.pem")}});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const std::string endpoint = "tcp:" + (*daemon)->Status().tcp();
  const std::string certificate = file("client.pem"), key = file("client.key");
  const std::string authority = file("ca.pem");
  kvd_client_options options = KVD_CLIENT_OPTIONS_INIT;
  options.endpoint = endpoint.c_str();
  options.timeout_us = 10'000'000;
  options.tls_certificate = certificate.c_str();
  options.tls_key = key.c_str();
  options.tls_authority = authority.c_str();
  options.tls_server_name = kTestServerName;
  const auto connect = [&options] {
    kvd_client* client = nullptr;
    EXPECT_EQ(kvd_client_create(&options, &client), KVD_OK);
    const kvd_status status = kvd_client_connect(client, 0);
    kvd_client_destroy(client);
    return status;
  };

  EXPECT_EQ(connect(), KVD_OK) << kvd_error_message();

  options.tls_key = "/no/such.key";
  EXPECT_EQ(connect(), KVD_INVALID_ARGUMENT);
  EXPECT_THAT(kvd_error_message(), HasSubstr("/no/such.key"));
}

TEST_F(CApiTest, AStructureThatWasNotBegunIsRefused) {
  kvd_client_options options = {};
  kvd_client* client = nullptr;

  EXPECT_EQ(kvd_client_create(&options, &client), KVD_INVALID_ARGUMENT);

  EXPECT_THAT(kvd_error_message(), HasSubstr("options.struct_size: 0 is too small"));
  EXPECT_EQ(client, nullptr);
}

TEST_F(CApiTest, ANewerCallerIsServedUnlessItSetsWhatWeDoNotKnow) {
  struct {
    kvd_lookup_options known = KVD_LOOKUP_OPTIONS_INIT;
    uint64_t later = 0;
  } options;
  options.known.struct_size = sizeof options;
  struct {
    kvd_lookup_result known = KVD_LOOKUP_RESULT_INIT;
    uint64_t later = 7;
  } result;
  result.known.struct_size = sizeof result;
  const Chain chain(1);
  Put(chain);

  EXPECT_EQ(kvd_lookup(client_, ns_, chain.keys.data(), 1, &options.known, &result.known), KVD_OK);
  EXPECT_EQ(result.known.hit_blocks, 1u);
  EXPECT_EQ(result.later, 0u);

  options.later = 1;
  EXPECT_EQ(kvd_lookup(client_, ns_, chain.keys.data(), 1, &options.known, &result.known),
            KVD_UNIMPLEMENTED);
}

TEST_F(CApiTest, MistakesInADescriptorNameTheField) {
  const kvd_group group = {.kind = 9, .block_tokens = 16, .part_bytes = 64};
  const kvd_extra extra[] = {{"a", "1"}, {"a", "2"}};
  kvd_namespace_descriptor descriptor = KVD_NAMESPACE_DESCRIPTOR_INIT;
  kvd_namespace* ns = nullptr;
  const auto expect = [&](const char* text) {
    EXPECT_EQ(kvd_namespace_register(client_, &descriptor, 0, &ns), KVD_INVALID_ARGUMENT);
    EXPECT_THAT(kvd_error_message(), HasSubstr(text));
    EXPECT_EQ(ns, nullptr);
  };

  descriptor.group_count = 1;
  expect("groups: null");
  descriptor.groups = &group;
  expect("groups[0].kind: 9 is no kind");
  descriptor.group_count = 17;
  expect("group_count: 17 is more than 16");
  descriptor.group_count = 0;
  expect("model");  // The first thing that the common check misses.
  descriptor.extra = extra;
  descriptor.extra_count = 2;
  expect("extra[1].name: \"a\" is there twice");
}

TEST_F(CApiTest, TheTextOfAnErrorIsOfItsThread) {
  EXPECT_EQ(kvd_unpin(nullptr, 1, 0), KVD_INVALID_ARGUMENT);
  std::string there;
  std::thread([&] {
    there = kvd_error_message();
    kvd_chain_views(nullptr, 0, 0, nullptr, 0);
  }).join();

  EXPECT_EQ(there, "");
  EXPECT_STREQ(kvd_error_message(), "client: null");
}

TEST_F(CApiTest, AClientAndItsChainsAreRefusedInAChildOfFork) {
  const Chain chain(1);
  Put(chain);
  kvd_chain* loaded = nullptr;
  ASSERT_EQ(kvd_load(client_, ns_, chain.keys.data(), 1, nullptr, &loaded), KVD_OK);
  kvd_pending* pending = nullptr;
  ASSERT_EQ(kvd_lookup_start(client_, ns_, chain.keys.data(), 1, nullptr, &pending), KVD_OK);

  const pid_t child = fork();
  if (child == 0) {
    uint8_t good[3];
    int32_t done = 0;
    kvd_lookup_result found = KVD_LOOKUP_RESULT_INIT;
    const bool refused = kvd_flush(client_, 0) == KVD_FAILED_PRECONDITION &&
                         std::strstr(kvd_error_message(), "fork") != nullptr &&
                         kvd_chain_verify(loaded, 0, 1, good, 3) == KVD_FAILED_PRECONDITION &&
                         kvd_lookup_poll(pending, &done, &found) == KVD_FAILED_PRECONDITION;
    kvd_pending_destroy(pending);
    kvd_chain_release(loaded);
    kvd_client_destroy(client_);
    _exit(refused ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);

  EXPECT_EQ(status, 0);
  uint8_t good[3] = {};
  EXPECT_EQ(kvd_chain_verify(loaded, 0, 1, good, 3), KVD_OK);  // Nothing was taken from us.
  EXPECT_THAT(good, Each(1));
  kvd_pending_destroy(pending);
  kvd_chain_release(loaded);
}

TEST(CApiStatusTest, EveryCodeHasItsName) {
  EXPECT_STREQ(kvd_status_name(KVD_OK), "OK");
  EXPECT_STREQ(kvd_status_name(KVD_UNAUTHENTICATED), "UNAUTHENTICATED");
  EXPECT_STREQ(kvd_status_name(-1), "UNKNOWN");
  EXPECT_STREQ(kvd_status_name(17), "UNKNOWN");
}

}  // namespace
}  // namespace kvd
