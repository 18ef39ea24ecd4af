//! All ranks' programs, written out, and everything about them that can be checked without running them.

use super::fault::{At, Fault};
use crate::schedule::{Buffer, Collective, Rank, Region, Schedule, Step};
use std::collections::HashMap;
use std::ops::Range;

/// The link from one rank to another on a channel, and the lanes that use its ends.
pub(super) struct LinkEnds {
    pub(super) from: Rank,
    pub(super) to: Rank,
    sender: Option<usize>,
    receiver: Option<usize>,
}

/// A step, and which links or which number of publication it stands for.
pub(super) struct Op {
    pub(super) step: Step,
    /// Index of the link that it receives from.
    pub(super) takes: usize,
    /// Index of the link that it sends on.
    pub(super) puts: usize,
    /// A publish: its number within the round.
    pub(super) nth: usize,
}

impl Op {
    /// The chunks, of this rank, that stand for the message that comes in.
    pub(super) fn received(&self) -> Region {
        match self.step {
            Step::Recv { dst, .. } | Step::RecvCopySend { dst, .. } => dst,
            Step::RecvReduce { local, .. } | Step::RecvReduceSend { local, .. } => local,
            _ => Region::EMPTY,
        }
    }

    /// The chunks that stand for what goes out: the message or the publication.
    pub(super) fn sent(&self) -> Region {
        match self.step {
            Step::Send { src, .. } | Step::Publish { src } => src,
            Step::RecvCopySend { dst, .. } => dst,
            Step::RecvReduceSend { local, .. } => local,
            _ => Region::EMPTY,
        }
    }
}

/// One rank's memory, in chunks.
pub(super) struct Sizes {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) scratch: usize,
}

/// All schedules of a world.
pub(super) struct World {
    pub(super) collective: Collective,
    pub(super) size: usize,
    pub(super) root: Rank,
    pub(super) in_place: bool,
    /// Publications of inputs and outputs are not copied: they are read where they lie.
    pub(super) lends: bool,
    pub(super) pieces: usize,
    /// Each lane of the world, an *actor*: its rank, and its number there. A rank's actors stand together, in order.
    pub(super) actors: Vec<(Rank, usize)>,
    /// Each rank's first actor, and their number at the end.
    first_actor: Vec<usize>,
    pub(super) sizes: Vec<Sizes>,
    /// The programs, by actor.
    pub(super) programs: Vec<Vec<Op>>,
    pub(super) links: Vec<LinkEnds>,
}

impl World {
    /// Writes the schedules out and checks each step by itself.
    pub(super) fn new(
        schedules: &[Box<dyn Schedule>],
        collective: Collective,
        root: Rank,
        in_place: bool,
    ) -> Result<World, Fault> {
        let size = schedules.len();
        if root >= size {
            return Err(Fault::NoWorld { size, root });
        }
        let same = |what, of: &dyn Fn(&dyn Schedule) -> usize| {
            let expected = of(&*schedules[0]);
            match schedules.iter().map(|s| of(&**s)).enumerate().find(|(_, value)| *value != expected) {
                Some((rank, value)) => Err(Fault::Disagree { what, rank, value, expected }),
                None => Ok(expected),
            }
        };
        let pieces = same("pieces", &|s| s.pieces())?;
        let bound = same("chunks in a message at most", &|s| s.message_chunks())?;
        let mut first_actor = vec![0];
        let mut actors = Vec::new();
        for (rank, schedule) in schedules.iter().enumerate() {
            actors.extend((0..schedule.lanes()).map(|lane| (rank, lane)));
            first_actor.push(actors.len());
        }
        let programs = Vec::with_capacity(actors.len());
        let mut world = World {
            collective,
            size,
            root,
            in_place,
            lends: false,
            pieces,
            actors,
            first_actor,
            sizes: (0..size)
                .map(|rank| Sizes {
                    input: collective.input_blocks(rank, size, root) * pieces,
                    output: collective.output_blocks(rank, size, root) * pieces,
                    scratch: schedules[rank].scratch(),
                })
                .collect(),
            programs,
            links: Vec::new(),
        };
        let mut known = HashMap::new();
        for (rank, schedule) in schedules.iter().enumerate() {
            for lane in 0..schedule.lanes() {
                let channel = schedule.channel(lane);
                let mut program = Vec::with_capacity(schedule.steps(lane));
                let mut nth = 0;
                for i in 0..schedule.steps(lane) {
                    let step = schedule.step(lane, i);
                    let at = At { rank, lane, step: i, round: 0 };
                    world.check(at, &step, bound)?;
                    let (from, to) = step.peers();
                    let mut link = |ends: Option<(Rank, Rank)>, sends| match ends {
                        Some(ends) => world.link(&mut known, at, ends, channel, sends),
                        None => Ok(usize::MAX),
                    };
                    let takes = link(from.map(|from| (from, rank)), false)?;
                    let puts = link(to.map(|to| (rank, to)), true)?;
                    let op = Op { step, takes, puts, nth };
                    nth += matches!(step, Step::Publish { .. }) as usize;
                    program.push(op);
                }
                world.programs.push(program);
            }
        }
        Ok(world)
    }

    /// The actors of a rank.
    pub(super) fn actors_of(&self, rank: Rank) -> Range<usize> {
        self.first_actor[rank]..self.first_actor[rank + 1]
    }

    /// The actor that is lane `lane` of a rank.
    pub(super) fn actor(&self, rank: Rank, lane: usize) -> usize {
        self.first_actor[rank] + lane
    }

    /// How many lanes a rank has.
    pub(super) fn lanes(&self, rank: Rank) -> usize {
        self.actors_of(rank).len()
    }

    /// The index of a link, made on first use; one lane at either end.
    fn link(
        &mut self,
        known: &mut HashMap<(Rank, Rank, usize), usize>,
        at: At,
        (from, to): (Rank, Rank),
        channel: usize,
        sends: bool,
    ) -> Result<usize, Fault> {
        let index = *known.entry((from, to, channel)).or_insert(self.links.len());
        if index == self.links.len() {
            self.links.push(LinkEnds { from, to, sender: None, receiver: None });
        }
        let link = &mut self.links[index];
        let (end, verb) = if sends { (&mut link.sender, "send") } else { (&mut link.receiver, "receive") };
        match *end.get_or_insert(at.lane) {
            lane if lane == at.lane => Ok(index),
            lane => Err(Fault::SharedLink { rank: at.rank, verb, lanes: (lane, at.lane), from, to, channel }),
        }
    }

    fn check(&self, at: At, step: &Step, bound: usize) -> Result<(), Fault> {
        let peer = |peer: Rank, self_allowed: bool| {
            let good = peer < self.size && (self_allowed || peer != at.rank);
            if good { Ok(()) } else { Err(Fault::BadPeer { at, peer, size: self.size }) }
        };
        let window = |from: Rank| {
            let lanes = self.lanes(from);
            if at.lane < lanes { Ok(()) } else { Err(Fault::NoSuchLane { at, from, lanes }) }
        };
        let message = |region: Region| {
            let chunks = region.len;
            if chunks <= bound { Ok(()) } else { Err(Fault::TooLong { at, chunks, bound }) }
        };
        let reads = |region| self.in_bounds(at, region);
        let writes = |region: Region| match region.buffer {
            Buffer::Input if region.len > 0 => Err(Fault::WritesInput { at }),
            _ => self.in_bounds(at, region),
        };
        let joins = |a: Region, b: Region| {
            let (a_piece, b_piece) = (a.first % self.pieces, b.first % self.pieces);
            if a.len == b.len && (a.len == 0 || a_piece == b_piece) {
                return Ok(());
            }
            Err(Fault::Uneven { at, a_len: a.len, a_piece, b_len: b.len, b_piece })
        };
        let becomes = |src, dst| {
            reads(src)?;
            writes(dst)?;
            joins(src, dst)?;
            self.same_or_apart(at, src, dst)
        };
        match *step {
            Step::Send { to, src } => {
                peer(to, false)?;
                message(src)?;
                reads(src)
            }
            Step::Recv { from, dst } => {
                peer(from, false)?;
                message(dst)?;
                writes(dst)
            }
            Step::RecvReduce { from, local, dst, .. } => {
                peer(from, false)?;
                message(dst)?;
                becomes(local, dst)
            }
            Step::RecvReduceSend { from, local, dst, to, .. } => {
                peer(from, false)?;
                peer(to, false)?;
                message(local)?;
                reads(local)?;
                dst.map_or(Ok(()), |dst| becomes(local, dst))
            }
            Step::RecvCopySend { from, dst, to } => {
                peer(from, false)?;
                peer(to, false)?;
                message(dst)?;
                writes(dst)
            }
            Step::Copy { src, dst } => becomes(src, dst),
            Step::Reduce { a, b, dst } => {
                becomes(a, dst)?;
                becomes(b, dst)
            }
            Step::Publish { src } => {
                message(src)?;
                reads(src)
            }
            Step::Fetch { from, dst, .. } => {
                peer(from, true)?;
                window(from)?;
                writes(dst)
            }
            Step::FetchReduce { from, local, dst, .. } => {
                peer(from, true)?;
                window(from)?;
                becomes(local, dst)
            }
        }
    }

    fn in_bounds(&self, at: At, region: Region) -> Result<(), Fault> {
        let sizes = &self.sizes[at.rank];
        let have = match region.buffer {
            Buffer::Input => sizes.input,
            Buffer::Output => sizes.output,
            Buffer::Scratch => sizes.scratch,
        };
        let end = region.first.saturating_add(region.len);
        if region.len == 0 || end <= have {
            return Ok(());
        }
        Err(Fault::OutOfBounds { at, buffer: region.buffer, first: region.first, end, have })
    }

    fn same_or_apart(&self, at: At, a: Region, b: Region) -> Result<(), Fault> {
        let ((a_scratch, a_first), (b_scratch, b_first)) = (self.cells(at.rank, a), self.cells(at.rank, b));
        let apart = a_scratch != b_scratch || a_first + a.len <= b_first || b_first + b.len <= a_first;
        if apart || a_first == b_first { Ok(()) } else { Err(Fault::Overlap { at }) }
    }

    /// Whether two regions of a rank are the same memory.
    pub(super) fn are_same(&self, rank: Rank, a: Region, b: Region) -> bool {
        self.cells(rank, a) == self.cells(rank, b)
    }

    /// Whether a region lies in scratch, and its first cell.
    fn cells(&self, rank: Rank, region: Region) -> (bool, usize) {
        (region.buffer == Buffer::Scratch, self.offset(rank, region.buffer) + region.first)
    }

    /// Where a buffer begins among the cells that the rank's input and output take up together; scratch lies apart.
    pub(super) fn offset(&self, rank: Rank, buffer: Buffer) -> usize {
        let Sizes { input, output, .. } = self.sizes[rank];
        let inside = self.aliased_block(rank).map(|block| block * self.pieces);
        match (buffer, inside) {
            (Buffer::Scratch, _) => 0,
            (Buffer::Input, Some(offset)) if input <= output => offset,
            (Buffer::Output, Some(offset)) if output < input => offset,
            (_, Some(_)) | (Buffer::Input, None) => 0,
            (Buffer::Output, None) => input,
        }
    }

    /// How many cells input and output take up together.
    pub(super) fn user_cells(&self, rank: Rank) -> usize {
        let Sizes { input, output, .. } = self.sizes[rank];
        if self.aliased_block(rank).is_some() { input.max(output) } else { input + output }
    }

    /// In place, where the rank has both buffers: the block of the larger one in which the smaller one lies.
    fn aliased_block(&self, rank: Rank) -> Option<usize> {
        let Sizes { input, output, .. } = self.sizes[rank];
        if self.in_place && input > 0 && output > 0 { self.collective.in_place_block(rank) } else { None }
    }
}
