#include "daemon/option_docs.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "daemon/options.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

// Words in lines of at most 100 bytes that begin with "# ".
std::string Comment(std::string_view text) {
  std::string lines;
  std::string line = "#";
  for (const absl::string_view word : absl::StrSplit(View(text), ' ')) {
    if (line.size() + 1 + word.size() > 100) {
      absl::StrAppend(&lines, line, "\n");
      line.assign(1, '#');
    }
    absl::StrAppend(&line, " ", word);
  }
  return absl::StrCat(lines, line, "\n");
}

std::string Default(const Option& option) {
  if (!option.fallback.empty())
    return absl::StrCat("Default: ", TomlValue(option, option.fallback));
  return absl::StrCat("Default: ", View(option.otherwise));
}

std::string Explain(const Option& option) {
  return Comment(
      absl::StrCat(View(option.help), ". ", Default(option), ".", option.live ? " Live." : ""));
}

std::string_view TableOf(const Option& option) {
  const size_t dot = option.name.find('.');
  return dot == std::string_view::npos ? "" : option.name.substr(0, dot);
}

// `assign` writes the line of one option; `domains` ends the file.
template <typename Assign>
std::string WriteFile(std::string_view head, Assign assign, std::string_view domains) {
  std::string text(head);
  std::string_view table;
  for (const Option& option : Options()) {
    if (TableOf(option) != table) {
      table = TableOf(option);
      absl::StrAppend(&text, "\n[", View(table), "]\n");
    }
    absl::StrAppend(&text, "\n", Explain(option), assign(option));
  }
  absl::StrAppend(&text, "\n", View(domains));
  return text;
}

std::string Assignment(const Option& option, std::string_view value) {
  return absl::StrCat(View(option.name.substr(option.name.rfind('.') + 1)), " = ",
                      TomlValue(option, value), "\n");
}

// Tables in double brackets, one a device.
std::string Devices(const std::vector<NvmeConfig>& devices) {
  std::string text;
  for (const NvmeConfig& device : devices) {
    absl::StrAppend(&text, "[[tiers.nvme]]\npath = ", TomlString(device.path),
                    "\ncapacity = ", TomlString(FormatSize(device.capacity_bytes)), "\n");
  }
  return text;
}

std::string SampleDevice() {
  std::string text = "#\n# [[tiers.nvme]]\n";
  for (const TableKey& key : NvmeKeys()) {
    absl::StrAppend(&text, "# ", View(key.name), " = ", View(key.example), "  # ", View(key.help),
                    "\n");
  }
  return text;
}

std::string Example(const Option& option) {
  if (option.kind == OptionKind::kDevices) return SampleDevice();
  return absl::StrCat(
      "# ", Assignment(option, option.fallback.empty() ? option.example : option.fallback));
}

template <typename List, typename Format>
std::string TomlArray(const List& list, Format format) {
  return absl::StrCat("[", absl::StrJoin(list, ", ", format), "]");
}

constexpr std::string_view kDomainHelp =
    "A domain is a tenant: it sees, names and evicts nothing of another's. Who is in one is told "
    "by "
    "the kernel, or by a client's certificate, never by the client. A user's own rule counts "
    "before "
    "those of its groups, and of those the first. Nobody may be in two. Live, for sessions that "
    "open from then on.";

// One line for each key, and its help behind it.
std::string SampleDomain() {
  std::string text = absl::StrCat(Comment(kDomainHelp), "#\n# [[domain]]\n");
  for (const TableKey& key : DomainKeys()) {
    absl::StrAppend(&text, "# ", View(key.name), " = ", View(key.example), "  # ", View(key.help),
                    "\n");
  }
  return text;
}

std::string PrintDomains(const Config& config) {
  const auto number = [](std::string* out, auto id) { absl::StrAppend(out, id); };
  std::string text;
  for (const DomainRule& rule : config.domains.domains) {
    absl::StrAppend(&text, "\n[[domain]]\nname = ", TomlString(rule.name), "\n");
    // Each has one of the three at least, and a rule may name users that are no more.
    absl::StrAppend(&text, "users = ", TomlArray(rule.users, number), "\n");
    absl::StrAppend(&text, "groups = ", TomlArray(rule.groups, number), "\n");
    absl::StrAppend(&text, "identities = ",
                    TomlArray(rule.identities,
                              [](std::string* out, const std::string& identity) {
                                absl::StrAppend(out, TomlString(identity));
                              }),
                    "\n");
  }
  return text;
}

std::string Cell(std::string_view text) { return absl::StrReplaceAll(View(text), {{"|", "\\|"}}); }

std::string FlagCell(const Option& option) {
  const bool takes = option.kind != OptionKind::kSwitch;
  return absl::StrCat("`", View(option.flag), takes ? " " : "", takes ? View(option.value) : "",
                      "`");
}

std::string DefaultCell(const Option& option) {
  return option.fallback.empty() ? Cell(option.otherwise)
                                 : absl::StrCat("`", View(option.fallback), "`");
}

}  // namespace

std::string SampleConfig() {
  return WriteFile(
      "# The configuration of kvd, all of it. What is commented out stands at its default, or "
      "shows\n"
      "# an example where there is none. `kvd --check-config FILE` says what is wrong with a "
      "file,\n"
      "# `kvd --config FILE --print-config` what is in force. Flags win over the file.\n"
      "#\n"
      "# SIGHUP (systemctl reload kvd, kvctl config reload) reads the file again: what says "
      "\"Live\"\n"
      "# changes, what else differs is named in the log and waits for a restart. A file with a\n"
      "# mistake changes nothing.\n"
      "#\n"
      "# Written by `./dev docs` from daemon/options.cc.\n",
      Example, SampleDomain());
}

std::string PrintConfig(const Config& config) {
  const auto assign = [&](const Option& option) {
    const std::string value = option.get(config);
    if (value.empty() && option.fallback.empty()) {
      if (option.kind == OptionKind::kDevices) return "# Not set, for example:\n" + SampleDevice();
      return absl::StrCat("# Not set, for example: ", Assignment(option, option.example));
    }
    const auto source = config.sources.find(std::string(option.name));
    const bool devices = option.kind == OptionKind::kDevices;
    return absl::StrCat("# From: ", source == config.sources.end() ? "default" : source->second,
                        ".\n", devices ? Devices(config.nvme) : Assignment(option, value));
  };
  return WriteFile(
      absl::StrCat("# The configuration of kvd " KVD_VERSION " in force",
                   config.config_file.empty() ? "" : " from ", config.config_file, ".\n"),
      assign, absl::StrCat(Comment(kDomainHelp), PrintDomains(config)));
}

std::string OptionTable() {
  std::string table =
      "| in the file | flag | meaning | default | change |\n| --- | --- | --- | --- | --- |\n";
  for (const Option& option : Options()) {
    absl::StrAppend(&table, "| `", View(option.name), "` | ", Cell(FlagCell(option)), " | ",
                    Cell(option.help), " | ", DefaultCell(option), " | ",
                    option.live ? "live" : "restart", " |\n");
  }
  for (const TableKey& key : NvmeKeys()) {
    absl::StrAppend(&table, "| `[[tiers.nvme]]` `", View(key.name), "` | - | ", Cell(key.help),
                    ", such as `", Cell(key.example), "` | - | restart |\n");
  }
  for (const TableKey& key : DomainKeys()) {
    absl::StrAppend(&table, "| `[[domain]]` `", View(key.name), "` | - | ", Cell(key.help),
                    ", such as `", Cell(key.example), "` | - | live |\n");
  }
  return table;
}

std::string ShortOptionTable() {
  std::string table = "| option of `kvd` | meaning | default |\n| --- | --- | --- |\n";
  for (const Option& option : Options()) {
    if (!option.essential) continue;
    absl::StrAppend(&table, "| ", Cell(FlagCell(option)), " | ", Cell(option.help), " | ",
                    DefaultCell(option), " |\n");
  }
  return table;
}

std::string OptionManual() {
  // A plain dash may be set as a hyphen, which nobody can paste.
  const auto plain = [](std::string_view text) {
    return absl::StrReplaceAll(View(text), {{"\\", "\\e"}, {"-", "\\-"}});
  };
  std::string text;
  for (const Option& option : Options()) {
    absl::StrAppend(&text, ".TP\n.B ", plain(option.flag));
    if (option.kind != OptionKind::kSwitch)
      absl::StrAppend(&text, " \\fI", plain(option.value), "\\fR");
    absl::StrAppend(
        &text, "\nIn the file:\n.BR ", plain(option.name), " .\n",
        option.kind == OptionKind::kSwitch && option.value == "false" ? "Turns off: " : "",
        plain(option.help), ".\n", plain(Default(option)), ".\n");
    if (option.live) absl::StrAppend(&text, "Changes on SIGHUP.\n");
  }
  return text;
}

std::string ReplaceBetweenMarks(std::string_view text, std::string_view name,
                                std::string_view with) {
  const size_t begin = text.find(absl::StrCat("<!-- begin ", View(name)));
  const size_t first = text.find('\n', begin == std::string_view::npos ? text.size() : begin);
  const size_t end = text.find(absl::StrCat("<!-- end ", View(name)));
  if (first == std::string_view::npos || end == std::string_view::npos || end < first) return "";
  const size_t last = text.rfind('\n', end);  // A comment may begin before the mark.
  return absl::StrCat(View(text.substr(0, first + 1)), View(with), View(text.substr(last + 1)));
}

}  // namespace kvd
