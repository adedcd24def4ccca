// What the log says of single calls: those that were refused or took long, a few a second, and at
// level `debug` each that carries a trace context.
//
//   call.refused op=lookup code=INVALID_ARGUMENT duration_us=14 trace_id=... parent_id=...
//   error="..." call.slow op=commit code=OK duration_us=1200000 call.answered op=lookup code=OK
//   duration_us=21 trace_id=... parent_id=...
//
// It never makes its caller wait: lines go through a bounded queue to a thread that writes them,
// and the oldest are dropped when that is slow.
//
// Threads: one, the control thread.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "daemon/line_budget.h"
#include "daemon/metrics.h"
#include "daemon/trace_context.h"
#include "proto/types/clock.h"

namespace spdlog {
class logger;
}  // namespace spdlog

namespace kvd {

class CallLog {
 public:
  static constexpr Nanos kSlow = kSecond;

  // Lines go to `logger`, which must not block; its level decides what is said.
  explicit CallLog(std::shared_ptr<spdlog::logger> logger) : logger_(std::move(logger)) {}

  // Whether Write() would say anything of such a call, if it carries a trace context. Cheap: only
  // then does the caller look for one. `took` is 0 where calls are not timed.
  bool Wants(Op op, int code, Nanos took) const;

  struct Call {
    Op op = Op::kOther;
    int code = 0;  // gRPC's.
    Nanos took = 0;
    Nanos now = 0;
    std::string error;
    std::optional<TraceContext> trace;
  };
  void Write(const Call& call);

 private:
  // A reserve may wait for others because its caller asked for it.
  static bool IsSlow(Op op, Nanos took) { return took >= kSlow && op != Op::kReserve; }

  const std::shared_ptr<spdlog::logger> logger_;
  LineBudget refused_;
  LineBudget slow_;
};

}  // namespace kvd
