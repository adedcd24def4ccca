#include "client/kvctl/completion.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

struct OptionWords {
  std::vector<std::string> names;  // "-o", "--output"
  std::string description;
  std::vector<std::string> values;  // What it may be, where that is a list.
  bool takes_value = false;
};

// A verb, with what can follow it. The path of the root is empty.
struct VerbWords {
  std::string path;                                        // "namespaces drop"
  std::vector<std::pair<std::string, std::string>> verbs;  // Name and description.
  std::vector<OptionWords> options;
  std::vector<std::string> values;  // Of its positional argument.
};

// The list in "{table,json,yaml}", as CLI::IsMember describes itself; empty for anything else.
std::vector<std::string> ListIn(const std::string& type) {
  const size_t open = type.find('{');
  const size_t close = type.find('}', open);
  if (open == std::string::npos || close == std::string::npos) return {};
  return absl::StrSplit(type.substr(open + 1, close - open - 1), ',');
}

void Walk(const CLI::App& app, const std::string& path, const std::vector<OptionWords>& common,
          std::vector<VerbWords>& all) {
  VerbWords words{.path = path};
  for (const CLI::Option* option : app.get_options()) {
    const std::vector<std::string> values = ListIn(option->get_type_name());
    if (option->get_positional()) {
      words.values = values;
      continue;
    }
    OptionWords& added = words.options.emplace_back();
    for (const std::string& name : option->get_snames()) added.names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) added.names.push_back("--" + name);
    added.description = option->get_description();
    added.values = values;
    added.takes_value = option->get_items_expected_max() > 0 && option->get_type_size() != 0;
  }
  std::vector<OptionWords> inherited = common;
  if (path.empty()) {  // Every verb takes these, too; each has a help of its own.
    for (const OptionWords& option : words.options) {
      if (option.names.back() != "--help") inherited.push_back(option);
    }
  } else {
    words.options.insert(words.options.end(), common.begin(), common.end());
  }
  const auto children = app.get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* child : children) {
    words.verbs.emplace_back(child->get_name(), child->get_description());
  }
  all.push_back(std::move(words));
  for (const CLI::App* child : children) {
    Walk(*child, path.empty() ? child->get_name() : absl::StrCat(path, " ", child->get_name()),
         inherited, all);
  }
}

std::vector<VerbWords> WordsOf(const CLI::App& app) {
  std::vector<VerbWords> all;
  Walk(app, "", {}, all);
  return all;
}

// The names of the options of `verb` that take a value as the next word, as alternatives of `case`.
std::string ValueOptions(const std::vector<VerbWords>& all) {
  std::vector<std::string> names;
  for (const VerbWords& verb : all) {
    for (const OptionWords& option : verb.options) {
      if (!option.takes_value) continue;
      for (const std::string& name : option.names) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
      }
    }
  }
  return absl::StrJoin(names, "|");
}

// Every path that verbs can form, as alternatives of `case`.
std::string Paths(const std::vector<VerbWords>& all) {
  std::vector<std::string> paths;
  for (const VerbWords& verb : all) {
    if (!verb.path.empty()) paths.push_back(absl::StrCat("'", verb.path, "'"));
  }
  return absl::StrJoin(paths, "|");
}

std::string Quoted(const std::string& text) {  // For all three shells, in single quotes.
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "’"}, {"\\", "\\\\"}}), "'");
}

// zsh's _describe splits at a colon.
std::string ZshPair(const std::string& name, const std::string& description) {
  return Quoted(absl::StrCat(absl::StrReplaceAll(name, {{":", "\\:"}}), ":", description));
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  const std::vector<VerbWords> all = WordsOf(app);
  std::string script = absl::StrCat(
      "# bash completion of kvctl; made by `kvctl completion bash`.\n"
      "_kvctl() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} path='' i\n"
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    case ${COMP_WORDS[i]} in\n"
      "      ",
      ValueOptions(all),
      ") ((++i)); continue ;;\n"
      "      -*) continue ;;\n"
      "    esac\n"
      "    case \"${path:+$path }${COMP_WORDS[i]}\" in\n"
      "      ",
      Paths(all),
      ") path=\"${path:+$path }${COMP_WORDS[i]}\" ;;\n"
      "    esac\n"
      "  done\n"
      "  COMPREPLY=()\n"
      "  case $path in\n");
  for (const VerbWords& verb : all) {
    absl::StrAppend(&script, "    '", verb.path, "')\n      case $before in\n");
    std::vector<std::string> words = verb.values;
    for (const auto& [name, description] : verb.verbs) words.push_back(name);
    for (const OptionWords& option : verb.options) {
      if (option.takes_value) {
        absl::StrAppend(&script, "        ", absl::StrJoin(option.names, "|"),
                        ") COMPREPLY=($(compgen -W '", absl::StrJoin(option.values, " "),
                        "' -- \"$word\")); return ;;\n");
      }
      words.insert(words.end(), option.names.begin(), option.names.end());
    }
    absl::StrAppend(&script, "      esac\n      COMPREPLY=($(compgen -W '",
                    absl::StrJoin(words, " "), "' -- \"$word\"))\n      ;;\n");
  }
  absl::StrAppend(&script, "  esac\n}\ncomplete -F _kvctl kvctl\n");
  return script;
}

std::string ZshCompletion(const CLI::App& app) {
  const std::vector<VerbWords> all = WordsOf(app);
  std::string script = absl::StrCat(
      "#compdef kvctl\n"
      "# zsh completion of kvctl; made by `kvctl completion zsh`.\n"
      "_kvctl() {\n"
      "  local before=${words[CURRENT-1]} at='' i\n"
      "  local -a verbs options values\n"
      "  for ((i = 2; i < CURRENT; ++i)); do\n"
      "    case ${words[i]} in\n"
      "      ",
      ValueOptions(all),
      ") ((++i)); continue ;;\n"
      "      -*) continue ;;\n"
      "    esac\n"
      "    case \"${at:+$at }${words[i]}\" in\n"
      "      ",
      Paths(all),
      ") at=\"${at:+$at }${words[i]}\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case $at in\n");
  for (const VerbWords& verb : all) {
    absl::StrAppend(&script, "    '", verb.path, "')\n      case $before in\n");
    for (const OptionWords& option : verb.options) {
      if (!option.takes_value) continue;
      absl::StrAppend(&script, "        ", absl::StrJoin(option.names, "|"), ")");
      if (!option.values.empty()) {
        absl::StrAppend(&script, " values=(", absl::StrJoin(option.values, " "),
                        "); _describe value values;");
      }
      absl::StrAppend(&script, " return ;;\n");
    }
    absl::StrAppend(&script, "      esac\n");
    for (const auto& [name, description] : verb.verbs) {
      absl::StrAppend(&script, "      verbs+=(", ZshPair(name, description), ")\n");
    }
    for (const std::string& value : verb.values) {
      absl::StrAppend(&script, "      verbs+=(", Quoted(value), ")\n");
    }
    for (const OptionWords& option : verb.options) {
      for (const std::string& name : option.names) {
        absl::StrAppend(&script, "      options+=(", ZshPair(name, option.description), ")\n");
      }
    }
    absl::StrAppend(&script, "      ;;\n");
  }
  absl::StrAppend(&script,
                  "  esac\n"
                  "  (($#verbs)) && _describe verb verbs\n"
                  "  _describe -o option options\n"
                  "}\n"
                  // Read by the completion system this file is the function; sourced it defines it.
                  "if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _kvctl \"$@\"; "
                  "else compdef _kvctl kvctl; fi\n");
  return script;
}

std::string FishCompletion(const CLI::App& app) {
  const std::vector<VerbWords> all = WordsOf(app);
  std::string script = absl::StrCat(
      "# fish completion of kvctl; made by `kvctl completion fish`.\n"
      "function __kvctl_at\n"
      "  set -l at ''\n"
      "  set -l skip no\n"
      "  for word in (commandline -opc)[2..-1]\n"
      "    if test $skip = yes\n"
      "      set skip no\n"
      "      continue\n"
      "    end\n"
      "    switch $word\n"
      "      case ",
      absl::StrReplaceAll(ValueOptions(all), {{"|", " "}}),
      "\n"
      "        set skip yes\n"
      "      case '-*'\n"
      "      case '*'\n"
      "        set -l next (string trim \"$at $word\")\n"
      "        switch $next\n"
      "          case ",
      absl::StrReplaceAll(Paths(all), {{"|", " "}}),
      "\n"
      "            set at $next\n"
      "        end\n"
      "    end\n"
      "  end\n"
      "  test \"$at\" = \"$argv[1]\"\n"
      "end\n"
      "complete -c kvctl -f\n");
  for (const VerbWords& verb : all) {
    const std::string head = absl::StrCat("complete -c kvctl -n \"__kvctl_at '", verb.path, "'\"");
    for (const auto& [name, description] : verb.verbs) {
      absl::StrAppend(&script, head, " -a ", name, " -d ", Quoted(description), "\n");
    }
    if (!verb.values.empty()) {
      absl::StrAppend(&script, head, " -a ", Quoted(absl::StrJoin(verb.values, " ")), "\n");
    }
    for (const OptionWords& option : verb.options) {
      absl::StrAppend(&script, head);
      for (const std::string& name : option.names) {
        absl::StrAppend(&script, name[1] == '-' ? " -l " : " -s ",
                        name.substr(name[1] == '-' ? 2 : 1));
      }
      if (option.takes_value) absl::StrAppend(&script, " -x");
      if (!option.values.empty()) {
        absl::StrAppend(&script, " -a ", Quoted(absl::StrJoin(option.values, " ")));
      }
      absl::StrAppend(&script, " -d ", Quoted(option.description), "\n");
    }
  }
  return script;
}

void AddCompletion(CommandLine& line) {
  auto shell = std::make_shared<std::string>();
  line.Add(line.app(), "completion", "A script that completes kvctl's words in your shell",
           "source <(kvctl completion bash)\n"
           "kvctl completion zsh > \"${fpath[1]}/_kvctl\"\n"
           "kvctl completion fish > ~/.config/fish/completions/kvctl.fish",
           Repeat::kNo,
           [&line, shell](Call& call) -> absl::StatusOr<ExitCode> {
             call.out() << (*shell == "bash"  ? BashCompletion(line.app())
                            : *shell == "zsh" ? ZshCompletion(line.app())
                                              : FishCompletion(line.app()));
             return kOk;
           })
      ->add_option("shell", *shell, "Yours")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->required();
}

}  // namespace kvd::kvctl
