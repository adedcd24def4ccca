#include "client/kvctl/engine_flags.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvd::kvctl {
namespace {

absl::string_view NameOf(absl::string_view path) { return path.substr(path.rfind('/') + 1); }

bool Serves(const std::vector<std::string>& words, absl::string_view program,
            absl::string_view module) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == module) return true;
    if (NameOf(words[i]) == program && i + 1 < words.size() && words[i + 1] == "serve") return true;
  }
  return false;
}

// The value of "--flag value" or "--flag=value"; "" for a flag without one. Nothing: no such flag.
std::optional<std::string> ValueOf(const std::vector<std::string>& words, absl::string_view flag) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == flag) return i + 1 < words.size() ? words[i + 1] : "";
    if (absl::StartsWith(words[i], absl::StrCat(flag, "=")))
      return words[i].substr(flag.size() + 1);
  }
  return std::nullopt;
}

EngineFlags OfVllm(const std::vector<std::string>& words) {
  EngineFlags flags{.engine = "vLLM"};
  const std::string transfer = ValueOf(words, "--kv-transfer-config").value_or("");
  flags.uses_kvd = absl::StrContains(transfer, "kvd.vllm");
  if (!flags.uses_kvd) {
    flags.lacks.push_back(
        R"(--kv-transfer-config '{"kv_connector":"KvdConnector","kv_connector_module_path":"kvd.vllm","kv_role":"kv_both"}')");
  } else if (!absl::StrContains(transfer, "recompute") &&
             !absl::StrContains(transfer, "kvd.vllm_tier")) {
    flags.lacks.push_back(
        R"("kv_load_failure_policy":"recompute" in --kv-transfer-config, or a load that fails fails its request)");
  }
  return flags;
}

EngineFlags OfSglang(const std::vector<std::string>& words) {
  EngineFlags flags{.engine = "SGLang"};
  const std::optional<std::string> given = ValueOf(words, "--hicache-storage-backend-extra-config");
  const std::string extra = given.value_or("");
  const bool in_file = absl::StartsWith(extra, "@");  // Not for us to read.
  flags.uses_kvd = in_file || absl::StrContains(extra, "kvd.sglang");
  if (!flags.uses_kvd) {
    flags.lacks.push_back(
        R"(--enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name":"kvd","module_path":"kvd.sglang","class_name":"KvdStorage","interface_v1":1,"hicache_storage_pass_prefix_keys":true,"allocator":"shm"}')");
    return flags;
  }
  if (!ValueOf(words, "--enable-hierarchical-cache")) {
    flags.lacks.push_back("--enable-hierarchical-cache, or nothing is stored");
  }
  if (ValueOf(words, "--hicache-storage-backend") != "dynamic") {
    flags.lacks.push_back("--hicache-storage-backend dynamic, or nothing is stored");
  }
  if (!ValueOf(words, "--page-size")) {
    flags.lacks.push_back("--page-size 64, or every token is a block");
  }
  if (in_file) {
    // SGLang looks for an allocator only in JSON on the command line.
    flags.lacks.push_back(
        "the extra config as JSON on the command line, not as a file, or every page is copied once "
        "more");
    return flags;
  }
  if (!absl::StrContains(extra, "hicache_storage_pass_prefix_keys")) {
    flags.lacks.push_back(
        R"("hicache_storage_pass_prefix_keys":true in the extra config, or nothing is stored)");
  }
  if (!absl::StrContains(extra, R"("allocator")")) {
    flags.lacks.push_back(
        R"("allocator":"shm" in the extra config, or every page is copied once more)");
  }
  return flags;
}

}  // namespace

std::optional<EngineFlags> LookAtFlags(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    // It starts an engine, with the flags that this one lacks.
    if (NameOf(word) == "kvd-run" || word == "kvd.run") return std::nullopt;
  }
  if (Serves(words, "vllm", "vllm.entrypoints.openai.api_server")) return OfVllm(words);
  if (Serves(words, "sglang", "sglang.launch_server")) return OfSglang(words);
  return std::nullopt;
}

}  // namespace kvd::kvctl
