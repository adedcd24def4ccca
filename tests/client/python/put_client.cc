// Puts pages of 2 MiB with the C++ client, as put_bench.py does with that of Python: put_client
// ENDPOINT LOOP.
//
// A line on standard input, the number of puts, is answered by a line with the nanoseconds of each.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "client/client.h"

namespace {

constexpr uint32_t kPageBytes = 2 << 20;

// No two are equal, and none is one of put_bench.py's.
std::string NextKey() {
  static uint64_t count = 0;
  std::string key(32, 'c');
  ++count;
  std::memcpy(key.data(), &count, sizeof(count));
  return key;
}

}  // namespace

int main(int, char** argv) {
  kvd::Client client({.endpoint = argv[1], .copy_loop = argv[2]});
  kvd::NamespaceDescriptor model;
  model.model = "bench/put";
  model.hash_algorithm = "count";
  model.groups = {{.block_tokens = 16, .part_bytes = kPageBytes}};
  const absl::StatusOr<kvd::Namespace> ns = client.RegisterNamespace(model);
  if (!ns.ok()) return std::cerr << ns.status() << "\n", 1;

  const std::vector<std::byte> page(kPageBytes, std::byte{42});
  for (int puts = 0; std::cin >> puts;) {
    for (int i = 0; i < puts; ++i) {
      const std::string key = NextKey();
      const auto begin = std::chrono::steady_clock::now();
      const kvd::PutResult put = client.Put(*ns, key, {absl::MakeConstSpan(page)});
      const auto end = std::chrono::steady_clock::now();
      if (put.stored != 1) return std::cerr << "not stored: " << put.status << "\n", 1;
      std::cout << std::chrono::nanoseconds(end - begin).count() << ' ';
    }
    std::cout << std::endl;
  }
}
