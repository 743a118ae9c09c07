//! How the demo speaks: plain lines on standard output, each with the time since it began.

use std::io::Write as _;
use std::time::{Duration, Instant};

/// Tells the story.
#[derive(Debug)]
pub(crate) struct Teller {
    began: Instant,
}

impl Teller {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// The title of what comes.
    pub(crate) fn title(&self, text: &str) {
        print(&format!("\n== {text}"));
    }

    /// One thing that happened, in a sentence.
    pub(crate) fn say(&self, text: &str) {
        print(&format!("[{:6.2} s] {text}", self.began.elapsed().as_secs_f64()));
    }

    /// Text as it is: tables, commands.
    pub(crate) fn show(&self, text: &str) {
        print(text);
    }
}

/// What kept the demo from beginning or going on, where errors belong.
pub(crate) fn complain(error: &anyhow::Error) {
    drop(writeln!(std::io::stderr().lock(), "gilmok demo: {error:#}"));
}

/// A story that nobody reads any more is still played to its end.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// A time as people say it.
pub(crate) fn in_words(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_say_them() {
        for (micros, expected) in [(1_234, "1.2 ms"), (56_789, "57 ms"), (1_550_000, "1.6 s")] {
            assert_eq!(in_words(Duration::from_micros(micros)), expected);
        }
    }
}
