// kvd-docs ROOT: writes the option table into the files of the tree at ROOT that repeat it. A test
// fails while one of them says otherwise.

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "daemon/option_docs.h"

namespace kvd {
namespace {

bool Write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) std::fprintf(stderr, "kvd-docs: cannot write %s\n", path.c_str());
  return static_cast<bool>(file);
}

bool WriteTable(const std::string& path, const std::string& table) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  const std::string replaced = ReplaceBetweenMarks(text.str(), "options", table);
  if (!replaced.empty()) return Write(path, replaced);
  std::fprintf(stderr, "kvd-docs: %s has no marks for the table of options\n", path.c_str());
  return false;
}

}  // namespace
}  // namespace kvd

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: kvd-docs ROOT\n");
    return 2;
  }
  const std::string root = argv[1];
  const bool written = kvd::Write(root + "/deploy/kvd.toml", kvd::SampleConfig()) &&
                       kvd::WriteTable(root + "/deploy/README.md", kvd::OptionTable()) &&
                       kvd::WriteTable(root + "/README.md", kvd::ShortOptionTable()) &&
                       kvd::WriteTable(root + "/deploy/man/kvd.8", kvd::OptionManual());
  return written ? 0 : 1;
}
