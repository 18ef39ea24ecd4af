//! Everything in this crate that reads bytes from outside, for the fuzzer (`fuzz/`) and for the replay of its corpus.
//!
//! A target reads the bytes as the parser would get them, and panics if what must hold does not: whatever comes is an
//! error or a value, in bounded memory and time; a value that is written again is read as the same; what carries a tag
//! or a seal is not taken once a bit of it has changed. Parsers of the transports are listed in
//! `maypole_transports::outside`.

#[path = "../fuzz/input.rs"]
pub(crate) mod input;
#[cfg(test)]
#[path = "../fuzz/replay.rs"]
mod replay;

use crate::config::{Config, KNOBS};
use crate::deadline::deadline;
use crate::node::interfaces::Choice;
use crate::{engine, launch, node, topology};

/// All of them.
pub const TARGETS: &[input::Target] = &[
    ("openings", node::outside::openings),
    ("frames", node::outside::frames),
    ("court", node::outside::court),
    ("ids", node::outside::ids),
    ("pmi", launch::outside::pmi),
    ("pmix", launch::outside::pmix),
    ("store", launch::outside::store),
    ("launchers", launch::outside::launchers),
    ("messages", engine::messages::outside::messages),
    ("settings", settings),
    ("cores", cores),
];

/// Lines `NAME=value`, as what answers for variables; empty values count as unset. Names may be shortened to a number, which is
/// that of one in `names`.
pub(crate) fn variables(data: &[u8], names: &[&str]) -> impl Fn(&str) -> Option<String> {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let name = name.parse().ok().and_then(|number: usize| names.get(number).copied()).unwrap_or(name);
        Some((name.to_string(), value.to_string()))
    });
    let lines: std::collections::HashMap<String, String> = lines.collect();
    move |name| lines.get(name).filter(|value| !value.is_empty()).cloned()
}

/// Settings as texts: what is accepted makes sense as a whole, and no time in it is too long to be waited for.
fn settings(data: &[u8]) -> bool {
    let names: Vec<&str> = KNOBS.iter().map(|knob| knob.name).collect();
    let lookup = variables(data, &names);
    let config = match Config::from_lookup(&lookup) {
        Ok(config) => config,
        Err(error) => {
            let refused = Config::default().set("MAYPOLE_KEY", "short").expect_err("it is").to_string();
            let text = error.to_string();
            assert!(!text.starts_with("MAYPOLE_KEY=") || text == refused, "the key may be shown: {text}");
            return false;
        }
    };
    config.check().expect("what is accepted one by one makes sense together");
    assert_eq!(Config::from_lookup(&lookup).expect("the same again"), config);
    let other = Config { key: config.key.as_ref().map(|_| "another".into()), ..config.clone() };
    assert_eq!(format!("{config:?}"), format!("{other:?}"), "the key is shown");
    let settings = node::Settings::of(&config);
    assert!(settings.text.len() <= 1024);
    if let Some(interface) = &config.interface {
        Choice::parse(interface).expect("checked");
    }
    assert!(config.ports.as_ref().is_none_or(|ports| !ports.is_empty() && *ports.start() > 0));
    let now = std::time::Instant::now();
    for time in [config.timeout, config.late, config.connect_timeout, config.spin.unwrap_or_default()] {
        assert!(deadline(deadline(now, time), time) >= now);
    }
    lookup("MAYPOLE_RING").is_some() || lookup("MAYPOLE_INTERFACE").is_some()
}

/// Lists of cores, from the kernel's files.
fn cores(data: &[u8]) -> bool {
    let Some(words) = topology::parse_list(&String::from_utf8_lossy(data)) else { return false };
    assert!(words.len() <= 1 << 10);
    words.iter().any(|word| *word != 0)
}

#[test]
fn the_corpus_holds() {
    replay::replay(TARGETS, &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz"));
}
