//! The project's own source as text, for the rules that a test keeps.

use std::path::{Path, PathBuf};

/// The crates of the workspace by folder, in reading order.
pub const CRATES: [&str; 6] = ["config", "proxy", "control-plane", "demo-app", "cli", "tests"];

/// One file of the project.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// From the root of the project, with `/`.
    pub path: String,
    pub text: String,
}

/// The root of the project.
///
/// # Panics
/// Never: the tests lie one folder below it.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the project").to_owned()
}

/// Every file below `folder` (from the root) whose name ends with `ending`, sorted; nothing that was built.
///
/// # Panics
/// When a file is not UTF-8.
#[must_use]
pub fn files(folder: &str, ending: &str) -> Vec<SourceFile> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                let relative = path.strip_prefix(&root).expect("below the root").to_string_lossy();
                let text = std::fs::read_to_string(&path).expect("source is UTF-8");
                found.push(SourceFile { path: relative.replace('\\', "/"), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

impl SourceFile {
    /// Whether the whole file is tests.
    #[must_use]
    pub fn is_test(&self) -> bool {
        let mut parts = self.path.split('/');
        self.path.starts_with("tests/")
            || parts.any(|part| part == "tests.rs" || part == "tests" || part == "testing.rs")
    }

    /// The code without comments and without `#[cfg(test)] mod tests { … }`, which stands last.
    #[must_use]
    pub fn code(&self) -> String {
        let mut code = String::new();
        let mut lines = self.text.lines().peekable();
        while let Some(line) = lines.next() {
            let is_last_room = line.trim() == "#[cfg(test)]"
                && lines.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
            if is_last_room {
                break;
            }
            code.push_str(without_comment(line));
            code.push('\n');
        }
        code
    }

    /// Every string literal of the code that stands on one line.
    #[must_use]
    pub fn literals(&self) -> Vec<String> {
        self.code().lines().flat_map(|line| line.split('"').skip(1).step_by(2).map(str::to_owned)).collect()
    }

    /// The names of the crate's top-level modules that this file speaks of, given its own place in the crate.
    #[must_use]
    pub fn modules_used(&self, modules: &[String]) -> Vec<String> {
        let code = self.code();
        let up = "super::".repeat(self.depth());
        let mut used = Vec::new();
        for prefix in ["crate::", up.as_str()].into_iter().filter(|prefix| !prefix.is_empty()) {
            for (at, _) in code.match_indices(prefix) {
                let before = code[..at].chars().next_back();
                let is_inside = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$');
                // `super::super::x` is found once for itself and must not be found again for its end.
                if is_inside || (prefix != "crate::" && before == Some(':')) {
                    continue;
                }
                used.extend(first_names(&code[at + prefix.len()..]));
            }
        }
        used.retain(|name| modules.contains(name));
        used.sort();
        used.dedup();
        used
    }

    /// How many `super` lead from here to the crate's root: `src/a.rs` and `src/a/mod.rs` are 1 away.
    fn depth(&self) -> usize {
        let inside = self.path.split_once("/src/").map_or("", |(_, inside)| inside);
        let inside = inside.trim_end_matches("/mod.rs").trim_end_matches(".rs");
        if matches!(inside, "lib" | "main") { 0 } else { inside.split('/').count() }
    }

    /// The top-level module that this file belongs to; `None` for the crate's root.
    #[must_use]
    pub fn module(&self) -> Option<String> {
        let (_, inside) = self.path.split_once("/src/")?;
        let first = inside.split('/').next()?.trim_end_matches(".rs");
        (!matches!(first, "lib" | "main")).then(|| first.to_owned())
    }
}

fn without_comment(line: &str) -> &str {
    let mut in_text = false;
    let bytes = line.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' if at == 0 || bytes[at - 1] != b'\\' => in_text = !in_text,
            b'/' if !in_text && bytes.get(at + 1) == Some(&b'/') => return &line[..at],
            _ => {}
        }
    }
    line
}

/// The first name of a path, or of each path in `{…}`.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(list) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let mut names = vec![name(list)];
    let mut depth = 0;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&list[at + 1..])),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn the_modules_a_file_speaks_of_are_found() {
        let modules: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let text = "use crate::{a::X, b::{Y, c}, Z};\n// crate::d\nfn f() { super::c::g() }\n";
        assert_eq!(file("proxy/src/a.rs", text).modules_used(&modules), ["a", "b", "c"]);
        let deeper = "use super::super::d;\nuse super::b;\nuse crate::a;\n#[cfg(test)]\nmod tests {\nuse crate::c;\n}\n";
        assert_eq!(file("proxy/src/a/x.rs", deeper).modules_used(&modules), ["a", "d"]);
    }

    #[test]
    fn comments_end_code_but_not_inside_text() {
        assert_eq!(without_comment("let a = \"http://x\"; // why"), "let a = \"http://x\"; ");
    }
}
