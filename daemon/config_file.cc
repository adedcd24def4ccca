#include "daemon/config_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/accounts.h"
#include "proto/types/nearest.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

constexpr size_t kMaxDomainRules = 1024;  // Each session that opens walks them.
constexpr size_t kMaxMembers = 4096;      // Of one domain and kind.
constexpr size_t kMaxNameBytes = 64;

FilePlace PlaceOf(const toml::source_region& region) {
  return {.line = region.begin.line, .column = region.begin.column};
}

std::string_view TypeName(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a text in quotes";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number with a point";
    case toml::node_type::boolean:
      return "true or false";
    default:
      return "a date or time";
  }
}

std::string_view WantedType(OptionKind kind) {
  switch (kind) {
    case OptionKind::kText:
      return "a text in quotes";
    case OptionKind::kSize:
      return "a size such as \"64GiB\", or an integer of bytes";
    case OptionKind::kCount:
      return "an integer";
    case OptionKind::kDuration:
      return "a time such as \"30s\"";
    case OptionKind::kSwitch:
      return "true or false";
    case OptionKind::kDevices:
      return "tables in double brackets";
  }
  return "";
}

// The value as text, if its type is one that the option takes.
std::optional<std::string> TextOf(const toml::node& node, OptionKind kind) {
  const bool may_be_integer = kind == OptionKind::kCount || kind == OptionKind::kSize;
  if (node.is_integer() && may_be_integer) return absl::StrCat(node.as_integer()->get());
  if (node.is_boolean() && kind == OptionKind::kSwitch) {
    return node.as_boolean()->get() ? "true" : "false";
  }
  if (node.is_string() && kind != OptionKind::kCount && kind != OptionKind::kSwitch) {
    return node.as_string()->get();
  }
  return std::nullopt;
}

class Reader {
 public:
  ConfigFile Read(std::string_view text) {
    try {
      const toml::table root = toml::parse(text);
      ReadTable(root, "");
    } catch (const toml::parse_error& error) {
      Complain(PlaceOf(error.source()), std::string(error.description()));
    }
    return std::move(file_);
  }

 private:
  // Who has a user, group or identity, and since where.
  struct Owner {
    std::string domain;
    FilePlace at;
  };

  void Complain(FilePlace at, std::string what) {
    file_.problems.push_back({.at = at, .what = std::move(what)});
  }

  // The names that may stand in the table `prefix` ("" or "socket."), without it.
  static std::vector<std::string_view> KnownIn(std::string_view prefix) {
    std::vector<std::string_view> known;
    for (const Option& option : Options()) {
      if (option.name.substr(0, prefix.size()) != prefix) continue;
      const std::string_view rest = option.name.substr(prefix.size());
      const std::string_view first = rest.substr(0, rest.find('.'));
      if (std::find(known.begin(), known.end(), first) == known.end()) known.push_back(first);
    }
    if (prefix.empty()) known.emplace_back("domain");
    return known;
  }

  void ComplainOfUnknown(FilePlace at, std::string_view prefix, std::string_view name,
                         const std::vector<std::string_view>& known) {
    std::string what = absl::StrCat(View(prefix), View(name), ": unknown key; ");
    if (const std::string_view near = Nearest(name, known); !near.empty()) {
      absl::StrAppend(&what, "the nearest known one is ", View(prefix), View(near));
    } else if (const std::string moved = InOtherTable(name); !moved.empty()) {
      absl::StrAppend(&what, "the nearest known one is ", moved);
    } else {
      absl::StrAppend(&what, "known here:");
      for (const std::string_view one : known) absl::StrAppend(&what, " ", View(one));
    }
    Complain(at, std::move(what));
  }

  // `certificate` outside its table is most likely tcp.certificate.
  static std::string InOtherTable(std::string_view name) {
    for (const Option& option : Options()) {
      if (option.name.substr(option.name.rfind('.') + 1) == name) return std::string(option.name);
    }
    return "";
  }

  void ReadTable(const toml::table& table, const std::string& prefix) {
    const std::vector<std::string_view> known = KnownIn(prefix);
    for (const auto& [key, node] : table) {
      const std::string name = absl::StrCat(prefix, View(key.str()));
      const FilePlace at = PlaceOf(key.source());
      if (prefix.empty() && name == "domain") {
        ReadDomains(node);
      } else if (name == "tiers.nvme") {
        ReadDevices(node);
      } else if (const Option* option = FindOption(name); option != nullptr) {
        if (const auto text = TextOf(node, option->kind); text.has_value()) {
          file_.settings.push_back({.option = option, .text = *text, .at = PlaceOf(node.source())});
        } else {
          Complain(PlaceOf(node.source()),
                   absl::StrCat(name, ": must be ", View(WantedType(option->kind)), ", not ",
                                View(TypeName(node))));
        }
      } else if (prefix.empty() && !KnownIn(name + ".").empty()) {
        if (node.is_table()) {
          ReadTable(*node.as_table(), name + ".");
        } else {
          Complain(PlaceOf(node.source()), absl::StrCat(name, ": must be a table, [", name,
                                                        "], not ", View(TypeName(node))));
        }
      } else {
        ComplainOfUnknown(at, prefix, key.str(), known);
      }
    }
  }

  // Null, and complained of: `node` is not one or more tables in double brackets.
  const toml::array* TablesOf(const toml::node& node, const std::string& name) {
    const toml::array* tables = node.as_array();
    if (tables != nullptr && std::all_of(tables->begin(), tables->end(),
                                         [](const auto& table) { return table.is_table(); })) {
      return tables;
    }
    Complain(PlaceOf(node.source()),
             absl::StrCat(name, ": must be tables in double brackets, [[", name, "]]"));
    return nullptr;
  }

  void ReadDevices(const toml::node& node) {
    const toml::array* devices = TablesOf(node, "tiers.nvme");
    if (devices == nullptr) return;
    file_.nvme_at = PlaceOf(node.source());
    for (const toml::node& device : *devices) ReadDevice(*device.as_table());
  }

  void ReadDevice(const toml::table& table) {
    std::vector<std::string_view> known;
    for (const TableKey& key : NvmeKeys()) known.push_back(key.name);
    NvmeConfig device;
    for (const auto& [key, node] : table) {
      const FilePlace at = PlaceOf(node.source());
      if (key.str() == "path") {
        device.path = node.value_or(std::string());
        const std::string wrong =
            node.is_string() ? CheckDevicePath(device.path)
                             : absl::StrCat("must be a text in quotes, not ", View(TypeName(node)));
        if (!wrong.empty()) Complain(at, absl::StrCat("tiers.nvme.path: ", wrong));
      } else if (key.str() == "capacity") {
        const auto text = TextOf(node, OptionKind::kSize);
        const std::string wrong =
            text.has_value() ? ParseDeviceCapacity(*text, &device.capacity_bytes)
                             : absl::StrCat("must be ", View(WantedType(OptionKind::kSize)),
                                            ", not ", View(TypeName(node)));
        if (!wrong.empty()) Complain(at, absl::StrCat("tiers.nvme.capacity: ", wrong));
      } else {
        ComplainOfUnknown(PlaceOf(key.source()), "tiers.nvme.", key.str(), known);
      }
    }
    for (const std::string_view key : known) {
      if (table.contains(key)) continue;
      Complain(PlaceOf(table.source()), absl::StrCat("tiers.nvme.", View(key), ": is missing"));
    }
    file_.nvme.push_back(std::move(device));
  }

  void ReadDomains(const toml::node& node) {
    const toml::array* rules = TablesOf(node, "domain");
    if (rules == nullptr) return;
    if (rules->size() > kMaxDomainRules) {
      return Complain(PlaceOf(node.source()),
                      absl::StrCat("domain: ", rules->size(), " of them, and at most ",
                                   kMaxDomainRules, " may be"));
    }
    for (const toml::node& rule : *rules) ReadDomain(*rule.as_table());
  }

  void ReadDomain(const toml::table& table) {
    const FilePlace at = PlaceOf(table.source());
    DomainRule rule;
    std::vector<std::string_view> known;
    for (const TableKey& key : DomainKeys()) known.push_back(key.name);
    // The name first, because the messages about all others say it.
    if (const toml::node* name = table.get("name"); name == nullptr) {
      Complain(at, "domain.name: is missing");
    } else {
      rule.name = ReadDomainName(*name);
    }
    for (const auto& [key, node] : table) {
      if (std::find(known.begin(), known.end(), key.str()) == known.end()) {
        ComplainOfUnknown(PlaceOf(key.source()), "domain.", key.str(), known);
      }
    }
    ReadMembers(table, "users", rule.name, [&](const toml::node& node) -> std::string {
      return ReadAccount<uid_t>(node, "user", UserId, rule.users, users_, rule.name);
    });
    ReadMembers(table, "groups", rule.name, [&](const toml::node& node) -> std::string {
      return ReadAccount<gid_t>(node, "group", GroupId, rule.groups, groups_, rule.name);
    });
    ReadMembers(table, "identities", rule.name, [&](const toml::node& node) -> std::string {
      if (!node.is_string())
        return absl::StrCat("must be texts in quotes, not ", View(TypeName(node)));
      const std::string& identity = node.as_string()->get();
      if (identity.empty() || identity.size() > Domains::kMaxIdentityBytes) {
        return absl::StrCat("an identity has 1 to ", Domains::kMaxIdentityBytes, " bytes");
      }
      rule.identities.push_back(identity);
      return Claim(identities_, identity, absl::StrCat("the identity ", TomlString(identity)),
                   rule.name, PlaceOf(node.source()));
    });
    if (!table.contains("users") && !table.contains("groups") && !table.contains("identities")) {
      Complain(at, absl::StrCat("domain.users: the domain ", TomlString(rule.name),
                                " has neither users nor groups nor identities"));
    }
    file_.domains.push_back(std::move(rule));
  }

  std::string ReadDomainName(const toml::node& node) {
    const FilePlace at = PlaceOf(node.source());
    const auto allowed = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' || c == '_';
    };
    const std::string name = node.value_or(std::string());
    if (!node.is_string() || name.empty() || name.size() > kMaxNameBytes ||
        !std::all_of(name.begin(), name.end(), allowed)) {
      Complain(at, absl::StrCat("domain.name: must be 1 to ", kMaxNameBytes,
                                " letters, digits, dots, dashes or underscores in quotes"));
    } else if (const auto [it, fresh] = names_.emplace(name, at); !fresh) {
      Complain(at, absl::StrCat("domain.name: there is a domain ", TomlString(name),
                                " already, in line ", it->second.line));
    }
    return name;
  }

  // `read` returns what is wrong with one member.
  template <typename Read>
  void ReadMembers(const toml::table& table, std::string_view key, const std::string& domain,
                   Read read) {
    const toml::node* node = table.get(key);
    if (node == nullptr) return;
    const std::string field = absl::StrCat("domain.", View(key));
    const toml::array* members = node->as_array();
    if (members == nullptr) {
      return Complain(PlaceOf(node->source()),
                      absl::StrCat(field, ": must be an array, not ", View(TypeName(*node))));
    }
    if (members->size() > kMaxMembers) {
      return Complain(PlaceOf(node->source()),
                      absl::StrCat(field, ": ", members->size(), " in the domain ",
                                   TomlString(domain), ", and at most ", kMaxMembers, " may be"));
    }
    for (const toml::node& member : *members) {
      if (const std::string wrong = read(member); !wrong.empty()) {
        Complain(PlaceOf(member.source()), absl::StrCat(field, ": ", wrong));
      }
    }
  }

  template <typename Id>
  std::string ReadAccount(const toml::node& node, const char* kind,
                          std::optional<Id> (*find)(const std::string&), std::vector<Id>& members,
                          std::map<Id, Owner>& owners, const std::string& domain) {
    constexpr int64_t kMostId = 0xfffffffe;  // The last one means nobody to the kernel.
    std::optional<Id> id;
    if (node.is_string()) {
      id = find(node.as_string()->get());
      if (!id.has_value()) {
        return absl::StrCat("this system has no ", kind, " ", TomlString(node.as_string()->get()));
      }
    } else if (node.is_integer()) {
      const int64_t number = node.as_integer()->get();
      if (number < 0 || number > kMostId) {
        return absl::StrCat(number, " is not a ", kind, " id");
      }
      id = static_cast<Id>(number);
    } else {
      return absl::StrCat("must be names in quotes or numbers, not ", View(TypeName(node)));
    }
    members.push_back(*id);
    return Claim(owners, *id, absl::StrCat("the ", kind, " ", *id), domain, PlaceOf(node.source()));
  }

  template <typename Key>
  std::string Claim(std::map<Key, Owner>& owners, const Key& key, const std::string& who,
                    const std::string& domain, FilePlace at) {
    const auto [it, fresh] = owners.emplace(key, Owner{domain, at});
    if (fresh) return "";
    return absl::StrCat(who, " is in the domain ", TomlString(it->second.domain),
                        " already, in line ", it->second.at.line);
  }

  ConfigFile file_;
  std::map<std::string, FilePlace> names_;
  std::map<uid_t, Owner> users_;
  std::map<gid_t, Owner> groups_;
  std::map<std::string, Owner> identities_;
};

}  // namespace

ConfigFile ParseConfigFile(std::string_view text) { return Reader().Read(text); }

}  // namespace kvd
