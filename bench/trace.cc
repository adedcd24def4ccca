#include "bench/trace.h"

#include <limits>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "bench/byte_source.h"
#include "bench/compact_trace.h"
#include "nlohmann/json.hpp"

namespace kvd {
namespace {

// Takes one line as the parser sees it. Nothing but our four fields is kept, so the depth and size
// of the others cost nothing.
class RequestHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit RequestHandler(TraceRequest& request) : request_(request) { request_.hash_ids.clear(); }

  // Why the line is no request; empty when it is one. Requires: the parser has run.
  std::string Problem() const {
    if (!problem_.empty()) return problem_;
    for (const Field field : {kTimestamp, kInputLength, kOutputLength, kHashIds}) {
      if ((seen_ & (1u << field)) == 0) return absl::StrCat(Name(field), " is missing");
    }
    return "";
  }

  bool null() override { return Other(); }
  bool boolean(bool) override { return Other(); }
  bool number_integer(number_integer_t) override { return Other(); }  // Negative.
  bool number_float(number_float_t, const string_t&) override { return Other(); }
  bool string(string_t&) override { return Other(); }
  bool binary(binary_t&) override { return Other(); }

  bool number_unsigned(number_unsigned_t value) override {
    if (in_hash_ids_ && depth_ == 2) {
      if (request_.hash_ids.size() == kTraceBlocksMax) {
        return Fail(absl::StrCat("hash_ids has more than ", kTraceBlocksMax, " entries"));
      }
      request_.hash_ids.push_back(value);
      return true;
    }
    if (depth_ != 1 || field_ == kIgnored || field_ == kHashIds) return Other();
    if (value > Limit(field_)) return Other();
    switch (field_) {
      case kTimestamp:
        request_.timestamp_ms = value;
        break;
      case kInputLength:
        request_.input_length = static_cast<uint32_t>(value);
        break;
      default:
        request_.output_length = static_cast<uint32_t>(value);
    }
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ == 0) {
      ++depth_;
      return true;
    }
    return Other() && (++depth_, true);
  }
  bool end_object() override { return --depth_, true; }

  bool key(string_t& name) override {
    if (depth_ != 1) return true;
    field_ = kIgnored;
    for (const Field field : {kTimestamp, kInputLength, kOutputLength, kHashIds}) {
      if (name == Name(field)) field_ = field;
    }
    if (field_ == kIgnored) return true;
    if ((seen_ & (1u << field_)) != 0) return Fail(absl::StrCat(Name(field_), " appears twice"));
    seen_ |= 1u << field_;
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ == 1 && field_ == kHashIds) {
      in_hash_ids_ = true;
    } else if (!Other()) {
      return false;
    }
    ++depth_;
    return true;
  }
  bool end_array() override {
    if (--depth_ == 1) in_hash_ids_ = false;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("not valid JSON, near byte ", position));
  }

 private:
  enum Field : uint8_t { kTimestamp, kInputLength, kOutputLength, kHashIds, kIgnored };

  static absl::string_view Name(Field field) {
    constexpr absl::string_view kNames[] = {"timestamp", "input_length", "output_length",
                                            "hash_ids"};
    return kNames[field];
  }
  static uint64_t Limit(Field field) {
    return field == kTimestamp ? std::numeric_limits<uint64_t>::max()
                               : std::numeric_limits<uint32_t>::max();
  }

  // A value that none of our fields may have: ignored when it belongs to another field.
  bool Other() {
    if (depth_ == 0) return Fail("not a JSON object");
    if (in_hash_ids_) {
      return Fail("hash_ids holds something that is no whole number from 0 to 2^64 - 1");
    }
    if (depth_ > 1 || field_ == kIgnored) return true;
    if (field_ == kHashIds) return Fail("hash_ids is not a list");
    return Fail(absl::StrCat(Name(field_), " is not a whole number from 0 to ", Limit(field_)));
  }
  bool Fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  TraceRequest& request_;
  std::string problem_;
  int depth_ = 0;  // Objects and lists that are open.
  Field field_ = kIgnored;
  bool in_hash_ids_ = false;
  uint32_t seen_ = 0;  // One bit for each field.
};

class JsonLinesReader final : public TraceReader {
 public:
  explicit JsonLinesReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  absl::StatusOr<bool> Next(TraceRequest& request) override {
    if (!status_.ok()) return status_;
    for (;;) {
      ++line_;
      absl::StatusOr<std::string_view> line = ReadLine();
      if (!line.ok()) return Fail(line.status());
      if (line->empty()) return false;  // Even an empty line has its newline.
      const size_t size = line->size();
      if (line->find_first_not_of(" \t\r\n") == std::string_view::npos) {
        source_->Consume(size);
        continue;
      }
      RequestHandler handler(request);
      nlohmann::json::sax_parse(line->begin(), line->end(), &handler);
      source_->Consume(size);
      if (std::string problem = handler.Problem(); !problem.empty()) {
        return Fail(absl::InvalidArgumentError(problem));
      }
      return true;
    }
  }

  double fraction() const override { return source_->fraction(); }

 private:
  // The next line with its newline, not yet consumed; empty at the end.
  absl::StatusOr<std::string_view> ReadLine() {
    size_t searched = 0;
    for (;;) {
      absl::StatusOr<std::string_view> bytes = source_->Peek(searched + 1);
      if (!bytes.ok()) return bytes.status();
      const size_t newline = bytes->find('\n', searched);
      const size_t size = newline == std::string_view::npos ? bytes->size() : newline + 1;
      if (size > kTraceLineBytesMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("longer than ", kTraceLineBytesMax, " bytes"));
      }
      if (newline != std::string_view::npos || size == searched) return bytes->substr(0, size);
      searched = size;
    }
  }

  absl::Status Fail(const absl::Status& status) {
    status_ = absl::Status(status.code(), absl::StrCat("line ", line_, ": ", status.message()));
    return status_;
  }

  const std::unique_ptr<ByteSource> source_;
  uint64_t line_ = 0;  // Of the request last read, from 1; lines without a request count.
  absl::Status status_;
};

absl::StatusOr<std::unique_ptr<TraceReader>> Recognise(
    absl::StatusOr<std::unique_ptr<ByteSource>> source) {
  if (!source.ok()) return source.status();
  absl::StatusOr<std::string_view> magic = (*source)->Peek(kCompactTraceMagic.size());
  if (!magic.ok()) return magic.status();
  if (magic->empty()) return absl::InvalidArgumentError("the trace is empty, without a byte");
  if (magic->substr(0, kCompactTraceMagic.size()) == kCompactTraceMagic) {
    return CompactTraceReader::Open(*std::move(source));
  }
  return std::make_unique<JsonLinesReader>(*std::move(source));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceReader>> TraceReader::Open(const std::string& path) {
  return Recognise(ByteSource::Open(path));
}

absl::StatusOr<std::unique_ptr<TraceReader>> TraceReader::FromBytes(std::string bytes) {
  return Recognise(ByteSource::FromBytes(std::move(bytes)));
}

void AppendJsonLine(const TraceRequest& request, std::string& target) {
  absl::StrAppend(&target, "{\"timestamp\": ", request.timestamp_ms,
                  ", \"input_length\": ", request.input_length,
                  ", \"output_length\": ", request.output_length, ", \"hash_ids\": [");
  absl::string_view separator = "";
  for (const uint64_t id : request.hash_ids) {
    absl::StrAppend(&target, separator, id);
    separator = ", ";
  }
  target += "]}\n";
}

}  // namespace kvd
