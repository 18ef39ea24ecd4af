//! Schedules written out, so that tests can damage them.

use maypole_collectives::Hosts;
use maypole_collectives::algorithms::{Algorithm, schedule};
use maypole_collectives::schedule::{Collective, Place, Rank, Region, Schedule, Step};
use maypole_collectives::verify::{Fault, Folds, Report, layouts, verify_lending, verify_schedules};
use std::sync::Arc;

/// One rank's program as a list of steps for each lane.
#[derive(Clone, Debug)]
pub struct Written {
    pub pieces: usize,
    pub scratch: usize,
    /// The channel of each lane.
    pub channels: Vec<usize>,
    pub lanes: Vec<Vec<Step>>,
    pub message_chunks: usize,
}

impl Schedule for Written {
    fn pieces(&self) -> usize {
        self.pieces
    }
    fn scratch(&self) -> usize {
        self.scratch
    }
    fn lanes(&self) -> usize {
        self.lanes.len()
    }
    fn channel(&self, lane: usize) -> usize {
        self.channels[lane]
    }
    fn steps(&self, lane: usize) -> usize {
        self.lanes[lane].len()
    }
    fn step(&self, lane: usize, i: usize) -> Step {
        self.lanes[lane][i]
    }
    fn message_chunks(&self) -> usize {
        self.message_chunks
    }
}

/// All ranks' programs, and what they are for.
#[derive(Clone, Debug)]
pub struct World {
    pub collective: Collective,
    pub root: Rank,
    pub ranks: Vec<Written>,
    /// What the schedules promise.
    pub promise: Folds,
}

impl World {
    /// The schedules of an algorithm, sound until somebody damages them.
    pub fn of(algorithm: Algorithm, collective: Collective, size: usize, root: Rank) -> World {
        World::on(algorithm, collective, &Arc::new(Hosts::together(size)), root)
    }

    /// [`World::of`] on several hosts.
    pub fn on(algorithm: Algorithm, collective: Collective, hosts: &Arc<Hosts>, root: Rank) -> World {
        let size = hosts.size();
        let write = |rank| {
            let s = schedule(algorithm, collective, Place { rank, size, root }, hosts).expect("supported");
            Written {
                pieces: s.pieces(),
                scratch: s.scratch(),
                channels: (0..s.lanes()).map(|lane| s.channel(lane)).collect(),
                lanes: (0..s.lanes()).map(|lane| (0..s.steps(lane)).map(|i| s.step(lane, i)).collect()).collect(),
                message_chunks: s.message_chunks(),
            }
        };
        let promise = algorithm.folds(collective).unwrap();
        World { collective, root, ranks: (0..size).map(write).collect(), promise }
    }

    /// A world written by hand: one piece, the lanes' steps for each rank, all on channel 0 unless `channels` says
    /// otherwise.
    pub fn by_hand(collective: Collective, scratch: usize, ranks: Vec<Vec<Vec<Step>>>) -> World {
        let write = |lanes: Vec<Vec<Step>>| Written {
            pieces: 1,
            scratch,
            channels: vec![0; lanes.len()],
            lanes,
            message_chunks: 1,
        };
        World { collective, root: 0, ranks: ranks.into_iter().map(write).collect(), promise: Folds::InAnyOrder }
    }

    /// The same with something changed.
    pub fn with(&self, damage: impl FnOnce(&mut World)) -> World {
        let mut world = self.clone();
        damage(&mut world);
        world
    }

    pub fn verify(&self, in_place: bool) -> Result<Report, Fault> {
        let schedules: Vec<Box<dyn Schedule>> =
            self.ranks.iter().map(|r| Box::new(r.clone()) as Box<dyn Schedule>).collect();
        verify_schedules(&schedules, self.collective, self.root, in_place, self.promise)
    }

    /// The same with publications of inputs and outputs read where they lie.
    pub fn verify_lending(&self, in_place: bool) -> Result<Report, Fault> {
        let schedules: Vec<Box<dyn Schedule>> =
            self.ranks.iter().map(|r| Box::new(r.clone()) as Box<dyn Schedule>).collect();
        verify_lending(&schedules, self.collective, self.root, in_place, self.promise)
    }

    /// What is wrong out of place; panics if nothing is.
    pub fn fault(&self) -> Fault {
        self.verify(false).expect_err("the damage was not noticed")
    }

    /// Lane 0 of a rank.
    pub fn steps(&mut self, rank: Rank) -> &mut Vec<Step> {
        &mut self.ranks[rank].lanes[0]
    }

    /// Where the steps are: rank, lane, step.
    pub fn places(&self) -> Vec<(Rank, usize, usize)> {
        let mut places = Vec::new();
        for (rank, program) in self.ranks.iter().enumerate() {
            for (lane, steps) in program.lanes.iter().enumerate() {
                places.extend((0..steps.len()).map(|i| (rank, lane, i)));
            }
        }
        places
    }
}

/// Every algorithm for every collective at the given sizes, every root, hierarchical ones on every layout of hosts.
pub fn every_world(sizes: std::ops::RangeInclusive<usize>) -> impl Iterator<Item = (String, World)> {
    sizes.flat_map(|size| {
        Collective::ALL.into_iter().flat_map(move |c| {
            let roots = if c.is_rooted() { size } else { 1 };
            Algorithm::for_collective(c).flat_map(move |a| {
                let layouts = if a.minds_hosts() { layouts(size) } else { vec![Arc::new(Hosts::together(size))] };
                layouts.into_iter().flat_map(move |hosts| {
                    (0..roots).map(move |root| {
                        (format!("{} by {a}, {hosts}, root {root}", c.name()), World::on(a, c, &hosts, root))
                    })
                })
            })
        })
    })
}

/// The peers that a step names, each for changing.
pub fn peers(step: &mut Step) -> Vec<&mut Rank> {
    match step {
        Step::Send { to, .. } => vec![to],
        Step::Recv { from, .. }
        | Step::RecvReduce { from, .. }
        | Step::Fetch { from, .. }
        | Step::FetchReduce { from, .. } => vec![from],
        Step::RecvReduceSend { from, to, .. } | Step::RecvCopySend { from, to, .. } => vec![from, to],
        Step::Copy { .. } | Step::Reduce { .. } | Step::Publish { .. } => vec![],
    }
}

/// The regions that a step names, each for changing.
pub fn regions(step: &mut Step) -> Vec<&mut Region> {
    match step {
        Step::Send { src, .. } | Step::Publish { src } => vec![src],
        Step::Recv { dst, .. } | Step::RecvCopySend { dst, .. } | Step::Fetch { dst, .. } => vec![dst],
        Step::RecvReduce { local, dst, .. } | Step::FetchReduce { local, dst, .. } => vec![local, dst],
        Step::RecvReduceSend { local, dst: Some(dst), .. } => vec![local, dst],
        Step::RecvReduceSend { local, dst: None, .. } => vec![local],
        Step::Copy { src, dst } => vec![src, dst],
        Step::Reduce { a, b, dst } => vec![a, b, dst],
    }
}
