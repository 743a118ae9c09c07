//! What the process tells of itself: log lines with a level that can change live, and a few process-wide metrics.

use std::io::stderr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// How often the exporter tidies up.
const UPKEEP: Duration = Duration::from_secs(5);

/// The log, whose level operators change.
#[derive(Debug)]
pub(crate) struct Logs {
    filter: reload::Handle<Targets, Registry>,
    level: Mutex<LevelFilter>,
}

impl Logs {
    /// Starts to log to stderr, one plain line per event. A log that is there already stays.
    pub(crate) fn start(level: LevelFilter) -> Self {
        let (filter, handle) = reload::Layer::new(targets(level));
        // When nobody reads stderr any more, telling so there would panic.
        let lines = fmt::layer().with_writer(stderr).with_ansi(false).log_internal_errors(false);
        drop(tracing_subscriber::registry().with(filter).with(lines).try_init());
        Self { filter: handle, level: Mutex::new(level) }
    }

    pub(crate) fn level(&self) -> LevelFilter {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is logged from now on.
    pub(crate) fn set_level(&self, level: LevelFilter) {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
        // Fails only when the log is gone, and then nobody reads it.
        drop(self.filter.reload(targets(level)));
    }
}

/// The crates below speak in frames and polls: of them only warnings are for operators.
fn targets(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("gilmok", level)
}

/// The process-wide metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    exporter: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder; everything measured before is lost. A recorder that is there already stays.
    pub(crate) fn start() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exporter = recorder.handle();
        drop(metrics::set_global_recorder(recorder));
        metrics::describe_counter!("gilmok_config_rejected_total", "Documents that were refused.");
        metrics::describe_gauge!("gilmok_config_revision", "Revision in force; 0 in file mode.");
        metrics::describe_gauge!(
            "gilmok_config_age_seconds",
            "Since the source last confirmed what is in force."
        );
        metrics::describe_gauge!("gilmok_connections", "Open connections from downstream.");
        metrics::describe_counter!("gilmok_malformed_requests_total", "HTTP/1 heads that were no requests.");
        metrics::describe_gauge!("gilmok_last_good_bytes", "Bytes of answers kept as last good ones.");
        metrics::describe_gauge!("gilmok_build_info", "1, with the version of the program.");
        metrics::counter!("gilmok_config_rejected_total").absolute(0);
        metrics::gauge!("gilmok_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Self { exporter }
    }

    /// The text of `/metrics` as far as these go.
    pub(crate) fn render(&self) -> String {
        self.exporter.render()
    }

    /// Tidies up until the process ends.
    pub(crate) async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.exporter.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crates_below_only_warn() {
        let targets = targets(LevelFilter::TRACE);
        assert!(targets.would_enable("gilmok_proxy::source", &tracing::Level::TRACE));
        assert!(!targets.would_enable("h2::codec", &tracing::Level::INFO));
        assert!(targets.would_enable("h2::codec", &tracing::Level::WARN));
    }
}
