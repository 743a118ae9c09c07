//! `gilmok backup`: the whole store in a file, which `gilmok-control-plane --restore` takes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use gilmok_control_plane::http_client::Request;

use crate::client::Remote;
use crate::trouble::{Trouble, say};

/// How long a whole store may take.
const WHOLE_STORE: Duration = Duration::from_mins(10);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where it is written; never over a file that is there
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let file = &arguments.file;
    let wrong = |error: std::io::Error| Trouble::Failed(format!("{}: {error}", file.display()));
    if file.exists() {
        let what = format!("{} is there already; name another file, or remove it", file.display());
        return Err(Trouble::Failed(what));
    }
    let backup = arguments.remote.bytes(Request::get("/v1/backup").timeout(WHOLE_STORE))?;
    // Under another name until it is whole: what is there under the right one can be restored.
    let part = file.with_extension("part");
    write(&part, &backup).and_then(|()| std::fs::rename(&part, file)).map_err(wrong)?;
    let revisions = backup.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    if arguments.remote.json {
        say(&format!("{:#}", serde_json::json!({ "file": file, "bytes": backup.len(), "lines": revisions })));
    } else {
        say(&format!(
            "{}: {} bytes; `gilmok-control-plane --restore {0}` makes a store of it",
            file.display(),
            backup.len()
        ));
    }
    Ok(())
}

fn write(part: &Path, backup: &[u8]) -> std::io::Result<()> {
    let mut out = std::fs::File::create(part)?;
    out.write_all(backup)?;
    out.sync_all()
}
