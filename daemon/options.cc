#include "daemon/options.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "daemon/accounts.h"
#include "policy/admissions.h"
#include "policy/policies.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

std::string Quoted(std::string_view text) { return absl::StrCat("\"", View(text), "\""); }

struct Unit {
  std::string_view name;
  uint64_t factor;
};

// A number, spaces or not, and a unit; no unit counts as the unit "". Returns what is wrong.
std::string ParseQuantity(std::string_view text, absl::Span<const Unit> units,
                          std::string_view known, uint64_t* value) {
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  uint64_t number = 0;
  if (digits == 0 || !absl::SimpleAtoi(View(text.substr(0, digits)), &number)) {
    return absl::StrCat(Quoted(text), " is not a whole number with a unit; write ", View(known));
  }
  std::string unit(text.substr(digits));
  unit.erase(0, std::min(unit.find_first_not_of(' '), unit.size()));
  for (const Unit& candidate : units) {
    if (!absl::EqualsIgnoreCase(unit, View(candidate.name))) continue;
    if (number > UINT64_MAX / candidate.factor) return absl::StrCat(Quoted(text), " is too large");
    *value = number * candidate.factor;
    return "";
  }
  return unit.empty() ? absl::StrCat(Quoted(text), " has no unit; write ", View(known))
                      : absl::StrCat("no unit ", Quoted(unit), "; write ", View(known));
}

constexpr uint64_t kMinDram = uint64_t{1} << 20;
constexpr uint64_t kMaxDram = uint64_t{1} << 46;
constexpr uint32_t kMaxDramPercent = 95;  // The rest is for the daemon itself.
constexpr std::string_view kSizes = "bytes, \"512MiB\", \"64GiB\", or \"80%\" of the memory";

// All are powers of 1024, with or without the i, as in kvd's logs and tables.
constexpr Unit kSizeUnits[] = {{"", 1},
                               {"b", 1},
                               {"k", 1ull << 10},
                               {"kb", 1ull << 10},
                               {"kib", 1ull << 10},
                               {"m", 1ull << 20},
                               {"mb", 1ull << 20},
                               {"mib", 1ull << 20},
                               {"g", 1ull << 30},
                               {"gb", 1ull << 30},
                               {"gib", 1ull << 30},
                               {"t", 1ull << 40},
                               {"tb", 1ull << 40},
                               {"tib", 1ull << 40}};

std::string SetDram(std::string_view text, const MemoryLimit& memory, Config& config) {
  uint64_t bytes = 0;
  if (!text.empty() && text.back() == '%') {
    uint32_t percent = 0;
    if (!absl::SimpleAtoi(View(text.substr(0, text.size() - 1)), &percent) || percent < 1 ||
        percent > kMaxDramPercent) {
      return absl::StrCat(Quoted(text), " must be from 1% to ", kMaxDramPercent, "%");
    }
    if (memory.bytes == UINT64_MAX) {
      return "a share cannot be taken: /proc/meminfo does not say how much memory there is";
    }
    // Whole huge pages.
    bytes = memory.bytes / 100 * percent >> 21 << 21;
  } else if (std::string wrong = ParseQuantity(text, kSizeUnits, kSizes, &bytes); !wrong.empty()) {
    return wrong;
  }
  if (bytes < kMinDram || bytes > kMaxDram) {
    return absl::StrCat(FormatSize(bytes), " must be from ", FormatSize(kMinDram), " to ",
                        FormatSize(kMaxDram));
  }
  if (bytes > memory.bytes) {
    return absl::StrFormat("%s is more than the %.1f GiB that %s has; \"80%%\" takes a share",
                           FormatSize(bytes), static_cast<double>(memory.bytes) / (1u << 30),
                           memory.of);
  }
  config.dram_bytes = bytes;
  return "";
}

std::string SetCount(std::string_view text, uint32_t least, uint32_t most, uint32_t* value) {
  uint32_t number = 0;
  if (!absl::SimpleAtoi(View(text), &number) || number < least || number > most) {
    return absl::StrCat(View(text), " must be a whole number from ", least, " to ", most);
  }
  *value = number;
  return "";
}

std::string SetDuration(std::string_view text, uint64_t most_ms, uint64_t* value_ms) {
  constexpr Unit kUnits[] = {{"ms", 1}, {"s", 1000}, {"min", 60'000}, {"h", 3'600'000}};
  uint64_t ms = 0;
  std::string wrong = ParseQuantity(text, kUnits, "\"500ms\", \"30s\", \"2min\" or \"1h\"", &ms);
  if (wrong.empty() && ms > most_ms) {
    wrong = absl::StrCat(Quoted(text), " must be at most ", most_ms / 1000, "s");
  }
  if (wrong.empty()) *value_ms = ms;
  return wrong;
}

std::string FormatDuration(uint64_t ms) {
  return ms % 1000 == 0 ? absl::StrCat(ms / 1000, "s") : absl::StrCat(ms, "ms");
}

std::string SetListen(std::string_view text, const MemoryLimit&, Config& config) {
  // The longest suffix that is added to the path is ".session", and a zero ends it.
  constexpr size_t kMostBytes = sizeof(sockaddr_un{}.sun_path) - sizeof(".session");
  if (text.rfind("unix:/", 0) != 0) {
    return absl::StrCat(Quoted(text), " must be unix: and an absolute path");
  }
  if (text.size() - 5 > kMostBytes) {
    return absl::StrCat("the path has ", text.size() - 5, " bytes, and ", kMostBytes,
                        " are the most that a Unix socket takes beside \".session\"");
  }
  config.listen = text;
  return "";
}

std::string SetPolicy(std::string_view text, const MemoryLimit&, Config& config) {
  if (MakePolicy(text, 1) == nullptr) {
    return absl::StrCat("no policy ", Quoted(text), "; known: ", View(PolicyNames()));
  }
  config.policy = text;
  return "";
}

std::string SetLogLevel(std::string_view text, const MemoryLimit&, Config& config) {
  constexpr std::string_view kLevels[] = {"debug", "info", "warn", "error"};
  if (std::find(std::begin(kLevels), std::end(kLevels), text) == std::end(kLevels)) {
    return absl::StrCat(Quoted(text), " must be debug, info, warn or error");
  }
  config.log_level = text;
  return "";
}

std::string SetMode(std::string_view text, const MemoryLimit&, Config& config) {
  uint32_t mode = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '7' || mode > 077) mode = 01000;
    mode = std::min(01000u, mode * 8 + static_cast<uint32_t>(digit - '0'));
  }
  if (text.empty() || mode > 0777) {
    return absl::StrCat(Quoted(text), " must be octal and at most 0777, such as 0660");
  }
  config.socket_mode = mode;
  return "";
}

std::string SetGroup(std::string_view text, const MemoryLimit&, Config& config) {
  if (!text.empty() && !GroupId(std::string(text)).has_value()) {
    return absl::StrCat("this system has no group ", Quoted(text));
  }
  config.socket_group = text;
  return "";
}

std::string SetAddress(std::string_view text, std::string* value) {
  if (!text.empty() && !ParseHostPort(text).ok) {
    return absl::StrCat(Quoted(text),
                        " must be ADDRESS:PORT, such as 127.0.0.1:9400, [::1]:9400 or "
                        "localhost:9400; names are not looked up");
  }
  *value = text;
  return "";
}

std::string SetZmqEndpoint(std::string_view text, std::string* value) {
  if (!text.empty() && !ParseZmqEndpoint(text).ok) {
    return absl::StrCat(
        Quoted(text),
        " must be tcp://ADDRESS:PORT, such as tcp://127.0.0.1:5557, or ipc:// and an "
        "absolute path of at most 107 bytes; names are not looked up");
  }
  *value = text;
  return "";
}

std::string SetTopic(std::string_view text, Config& config) {
  if (text.size() > 256) return absl::StrCat(text.size(), " bytes are too many; 256 are the most");
  config.events_topic = text;
  return "";
}

std::string SetAnnounceMemory(std::string_view text, Config& config) {
  constexpr uint64_t kMost = uint64_t{64} << 30;
  uint64_t bytes = 0;
  if (std::string wrong = ParseQuantity(text, kSizeUnits, "\"64MiB\", \"1GiB\" or 0", &bytes);
      !wrong.empty()) {
    return wrong;
  }
  if (bytes > kMost) return absl::StrCat(FormatSize(bytes), " must be at most ", FormatSize(kMost));
  config.announce_bytes = bytes;
  return "";
}

std::string SetSwitch(std::string_view text, bool* value) {
  if (text != "true" && text != "false")
    return absl::StrCat(Quoted(text), " must be true or false");
  *value = text == "true";
  return "";
}

std::string SetPath(std::string_view text, std::string* value) {
  *value = text;
  return "";
}

// Of a folder or a file that must not depend on where the daemon was started.
std::string SetAbsolutePath(std::string_view text, std::string* value) {
  if (!text.empty() && text.front() != '/') {
    return absl::StrCat(Quoted(text), " must be an absolute path");
  }
  *value = text;
  return "";
}

std::string SetAdmission(std::string_view text, const MemoryLimit&, Config& config) {
  if (MakeAdmission(text, 1) == nullptr) {
    return absl::StrCat("no admission policy ", Quoted(text), "; known: ", View(AdmissionNames()));
  }
  config.admission = text;
  return "";
}

std::string SetDurability(std::string_view text, const MemoryLimit&, Config& config) {
  if (text != "async" && text != "sync") {
    return absl::StrCat(Quoted(text), " must be async or sync");
  }
  config.durable_sync = text == "sync";
  return "";
}

constexpr std::string_view kBudgets = "bytes, \"500GiB\" or \"2TiB\"";
constexpr std::string_view kCapacities = "bytes, \"512MiB\" or \"1TiB\"";
constexpr std::string_view kBandwidths = "bytes a second, \"32MiB\" or \"1GiB\"";
constexpr uint64_t kMaxScrubBandwidth = uint64_t{4} << 30;
constexpr uint64_t kMinDevice = uint64_t{64} << 20;
constexpr uint64_t kMaxDevice = uint64_t{1} << 46;

std::string SetWriteBudget(std::string_view text, const MemoryLimit&, Config& config) {
  return ParseQuantity(text, kSizeUnits, kBudgets, &config.nvme_write_budget);
}

std::string SetScrubBandwidth(std::string_view text, const MemoryLimit&, Config& config) {
  uint64_t bytes = 0;
  if (std::string wrong = ParseQuantity(text, kSizeUnits, kBandwidths, &bytes); !wrong.empty()) {
    return wrong;
  }
  if (bytes > kMaxScrubBandwidth) {
    return absl::StrCat(FormatSize(bytes), " must be at most ", FormatSize(kMaxScrubBandwidth));
  }
  config.scrub_bandwidth = bytes;
  return "";
}

std::string SetDevices(std::string_view text, const MemoryLimit&, Config& config) {
  std::vector<NvmeConfig> devices;
  for (const absl::string_view one : absl::StrSplit(View(text), ',', absl::SkipEmpty())) {
    const size_t colon = one.rfind(':');
    if (colon == absl::string_view::npos) {
      return absl::StrCat(Quoted({one.data(), one.size()}),
                          " must be PATH:SIZE, such as /var/lib/kvd/nvme0:100GiB");
    }
    NvmeConfig device{.path = std::string(one.substr(0, colon))};
    if (const std::string wrong = CheckDevicePath(device.path); !wrong.empty()) return wrong;
    const absl::string_view size = one.substr(colon + 1);
    if (const std::string wrong =
            ParseDeviceCapacity({size.data(), size.size()}, &device.capacity_bytes);
        !wrong.empty()) {
      return absl::StrCat(device.path, ": ", wrong);
    }
    devices.push_back(std::move(device));
  }
  config.nvme = std::move(devices);
  return "";
}

std::string SetUnlisted(std::string_view text, const MemoryLimit&, Config& config) {
  if (text != "own" && text != "refuse")
    return absl::StrCat(Quoted(text), " must be own or refuse");
  config.domains.unlisted = text == "own" ? Unlisted::kOwn : Unlisted::kRefuse;
  return "";
}

const char* OnOff(bool on) { return on ? "true" : "false"; }

constexpr uint64_t kMaxDrainMs = 3'600'000;

const Option kOptions[] = {
    {.name = "listen",
     .flag = "--listen",
     .value = "unix:PATH",
     .essential = true,
     .otherwise = "$KVD_ENDPOINT, else $XDG_RUNTIME_DIR/kvd.sock, else /tmp/kvd-UID.sock; clients "
                  "look there too, and then at /run/kvd/kvd.sock",
     .example = "unix:/run/kvd/kvd.sock",
     .help = "Where engines connect. Descriptors travel at PATH.session, operators connect at "
             "PATH.admin",
     .set = SetListen,
     .get = [](const Config& config) { return config.listen; }},
    {.name = "dram",
     .flag = "--dram",
     .value = "SIZE",
     .kind = OptionKind::kSize,
     .essential = true,
     .fallback = "1GiB",
     .help = "Shared memory for blocks, taken and touched at start: 512MiB, 64GiB, bytes, or 80% "
             "of what this machine or its cgroup has",
     .set = SetDram,
     .get = [](const Config& config) { return FormatSize(config.dram_bytes); }},
    {.name = "blocks",
     .flag = "--blocks",
     .value = "N",
     .kind = OptionKind::kCount,
     .essential = true,
     .otherwise = "one for each 32 KiB of dram and each 256 KiB of NVMe, at least 65,536",
     .example = "65536",
     .help =
         "The most blocks it keeps, in memory and on NVMe. A full index evicts as full memory does",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetCount(text, 1, 1u << 29, &config.max_blocks); },
     .get = [](const Config& config) { return absl::StrCat(config.max_blocks); }},
    {.name = "data",
     .flag = "--data",
     .value = "DIR",
     .essential = true,
     .otherwise = "none: everything ends with the process",
     .example = "/var/lib/kvd",
     .help = "Folder of what outlives the process; made if its parent exists. With it blocks in "
             "memory survive a restart, a crash and an upgrade, and NVMe can be used. One daemon "
             "at a time",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetAbsolutePath(text, &config.data); },
     .get = [](const Config& config) { return config.data; }},
    {.name = "arena_directory",
     .flag = "--arena-directory",
     .value = "DIR",
     .fallback = "/dev/shm",
     .help = "A tmpfs or hugetlbfs with room for all of dram. With data the memory lies there in a "
             "folder of its own, kvd-UUID, that only the daemon's user may enter",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetAbsolutePath(text, &config.arena_directory); },
     .get = [](const Config& config) { return config.arena_directory; }},
    {.name = "policy",
     .flag = "--policy",
     .value = "NAME",
     .essential = true,
     .fallback = "lru",
     .help = "Which block leaves first: lru is the leaf that was used least recently",
     .set = SetPolicy,
     .get = [](const Config& config) { return config.policy; }},
    {.name = "copiers",
     .flag = "--copiers",
     .value = "N",
     .kind = OptionKind::kCount,
     .otherwise = "one for each eight CPUs, at least one",
     .example = "4",
     .help = "Threads that copy what engines put",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetCount(text, 1, 64, &config.copiers); },
     .get = [](const Config& config) { return absl::StrCat(config.copiers); }},
    {.name = "copy_loop",
     .flag = "--copy-loop",
     .value = "NAME",
     .otherwise = "measured at start",
     .example = "plain",
     .help = "The copy loop to use instead of measuring which is fastest",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetPath(text, &config.copy_loop); },
     .get = [](const Config& config) { return config.copy_loop; }},
    {.name = "log_level",
     .flag = "--log-level",
     .value = "LEVEL",
     .live = true,
     .essential = true,
     .fallback = "info",
     .help = "The least level that is logged: debug, info, warn or error",
     .set = SetLogLevel,
     .get = [](const Config& config) { return config.log_level; }},
    {.name = "drain_timeout",
     .flag = "--drain-timeout",
     .value = "TIME",
     .kind = OptionKind::kDuration,
     .live = true,
     .fallback = "15s",
     .help = "How long a drain waits for holds and moves before the daemon ends all the same",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetDuration(text, kMaxDrainMs, &config.drain_timeout_ms); },
     .get = [](const Config& config) { return FormatDuration(config.drain_timeout_ms); }},
    {.name = "unlisted",
     .flag = "--unlisted",
     .value = "own|refuse",
     .live = true,
     .fallback = "own",
     .help = "What becomes of those whom no [[domain]] names: a domain of their own for each user "
             "id and certificate, or no session",
     .set = SetUnlisted,
     .get =
         [](const Config& config) {
           return std::string(config.domains.unlisted == Unlisted::kOwn ? "own" : "refuse");
         }},
    {.name = "socket.mode",
     .flag = "--socket-mode",
     .value = "MODE",
     .essential = true,
     .fallback = "0600",
     .help = "Mode of the engine sockets, octal; that of the operators' is always 0600",
     .set = SetMode,
     .get = [](const Config& config) { return absl::StrFormat("%04o", config.socket_mode); }},
    {.name = "socket.group",
     .flag = "--socket-group",
     .value = "NAME",
     .essential = true,
     .otherwise = "the daemon's",
     .example = "inference",
     .help = "Group of the engine sockets",
     .set = SetGroup,
     .get = [](const Config& config) { return config.socket_group; }},
    {.name = "metrics.listen",
     .flag = "--metrics",
     .value = "HOST:PORT",
     .essential = true,
     .otherwise = "off",
     .example = "127.0.0.1:9400",
     .help = "Where Prometheus scrapes, over HTTP without a password. Port 0 takes a free one, "
             "which the ready line names",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetAddress(text, &config.metrics); },
     .get = [](const Config& config) { return config.metrics; }},
    {.name = "metrics.beyond_loopback",
     .flag = "--metrics-beyond-loopback",
     .value = "true",
     .kind = OptionKind::kSwitch,
     .fallback = "false",
     .help = "Lets metrics.listen be an address that other hosts reach",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetSwitch(text, &config.metrics_beyond_loopback); },
     .get = [](const Config& config) -> std::string {
       return OnOff(config.metrics_beyond_loopback);
     }},
    {.name = "metrics.operations",
     .flag = "--no-operation-metrics",
     .value = "false",
     .kind = OptionKind::kSwitch,
     .fallback = "true",
     .help = "Counts and times single calls",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetSwitch(text, &config.op_metrics); },
     .get = [](const Config& config) -> std::string { return OnOff(config.op_metrics); }},
    {.name = "events.listen",
     .flag = "--events",
     .value = "ENDPOINT",
     .essential = true,
     .otherwise = "off",
     .example = "tcp://127.0.0.1:5557",
     .help = "Where cache-aware routers subscribe to KV events over ZeroMQ, without a password: "
             "tcp://HOST:PORT or ipc:///PATH. They carry the tokens of all tenants who announce "
             "their blocks. Port 0 takes a free one, which the ready line names",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetZmqEndpoint(text, &config.events); },
     .get = [](const Config& config) { return config.events; }},
    {.name = "events.replay",
     .flag = "--events-replay",
     .value = "ENDPOINT",
     .otherwise = "off",
     .example = "tcp://127.0.0.1:5558",
     .help = "Where a router asks for events that it missed, or for all that is there",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetZmqEndpoint(text, &config.events_replay); },
     .get = [](const Config& config) { return config.events_replay; }},
    {.name = "events.topic",
     .flag = "--events-topic",
     .value = "TEXT",
     .otherwise = "empty",
     .example = "kv@pod-7@{model}",
     .help =
         "Topic of the events, of which {model} is the model of a block's namespace; each topic "
         "is a stream with sequence numbers of its own. Dynamo wants it empty, llm-d "
         "kv@POD@{model}",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetTopic(text, config); },
     .get = [](const Config& config) { return config.events_topic; }},
    {.name = "events.beyond_loopback",
     .flag = "--events-beyond-loopback",
     .value = "true",
     .kind = OptionKind::kSwitch,
     .fallback = "false",
     .help = "Lets events.listen and events.replay be addresses that other hosts reach",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetSwitch(text, &config.events_beyond_loopback); },
     .get = [](const Config& config) -> std::string {
       return OnOff(config.events_beyond_loopback);
     }},
    {.name = "events.announce_memory",
     .flag = "--announce-memory",
     .value = "SIZE",
     .kind = OptionKind::kSize,
     .fallback = "64MiB",
     .help = "For what engines announce their blocks by, token ids above all; half of it for one "
             "domain. A block that finds no room here is stored, and routers do not hear of it. 0 "
             "keeps nothing",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetAnnounceMemory(text, config); },
     .get = [](const Config& config) { return FormatSize(config.announce_bytes); }},
    {.name = "tcp.listen",
     .flag = "--tcp",
     .value = "HOST:PORT",
     .essential = true,
     .otherwise = "off",
     .example = "0.0.0.0:7400",
     .help = "Where clients without shared memory connect, by TLS 1.3 with certificates on both "
             "sides; the three files below go with it",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetAddress(text, &config.tcp); },
     .get = [](const Config& config) { return config.tcp; }},
    {.name = "tcp.certificate",
     .flag = "--tls-certificate",
     .value = "FILE",
     .otherwise = "none",
     .example = "/etc/kvd/tls/server.pem",
     .help = "Certificate that clients see, PEM",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetPath(text, &config.tls_certificate); },
     .get = [](const Config& config) { return config.tls_certificate; }},
    {.name = "tcp.key",
     .flag = "--tls-key",
     .value = "FILE",
     .otherwise = "none",
     .example = "/etc/kvd/tls/server.key",
     .help = "Its private key, PEM without a password",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetPath(text, &config.tls_key); },
     .get = [](const Config& config) { return config.tls_key; }},
    {.name = "tcp.client_ca",
     .flag = "--tls-client-ca",
     .value = "FILE",
     .otherwise = "none",
     .example = "/etc/kvd/tls/clients-ca.pem",
     .help = "Certificates, PEM: a client needs one that one of these signed",
     .set = [](std::string_view text, const MemoryLimit&,
               Config& config) { return SetPath(text, &config.tls_client_ca); },
     .get = [](const Config& config) { return config.tls_client_ca; }},
    {.name = "tiers.admission",
     .flag = "--admission",
     .value = "NAME",
     .essential = true,
     .fallback = "second-touch",
     .help = "Which of the blocks that leave memory are written to NVMe: all, none, second-touch "
             "(used again, or back after leaving) or class-predicted (of a kind that comes back)",
     .set = SetAdmission,
     .get = [](const Config& config) { return config.admission; }},
    {.name = "tiers.write_budget",
     .flag = "--nvme-write-budget",
     .value = "SIZE",
     .kind = OptionKind::kSize,
     .fallback = "0",
     .help = "Bytes that all NVMe devices together are written in a day, so that drives last; 0 "
             "sets no limit. A drive of 4 TB that bears 1 drive write a day has 4 TB",
     .set = SetWriteBudget,
     .get = [](const Config& config) { return FormatSize(config.nvme_write_budget); }},
    {.name = "tiers.scrub_bandwidth",
     .flag = "--scrub-bandwidth",
     .value = "SIZE",
     .kind = OptionKind::kSize,
     .live = true,
     .fallback = "32MiB",
     .help = "Bytes a second that are read in the background, in every tier, to find damage before "
             "somebody asks for the block; 0 looks at nothing",
     .set = SetScrubBandwidth,
     .get = [](const Config& config) { return FormatSize(config.scrub_bandwidth); }},
    {.name = "tiers.durability",
     .flag = "--durability",
     .value = "async|sync",
     .fallback = "async",
     .help = "When a block counts as stored on NVMe: async once it is written, with a sync each "
             "second, so that power loss costs at most a second; sync after the sync",
     .set = SetDurability,
     .get =
         [](const Config& config) { return std::string(config.durable_sync ? "sync" : "async"); }},
    {.name = "tiers.nvme",
     .flag = "--nvme",
     .value = "PATH:SIZE",
     .kind = OptionKind::kDevices,
     .essential = true,
     .otherwise = "none",
     .example = "/var/lib/kvd/nvme0:100GiB",
     .help = "A device of the NVMe tier: a file that is made and filled at its first start, or a "
             "block device. The flag may be given several times; needs data",
     .set = SetDevices,
     .get =
         [](const Config& config) {
           return absl::StrJoin(config.nvme, ",", [](std::string* out, const NvmeConfig& device) {
             absl::StrAppend(out, device.path, ":", FormatSize(device.capacity_bytes));
           });
         }},
};

const TableKey kNvmeKeys[] = {
    {"path", "\"/var/lib/kvd/nvme0\"", "A file, whose folder exists, or a block device. Needed"},
    {"capacity", "\"100GiB\"", "How much of it is used. Needed, and the same at every start"},
};

const TableKey kDomainKeys[] = {
    {"name", "\"chat\"", "Letters, digits, dots, dashes and underscores, at most 64. Needed"},
    {"users", "[\"vllm\", 1001]", "Local users, by name or number"},
    {"groups", "[\"inference\"]", "Their groups, by name or number: the primary and all others"},
    {"identities", "[\"spiffe://example/chat\"]", "Identities in certificates, whole"},
};

}  // namespace

absl::Span<const Option> Options() { return kOptions; }

const Option* FindOption(std::string_view name) {
  for (const Option& option : kOptions) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

absl::Span<const TableKey> DomainKeys() { return kDomainKeys; }
absl::Span<const TableKey> NvmeKeys() { return kNvmeKeys; }

std::string CheckDevicePath(std::string_view path) {
  if (path.empty() || path.front() != '/') {
    return absl::StrCat(Quoted(path), " must be an absolute path");
  }
  if (path.find_first_of(",\n") != std::string_view::npos) {
    return absl::StrCat(Quoted(path), " must not have a comma or a line feed");
  }
  return "";
}

std::string ParseDeviceCapacity(std::string_view text, uint64_t* bytes) {
  if (std::string wrong = ParseQuantity(text, kSizeUnits, kCapacities, bytes); !wrong.empty()) {
    return wrong;
  }
  if (*bytes < kMinDevice || *bytes > kMaxDevice) {
    return absl::StrCat(FormatSize(*bytes), " must be from ", FormatSize(kMinDevice), " to ",
                        FormatSize(kMaxDevice));
  }
  return "";
}

std::string TomlString(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", std::string(1, c));
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&quoted, "\\u%04X", c);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string TomlValue(const Option& option, std::string_view text) {
  const bool bare = option.kind == OptionKind::kCount || option.kind == OptionKind::kSwitch;
  return bare ? std::string(text) : TomlString(text);
}

std::string FormatSize(uint64_t bytes) {
  constexpr Unit kUnits[] = {
      {"TiB", 1ull << 40}, {"GiB", 1ull << 30}, {"MiB", 1ull << 20}, {"KiB", 1ull << 10}};
  for (const Unit& unit : kUnits) {
    if (bytes >= unit.factor && bytes % unit.factor == 0) {
      return absl::StrCat(bytes / unit.factor, View(unit.name));
    }
  }
  return absl::StrCat(bytes);
}

HostPort ParseHostPort(std::string_view text) {
  const size_t colon = text.rfind(':');
  uint32_t port = 0;
  if (colon == std::string_view::npos || !absl::SimpleAtoi(View(text.substr(colon + 1)), &port) ||
      port > 65535) {
    return {};
  }
  std::string host(text.substr(0, colon));
  if (host == "localhost") return {.ok = true, .loopback = true};
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    in6_addr address{};
    host = host.substr(1, host.size() - 2);
    if (inet_pton(AF_INET6, host.c_str(), &address) != 1) return {};
    return {.ok = true, .loopback = IN6_IS_ADDR_LOOPBACK(&address) != 0};
  }
  in_addr address{};
  if (inet_pton(AF_INET, host.c_str(), &address) != 1) return {};
  return {.ok = true, .loopback = ntohl(address.s_addr) >> 24 == 127};
}

HostPort ParseZmqEndpoint(std::string_view text) {
  constexpr std::string_view kTcp = "tcp://";
  constexpr std::string_view kIpc = "ipc://";
  if (text.substr(0, kTcp.size()) == kTcp) return ParseHostPort(text.substr(kTcp.size()));
  if (text.substr(0, kIpc.size()) != kIpc) return {};
  text.remove_prefix(kIpc.size());
  const bool ok =
      text.size() > 1 && text.front() == '/' && text.size() < sizeof(sockaddr_un{}.sun_path);
  return {.ok = ok, .loopback = ok};
}

}  // namespace kvd
