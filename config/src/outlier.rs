//! The policy of ejection: when single endpoints are left out by what their calls came to.

use std::time::Duration;

use crate::grammar::Value;
use crate::unit::Ppm;

/// `[services.s.outlier_detection]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row that eject an endpoint.
    pub consecutive_failures: u32,
    /// How long an endpoint is left out the first time; each time in a row that much longer, up to `max_ejection`.
    pub base_ejection: Duration,
    pub max_ejection: Duration,
    /// Most of a service's endpoints that may be left out at once. When more would go, the best of the bad stay.
    pub max_ejected: Ppm,
}

impl OutlierDetection {
    pub(crate) fn read(value: &Value<'_>) -> Option<Self> {
        let mut table = value.table()?;
        let consecutive_failures =
            table.optional("consecutive_failures").and_then(|v| v.integer(1, 1_000_000)).unwrap_or(5);
        let mut duration = |key, default| {
            let (least, most) = (Duration::from_millis(100), Duration::from_hours(24));
            table.optional(key).and_then(|v| v.duration(least, most)).unwrap_or(default)
        };
        let base_ejection = duration("base_ejection", Duration::from_secs(30));
        let max_ejection = duration("max_ejection", Duration::from_mins(5).max(base_ejection));
        let max_ejected =
            table.optional("max_ejected_percent").and_then(|v| v.percent()).unwrap_or(Ppm::HALF);
        if max_ejection < base_ejection {
            table.value().fault("`max_ejection` is shorter than `base_ejection`", "at least as long");
        }
        table.finish();
        Some(Self { consecutive_failures, base_ejection, max_ejection, max_ejected })
    }
}
