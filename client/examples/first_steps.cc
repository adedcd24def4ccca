// The first steps: put a chain of two blocks, look it up, get it back, pin it.
//   first_steps unix:/run/kvd/kvd.sock

#include <iostream>
#include <string>
#include <vector>

#include "client/client.h"

int main(int argc, char** argv) {
  kvd::Client client({.endpoint = argc > 1 ? argv[1] : "unix:/run/kvd/kvd.sock"});
  kvd::NamespaceDescriptor model;  // Whatever, if it differed, would make the bytes wrong.
  model.model = "example/8b";
  model.hash_algorithm = "example";
  model.groups = {{.block_tokens = 16, .part_bytes = 4096}};
  const absl::StatusOr<kvd::Namespace> ns = client.RegisterNamespace(model);
  if (!ns.ok()) return std::cerr << ns.status() << "\n", 1;

  const std::string keys = std::string(32, 'a') + std::string(32, 'b');  // Root first.
  std::vector<std::byte> source(2 * 4096, std::byte{42}), target(2 * 4096);
  const auto block = [](auto& bytes, int i) { return absl::MakeSpan(&bytes[i * 4096], 4096); };
  const kvd::PutResult put = client.Put(*ns, keys, {block(source, 0), block(source, 1)});
  const kvd::LookupResult hit = client.Lookup(*ns, keys, {.lease = absl::Seconds(30)});
  const kvd::GetResult got = client.Get(*ns, keys, {block(target, 0), block(target, 1)});
  const auto pin = client.Pin(*ns, keys.substr(32), {.owner = "first-steps"});

  std::cout << "stored " << put.stored << ", present " << put.present << ", hit " << hit.hit_blocks
            << ", got " << got.blocks << (source == target ? " equal" : " other") << ", pinned "
            << (pin.ok() ? pin->blocks : 0) << " blocks\n";
  return got.blocks == 2 && source == target ? 0 : 1;
}
