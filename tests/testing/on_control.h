// What a test looks at, or does, on the control thread of a daemon's front end that runs.
//
// Threads: any but the control thread, which must be taking turns.

#pragma once

#include <functional>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/control.h"
#include "daemon/inbox.h"

namespace kvd {

// Runs `look` on the control thread and waits for it.
inline void RunOnControl(Inbox& inbox, const std::function<void(Control&)>& look) {
  absl::Notification done;
  inbox.Post(Task{[&](Control& control) {
    look(control);
    done.Notify();
  }});
  done.WaitForNotification();
}

// Whether `holds` becomes true there, before `patience` is over.
inline bool EventuallyOnControl(Inbox& inbox, absl::Duration patience,
                                const std::function<bool(Control&)>& holds) {
  const absl::Time deadline = absl::Now() + patience;
  bool is = false;
  while (!is && absl::Now() < deadline) {
    RunOnControl(inbox, [&](Control& control) { is = holds(control); });
    if (!is) absl::SleepFor(absl::Milliseconds(1));
  }
  return is;
}

}  // namespace kvd
