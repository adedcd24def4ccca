// Hostile traces, in any of their forms: each is read to its end or to an error that names a line
// or a request, and what was read survives being written and read again.

#include <algorithm>
#include <string>
#include <vector>

#include "bench/compact_trace.h"
#include "bench/trace.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

// Few, so that a small file which unpacks to a large one costs no minutes.
constexpr size_t kRequests = 2000;
constexpr size_t kIds = 1u << 20;

std::vector<TraceRequest> Read(std::string bytes) {
  std::vector<TraceRequest> requests;
  auto reader = TraceReader::FromBytes(std::move(bytes));
  if (!reader.ok()) {
    KVD_CHECK(!reader.status().message().empty());
    return requests;
  }
  TraceRequest request;
  size_t ids = 0;
  while (requests.size() < kRequests && ids < kIds) {
    const absl::StatusOr<bool> more = (*reader)->Next(request);
    if (!more.ok()) {
      KVD_CHECK(more.status().message().find_first_of("0123456789") != absl::string_view::npos)
          << more.status();
      KVD_CHECK((*reader)->Next(request).status() == more.status());
      break;
    }
    if (!*more) {
      KVD_CHECK((*reader)->Next(request).ok());
      break;
    }
    KVD_CHECK(request.hash_ids.size() <= kTraceBlocksMax);
    ids += request.hash_ids.size();
    requests.push_back(request);
  }
  KVD_CHECK((*reader)->fraction() <= 1.0001);
  return requests;
}

void RoundTrip(const std::string& bytes) {
  const std::vector<TraceRequest> requests = Read(bytes);
  if (requests.empty()) return;
  std::string lines;
  CompactTraceWriter writer;
  for (const TraceRequest& request : requests) {
    AppendJsonLine(request, lines);
    KVD_CHECK(writer.Add(request).ok());
  }
  KVD_CHECK(Read(lines) == requests);
  KVD_CHECK(Read(writer.Finish()) == requests);
}

}  // namespace
}  // namespace kvd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvd::RoundTrip(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
