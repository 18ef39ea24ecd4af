//! `MAYPOLE_*` variables that no setting has: misspelt ones, most likely, which would do nothing without a word.

use std::sync::Once;

use super::KNOBS;
use crate::launch::BOARD;

/// Names that are no settings of a communicator, or their beginnings: what `maypole run` leaves its ranks, what the
/// Python package reads when PyTorch is imported, and what tests and tools of this project read.
const OTHERS: &[&str] = &[
    BOARD,
    "MAYPOLE_CHAOS_",
    "MAYPOLE_DIFFERENTIAL_",
    "MAYPOLE_EMULATOR_",
    "MAYPOLE_FAILURES_",
    "MAYPOLE_RENEW",
    "MAYPOLE_TEST_",
    "MAYPOLE_TORCH",
];

/// A variable that nobody reads, and the setting whose name is the nearest.
#[derive(Debug, PartialEq)]
pub(crate) struct Unknown {
    name: String,
    nearest: &'static str,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is no setting of Maypole's and does nothing; the nearest is {}", self.name, self.nearest)
    }
}

/// Those among the environment's names, sorted. (Values may be secrets: a misspelt `MAYPOLE_KEY` has one.)
pub(crate) fn unknown(names: impl Iterator<Item = String>) -> Vec<Unknown> {
    let is_known = |name: &str| {
        let other = |other: &&str| name == *other || other.ends_with('_') && name.starts_with(*other);
        KNOBS.iter().any(|knob| knob.name == name) || OTHERS.iter().any(other)
    };
    let ours = names.filter(|name| name.starts_with("MAYPOLE_") && !is_known(name));
    let mut found: Vec<Unknown> = ours
        .map(|name| {
            let distance = |knob: &&super::Knob| strsim::damerau_levenshtein(knob.name, &name);
            let nearest = KNOBS.iter().min_by_key(distance).expect("there are settings").name;
            Unknown { name, nearest }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Those of this process.
pub(crate) fn unknown_here() -> Vec<Unknown> {
    unknown(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
}

/// Warn of them, once, where `rank` is 0: the others have the same.
pub(crate) fn mention(rank: usize) {
    static SAID: Once = Once::new();
    if rank == 0 {
        SAID.call_once(|| unknown_here().iter().for_each(|unknown| crate::log::warn(format_args!("{unknown}"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_settings_are_named_with_the_nearest() {
        let names = ["MAYPOLE_TIMOUT", "MAYPOLE_KEYS", "MAYPOLE_TRANSPROT", "PATH", "MAYPOLE_RING", "MAYPOLEX"];
        let found = unknown(names.iter().map(|name| name.to_string()));
        let pairs: Vec<(&str, &str)> = found.iter().map(|u| (u.name.as_str(), u.nearest)).collect();
        assert_eq!(
            pairs,
            [
                ("MAYPOLE_KEYS", "MAYPOLE_KEY"),
                ("MAYPOLE_TIMOUT", "MAYPOLE_TIMEOUT"),
                ("MAYPOLE_TRANSPROT", "MAYPOLE_TRANSPORT")
            ]
        );
    }

    /// Whatever Rust code of this tree asks the environment for is a setting, or listed.
    #[test]
    fn what_this_projects_code_reads_is_known() {
        fn visit(directory: &std::path::Path, seen: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                let name = entry.file_name().unwrap().to_str().unwrap();
                if entry.is_dir() && !name.starts_with('.') && name != "target" {
                    visit(&entry, seen);
                } else if name.ends_with(".rs") {
                    let text = std::fs::read_to_string(&entry).unwrap();
                    for call in ["env::var(\"MAYPOLE_", "env::var_os(\"MAYPOLE_"] {
                        let read = text.split(call).skip(1).map(|rest| rest.split('"').next().unwrap());
                        seen.extend(read.map(|name| format!("MAYPOLE_{name}")));
                    }
                }
            }
        }
        let mut seen = Vec::new();
        visit(std::path::Path::new(env!("CARGO_MANIFEST_DIR")), &mut seen);
        assert!(seen.len() > 5, "{seen:?}");
        assert_eq!(unknown(seen.into_iter()), []);
    }
}
