//! Callers that were not let in at a door, for those who wonder why a rank does not come.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::auth::Refusal;

/// How many different callers [`TurnedAway`] remembers.
const REMEMBERED: usize = 8;

/// Callers that speak Maypole but hold another key, or run another version. They may be ranks of ours that were set up
/// wrongly, ranks of other jobs, or anybody; what they say of themselves is not proved.
#[derive(Default)]
pub(super) struct TurnedAway {
    other_key: usize,
    other_version: usize,
    who: BTreeSet<String>,
}

impl TurnedAway {
    /// One more, from `address`, that says it is rank `from`.
    pub fn note(&mut self, refusal: &Refusal, from: Option<u32>, address: Option<IpAddr>) {
        match refusal {
            Refusal::WrongKey => self.other_key += 1,
            Refusal::Version => self.other_version += 1,
            _ => return,
        }
        if let Some(address) = address.filter(|_| self.who.len() < REMEMBERED) {
            let rank = from.map_or(String::new(), |rank| format!(", which says it is rank {rank}"));
            self.who.insert(format!("{address}{rank}"));
        }
    }

    /// For people; empty if there were none.
    pub fn explain(&self) -> String {
        let who = self.who.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
        let knocks = |count, what| match count {
            0 => String::new(),
            1 => format!("; one connection was turned away because {what} (from {who})"),
            n => format!("; {n} connections were turned away because {what} (from {who})"),
        };
        knocks(
            self.other_key,
            "it held another key: MAYPOLE_KEY (or MAYPOLE_RUN) differs there, or it is another job's",
        ) + &knocks(self.other_version, "it runs another version of Maypole")
    }
}
