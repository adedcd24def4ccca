// A client's whole life on the wire, byte for byte, in a text file: what it said on the session
// socket, on its fill channel and in its calls, and what was answered. See recorded/README.md.
//
// One line an entry: a word and its arguments, bytes in hexadecimal.
//
//   session> BYTES            the client's message on the session socket
//   session< BYTES COUNT      the answer, and how many descriptors came with it
//   stage OFFSET LENGTH BYTE  the client wrote that byte everywhere there, in its staging memory
//   fill> BYTES               FillRequests
//   fill< BYTES               FillReplies
//   call METHOD BYTES         the request, as protobuf has it
//   answer BYTES              the reply to that

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvd {

struct RecordedEntry {
  std::string word;
  std::string method;  // Of a call.
  std::string bytes;
  std::vector<uint64_t> numbers;
};

absl::StatusOr<std::vector<RecordedEntry>> ReadRecording(const std::string& file);
void WriteRecording(const std::string& file, const std::string& comment,
                    const std::vector<RecordedEntry>& entries);

// Stands between a client library and a daemon, and writes down what they say. Requires: the client
// makes one call at a time, and what it puts is one byte over and over in each part.
class SessionRecorder {
 public:
  // Listens at `path` and `path`.session, and passes on to `daemon`.
  SessionRecorder(const std::string& path, const std::string& daemon);
  ~SessionRecorder();
  SessionRecorder(const SessionRecorder&) = delete;

  // What was said so far.
  std::vector<RecordedEntry> entries() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
