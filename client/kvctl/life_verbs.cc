// drain, undrain, events, config: the life of a daemon.

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

using v1::Admin;

// How long a daemon may take to end after its own time-out, before we stop waiting.
constexpr absl::Duration kGrace = absl::Seconds(15);
constexpr absl::Duration kLook = absl::Milliseconds(100);
constexpr absl::Duration kLongestDefaultDrain = absl::Minutes(10);

struct LifeOptions {
  bool stay = false;
  bool no_wait = false;
  std::string timeout;
  bool follow = false;
  uint64_t from = 0;
  std::string kind;
  std::string name;
};

// Until nobody answers. The daemon bounds its own drain; this bounds our waiting for a daemon that
// does not keep its word.
absl::StatusOr<ExitCode> AwaitEnd(Call& call, absl::Duration at_most) {
  const absl::Time deadline = absl::Now() + at_most;
  while (true) {
    const absl::StatusOr<v1::StatusReply> status = call.daemon.Ask(&Admin::Stub::Status);
    if (status.status().code() == absl::StatusCode::kUnavailable) break;
    if (absl::Now() > deadline) {
      return absl::AbortedError("the daemon is drained, and has not ended; see its log");
    }
    if (!call.environment.pause(kLook)) {
      return absl::CancelledError("no longer waiting; the daemon goes on draining");
    }
  }
  if (!call.Printed({{"ended", true}})) call.out() << "the daemon has ended\n";
  return kOk;
}

absl::StatusOr<ExitCode> Drain(Call& call, const LifeOptions& options) {
  v1::DrainRequest request;
  request.set_exit(!options.stay);
  absl::Duration at_most = kLongestDefaultDrain;
  if (!options.timeout.empty()) {
    const absl::StatusOr<absl::Duration> timeout = ParseTime(options.timeout);
    if (!timeout.ok()) return timeout.status();
    request.set_timeout_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(*timeout)));
    at_most = *timeout + kGrace;
  }
  const absl::Status sure =
      Confirm(call, options.stay ? "Stop giving leases, holds and reservations to all engines?"
                                 : "Stop serving all engines, and end the daemon?");
  if (!sure.ok()) return sure;
  const absl::StatusOr<v1::DrainReply> reply = call.daemon.Ask(&Admin::Stub::Drain, request);
  if (!reply.ok()) return reply.status();
  if (!options.stay && !options.no_wait) {
    if (call.options.format == Format::kTable) {
      call.out() << "draining: " << Count(reply->holds()) << " holds and " << Count(reply->moves())
                 << " moves to wait for" << std::endl;
    }
    return AwaitEnd(call, at_most);
  }
  if (call.Printed(ToTree(*reply))) return kOk;
  call.out() << "draining: " << Count(reply->holds()) << " holds and " << Count(reply->moves())
             << " moves are left" << (options.stay ? "; `kvctl undrain` takes it back" : "")
             << "\n";
  return kOk;
}

absl::StatusOr<ExitCode> Undrain(Call& call) {
  const absl::StatusOr<v1::UndrainReply> reply = call.daemon.Ask(&Admin::Stub::Undrain);
  if (!reply.ok()) return reply.status();
  if (call.Printed({{"draining", false}})) return kOk;
  call.out() << "the daemon serves again\n";
  return kOk;
}

void PrintEvent(Call& call, const v1::Event& event) {
  std::string about;
  if (!event.domain().empty()) absl::StrAppend(&about, " domain=", Printable(event.domain()));
  if (event.namespace_id() != 0) absl::StrAppend(&about, " namespace=", event.namespace_id());
  if (!event.key().empty()) absl::StrAppend(&about, " key=", ShortHex(event.key()));
  if (!event.tier().empty()) absl::StrAppend(&about, " tier=", Printable(event.tier()));
  if (!event.detail().empty()) absl::StrAppend(&about, " ", Printable(event.detail()));
  call.out() << Paint(Clock(event.unix_ms()), Tone::kDim, call.color()) << " " << event.sequence()
             << " " << Paint(Printable(event.kind()), Tone::kAccent, call.color()) << about << "\n";
}

absl::StatusOr<ExitCode> Events(Call& call, const LifeOptions& options) {
  const absl::StatusOr<Admin::Stub*> stub = call.daemon.Stub();
  if (!stub.ok()) return stub.status();
  v1::EventsRequest request;
  request.set_from_sequence(options.from);
  request.set_follow(options.follow);
  grpc::ClientContext context;
  if (!options.follow) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + call.options.timeout));
  }
  const auto reader = (*stub)->Events(&context, request);
  v1::Event event;
  uint64_t next = options.from;
  while (reader->Read(&event)) {
    if (next != 0 && event.sequence() > next) {
      call.environment.err << "kvctl: " << Count(event.sequence() - next)
                           << " events before this one were forgotten before they were read\n";
    }
    next = event.sequence() + 1;
    if (!options.kind.empty() && event.kind() != options.kind) continue;
    if (call.options.format == Format::kTable) {
      PrintEvent(call, event);
    } else {
      PrintTreeOfMany(ToTree(event), call.options.format, call.out());
    }
    call.out() << std::flush;
    if (!call.out()) {  // Whoever read us has gone.
      context.TryCancel();
      break;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok() && status.error_code() != grpc::StatusCode::CANCELLED) {
    return call.daemon.Explain(status);
  }
  return kOk;
}

absl::StatusOr<ExitCode> GetConfig(Call& call, const LifeOptions& options) {
  const absl::StatusOr<v1::GetConfigReply> reply = call.daemon.Ask(&Admin::Stub::GetConfig);
  if (!reply.ok()) return reply.status();
  v1::GetConfigReply wanted;
  wanted.set_file(reply->file());
  for (const v1::ConfigEntry& entry : reply->entries()) {
    if (options.name.empty() || entry.name() == options.name) *wanted.add_entries() = entry;
  }
  if (!options.name.empty() && wanted.entries().empty()) {
    return absl::NotFoundError(
        absl::StrCat("there is no option ", options.name, "; `kvctl config get` lists them"));
  }
  if (call.Printed(ToTree(wanted))) return kOk;
  if (options.name.empty()) {
    call.out() << "file: " << (wanted.file().empty() ? "none" : Printable(wanted.file())) << "\n\n";
  }
  Table table({{"OPTION"}, {"VALUE"}, {"FROM"}, {"A RELOAD CHANGES IT"}});
  for (const v1::ConfigEntry& entry : wanted.entries()) {
    table.Row({Printable(entry.name()),
               entry.value().empty() ? "-" : Printable(entry.value()),
               {Printable(entry.source()), entry.source() == "default" ? Tone::kDim : Tone::kPlain},
               entry.live() ? "yes" : "no"});
  }
  table.Print(call.out(), call.color());
  return kOk;
}

absl::StatusOr<ExitCode> ReloadConfig(Call& call, const LifeOptions&) {
  const absl::StatusOr<v1::ReloadConfigReply> reply = call.daemon.Ask(&Admin::Stub::ReloadConfig);
  if (!reply.ok()) {
    // The file is wrong: the daemon's mistake to report, not one of this command line.
    if (reply.status().code() != absl::StatusCode::kInvalidArgument) return reply.status();
    return absl::FailedPreconditionError(reply.status().message());
  }
  if (call.Printed(ToTree(*reply))) return kOk;
  if (reply->changed().empty()) {
    call.out() << "read; nothing that a reload can change is different\n";
  } else {
    call.out() << "now in force: " << Printable(absl::StrJoin(reply->changed(), ", ")) << "\n";
  }
  if (!reply->needs_restart().empty()) {
    call.out() << Paint("needs a restart: ", Tone::kWarn, call.color())
               << Printable(absl::StrJoin(reply->needs_restart(), ", ")) << "\n";
  }
  return kOk;
}

}  // namespace

void AddLifeVerbs(CommandLine& line) {
  auto options = std::make_shared<LifeOptions>();
  const auto does = [options](absl::StatusOr<ExitCode> (*verb)(Call&, const LifeOptions&)) {
    return [options, verb](Call& call) { return verb(call, *options); };
  };

  CLI::App* drain = line.Add(
      line.app(), "drain",
      "No new leases, holds and reservations; the daemon ends when what is held is given back "
      "(asks)",
      "kvctl drain\nkvctl drain --yes --drain-timeout 2m\nkvctl drain --stay && kvctl undrain",
      Repeat::kNo, does(Drain));
  drain->add_flag("--stay", options->stay, "Drained, but do not end: until undrain");
  drain->add_flag("--no-wait", options->no_wait,
                  "Come back at once, not when the daemon has ended");
  drain
      ->add_option("--drain-timeout", options->timeout,
                   "End after this, whatever is held (default: the daemon's drain_timeout)")
      ->type_name("TIME");
  line.Add(line.app(), "undrain", "Serve again", "kvctl undrain", Repeat::kNo, Undrain);

  CLI::App* events =
      line.Add(line.app(), "events", "What happened, and what happens",
               "kvctl events\nkvctl events --follow\nkvctl events --kind evicted -o json",
               Repeat::kNo, does(Events));
  events->add_flag("-f,--follow", options->follow, "Go on with those to come");
  events->add_option("--from", options->from, "The first sequence number; 0: all remembered")
      ->type_name("N");
  events->add_option("--kind", options->kind, "Only these, such as evicted")->type_name("KIND");

  CLI::App* config = line.Add(line.app(), "config", "The daemon's options",
                              "kvctl config get\nkvctl config get dram\nkvctl config reload",
                              Repeat::kYes, nullptr);
  config->require_subcommand(1);
  line.Add(*config, "get", "The options in force, and where each came from",
           "kvctl config get\nkvctl config get dram -o json", Repeat::kYes, does(GetConfig))
      ->add_option("name", options->name, "Only this one");
  line.Add(*config, "reload", "Read the configuration file again, as SIGHUP does",
           "kvctl config reload", Repeat::kNo, does(ReloadConfig));
}

}  // namespace kvd::kvctl
