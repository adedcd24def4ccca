#include "client/finished_sessions.h"

namespace kvd {

FinishedSessions& FinishedSessions::OfThisProcess() {
  static auto* const sessions = new FinishedSessions;  // Threads may outlive the exit of main().
  return *sessions;
}

void FinishedSessions::Add(const std::string& path, const SessionToken& token) {
  absl::MutexLock lock(&mu_);
  if (tokens_.size() >= kMaxPaths && !tokens_.contains(path)) return;
  std::deque<SessionToken>& of_path = tokens_[path];
  of_path.push_back(token);
  if (of_path.size() > kMaxOfAPath) of_path.pop_front();
}

SessionToken FinishedSessions::Take(const std::string& path) {
  absl::MutexLock lock(&mu_);
  const auto of_path = tokens_.find(path);
  if (of_path == tokens_.end()) return {};
  const SessionToken token = of_path->second.front();
  of_path->second.pop_front();
  if (of_path->second.empty()) tokens_.erase(of_path);
  return token;
}

}  // namespace kvd
