// The names of what is counted: the families that Prometheus scrapes, made from the numbers of
// daemon/metrics.h at the moment of asking. Names, units and labels are an interface that
// dashboards and alerts are written against: deploy/METRICS.md lists them, deploy/prometheus/ and
// deploy/grafana/ use them.
//
// Labels come from closed sets. A tenant is a domain's name; beyond ControlMetrics::kMaxTenants all
// are `_other`. There is no label of a key, a process or a request.
//
// Threads: any; the control thread has no turn for it.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "daemon/control.h"
#include "daemon/metrics.h"
#include "prometheus/metric_family.h"

namespace kvd {

class NvmeStack;

struct MetricsSource {
  const Control* control = nullptr;
  const ServiceMetrics* service = nullptr;
  const GatewayMetrics* gateway = nullptr;
  const EventMetrics* events = nullptr;  // Null: nobody is told.
  const StrangerCounts* strangers = nullptr;
  std::function<std::string(DomainId)> tenant_name;
  std::string version;
  const ArenaRecord* record = nullptr;  // Of an arena with a name; null: it has none.
  const NvmeStack* nvme = nullptr;      // Null: there is none,
  bool nvme_refused = false;            // though one is configured.
  bool count_operations = true;         // Whether there are histograms and attributions to show.
};

std::vector<prometheus::MetricFamily> CollectMetrics(const MetricsSource& source);

// The text format 0.0.4 of them.
std::string MetricsText(const MetricsSource& source);

// Resident memory of this process that is neither arena nor staging (those are shared memory).
uint64_t PrivateBytes();

}  // namespace kvd
