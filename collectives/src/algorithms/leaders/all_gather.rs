//! All-gather by leaders: whole hosts are gathered as `bruck` gathers blocks, though they differ in size.
//!
//! A leader's scratch holds the blocks of its own host first, then those of the hosts after it, each host's by place. In
//! phase k each leader sends the 2^k hosts that it has, or as many as are still missing, to the leader 2^k hosts before,
//! and appends what comes from 2^k hosts after. Then it copies all blocks to where they belong, and its host gets them in
//! one message.

use super::{Area, INPUT, OUTPUT, SCRATCH, Sequence, Team};
use crate::schedule::{Collective, Region, Schedule, Step};

impl Team {
    pub(super) fn all_gather(&self) -> Sequence {
        let all = self.hosts.size();
        let whole: Area = OUTPUT.of(all);
        let sequence = Sequence::new(all)
            .then(self.has_others(), || self.home(Collective::Gather, (INPUT, SCRATCH)))
            .then(!self.has_others(), || Own)
            .then(self.goes_out(), || Exchange(self.clone()))
            .then(self.is_leader(), || Unpack::new(self))
            .then(self.has_others(), || self.home(Collective::Broadcast, (whole, whole)).shortened(self.is_leader()));
        sequence.with_scratch(if self.is_leader() { all } else { 0 })
    }
}

/// What gathering is for a rank alone on its host.
struct Own;

impl Schedule for Own {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        1
    }
    fn step(&self, _lane: usize, _i: usize) -> Step {
        Step::Copy { src: Region::input(0, 1), dst: Region::scratch(0, 1) }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}

/// Among leaders: each ends with all hosts.
struct Exchange(Team);

impl Schedule for Exchange {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        2 * self.0.hosts.count().next_power_of_two().ilog2() as usize
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let Team { hosts, host, .. } = &self.0;
        let count = hosts.count();
        let distance = 1 << (i / 2);
        let moved = distance.min(count - distance);
        if i.is_multiple_of(2) {
            let to = self.0.leader((host + count - distance) % count);
            Step::Send { to, src: Region::scratch(0, hosts.ranks_from(*host, moved)) }
        } else {
            let after = (host + distance) % count;
            let dst = Region::scratch(hosts.ranks_from(*host, distance), hosts.ranks_from(after, moved));
            Step::Recv { from: self.0.leader(after), dst }
        }
    }
    fn message_chunks(&self) -> usize {
        self.0.hosts.size()
    }
}

/// Runs of blocks that lie together both in a leader's scratch and in its output: where they lie in either, and how
/// many. One or two where hosts have neighbouring ranks.
struct Unpack(Vec<(u32, u32, u32)>);

impl Unpack {
    fn new(team: &Team) -> Unpack {
        let hosts = &team.hosts;
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        let order = (0..hosts.count()).map(|distance| (team.host + distance) % hosts.count());
        let blocks = order.flat_map(|host| (0..hosts.on(host)).map(move |place| hosts.rank(host, place) as u32));
        for (scratch, block) in (0u32..).zip(blocks) {
            match runs.last_mut() {
                Some((_, first, len)) if *first + *len == block => *len += 1,
                _ => runs.push((scratch, block, 1)),
            }
        }
        Unpack(runs)
    }
}

impl Schedule for Unpack {
    fn pieces(&self) -> usize {
        1
    }
    fn steps(&self, _lane: usize) -> usize {
        self.0.len()
    }
    fn step(&self, _lane: usize, i: usize) -> Step {
        let (scratch, block, len) = self.0[i];
        Step::Copy {
            src: Region::scratch(scratch as usize, len as usize),
            dst: Region::output(block as usize, len as usize),
        }
    }
    fn message_chunks(&self) -> usize {
        1
    }
}
