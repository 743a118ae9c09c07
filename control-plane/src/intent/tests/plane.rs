//! A control plane without disk and clock: commands in, document and records out.

use gilmok_config::endpoint::Endpoint;
use serde_json::json;

use super::super::*;
use crate::rollout::state::Rollout;

/// A control plane without disk and clock.
pub(super) struct Plane {
    pub(super) document: Value,
    pub(super) records: Records,
    pub(super) alive: Membership,
    pub(super) number: u64,
    pub(super) force: bool,
}

pub(super) fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

pub(super) fn version(text: &str) -> Name {
    Name::parse(text).unwrap()
}

impl Plane {
    /// A shop whose v1 has everybody, and an endpoint of each version, on a host of its own.
    pub(super) fn new(versions: &[&str]) -> Self {
        let document =
            json!({"services": {"shop": {"traffic": {"stable": "v1", "weights": {"v1": 100}}}, "ads": {}}});
        let mut plane =
            Self { document, records: Records::new(), alive: Membership::new(), number: 1, force: false };
        plane.has("shop", versions);
        plane
    }

    pub(super) fn has(&mut self, service: &str, versions: &[&str]) {
        let endpoints = versions.iter().enumerate().map(|(host, version)| Endpoint {
            version: Name::parse(version).unwrap(),
            ..Endpoint::at(format!("10.0.0.{host}:80").parse().unwrap())
        });
        self.alive.insert(name(service), endpoints.collect::<Vec<_>>().into());
    }

    pub(super) fn decide(&self, command: &Command) -> Result<Outcome, Refusal> {
        let context = Context {
            number: self.number,
            records: &self.records,
            alive: &self.alive,
            by: "ann",
            why: "",
            now_ms: 1_000 * self.number,
            accept_warnings: false,
            exposure: &Exposure::default(),
            schedule: &Schedule::new(),
            force: self.force,
            dice: self.number,
        };
        apply(&self.document, command, &context)
    }

    pub(super) fn write(&mut self, command: &Command) -> Result<(), Refusal> {
        let outcome = self.decide(command)?;
        self.document = outcome.intent.json;
        self.number += 1;
        for (service, record) in outcome.records {
            match record {
                Some(record) => drop(self.records.insert(service, Record { seq: record.seq + 1, ..record })),
                None => drop(self.records.remove(&service)),
            }
        }
        Ok(())
    }

    pub(super) fn forced(&mut self, command: &Command) -> Result<(), Refusal> {
        self.force = true;
        let done = self.write(command);
        self.force = false;
        done
    }

    pub(super) fn traffic(&self, service: &str) -> &Value {
        &self.document["services"][service]["traffic"]
    }

    pub(super) fn weights(&mut self, service: &str, stable: &str, weights: &Value) -> Result<(), Refusal> {
        self.write(&Command::PutTraffic(name(service), json!({"stable": stable, "weights": weights})))
    }

    pub(super) fn switch(&mut self, to: &str) -> Result<(), Refusal> {
        self.write(&Command::Switch(name("shop"), version(to)))
    }

    pub(super) fn begin(&mut self, plan: &Value) -> Result<(), Refusal> {
        self.write(&Command::PutRollout(name("shop"), plan.clone()))
    }

    pub(super) fn say(&mut self, deed: Deed) -> Result<(), Refusal> {
        self.write(&Command::Rollout(name("shop"), deed))
    }

    pub(super) fn rollout(&self) -> &Rollout {
        self.records[&name("shop")].rollout.as_deref().unwrap()
    }

    /// What a rollout does at its next step, as its conductor writes it.
    pub(super) fn step_to(&mut self, parts: u32) -> Result<(), Refusal> {
        let record = &self.records[&name("shop")];
        let mut rollout = record.rollout.clone().unwrap();
        let share = gilmok_config::unit::Ppm::new(parts).unwrap();
        rollout.share = parts;
        let (seq, shift) = (record.seq, Some(crate::rollout::state::Shift::To(share)));
        self.write(&Command::Conduct(Conduct { service: name("shop"), seq, rollout, shift }))
    }
}

#[track_caller]
pub(super) fn conflict(refused: &Result<(), Refusal>, words: &str) {
    let Err(Refusal::Conflict(told)) = refused else { panic!("{refused:?}") };
    assert!(told.contains(words), "{told}");
}

#[track_caller]
pub(super) fn fault(refused: &Result<(), Refusal>, words: &str) {
    let Err(Refusal::Faulty(problems)) = refused else { panic!("{refused:?}") };
    assert!(problems.to_string().contains(words), "{problems}");
}
