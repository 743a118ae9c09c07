//! The token that Consul is shown: from a file, read again when it changes.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::time::Instant;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest token, in bytes; Consul's own have 36.
const TOKEN_BYTES_MAX: u64 = 4_096;

/// A token in a file. What was read last stays while the file cannot be read.
#[derive(Debug)]
pub(super) struct Token {
    file: PathBuf,
    /// A std mutex: nothing is awaited under it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    value: Option<HeaderValue>,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
}

impl Token {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, state: Mutex::default() }
    }

    /// The token as it is now.
    pub(super) fn current(&self, now: Instant) -> Option<HeaderValue> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK_EVERY) {
            state.looked = Some(now);
            if let Err(reason) = self.look(&mut state) {
                let kept = if state.value.is_some() { "the one read before" } else { "none" };
                tracing::warn!("consul token {}: {reason}; using {kept}", self.file.display());
            }
        }
        state.value.clone()
    }

    /// A small local file, looked at once a second: not worth another thread.
    fn look(&self, state: &mut State) -> Result<(), String> {
        let told = |error: std::io::Error| error.to_string();
        let about = std::fs::metadata(&self.file).map_err(told)?;
        let modified = about.modified().map_err(told)?;
        if state.modified == Some(modified) {
            return Ok(());
        }
        if about.len() > TOKEN_BYTES_MAX {
            return Err(format!("{} bytes; at most {TOKEN_BYTES_MAX}", about.len()));
        }
        let text = std::fs::read_to_string(&self.file).map_err(told)?;
        let mut value = HeaderValue::from_str(text.trim()).map_err(|_| "not printable ASCII".to_owned())?;
        if value.is_empty() {
            return Err("empty".to_owned());
        }
        value.set_sensitive(true);
        (state.value, state.modified) = (Some(value), Some(modified));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_its_file_and_outlives_it() {
        let file = std::env::temp_dir().join(format!("gilmok-token-{}", std::process::id()));
        let token = Token::new(file.clone());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let shown = |seconds| token.current(at(seconds)).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(shown(0), None);
        let write = |text: &str, at: u64| {
            std::fs::write(&file, text).unwrap();
            let times =
                std::fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
            std::fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
        };
        write("first\n", 1);
        assert_eq!(shown(1).as_deref(), Some("first"));
        write("second\n", 2);
        assert_eq!(shown(1).as_deref(), Some("first"), "looked at once a second");
        assert_eq!(shown(2).as_deref(), Some("second"));
        write("  \n", 3);
        assert_eq!(shown(3).as_deref(), Some("second"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(shown(4).as_deref(), Some("second"));
        assert!(token.current(at(5)).unwrap().is_sensitive());
    }
}
