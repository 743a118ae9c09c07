//! Scenarios in Gherkin, as much of it as flagd's suites use: backgrounds, outlines with examples, tags and tables.

use std::collections::BTreeMap;

/// One scenario; of an outline one for each row of its examples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    pub name: String,
    /// Its own, its feature's and its examples', without the `@`.
    pub tags: Vec<String>,
    /// Those of the background first.
    pub steps: Vec<Step>,
}

/// One step without its keyword.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub text: String,
    /// Rows of cells.
    pub table: Vec<Vec<String>>,
}

/// What the lines that come next belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Background,
    Examples,
    Feature,
    Scenario,
}

/// An outline on its way: its steps, and the tags and rows of each of its examples.
#[derive(Default)]
struct Outline {
    scenario: Scenario,
    examples: Vec<(Vec<String>, Vec<Vec<String>>)>,
}

/// Every scenario of a feature.
#[must_use]
pub fn scenarios(text: &str) -> Vec<Scenario> {
    let (mut done, mut tags, mut of_feature) = (Vec::new(), Vec::new(), Vec::new());
    let (mut background, mut open, mut within) = (Vec::new(), Outline::default(), Within::Feature);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('@') {
            tags.extend(line.split_whitespace().map(|tag| tag.trim_start_matches('@').to_owned()));
        } else if line.starts_with("Feature:") {
            of_feature = std::mem::take(&mut tags);
        } else if line.starts_with("Background:") {
            within = Within::Background;
        } else if line.starts_with("Scenario") {
            done.extend(std::mem::take(&mut open).expand());
            let name = line.split_once(':').map_or("", |(_, name)| name.trim()).to_owned();
            let tags = of_feature.iter().cloned().chain(std::mem::take(&mut tags)).collect();
            open.scenario = Scenario { name, tags, steps: background.clone() };
            within = Within::Scenario;
        } else if line.starts_with("Examples:") {
            open.examples.push((std::mem::take(&mut tags), Vec::new()));
            within = Within::Examples;
        } else if line.starts_with('|') {
            let row = cells(line);
            match within {
                Within::Examples => open.examples.last_mut().expect("examples began").1.push(row),
                Within::Background => background.last_mut().expect("a step began").table.push(row),
                Within::Feature | Within::Scenario => {
                    open.scenario.steps.last_mut().expect("a step began").table.push(row);
                }
            }
        } else if let Some((keyword, text)) = line.split_once(' ')
            && ["Given", "When", "Then", "And", "But", "*"].contains(&keyword)
        {
            let step = Step { text: text.trim().to_owned(), table: Vec::new() };
            match within {
                Within::Background => background.push(step),
                Within::Examples | Within::Feature | Within::Scenario => open.scenario.steps.push(step),
            }
        }
    }
    done.extend(open.expand());
    done
}

/// The cells of a row: `\|` and `\\` are what they stand for.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut chars) = (Vec::new(), String::new(), line[1..].chars());
    while let Some(char) = chars.next() {
        match char {
            '|' => cells.push(std::mem::take(&mut cell).trim().to_owned()),
            '\\' => match chars.next() {
                Some(char @ ('|' | '\\')) => cell.push(char),
                Some('n') => cell.push('\n'),
                Some(other) => cell.extend(['\\', other]),
                None => cell.push('\\'),
            },
            _ => cell.push(char),
        }
    }
    cells
}

impl Outline {
    fn expand(self) -> Vec<Scenario> {
        let Self { scenario, examples } = self;
        if scenario.steps.is_empty() {
            return Vec::new();
        }
        if examples.is_empty() {
            return vec![scenario];
        }
        let mut all = Vec::new();
        for (tags, rows) in examples {
            let Some((names, rows)) = rows.split_first() else { continue };
            for row in rows {
                let values: BTreeMap<&str, &str> =
                    names.iter().map(String::as_str).zip(row.iter().map(String::as_str)).collect();
                let filled = |text: &str| {
                    values.iter().fold(text.to_owned(), |text, (name, value)| {
                        text.replace(&format!("<{name}>"), value)
                    })
                };
                let steps = scenario.steps.iter().map(|step| Step {
                    text: filled(&step.text),
                    table: step
                        .table
                        .iter()
                        .map(|row| row.iter().map(|cell| filled(cell)).collect())
                        .collect(),
                });
                all.push(Scenario {
                    name: format!("{} {row:?}", scenario.name),
                    tags: scenario.tags.iter().chain(&tags).cloned().collect(),
                    steps: steps.collect(),
                });
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_and_backgrounds_are_written_out() {
        let text = "@a\nFeature: x\n  Background:\n    Given an evaluator\n\n  @b\n  Scenario Outline: y\n    When \"<k>\" is asked\n    \
            Then it has\n      | name | <k> |\n\n    @c\n    Examples: first\n      | k | v |\n      | 1 | a\\|b |\n      | 2 | c |\n\n  \
            Scenario: z\n    # nothing\n    When all is well\n";
        let all = scenarios(text);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].tags, ["a", "b", "c"]);
        let steps: Vec<&str> = all[1].steps.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(steps, ["an evaluator", "\"2\" is asked", "it has"]);
        assert_eq!(all[1].steps[2].table, [["name", "2"]]);
        assert!(all[0].name.contains("a|b"), "{:?}", all[0].name);
        assert_eq!((all[2].tags.as_slice(), all[2].steps.len()), (&["a".to_owned()][..], 2));
    }
}
