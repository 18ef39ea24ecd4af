//! Who has come: the hub's list until all ranks are there. No I/O; [`super::hub`] feeds it.

use std::fmt::Write;

use super::frame::Hello;
use super::peer::Peer;

/// How many missing ranks an error names one by one.
const NAMED: usize = 16;
/// The largest world.
pub(super) const LARGEST: usize = 1 << 20;

/// The ranks that have come so far.
#[derive(Default)]
pub(super) struct Roster {
    /// Set by the first to come.
    size: Option<usize>,
    come: Vec<Option<Hello>>,
    count: usize,
}

/// A process as errors name it.
fn who(hello: &Hello) -> String {
    format!("rank {} (process {} on host {})", hello.peer.rank, hello.peer.pid, hello.peer.host)
}

impl Roster {
    /// Take in one more. `Ok(true)`: now all have come.
    ///
    /// # Errors
    /// What is wrong, for every rank to be told.
    pub fn admit(&mut self, hello: Hello) -> Result<bool, String> {
        let (rank, size) = (hello.peer.rank, hello.size);
        let ours = env!("CARGO_PKG_VERSION");
        if hello.version != ours {
            return Err(format!(
                "{} runs Maypole {}, but the meeting point runs {ours}; every rank needs the same version",
                who(&hello),
                hello.version
            ));
        }
        if size > LARGEST {
            return Err(format!("{} was told a world of {size} ranks; at most {LARGEST} can meet", who(&hello)));
        }
        let expected = *self.size.get_or_insert(size);
        if let Some(first) = self.come.iter().flatten().next().filter(|_| size != expected) {
            return Err(format!(
                "the ranks were told different world sizes: {} says {expected}, {} says {size}; start every \
                 rank of a job with the same size",
                who(first),
                who(&hello)
            ));
        }
        if rank >= size {
            return Err(format!(
                "{} is out of range: the world has {size} rank{}, numbered from 0 to {}; give each process its \
                 own rank below the size",
                who(&hello),
                if size == 1 { "" } else { "s" },
                size.saturating_sub(1)
            ));
        }
        if self.come.len() < size {
            self.come.resize(size, None);
        }
        if let Some(other) = &self.come[rank] {
            return Err(format!(
                "two processes have rank {rank}: process {} on host {} and process {} on host {}; give each \
                 process its own rank",
                other.peer.pid, other.peer.host, hello.peer.pid, hello.peer.host
            ));
        }
        if let Some(other) = self.come.iter().flatten().find(|o| o.peer.settings.digest != hello.peer.settings.digest) {
            return Err(format!(
                "the ranks have different settings: {} has {}, {} has {}; set the same MAYPOLE_* variables \
                 for every rank",
                who(other),
                other.peer.settings.text,
                who(&hello),
                hello.peer.settings.text
            ));
        }
        self.come[rank] = Some(hello);
        self.count += 1;
        Ok(self.count == size)
    }

    /// The world size, once somebody has come.
    pub fn size(&self) -> Option<usize> {
        self.size
    }

    /// What to tell everybody when `rank` has gone before all had come. `how`: how that was noticed.
    pub fn lost(&self, rank: usize, how: &str) -> String {
        let name = self.come.get(rank).and_then(Option::as_ref).map_or_else(|| format!("rank {rank}"), who);
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
    pub fn table(&self, process: u64) -> (Vec<Peer>, Option<usize>) {
        let own = self.come.iter().flatten().find(|h| h.process == process).map(|h| h.peer.rank);
        (self.come.iter().flatten().map(|h| h.peer.clone()).collect(), own)
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::Settings;
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
            settings: Settings::of(&Config::default()),
        };
        Hello { size, version: env!("CARGO_PKG_VERSION").into(), process: rank as u64, peer }
    }

    #[test]
    fn all_come_in_any_order() {
        let mut roster = Roster::default();
        assert_eq!(roster.admit(hello(2, 3)), Ok(false));
        assert_eq!(roster.admit(hello(0, 3)), Ok(false));
        assert!(roster.missing(std::time::Duration::from_secs(1)).starts_with("rank 1 did not come within 1s (2 of 3"));
        assert_eq!(roster.admit(hello(1, 3)), Ok(true));
        let (peers, own) = roster.table(1);
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
            h.peer.settings = Settings::of(&Config { ring: 1 << 20, ..Config::default() });
        });
        assert!(text.contains("MAYPOLE_RING=262144") && text.contains("MAYPOLE_RING=1048576"), "{text}");
        assert!(Roster::default().admit(hello(5, 2)).unwrap_err().contains("out of range"));
        assert!(Roster::default().admit(hello(0, usize::MAX)).unwrap_err().contains("at most"));
    }
}
