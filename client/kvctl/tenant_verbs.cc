// leases, sessions, namespaces: who is there, and what is theirs.

#include <algorithm>
#include <limits>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

using v1::Admin;

constexpr uint32_t kPage = 10'000;

struct TenantOptions {
  std::string domain;
  std::string kind;
  uint64_t limit = 1000;
  uint32_t namespace_id = 0;
};

absl::StatusOr<ExitCode> Leases(Call& call, const TenantOptions& options) {
  const uint64_t limit = options.limit > 0 ? options.limit : std::numeric_limits<uint64_t>::max();
  v1::LeasesReply found;
  bool more = false;
  v1::LeasesRequest request;
  request.set_limit(kPage);
  do {
    absl::StatusOr<v1::LeasesReply> page = call.daemon.Ask(&Admin::Stub::Leases, request);
    if (!page.ok()) return page.status();
    for (v1::LeaseStatus& lease : *page->mutable_leases()) {
      if (!options.domain.empty() && lease.domain() != options.domain) continue;
      if (!options.kind.empty() && lease.kind() != options.kind) continue;
      if (static_cast<uint64_t>(found.leases_size()) == limit) {
        more = true;
        break;
      }
      *found.add_leases() = std::move(lease);
    }
    request.set_cursor(page->next_cursor());
  } while (!more && request.cursor() != 0);

  if (call.Printed({{"leases", ToTree(found)["leases"]}, {"more", more}})) return kOk;
  Table table({{"ID"},
               {"KIND"},
               {"DOMAIN"},
               {"NAMESPACE", Align::kRight},
               {"KEY"},
               {"DEPTH", Align::kRight},
               {"EXPIRES IN", Align::kRight},
               {"SESSION", Align::kRight},
               {"SIZE", Align::kRight},
               {"OWNER"}});
  for (const v1::LeaseStatus& lease : found.leases()) {
    const bool pin = lease.kind() == "pin";
    table.Row({HexId(lease.lease_id()),
               {Printable(lease.kind()), pin ? Tone::kAccent : Tone::kPlain},
               Printable(lease.domain()),
               Count(lease.namespace_id()),
               ShortHex(lease.key()),
               Count(lease.depth()),
               Age(lease.expires_in_ms()),
               lease.session() == 0 ? "-" : absl::StrCat(lease.session()),
               pin ? Size(lease.bytes()) : "-",
               pin ? Printable(lease.owner()) : "-"});
  }
  table.Print(call.out(), call.color());
  if (more) {
    call.environment.err << "kvctl: these are the first " << Count(limit)
                         << "; --limit N shows more, --limit 0 all\n";
  }
  return kOk;
}

absl::StatusOr<ExitCode> Sessions(Call& call, const TenantOptions& options) {
  const absl::StatusOr<v1::SessionsReply> reply = call.daemon.Ask(&Admin::Stub::Sessions);
  if (!reply.ok()) return reply.status();
  v1::SessionsReply found;
  for (const v1::SessionStatus& session : reply->sessions()) {
    if (options.domain.empty() || session.domain() == options.domain) {
      *found.add_sessions() = session;
    }
  }
  if (call.Printed(ToTree(found))) return kOk;
  Table table({{"SESSION", Align::kRight},
               {"DOMAIN"},
               {"TRANSPORT"},
               {"UID", Align::kRight},
               {"PID", Align::kRight},
               {"AGE", Align::kRight},
               {"LEASES", Align::kRight},
               {"HOLDS", Align::kRight},
               {"HELD", Align::kRight},
               {"RESERVATIONS", Align::kRight},
               {"STAGING", Align::kRight},
               {"STATE"}});
  for (const v1::SessionStatus& s : found.sessions()) {
    table.Row({absl::StrCat(s.serial()), Printable(s.domain()), Printable(s.transport()),
               absl::StrCat(s.uid()), s.pid() == 0 ? "-" : absl::StrCat(s.pid()), Age(s.age_ms()),
               Count(s.leases()), Count(s.holds()), Size(s.held_bytes()), Count(s.reservations()),
               Size(s.staging_bytes()),
               s.ended() ? Cell("ended, holds", Tone::kWarn) : Cell("open")});
  }
  table.Print(call.out(), call.color());
  return kOk;
}

std::string Groups(const v1::NamespaceDescriptor& describes) {
  std::vector<std::string> groups;
  for (const v1::Group& group : describes.groups()) {
    std::string kind = "full";
    if (group.kind() == v1::GROUP_KIND_WINDOW)
      kind = absl::StrCat("window ", group.window_tokens());
    if (group.kind() == v1::GROUP_KIND_STATE) kind = "state";
    groups.push_back(absl::StrCat(kind, " ", group.shards(), "x", Size(group.part_bytes())));
  }
  return absl::StrJoin(groups, ", ");
}

absl::StatusOr<ExitCode> Namespaces(Call& call, const TenantOptions& options) {
  const absl::StatusOr<v1::NamespacesReply> reply = call.daemon.Ask(&Admin::Stub::Namespaces);
  if (!reply.ok()) return reply.status();
  v1::NamespacesReply found;
  for (const v1::NamespaceStatus& space : reply->namespaces()) {
    if (options.domain.empty() || space.domain() == options.domain) {
      *found.add_namespaces() = space;
    }
  }
  if (call.Printed(ToTree(found))) return kOk;
  Table table({{"ID", Align::kRight},
               {"DOMAIN"},
               {"MODEL"},
               {"REVISION"},
               {"DTYPE"},
               {"TP", Align::kRight},
               {"HASH"},
               {"SEED"},
               {"BLOCK", Align::kRight},
               {"GROUPS"},
               {"BLOCKS", Align::kRight},
               {"SIZE", Align::kRight},
               {"FINGERPRINT"}});
  for (const v1::NamespaceStatus& space : found.namespaces()) {
    const v1::NamespaceDescriptor& d = space.describes();
    const uint32_t tokens = d.groups().empty() ? 0 : d.groups(0).block_tokens();
    table.Row({absl::StrCat(space.namespace_id()), Printable(space.domain()), Printable(d.model()),
               d.weights_revision().empty() ? "-" : Printable(d.weights_revision()),
               d.kv_dtype().empty() ? "-" : Printable(d.kv_dtype()),
               absl::StrCat(d.tensor_parallel()), Printable(d.hash_algorithm()),
               d.hash_seed().empty() ? "-" : Printable(d.hash_seed()), absl::StrCat(tokens, " tok"),
               Groups(d), Count(space.blocks()), Size(space.bytes()),
               ShortHex(space.fingerprint())});
  }
  table.Print(call.out(), call.color());
  return kOk;
}

absl::StatusOr<ExitCode> DropNamespace(Call& call, const TenantOptions& options) {
  if (absl::Status status = MayConfirm(call); !status.ok()) return status;
  const absl::StatusOr<v1::NamespacesReply> all = call.daemon.Ask(&Admin::Stub::Namespaces);
  if (!all.ok()) return all.status();
  const auto space = std::find_if(all->namespaces().begin(), all->namespaces().end(),
                                  [&options](const v1::NamespaceStatus& candidate) {
                                    return candidate.namespace_id() == options.namespace_id;
                                  });
  if (space == all->namespaces().end()) {
    return absl::NotFoundError(
        absl::StrCat("there is no namespace ", options.namespace_id, "; see `kvctl namespaces`"));
  }
  const absl::Status sure = Confirm(
      call, absl::StrCat("Drop namespace ", space->namespace_id(), " (",
                         Printable(space->describes().model()), " of ", Printable(space->domain()),
                         ": ", Count(space->blocks()), " blocks, ", Size(space->bytes()), ")?"));
  if (!sure.ok()) return sure;
  v1::DropNamespaceRequest request;
  request.set_namespace_id(options.namespace_id);
  const absl::StatusOr<v1::DropNamespaceReply> reply =
      call.daemon.Ask(&Admin::Stub::DropNamespace, request);
  if (!reply.ok()) return reply.status();
  if (call.Printed(ToTree(*reply))) return kOk;
  call.out() << "evicted " << Count(reply->evicted_blocks()) << " blocks";
  if (reply->kept_blocks() > 0) {
    call.out() << ", kept " << Count(reply->kept_blocks())
               << " (leased, pinned, held or in production): the namespace stays";
  } else {
    call.out() << "; the namespace is gone";
  }
  call.out() << "\n";
  return kOk;
}

}  // namespace

void AddTenantVerbs(CommandLine& line) {
  auto options = std::make_shared<TenantOptions>();
  const auto does = [options](absl::StatusOr<ExitCode> (*verb)(Call&, const TenantOptions&)) {
    return [options, verb](Call& call) { return verb(call, *options); };
  };
  const auto domain_option = [options](CLI::App* verb) {
    verb->add_option("--domain", options->domain, "Only of this domain (tenant)")
        ->type_name("NAME");
  };

  CLI::App* leases =
      line.Add(line.app(), "leases", "Living leases and pins",
               "kvctl leases\nkvctl leases --kind pin\nkvctl leases --domain uid:1000",
               Repeat::kYes, does(Leases));
  leases->add_option("--kind", options->kind, "Only these")->check(CLI::IsMember({"lease", "pin"}));
  leases->add_option("--limit", options->limit, "How many at most; 0: all")->capture_default_str();
  domain_option(leases);

  domain_option(line.Add(line.app(), "sessions", "Who is connected, and what they have",
                         "kvctl sessions\nkvctl sessions --watch", Repeat::kYes, does(Sessions)));

  CLI::App* namespaces = line.Add(
      line.app(), "namespaces", "What the blocks are of: model, layout, hash; and to drop one",
      "kvctl namespaces\nkvctl namespaces drop 3 --yes", Repeat::kYes, does(Namespaces));
  domain_option(namespaces);
  line.Add(*namespaces, "drop", "Evict every block of a namespace that may leave (asks)",
           "kvctl namespaces drop 3", Repeat::kNo, does(DropNamespace))
      ->add_option("id", options->namespace_id, "As `kvctl namespaces` shows it")
      ->required();
}

}  // namespace kvd::kvctl
