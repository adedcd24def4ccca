#include "client/kvctl/tree.h"

#include <google/protobuf/descriptor.h>
#include <yaml-cpp/yaml.h>

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "client/kvctl/units.h"
#include "proto/types/check.h"

namespace kvd::kvctl {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// "GROUP_KIND_FULL" of the enumeration "GroupKind" is "full": what all names begin with goes.
std::string EnumName(const EnumValueDescriptor& value) {
  std::string prefix;
  for (const char c : value.type()->name()) {
    if (absl::ascii_isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix += '_';
    prefix += absl::ascii_toupper(static_cast<unsigned char>(c));
  }
  return absl::AsciiStrToLower(absl::StripPrefix(value.name(), prefix + "_"));
}

Tree Scalar(const Message& message, const FieldDescriptor& field, int at) {
  const Reflection& read = *message.GetReflection();
  const bool many = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text =
          many ? read.GetRepeatedString(message, &field, at) : read.GetString(message, &field);
      return field.type() == FieldDescriptor::TYPE_BYTES ? Hex(text) : text;
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const uint64_t value =
          many ? read.GetRepeatedUInt64(message, &field, at) : read.GetUInt64(message, &field);
      if (field.type() == FieldDescriptor::TYPE_FIXED64) return HexId(value);
      return value;
    }
    case FieldDescriptor::CPPTYPE_UINT32:
      return many ? read.GetRepeatedUInt32(message, &field, at) : read.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return many ? read.GetRepeatedInt64(message, &field, at) : read.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_INT32:
      return many ? read.GetRepeatedInt32(message, &field, at) : read.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return many ? read.GetRepeatedDouble(message, &field, at) : read.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return many ? read.GetRepeatedFloat(message, &field, at) : read.GetFloat(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return many ? read.GetRepeatedBool(message, &field, at) : read.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumName(
          *(many ? read.GetRepeatedEnum(message, &field, at) : read.GetEnum(message, &field)));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToTree(many ? read.GetRepeatedMessage(message, &field, at)
                         : read.GetMessage(message, &field));
  }
  return nullptr;
}

// Pairs of a name and a value (maps, and the counters) are an object for who reads them.
bool IsPairs(const FieldDescriptor& field) {
  return field.is_map() ||
         (field.is_repeated() && field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
          field.message_type()->name() == "Counter");
}

Tree Pairs(const Message& message, const FieldDescriptor& field) {
  Tree object = Tree::object();
  const Reflection& read = *message.GetReflection();
  for (int i = 0; i < read.FieldSize(message, &field); ++i) {
    const Message& pair = read.GetRepeatedMessage(message, &field, i);
    const FieldDescriptor& key = *pair.GetDescriptor()->field(0);
    object[pair.GetReflection()->GetString(pair, &key)] =
        Scalar(pair, *pair.GetDescriptor()->field(1), 0);
  }
  return object;
}

void Emit(const Tree& tree, YAML::Emitter& yaml) {
  if (tree.is_object()) {
    yaml << YAML::BeginMap;
    for (const auto& [key, value] : tree.items()) {
      yaml << YAML::Key << key << YAML::Value;
      Emit(value, yaml);
    }
    yaml << YAML::EndMap;
  } else if (tree.is_array()) {
    if (tree.empty()) yaml << YAML::Flow;
    yaml << YAML::BeginSeq;
    for (const Tree& value : tree) Emit(value, yaml);
    yaml << YAML::EndSeq;
  } else if (tree.is_string()) {
    // Quoted always: a plain 12e4 or `no` would come back as something else.
    yaml << YAML::DoubleQuoted << tree.get<std::string>();
  } else {
    yaml << tree.dump();  // Numbers, true, false and null are written alike in both.
  }
}

Tree Versioned(const Tree& tree) {
  Tree document = {{"schema_version", kSchemaVersion}};
  document.update(tree);
  return document;
}

std::string Json(const Tree& tree, int indent) {
  return tree.dump(indent, ' ', /*ensure_ascii=*/false, Tree::error_handler_t::replace);
}

void PrintYaml(const Tree& tree, std::ostream& out) {
  YAML::Emitter yaml(out);
  Emit(tree, yaml);
  KVD_CHECK(yaml.good()) << yaml.GetLastError();
  out << "\n";
}

}  // namespace

Tree ToTree(const Message& message) {
  Tree object = Tree::object();
  const Reflection& read = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    if (IsPairs(field)) {
      object[field.name()] = Pairs(message, field);
    } else if (field.is_repeated()) {
      Tree array = Tree::array();
      for (int at = 0; at < read.FieldSize(message, &field); ++at) {
        array.push_back(Scalar(message, field, at));
      }
      object[field.name()] = std::move(array);
    } else {
      object[field.name()] = Scalar(message, field, 0);
    }
  }
  return object;
}

void PrintTree(const Tree& tree, Format format, std::ostream& out) {
  KVD_CHECK(format != Format::kTable);
  if (format == Format::kJson) {
    out << Json(Versioned(tree), 2) << "\n";
  } else {
    PrintYaml(Versioned(tree), out);
  }
}

void PrintTreeOfMany(const Tree& tree, Format format, std::ostream& out) {
  KVD_CHECK(format != Format::kTable);
  if (format == Format::kJson) {
    out << Json(Versioned(tree), -1) << "\n";
  } else {
    out << "---\n";
    PrintYaml(Versioned(tree), out);
  }
}

}  // namespace kvd::kvctl
