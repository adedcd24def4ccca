// What machines read: one tree for each answer, printed as JSON or YAML.
//
// A tree is made from a message by its field names, with every field present, so it has what the
// wire has. Bytes and 64-bit ids become hex strings (a JSON number cannot hold an id), counters an
// object, enumerations their lower-case name. README.md says what may change under a schema
// version.

#pragma once

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <ostream>

namespace kvd::kvctl {

using Tree = nlohmann::ordered_json;

// Grows when a key changes its meaning or goes; a new key is no new version.
inline constexpr int kSchemaVersion = 1;

enum class Format { kTable, kJson, kYaml };

Tree ToTree(const google::protobuf::Message& message);

// Prints `tree`, an object, behind its schema_version. Requires: `format` is not kTable.
void PrintTree(const Tree& tree, Format format, std::ostream& out);
// The same as one of many documents: JSON on one line, YAML behind "---".
void PrintTreeOfMany(const Tree& tree, Format format, std::ostream& out);

}  // namespace kvd::kvctl
