#include "bench/convert.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <memory>
#include <string_view>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bench/commands.h"
#include "bench/compact_trace.h"
#include "bench/table.h"
#include "bench/trace.h"

namespace kvd {
namespace {

constexpr size_t kWriteBytes = 1u << 20;

// A file that takes its place only when it is whole.
class OutputFile {
 public:
  static absl::StatusOr<OutputFile> Create(const std::string& path) {
    if (path == "-") return OutputFile(STDOUT_FILENO, "", "standard output");
    struct stat info {};
    if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
      // A pipe or a device such as /dev/null must not be replaced by a file.
      const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
      if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
      return OutputFile(fd, "", path);
    }
    std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
    const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("creating ", temporary));
    return OutputFile(fd, std::move(temporary), path);
  }

  OutputFile(OutputFile&& other)
      : fd_(std::exchange(other.fd_, -1)),
        temporary_(std::exchange(other.temporary_, "")),
        path_(std::move(other.path_)) {}
  ~OutputFile() {
    if (fd_ > STDERR_FILENO) close(fd_);
    if (!temporary_.empty()) unlink(temporary_.c_str());
  }

  absl::Status Write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = write(fd_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat("writing ", path_));
      bytes.remove_prefix(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }

  absl::Status Commit() {
    if (temporary_.empty()) return absl::OkStatus();
    if (close(std::exchange(fd_, -1)) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("writing ", path_));
    }
    temporary_.clear();
    return absl::OkStatus();
  }

 private:
  OutputFile(int fd, std::string temporary, std::string path)
      : fd_(fd), temporary_(std::move(temporary)), path_(std::move(path)) {}

  int fd_;
  std::string temporary_;  // Where the bytes are until Commit(); empty: nothing to remove.
  std::string path_;
};

// Where requests go. Finish() after the last.
class TraceSink {
 public:
  virtual ~TraceSink() = default;
  virtual absl::Status Add(const TraceRequest& request) = 0;
  virtual absl::Status Finish() = 0;
};

class JsonLinesSink final : public TraceSink {
 public:
  JsonLinesSink(OutputFile& file, uint64_t& size_bytes) : file_(file), size_bytes_(size_bytes) {}

  absl::Status Add(const TraceRequest& request) override {
    AppendJsonLine(request, text_);
    return text_.size() < kWriteBytes ? absl::OkStatus() : Finish();
  }
  absl::Status Finish() override {
    size_bytes_ += text_.size();
    return file_.Write(std::exchange(text_, ""));
  }

 private:
  OutputFile& file_;
  uint64_t& size_bytes_;
  std::string text_;
};

class CompactSink final : public TraceSink {
 public:
  CompactSink(OutputFile& file, uint64_t& size_bytes, uint32_t block_tokens)
      : file_(file), size_bytes_(size_bytes), writer_({.block_tokens = block_tokens}) {}

  absl::Status Add(const TraceRequest& request) override { return writer_.Add(request); }
  absl::Status Finish() override {
    const std::string bytes = writer_.Finish();
    size_bytes_ += bytes.size();
    return file_.Write(bytes);
  }

 private:
  OutputFile& file_;
  uint64_t& size_bytes_;
  CompactTraceWriter writer_;
};

}  // namespace

absl::StatusOr<ConvertSummary> ConvertTrace(const ConvertOptions& options) {
  absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(options.input);
  if (!reader.ok()) return reader.status();
  absl::StatusOr<OutputFile> file = OutputFile::Create(options.output);
  if (!file.ok()) return file.status();

  ConvertSummary summary;
  const uint32_t block_tokens =
      options.block_tokens != 0 ? options.block_tokens : (*reader)->block_tokens().value_or(0);
  std::unique_ptr<TraceSink> sink;
  if (options.format == TraceFormat::kCompact) {
    sink = std::make_unique<CompactSink>(*file, summary.output_bytes, block_tokens);
  } else {
    sink = std::make_unique<JsonLinesSink>(*file, summary.output_bytes);
  }

  TraceRequest request;
  for (;;) {
    absl::StatusOr<bool> more = (*reader)->Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    if (absl::Status status = sink->Add(request); !status.ok()) return status;
    ++summary.requests;
    summary.references += request.hash_ids.size();
  }
  if (absl::Status status = sink->Finish(); !status.ok()) return status;
  if (absl::Status status = file->Commit(); !status.ok()) return status;
  return summary;
}

void AddConvertCommand(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  auto format = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("convert", "Rewrites a trace in another form");
  command->add_option("--input", options->input, "Trace in any form; - is standard input")
      ->required();
  command->add_option("--output", options->output, "File to write; - is standard output")
      ->required();
  command
      ->add_option(
          "--format", *format,
          "kvtrace (compact) or jsonl; default: jsonl where --output ends so, else kvtrace")
      ->check(CLI::IsMember({"kvtrace", "jsonl"}));
  command->add_option("--block-tokens", options->block_tokens,
                      "Tokens per block to note in a kvtrace file");
  command->callback([options, format] {
    const bool json =
        format->empty() ? absl::EndsWith(options->output, ".jsonl") : *format == "jsonl";
    options->format = json ? TraceFormat::kJsonLines : TraceFormat::kCompact;
    absl::StatusOr<ConvertSummary> summary = ConvertTrace(*options);
    FinishCommand(summary.status());
    std::cerr << WithCommas(summary->requests) << " requests, " << WithCommas(summary->references)
              << " block references, " << WithCommas(summary->output_bytes) << " bytes written\n";
  });
}

}  // namespace kvd
