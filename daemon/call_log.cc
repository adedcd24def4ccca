#include "daemon/call_log.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

constexpr size_t kMaxErrorBytes = 400;  // Messages may quote what a client sent.

std::string Text(std::string_view view) { return std::string(view); }

}  // namespace

bool CallLog::Wants(Op op, int code, Nanos took) const {
  return code != 0 || IsSlow(op, took) || logger_->should_log(spdlog::level::debug);
}

void CallLog::Write(const Call& call) {
  const bool refused = call.code != 0;
  const bool slow = IsSlow(call.op, call.took);
  if (!refused && !slow && !call.trace.has_value()) return;
  const auto level = slow      ? spdlog::level::warn
                     : refused ? spdlog::level::info
                               : spdlog::level::debug;
  if (!logger_->should_log(level)) return;
  LineBudget* budget = slow ? &slow_ : refused ? &refused_ : nullptr;
  if (budget != nullptr && !budget->Take(call.now)) return;

  std::string line = absl::StrCat(slow      ? "call.slow"
                                  : refused ? "call.refused"
                                            : "call.answered",
                                  " op=", Text(kOpNames[static_cast<size_t>(call.op)]),
                                  " code=", Text(kCodeNames[static_cast<size_t>(call.code)]),
                                  " duration_us=", call.took / 1000);
  if (call.trace.has_value()) {
    absl::StrAppend(&line, " trace_id=", Text(call.trace->trace_id),
                    " parent_id=", Text(call.trace->parent_id));
  }
  if (!call.error.empty()) {
    absl::StrAppend(&line, " error=\"", absl::CHexEscape(call.error.substr(0, kMaxErrorBytes)),
                    "\"");
  }
  if (budget != nullptr && budget->suppressed > 0) {
    absl::StrAppend(&line, " suppressed=", std::exchange(budget->suppressed, 0));
  }
  logger_->log(level, line);
}

}  // namespace kvd
