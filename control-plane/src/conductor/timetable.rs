//! Carries out changes of flags when their time comes.
//!
//! That each is made once is the store's compare-and-set: the step that makes it takes it out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::intent::{Command, FlagDeed};
use crate::schedule::{Scheduled, due};
use crate::state::{Author, State};
use crate::store::now_ms;

/// How often it is looked whether a time has come.
const TICK: Duration = Duration::from_millis(500);

/// Keeps the times of one control plane. Runs until it is dropped.
pub async fn keep_time(state: Arc<State>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        while let Some(change) = due(&state.store.schedule(), now_ms()) {
            if !carry_out(&state, change).await {
                break;
            }
        }
    }
}

/// Whether that was done; what was not is tried again at the next tick.
async fn carry_out(state: &State, change: &Scheduled) -> bool {
    let author = Author {
        who: format!("{} (schedule)", change.by).trim_start().to_owned(),
        reason: change.why.clone(),
        expected: None,
        force: change.force,
        accept_warnings: change.accept_warnings,
    };
    let command = Command::Flag(change.flag.clone(), FlagDeed::CarryOut(change.id));
    match state.write(&command, &author).await {
        Ok(written) => {
            let failed = state.store.schedule().iter().any(|one| one.id == change.id);
            if failed {
                tracing::warn!(
                    "the change {} of flag {:?} could not be made when its time came",
                    change.id,
                    change.flag
                );
            } else {
                tracing::info!("revision {}: {}", written.revision, command.what());
            }
            true
        }
        Err(error) => {
            tracing::warn!("the change {} of flag {:?} waits: {error}", change.id, change.flag);
            false
        }
    }
}
