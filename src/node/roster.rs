//! Who has come: the hub's list until all ranks are there. No I/O; [`super::hub`] feeds it.

use std::fmt::Write;

use super::frame::Hello;
use super::peer::{Peer, Settings};

/// How many missing ranks an error names one by one.
const NAMED: usize = 16;
/// The largest world.
pub(super) const LARGEST: usize = 1 << 20;

/// The ranks that have come so far.
#[derive(Default)]
pub(super) struct Roster {
    /// World size, as the first to speak was told.
    size: Option<usize>,
    /// The first to come: whoever agrees with that one agrees with all.
    first: Option<First>,
    /// By rank, with their processes.
    come: Vec<Option<(Peer, u64)>>,
    count: usize,
}

struct First {
    rank: usize,
    settings: Settings,
}

/// A process as errors name it.
fn who(peer: &Peer) -> String {
    format!("rank {} (process {} on host {})", peer.rank, peer.pid, peer.host)
}

impl Roster {
    /// Take in one more. `Ok(true)`: now all have come. Takes the same time however many have.
    ///
    /// # Errors
    /// What is wrong, for every rank to be told.
    pub fn admit(&mut self, hello: Hello) -> Result<bool, String> {
        let Hello { size, version, process, peer, settings } = hello;
        let rank = peer.rank;
        // Whatever is wrong with the first to speak: this many are to be told.
        let expected = *self.size.get_or_insert(size.min(LARGEST));
        let ours = env!("CARGO_PKG_VERSION");
        if version != ours {
            return Err(format!(
                "{} runs Maypole {version}, but the meeting point runs {ours}; every rank needs the same version",
                who(&peer),
            ));
        }
        if size > LARGEST {
            return Err(format!("{} was told a world of {size} ranks; at most {LARGEST} can meet", who(&peer)));
        }
        if let Some(first) = self.first.as_ref().filter(|_| size != expected) {
            return Err(format!(
                "the ranks were told different world sizes: {} says {expected}, {} says {size}; start every rank of \
                 a job with the same size",
                self.name(first.rank),
                who(&peer)
            ));
        }
        if rank >= size {
            return Err(format!(
                "{} is out of range: the world has {size} rank{}, numbered from 0 to {}; give each process its \
                 own rank below the size",
                who(&peer),
                if size == 1 { "" } else { "s" },
                size.saturating_sub(1)
            ));
        }
        if self.come.len() < size {
            self.come.resize(size, None);
        }
        if let Some((other, _)) = &self.come[rank] {
            return Err(format!(
                "two processes have rank {rank}: process {} on host {} and process {} on host {}; give each \
                 process its own rank",
                other.pid, other.host, peer.pid, peer.host
            ));
        }
        let first = self.first.get_or_insert_with(|| First { rank, settings: settings.clone() });
        if first.settings.digest != settings.digest {
            let (first_rank, first_text) = (first.rank, first.settings.text.clone());
            return Err(format!(
                "the ranks have different settings: {} has {first_text}, {} has {}; set the same MAYPOLE_* variables \
                 for every rank",
                self.name(first_rank),
                who(&peer),
                settings.text
            ));
        }
        self.come[rank] = Some((peer, process));
        self.count += 1;
        Ok(self.count == size)
    }

    /// A rank as errors name it.
    fn name(&self, rank: usize) -> String {
        self.come.get(rank).and_then(Option::as_ref).map_or_else(|| format!("rank {rank}"), |(peer, _)| who(peer))
    }

    /// The world size, once somebody has come.
    pub fn size(&self) -> Option<usize> {
        self.size
    }

    /// What to tell everybody when `rank` has gone before all had come. `how`: how that was noticed.
    pub fn lost(&self, rank: usize, how: &str) -> String {
        let name = self.name(rank);
        format!("{name} was gone before all ranks had come ({how}); see its own output for why")
    }

    /// What to tell everybody when time is up.
    pub fn missing(&self, waited: std::time::Duration) -> String {
        let absent: Vec<usize> = self.come.iter().enumerate().filter(|(_, h)| h.is_none()).map(|(r, _)| r).collect();
        let mut list = String::new();
        for (i, rank) in absent.iter().take(NAMED).enumerate() {
            let _ = write!(list, "{}{rank}", if i == 0 { "" } else { ", " });
        }
        if absent.len() > NAMED {
            let _ = write!(list, " and {} more", absent.len() - NAMED);
        }
        format!(
            "rank{} {list} did not come within {waited:?} ({} of {} ranks did); check that {} started, with \
             the same meeting point and key",
            if absent.len() == 1 { "" } else { "s" },
            self.count,
            self.come.len(),
            if absent.len() == 1 { "it was" } else { "they were" },
        )
    }

    /// All peers by rank, once all have come; and the lowest rank in the process `process`.
    pub fn into_table(self, process: u64) -> (Vec<Peer>, Option<usize>) {
        let own = self.come.iter().flatten().find(|(_, p)| *p == process).map(|(peer, _)| peer.rank);
        (self.come.into_iter().flatten().map(|(peer, _)| peer).collect(), own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn hello(rank: usize, size: usize) -> Hello {
        let peer = Peer {
            rank,
            host: format!("host{rank}"),
            host_id: 1,
            pid: 100 + rank as u32,
            data: Vec::new(),
            local: String::new(),
            cores: 1,
            affinity: Vec::new(),
        };
        let settings = Settings::of(&Config::default());
        Hello { size, version: env!("CARGO_PKG_VERSION").into(), process: rank as u64, peer, settings }
    }

    #[test]
    fn all_come_in_any_order() {
        let mut roster = Roster::default();
        assert_eq!(roster.admit(hello(2, 3)), Ok(false));
        assert_eq!(roster.admit(hello(0, 3)), Ok(false));
        assert!(roster.missing(std::time::Duration::from_secs(1)).starts_with("rank 1 did not come within 1s (2 of 3"));
        assert_eq!(roster.admit(hello(1, 3)), Ok(true));
        let (peers, own) = roster.into_table(1);
        assert_eq!(peers.iter().map(|p| p.rank).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(own, Some(1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let after = |mut second: Hello, change: &dyn Fn(&mut Hello)| {
            change(&mut second);
            let mut roster = Roster::default();
            roster.admit(hello(0, 3)).unwrap();
            roster.admit(second).unwrap_err()
        };
        let text = after(hello(0, 3), &|h| h.peer.pid = 7);
        assert!(text.contains("rank 0") && text.contains("process 100") && text.contains("process 7"), "{text}");
        let text = after(hello(1, 4), &|_| ());
        assert!(text.contains("says 3") && text.contains("says 4") && text.contains("host1"), "{text}");
        let text = after(hello(3, 3), &|_| ());
        assert!(text.contains("rank 3") && text.contains("out of range") && text.contains("0 to 2"), "{text}");
        let text = after(hello(1, 3), &|h| h.version = "0.0.0".into());
        assert!(text.contains("0.0.0") && text.contains("rank 1"), "{text}");
        let text = after(hello(1, 3), &|h| {
            h.settings = Settings::of(&Config { ring: 1 << 20, ..Config::default() });
        });
        assert!(text.contains("MAYPOLE_RING=262144") && text.contains("MAYPOLE_RING=1048576"), "{text}");
        assert!(Roster::default().admit(hello(5, 2)).unwrap_err().contains("out of range"));
        assert!(Roster::default().admit(hello(0, usize::MAX)).unwrap_err().contains("at most"));
    }
}
