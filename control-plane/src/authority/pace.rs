//! How many certificates a service may ask for: a burst, and then so many a second (GCRA, as in ATM Forum TM 4.0).

use std::collections::BTreeMap;

use gilmok_config::name::ServiceName;

/// Certificates that a service may ask for at once: as many proxies as start together.
const BURST: u64 = 200;
/// From one certificate to the next of a service beyond that, in milliseconds.
const EVERY_MS: u64 = 50;
/// Most services whose pace is known at a time.
const SERVICES_MAX: usize = 10_000;

/// By service, when its bucket will be full again, in milliseconds of any clock.
#[derive(Debug, Default)]
pub(super) struct Pace {
    full_at_ms: BTreeMap<ServiceName, u64>,
}

impl Pace {
    /// Takes one for a service.
    ///
    /// # Errors
    /// How many milliseconds it has to wait.
    pub(super) fn take(&mut self, service: &ServiceName, now_ms: u64) -> Result<(), u64> {
        if self.full_at_ms.len() >= SERVICES_MAX && !self.full_at_ms.contains_key(service) {
            // Those who have not asked for long are as good as unknown.
            self.full_at_ms.retain(|_, full| *full > now_ms);
            if self.full_at_ms.len() >= SERVICES_MAX {
                return Err(BURST * EVERY_MS);
            }
        }
        let full = self.full_at_ms.entry(service.clone()).or_default();
        let next = (*full).max(now_ms) + EVERY_MS;
        let limit = now_ms + BURST * EVERY_MS;
        if next > limit {
            return Err(next - limit);
        }
        *full = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_burst_and_then_its_pace_and_others_have_their_own() {
        let (shop, ads) = (ServiceName::parse("shop").unwrap(), ServiceName::parse("ads").unwrap());
        let mut pace = Pace::default();
        for _ in 0..BURST {
            assert_eq!(pace.take(&shop, 1_000), Ok(()));
        }
        assert_eq!(pace.take(&shop, 1_000), Err(EVERY_MS));
        assert_eq!(pace.take(&ads, 1_000), Ok(()));
        assert_eq!(pace.take(&shop, 1_000 + EVERY_MS), Ok(()));
        assert_eq!(pace.take(&shop, 1_000 + EVERY_MS), Err(EVERY_MS));
    }

    #[test]
    fn services_that_ask_no_more_make_room() {
        let mut pace = Pace::default();
        let name = |number: usize| ServiceName::parse(&format!("s{number}")).unwrap();
        for number in 0..SERVICES_MAX {
            assert_eq!(pace.take(&name(number), 0), Ok(()));
        }
        assert!(pace.take(&name(SERVICES_MAX), 0).is_err());
        assert_eq!(pace.take(&name(SERVICES_MAX), EVERY_MS), Ok(()));
    }
}
