// ls, inspect, pin, unpin, evict, flush: blocks, and what may happen to them.

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

using v1::Admin;

constexpr uint32_t kPage = 10'000;
constexpr size_t kMinInspectBytes = 2;

struct BlockOptions {
  std::string key;
  uint32_t namespace_id = 0;
  uint64_t limit = 1000;
  bool full = false;
  std::string owner;
  std::string ttl = "1h";
  std::string budget;
  std::string pin_id;
  std::string tier;
};

Tone ToneOfState(const std::string& state) {
  if (state == "visible") return Tone::kPlain;
  return state == "stub" ? Tone::kBad : Tone::kDim;
}

// Where its bytes are.
std::string TierOf(const v1::BlockStatus& block) {
  if (block.nvme_bytes() == 0) return block.bytes() == 0 ? "-" : "dram";
  return block.bytes() == 0 ? "nvme" : "both";
}

absl::StatusOr<ExitCode> List(Call& call, const BlockOptions& options) {
  const absl::StatusOr<KeyPrefix> prefix = ParseKeyPrefix(options.key);
  if (!prefix.ok()) return prefix.status();
  const uint64_t limit = options.limit > 0 ? options.limit : std::numeric_limits<uint64_t>::max();
  v1::BlocksReply found;
  bool more = false;
  v1::BlocksRequest request;
  request.set_namespace_id(options.namespace_id);
  request.set_key_prefix(prefix->bytes);
  do {
    // One more than wanted tells whether there are more.
    const uint64_t wanted = limit - static_cast<uint64_t>(found.blocks_size());
    request.set_limit(
        static_cast<uint32_t>(std::min<uint64_t>(kPage, std::max(wanted, wanted + 1))));
    absl::StatusOr<v1::BlocksReply> page = call.daemon.Ask(&Admin::Stub::Blocks, request);
    if (!page.ok()) return page.status();
    for (v1::BlockStatus& block : *page->mutable_blocks()) {
      if (!prefix->Matches(block.key())) continue;
      if (static_cast<uint64_t>(found.blocks_size()) == limit) {
        more = true;
        break;
      }
      *found.add_blocks() = std::move(block);
    }
    request.set_cursor(page->next_cursor());
  } while (!more && request.cursor() != 0);

  Tree tree = {{"blocks", ToTree(found)["blocks"]}, {"more", more}};
  for (Tree& block : tree["blocks"]) block.erase("parts");  // Only inspect knows them.
  if (call.Printed(tree)) return kOk;
  Table table({{"KEY"},
               {"NAMESPACE", Align::kRight},
               {"DOMAIN"},
               {"DEPTH", Align::kRight},
               {"STATE"},
               {"TIER"},
               {"SIZE", Align::kRight},
               {"CHILDREN", Align::kRight},
               {"LEASES", Align::kRight},
               {"PARENT"}});
  const auto name = [&options](const std::string& key) {
    return options.full ? Hex(key) : ShortHex(key);
  };
  for (const v1::BlockStatus& block : found.blocks()) {
    table.Row({name(block.key()),
               Count(block.namespace_id()),
               Printable(block.domain()),
               Count(block.depth()),
               {Printable(block.state()), ToneOfState(block.state())},
               TierOf(block),
               Size(std::max(block.bytes(), block.nvme_bytes())),
               Count(block.children()),
               Count(block.leases()),
               block.parent().empty() ? "-" : name(block.parent())});
  }
  table.Print(call.out(), call.color());
  if (more) {
    call.environment.err << "kvctl: these are the first " << Count(limit)
                         << "; --limit N shows more, --limit 0 all\n";
  }
  return kOk;
}

// What Inspect finds, less what does not match the last half byte.
absl::StatusOr<v1::InspectReply> Find(Call& call, const BlockOptions& options) {
  const absl::StatusOr<KeyPrefix> prefix = ParseKeyPrefix(options.key);
  if (!prefix.ok()) return prefix.status();
  if (prefix->bytes.size() < kMinInspectBytes) {
    return absl::InvalidArgumentError("give at least 4 hex digits of the key");
  }
  v1::InspectRequest request;
  request.set_key_prefix(prefix->bytes);
  request.set_namespace_id(options.namespace_id);
  absl::StatusOr<v1::InspectReply> reply = call.daemon.Ask(&Admin::Stub::Inspect, request);
  if (!reply.ok()) {
    if (reply.status().code() != absl::StatusCode::kNotFound) return reply;
    return absl::NotFoundError(absl::StrCat("no block has a key that begins with ", options.key));
  }
  v1::InspectReply matching;
  matching.set_more(reply->more());
  for (v1::BlockStatus& block : *reply->mutable_blocks()) {
    if (prefix->Matches(block.key())) *matching.add_blocks() = std::move(block);
  }
  if (matching.blocks().empty()) {
    if (matching.more()) {
      return absl::InvalidArgumentError("too many keys begin so: give more digits of the key");
    }
    return absl::NotFoundError(absl::StrCat("no block has a key that begins with ", options.key));
  }
  return matching;
}

// The one block that was meant.
absl::StatusOr<v1::BlockStatus> FindOne(Call& call, const BlockOptions& options) {
  absl::StatusOr<v1::InspectReply> found = Find(call, options);
  if (!found.ok()) return found.status();
  if (found->blocks_size() == 1 && !found->more()) return found->blocks(0);
  std::string candidates;
  for (const v1::BlockStatus& block : found->blocks()) {
    absl::StrAppend(&candidates, "\n  ", Hex(block.key()), " in namespace ", block.namespace_id());
  }
  call.environment.err << "kvctl: these keys begin so:" << candidates
                       << (found->more() ? "\n  and more" : "") << "\n";
  return absl::InvalidArgumentError("name one of them: more digits, or --namespace ID");
}

void PrintBlock(Call& call, const v1::BlockStatus& block) {
  call.out() << Paint(absl::StrCat("key ", Hex(block.key())), Tone::kBold, call.color())
             << "\n  namespace " << block.namespace_id() << "   domain "
             << Printable(block.domain()) << "   depth " << Count(block.depth()) << "   "
             << Paint(Printable(block.state()), ToneOfState(block.state()), call.color()) << "   "
             << Size(block.bytes()) << "\n  parent "
             << (block.parent().empty() ? "- (a root)" : Hex(block.parent())) << "\n  children "
             << Count(block.children()) << "   leases on it " << Count(block.leases()) << "\n";
  if (block.parts().empty()) return;
  Table table({{"  GROUP", Align::kRight},
               {"SHARD", Align::kRight},
               {"TIER"},
               {"REGION", Align::kRight},
               {"OFFSET", Align::kRight},
               {"SIZE", Align::kRight},
               {"GENERATION", Align::kRight},
               {"CRC32C"},
               {"HOLDS", Align::kRight}});
  for (const v1::PartStatus& part : block.parts()) {
    table.Row({absl::StrCat(part.group()), absl::StrCat(part.shard()), Printable(part.tier()),
               absl::StrCat(part.region()), Count(part.offset()), Size(part.length()),
               absl::StrCat(part.generation()),
               absl::StrCat(absl::Hex(part.crc32c(), absl::kZeroPad8)), Count(part.holds())});
  }
  table.Print(call.out(), call.color());
}

absl::StatusOr<ExitCode> Inspect(Call& call, const BlockOptions& options) {
  const absl::StatusOr<v1::InspectReply> found = Find(call, options);
  if (!found.ok()) return found.status();
  if (call.Printed(ToTree(*found))) return kOk;
  for (int i = 0; i < found->blocks_size(); ++i) {
    if (i > 0) call.out() << "\n";
    PrintBlock(call, found->blocks(i));
  }
  if (found->more()) {
    call.environment.err << "kvctl: more keys begin so; give more digits of the key\n";
  }
  return kOk;
}

absl::StatusOr<ExitCode> Pin(Call& call, const BlockOptions& options) {
  const absl::StatusOr<absl::Duration> ttl = ParseTime(options.ttl);
  if (!ttl.ok()) return ttl.status();
  v1::PinChainRequest request;
  if (!options.budget.empty()) {
    const absl::StatusOr<uint64_t> budget = ParseSize(options.budget);
    if (!budget.ok()) return budget.status();
    request.set_budget_bytes(*budget);
  }
  const absl::StatusOr<v1::BlockStatus> block = FindOne(call, options);
  if (!block.ok()) return block.status();
  request.set_namespace_id(block->namespace_id());
  request.set_key(block->key());
  request.set_owner(options.owner);
  request.set_ttl_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(*ttl)));
  const absl::StatusOr<v1::PinChainReply> pin = call.daemon.Ask(&Admin::Stub::PinChain, request);
  if (!pin.ok()) return pin.status();
  Tree tree = ToTree(*pin);
  tree["namespace_id"] = block->namespace_id();
  tree["key"] = Hex(block->key());
  if (call.Printed(tree)) return kOk;
  call.out() << "pin " << HexId(pin->pin_id()) << ": " << Count(pin->blocks()) << " blocks, "
             << Size(pin->bytes()) << ", for " << absl::FormatDuration(*ttl) << "\n";
  return kOk;
}

absl::StatusOr<ExitCode> Unpin(Call& call, const BlockOptions& options) {
  const absl::StatusOr<uint64_t> id = ParseId(options.pin_id);
  if (!id.ok()) return id.status();
  v1::UnpinChainRequest request;
  request.set_pin_id(*id);
  const absl::StatusOr<v1::UnpinChainReply> reply =
      call.daemon.Ask(&Admin::Stub::UnpinChain, request);
  if (!reply.ok()) return reply.status();
  if (call.Printed({{"pin_id", HexId(*id)}})) return kOk;
  call.out() << "pin " << HexId(*id) << " is gone\n";
  return kOk;
}

template <typename Reply>
absl::StatusOr<ExitCode> Evicted(Call& call, const absl::StatusOr<Reply>& reply) {
  if (!reply.ok()) return reply.status();
  if (call.Printed(ToTree(*reply))) return kOk;
  call.out() << "evicted " << Count(reply->evicted_blocks()) << " blocks";
  if constexpr (std::is_same_v<Reply, v1::FlushReply>) {
    if (reply->moved_blocks() > 0) {
      call.out() << ", moved " << Count(reply->moved_blocks()) << " to the other tier";
    }
  }
  if (reply->kept_blocks() > 0) {
    call.out() << ", kept " << Count(reply->kept_blocks())
               << " (leased, pinned, held or in production)";
  }
  call.out() << "\n";
  return kOk;
}

absl::StatusOr<ExitCode> Evict(Call& call, const BlockOptions& options) {
  if (absl::Status status = MayConfirm(call); !status.ok()) return status;
  const absl::StatusOr<v1::BlockStatus> block = FindOne(call, options);
  if (!block.ok()) return block.status();
  const absl::Status sure =
      Confirm(call, absl::StrCat("Evict block ", ShortHex(block->key()), " of ",
                                 Printable(block->domain()), " (depth ", block->depth(), ", ",
                                 Size(block->bytes()), ") and what hangs below it?"));
  if (!sure.ok()) return sure;
  v1::EvictRequest request;
  request.set_namespace_id(block->namespace_id());
  request.set_key(block->key());
  return Evicted(call, call.daemon.Ask(&Admin::Stub::Evict, request));
}

// Goes on until all is checked. Damage is an answer, and one that asks for action.
absl::StatusOr<ExitCode> Verify(Call& call, const BlockOptions& options) {
  v1::VerifyRequest request;
  request.set_namespace_id(options.namespace_id);
  if (!options.key.empty()) {
    const absl::StatusOr<v1::BlockStatus> block = FindOne(call, options);
    if (!block.ok()) return block.status();
    request.set_namespace_id(block->namespace_id());
    request.set_key(block->key());
  }
  absl::StatusOr<v1::VerifyReply> reply;
  do {
    reply = call.daemon.Ask(&Admin::Stub::Verify, request);
    if (!reply.ok()) return reply.status();
    request.set_run(reply->run());
  } while (!reply->done());
  const ExitCode code = reply->damaged() > 0 ? kDegraded : kOk;
  Tree tree = ToTree(*reply);
  tree.erase("run");
  if (call.Printed(tree)) return code;
  call.out() << "checked " << Count(reply->parts()) << " parts (" << Size(reply->bytes()) << ") of "
             << Count(reply->blocks()) << " blocks";
  if (reply->skipped() > 0) call.out() << ", skipped " << Count(reply->skipped());
  call.out() << ": "
             << (reply->damaged() == 0
                     ? std::string("all are as they were stored")
                     : Paint(absl::StrCat(Count(reply->damaged()),
                                          " damaged; `kvctl quarantine` lists them"),
                             Tone::kBad, call.color()))
             << "\n";
  return code;
}

absl::StatusOr<ExitCode> Quarantine(Call& call, const BlockOptions& options) {
  const absl::StatusOr<v1::QuarantineReply> reply = call.daemon.Ask(&Admin::Stub::Quarantine);
  if (!reply.ok()) return reply.status();
  if (call.Printed(ToTree(*reply))) return kOk;
  Table table({{"TIME"},
               {"KEY"},
               {"NAMESPACE", Align::kRight},
               {"DOMAIN"},
               {"PART"},
               {"TIER"},
               {"REGION", Align::kRight},
               {"OFFSET", Align::kRight},
               {"SIZE", Align::kRight},
               {"FOUND BY"}});
  for (const v1::QuarantineEntry& entry : reply->entries()) {
    table.Row({Clock(entry.unix_ms()), options.full ? Hex(entry.key()) : ShortHex(entry.key()),
               Count(entry.namespace_id()), Printable(entry.domain()),
               absl::StrCat(entry.group(), "/", entry.shard()), Printable(entry.tier()),
               absl::StrCat(entry.region()), Count(entry.offset()), Size(entry.length()),
               Printable(entry.found_by())});
  }
  table.Print(call.out(), call.color());
  if (reply->total() > static_cast<uint64_t>(reply->entries_size())) {
    call.environment.err << "kvctl: these are the last of " << Count(reply->total()) << "\n";
  }
  return kOk;
}

absl::StatusOr<ExitCode> Flush(Call& call, const BlockOptions& options) {
  const absl::Status sure = Confirm(
      call, absl::StrCat("Empty the tier ", options.tier, " of all blocks that may leave it?"));
  if (!sure.ok()) return sure;
  v1::FlushRequest request;
  request.set_tier(options.tier);
  return Evicted(call, call.daemon.Ask(&Admin::Stub::Flush, request));
}

}  // namespace

void AddBlockVerbs(CommandLine& line) {
  auto options = std::make_shared<BlockOptions>();
  const auto does = [options](absl::StatusOr<ExitCode> (*verb)(Call&, const BlockOptions&)) {
    return [options, verb](Call& call) { return verb(call, *options); };
  };
  const auto namespace_option = [options](CLI::App* verb) {
    verb->add_option("--namespace", options->namespace_id, "Only of this namespace; 0: of all")
        ->type_name("ID");
  };

  CLI::App* list = line.Add(line.app(), "ls", "Blocks, of all or of those whose key begins so",
                            "kvctl ls\nkvctl ls 7be1\nkvctl ls --namespace 2 --limit 0 -o json",
                            Repeat::kYes, does(List));
  list->add_option("prefix", options->key, "The first hex digits of the key");
  list->add_option("--limit", options->limit, "How many at most; 0: all")->capture_default_str();
  list->add_flag("--full", options->full, "Keys in full length");
  namespace_option(list);

  CLI::App* inspect = line.Add(line.app(), "inspect", "All about the blocks whose key begins so",
                               "kvctl inspect 7be1c09d\nkvctl inspect 7be1c09d --namespace 2",
                               Repeat::kYes, does(Inspect));
  inspect->add_option("key", options->key, "The key in hex, or its first 4 digits or more")
      ->required();
  namespace_option(inspect);

  CLI::App* pin =
      line.Add(line.app(), "pin", "Keep a chain, up to and with this block, for some time",
               "kvctl pin 7be1c09d --owner system-prompts --ttl 8h\n"
               "kvctl pin 7be1c09d --owner demo --ttl 30m --budget 2GiB",
               Repeat::kNo, does(Pin));
  pin->add_option("key", options->key, "The deepest block: its key, or enough of it")->required();
  pin->add_option("--owner", options->owner, "Who wants it; shown by `kvctl leases`")
      ->type_name("NAME")
      ->required();
  pin->add_option("--ttl", options->ttl, "For how long")->type_name("TIME")->capture_default_str();
  pin->add_option("--budget", options->budget, "Refuse a chain of more bytes than this")
      ->type_name("SIZE");
  namespace_option(pin);

  line.Add(line.app(), "unpin", "End a pin, of whomever",
           "kvctl leases --kind pin\nkvctl unpin 00000000000004d2", Repeat::kNo, does(Unpin))
      ->add_option("pin", options->pin_id, "Its id in hex")
      ->required();

  CLI::App* evict = line.Add(line.app(), "evict", "Drop a block and what hangs below it (asks)",
                             "kvctl evict 7be1c09d\nkvctl evict 7be1c09d --yes -o json",
                             Repeat::kNo, does(Evict));
  evict->add_option("key", options->key, "Its key, or enough of it")->required();
  namespace_option(evict);

  CLI::App* verify =
      line.Add(line.app(), "verify", "Check stored bytes against their sums, in every tier",
               "kvctl verify\nkvctl verify 7be1c09d\nkvctl verify --namespace 2 -o json",
               Repeat::kNo, does(Verify));
  verify->add_option("key", options->key, "The deepest block of a chain; left out: all blocks");
  namespace_option(verify);

  CLI::App* quarantine =
      line.Add(line.app(), "quarantine", "What was found damaged lately, where, and by whom",
               "kvctl quarantine\nkvctl quarantine -o json", Repeat::kYes, does(Quarantine));
  quarantine->add_flag("--full", options->full, "Keys in full length");

  line.Add(line.app(), "flush", "Empty a tier of what may leave it (asks)",
           "kvctl flush dram\nkvctl flush nvme --yes --timeout 5m", Repeat::kNo, does(Flush))
      ->add_option("tier", options->tier, "As `kvctl tiers` names it")
      ->required();
}

}  // namespace kvd::kvctl
