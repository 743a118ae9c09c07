//! A picture of who has what of a service's keys: a bar as wide as the terminal, a mark for each shard, and its share.

use serde_json::Value as Json;

/// The marks of shards whose names are longer than one letter; with more shards than marks they come again.
const MARKS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// A cell of which nobody has more than half.
const SEVERAL: char = '+';
/// Narrowest and widest bar, in cells.
const CELLS_MIN: usize = 16;
const CELLS_MAX: usize = 200;

/// A map as it is drawn.
#[derive(Debug)]
pub(super) struct Picture {
    /// The bar, what stands below it, and what it is; nothing where there is nothing to draw.
    pub(super) lines: Vec<String>,
    /// Of each shard, in the rule's order.
    pub(super) marks: Vec<char>,
    pub(super) shares: Vec<String>,
}

/// Some cells of a bar: whose they are, where they begin among so many parts, and what is written there.
struct Part {
    shard: usize,
    begin: usize,
    end: usize,
    label: String,
}

impl Picture {
    /// Draws the rule that `GET /v1/services/{service}/sharding` tells, in so many columns.
    pub(super) fn of(rule: &Json, columns: usize) -> Self {
        let cells = columns.clamp(CELLS_MIN, CELLS_MAX);
        let shards = rule["shards"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> =
            shards.iter().map(|shard| shard["shard"].as_str().unwrap_or_default()).collect();
        let holds: Vec<&str> =
            shards.iter().map(|shard| shard["holds"].as_str().unwrap_or_default()).collect();
        let marks = marks(&names);
        let many = shards.len().max(1);
        let equal = |about: &str| vec![format!("{about}{}", share(1, many)); shards.len()];
        let (lines, shares) = match rule["strategy"].as_str().unwrap_or_default() {
            "slots" => {
                let slots = rule["slots"].as_u64().and_then(|slots| usize::try_from(slots).ok()).unwrap_or(0);
                let parts = parts_of_slots(&holds, slots);
                let cells = cells.min(slots);
                let each = match (slots.checked_div(cells), slots.checked_rem(cells)) {
                    (Some(1), Some(0)) => "a slot".to_owned(),
                    (Some(each), Some(0)) => format!("{each} slots"),
                    (each, _) => format!("about {} slots", each.unwrap_or_default()),
                };
                let note = format!("each cell is {each} of {slots}");
                (drawn(&parts, slots, cells, &marks, &note), shares(&parts, slots, shards.len()))
            }
            "range" => {
                let parts = parts_of_ranges(&holds);
                let note = "keys in their order; how many there are of each is not known here";
                (drawn(&parts, parts.len(), cells, &marks, note), vec!["-".to_owned(); shards.len()])
            }
            "directory" => {
                let parts = parts_of_directory(&holds);
                let listed = parts.last().map_or(0, |last| last.end);
                let note = format!("the {listed} keys that are listed");
                (drawn(&parts, listed, cells, &marks, &note), shares(&parts, listed, shards.len()))
            }
            "modulo" => {
                let bar = (0..cells).map(|cell| marks.get(cell % many).copied().unwrap_or(' ')).collect();
                (vec![bar, format!("hash mod {many}, over and over")], equal(""))
            }
            _ => {
                let even = |shard| Part { shard, begin: shard, end: shard + 1, label: String::new() };
                let parts: Vec<Part> = (0..shards.len()).map(even).collect();
                let note = "each has about as many keys, spread all over";
                (drawn(&parts, many, cells, &marks, note), equal("about "))
            }
        };
        Self { lines, marks, shares }
    }
}

/// A letter for each shard: its name where all names are one letter.
fn marks(names: &[&str]) -> Vec<char> {
    let letters = names.iter().map(|name| {
        let mut letters = name.chars();
        letters.next().filter(|_| letters.next().is_none())
    });
    let own: Option<Vec<char>> = letters.collect();
    let given = || MARKS.iter().cycle().take(names.len()).copied().map(char::from).collect();
    own.unwrap_or_else(given)
}

/// A share in percent, with at most two decimals.
fn share(part: usize, whole: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "no map has so many parts")]
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    let text = format!("{percent:.2}");
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// The shares of all shards.
fn shares(parts: &[Part], whole: usize, many: usize) -> Vec<String> {
    let mut own = vec![0; many];
    for part in parts {
        own[part.shard] += part.end - part.begin;
    }
    own.into_iter().map(|own| share(own, whole)).collect()
}

/// The runs of `0-8191,9000`, in the order of slots.
fn parts_of_slots(holds: &[&str], slots: usize) -> Vec<Part> {
    let runs = holds.iter().enumerate().flat_map(|(shard, runs)| {
        runs.split(',').filter_map(move |run| {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            let is_run = first <= last && last < slots;
            is_run.then(|| Part { shard, begin: first, end: last + 1, label: first.to_string() })
        })
    });
    let mut parts: Vec<Part> = runs.collect();
    parts.sort_by_key(|part| part.begin);
    parts
}

/// `below A`, `from A to below B`, `from B`, in the order of keys: each begins where the one before it ends.
fn parts_of_ranges(holds: &[&str]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut next = holds.iter().position(|holds| *holds == "all" || holds.starts_with("below "));
    while let Some(shard) = next.filter(|_| parts.len() < holds.len()) {
        let (begin, holds_it) = (parts.len(), holds[shard]);
        let first = parts.last().map(|before| end_of(holds[before.shard]));
        parts.push(Part {
            shard,
            begin,
            end: begin + 1,
            label: first.flatten().unwrap_or_default().to_owned(),
        });
        next = end_of(holds_it).and_then(|end| {
            let (whole, part) = (format!("from {end}"), format!("from {end} to below "));
            holds.iter().position(|holds| *holds == whole || holds.starts_with(&part))
        });
    }
    parts
}

/// The upper bound of `below B` or `from A to below B`.
fn end_of(holds: &str) -> Option<&str> {
    holds.strip_prefix("below ").or_else(|| holds.rsplit_once(" to below ").map(|(_, end)| end))
}

/// `12 keys` or `1 key and what is not listed`, one after the other.
fn parts_of_directory(holds: &[&str]) -> Vec<Part> {
    let mut begin = 0;
    let part = |(shard, holds): (usize, &&str)| {
        let keys: usize = holds.split(' ').next().and_then(|keys| keys.parse().ok()).unwrap_or(0);
        let part = Part { shard, begin, end: begin + keys, label: String::new() };
        begin = part.end;
        part
    };
    holds.iter().enumerate().map(part).collect()
}

/// The bar, its labels and a note below it.
fn drawn(parts: &[Part], whole: usize, cells: usize, marks: &[char], note: &str) -> Vec<String> {
    if whole == 0 {
        return Vec::new();
    }
    // Both counted in parts of a cell and of a slot, so that nothing is rounded.
    let cell = |at: usize| {
        let (first, last) = (at * whole, (at + 1) * whole);
        let inside =
            |part: &Part| (part.end * cells).min(last).saturating_sub((part.begin * cells).max(first));
        let mut own = vec![0; marks.len()];
        for part in parts {
            own[part.shard] += inside(part);
        }
        let most = own.iter().zip(marks).max_by_key(|(own, _)| **own);
        most.map_or(' ', |(own, mark)| if own * 2 > last - first { *mark } else { SEVERAL })
    };
    let bar: String = (0..cells).map(cell).collect();
    let several = if bar.contains(SEVERAL) { format!("; {SEVERAL} is of several") } else { String::new() };
    let labels = labels(parts, whole, cells);
    std::iter::once(bar).chain(labels).chain(std::iter::once(format!("{note}{several}"))).collect()
}

/// Where parts begin, as far as there is room; `None` when nothing is to be said.
fn labels(parts: &[Part], whole: usize, cells: usize) -> Option<String> {
    let mut line = String::new();
    for part in parts {
        let at = part.begin * cells / whole;
        let used = line.chars().count();
        let gap = if used == 0 { 0 } else { 1 };
        let length = part.label.chars().count();
        if length > 0 && at >= used + gap && at + length <= cells {
            line.push_str(&" ".repeat(at - used));
            line.push_str(&part.label);
        }
    }
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(strategy: &str, slots: Option<u32>, shards: &[(&str, Option<&str>)]) -> Json {
        let shards = shards.iter().map(|(shard, holds)| json!({ "shard": shard, "holds": holds }));
        json!({ "strategy": strategy, "slots": slots, "shards": shards.collect::<Vec<_>>() })
    }

    fn drawn(rule: &Json, columns: usize) -> String {
        let picture = Picture::of(rule, columns);
        let shards = rule["shards"].as_array().unwrap();
        let legend = picture.marks.iter().zip(shards).zip(&picture.shares);
        let legend = legend
            .map(|((mark, shard), share)| format!("{mark} {} {share}", shard["shard"].as_str().unwrap()));
        picture.lines.into_iter().chain(legend).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn slots_are_drawn_where_they_are() {
        let halves = rule("slots", Some(16_384), &[("0", Some("0-8191")), ("1", Some("8192-16383"))]);
        let expected = "
0000000000000000000011111111111111111111
0                   8192
each cell is about 409 slots of 16384
0 0 50 %
1 1 50 %";
        assert_eq!(drawn(&halves, 40), expected.trim_start());
        let pieces = [("old", Some("0-3,12-15")), ("new", Some("4-11")), ("next", Some(""))];
        let expected = "
0000111111110000
0   4       12
each cell is a slot of 16
0 old 50 %
1 new 50 %
2 next 0 %";
        assert_eq!(drawn(&rule("slots", Some(16), &pieces), 100), expected.trim_start());
    }

    #[test]
    fn a_cell_that_nobody_has_most_of_is_nobodys() {
        // Every other slot is another shard's.
        let every =
            |first: usize| (0..32).map(|at| (at * 3 + first).to_string()).collect::<Vec<_>>().join(",");
        let holds = [every(0), every(1), every(2)];
        let shards: Vec<_> =
            ["a", "b", "c"].into_iter().zip(holds.iter().map(|holds| Some(holds.as_str()))).collect();
        let expected = "
++++++++++++++++
0 12 30 48 66 84
each cell is 6 slots of 96; + is of several
a a 33.33 %
b b 33.33 %
c c 33.33 %";
        assert_eq!(drawn(&rule("slots", Some(96), &shards), 16), expected.trim_start());
    }

    #[test]
    fn ranges_are_drawn_in_the_order_of_their_bounds() {
        let ranges = [
            ("last", Some("from \"t\"")),
            ("first", Some("below \"g\"")),
            ("middle", Some("from \"g\" to below \"t\"")),
            ("spare", Some("nothing")),
        ];
        let expected = "
111111111122222222220000000000
          \"g\"       \"t\"
keys in their order; how many there are of each is not known here
0 last -
1 first -
2 middle -
3 spare -";
        assert_eq!(drawn(&rule("range", None, &ranges), 30), expected.trim_start());
        let one = rule("range", None, &[("a", Some("all"))]);
        assert!(drawn(&one, 20).starts_with("aaaaaaaaaaaaaaaaaaaa\nkeys"), "{}", drawn(&one, 20));
    }

    #[test]
    fn a_directory_is_drawn_by_what_it_lists() {
        let shards = [("big", Some("1 key")), ("rest", Some("3 keys and what is not listed"))];
        let expected = "
00000111111111111111
the 4 keys that are listed
0 big 25 %
1 rest 75 %";
        assert_eq!(drawn(&rule("directory", None, &shards), 20), expected.trim_start());
        let empty = rule("directory", None, &[("rest", Some("0 keys and what is not listed"))]);
        assert_eq!(drawn(&empty, 20), "0 rest 0 %", "nothing to draw");
    }

    #[test]
    fn what_hashes_divide_is_drawn_as_they_do() {
        let three = [("a", None), ("b", None), ("c", None)];
        let expected = "
abcabcabcabcabcabcab
hash mod 3, over and over
a a 33.33 %
b b 33.33 %
c c 33.33 %";
        assert_eq!(drawn(&rule("modulo", None, &three), 20), expected.trim_start());
        let expected = "
aaaaaaaaaabbbbbbbbbbcccccccccc
each has about as many keys, spread all over
a a about 33.33 %
b b about 33.33 %
c c about 33.33 %";
        for strategy in ["ring", "maglev", "jump", "rendezvous"] {
            assert_eq!(drawn(&rule(strategy, None, &three), 30), expected.trim_start());
        }
    }

    #[test]
    fn more_shards_than_marks_or_cells_are_drawn_all_the_same() {
        let names: Vec<String> = (0..1_024).map(|at| format!("s{at}")).collect();
        let holds: Vec<String> = (0..1_024).map(|at| format!("{}-{}", at * 16, at * 16 + 15)).collect();
        let shards: Vec<_> =
            names.iter().zip(&holds).map(|(name, holds)| (name.as_str(), Some(holds.as_str()))).collect();
        let picture = Picture::of(&rule("slots", Some(16_384), &shards), 80);
        assert_eq!((picture.marks.len(), picture.shares.len()), (1_024, 1_024));
        assert_eq!(picture.lines[0], "+".repeat(80));
        assert!(picture.lines.iter().all(|line| line.len() <= 80), "{:?}", picture.lines);
        assert_eq!(picture.shares[7], "0.1 %");
        // Nothing that a later control plane says otherwise makes it fail.
        for odd in [json!({}), json!({ "strategy": "slots", "shards": [{ "shard": 1, "holds": "9-1,x,-" }] })]
        {
            assert!(Picture::of(&odd, 0).lines.len() < 3);
        }
    }
}
