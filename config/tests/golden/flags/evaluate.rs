//! Evaluates flags for those who compare this evaluator with others: a case a line, an answer a line.
//!
//! A case is `{"set": …}` for what follows, or `{"key": …, "context": {…}}`; an answer says variant, reason or error.
//! `config/tests/golden/flags/compare.py` drives it.
#![expect(clippy::print_stdout, reason = "the answers")]

use std::io::BufRead as _;

use gilmok_config::flag::{Asked, Context, FlagSet};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut set = FlagSet::default();
    for line in std::io::stdin().lock().lines() {
        let case: Value = serde_json::from_str(&line?)?;
        if let Some(flags) = case.get("set") {
            match FlagSet::parse(flags.to_string().as_bytes()) {
                Ok(sound) => set = sound,
                Err(problems) => {
                    set = FlagSet::default();
                    println!("{}", json!({ "refused": problems.to_string() }));
                    continue;
                }
            }
            let warnings: Vec<String> = set.warnings().iter().map(ToString::to_string).collect();
            println!("{}", json!({ "warnings": warnings }));
            continue;
        }
        let nothing = Map::new();
        let context = Context::of_json(case["context"].as_object().unwrap_or(&nothing));
        let asked = Asked::of(&context, case["now"].as_u64().unwrap_or_default());
        let key = case["key"].as_str().unwrap_or_default();
        let answer = match set.evaluate(key, &asked) {
            Ok(evaluation) => json!({
                "variant": evaluation.variant().map(gilmok_config::flag::Variant::name),
                "value": evaluation.value(),
                "reason": evaluation.reason.as_str(),
                "metadata": evaluation.metadata(),
            }),
            Err(failure) => json!({ "error": failure.code.as_str(), "what": failure.what }),
        };
        println!("{answer}");
    }
    Ok(())
}
