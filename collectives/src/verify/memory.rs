//! The symbolic memory of one rank: what each chunk holds, and who touched it last.
//!
//! Input and output have cells for each round, since rounds are different slices; scratch has one set for all rounds.
//! In place, input and output share cells as the caller's buffers do.
//!
//! Where a rank has several lanes, each access is checked against earlier ones of other lanes with vector clocks, as
//! race detectors do (C. Flanagan, S. N. Freund, "FastTrack: efficient and precise dynamic race detection", PLDI 2009):
//! a chunk remembers who wrote it and who read it since, each at a tick of its lane; an access is ordered after them if
//! its lane's clock has seen those ticks. Chunks that are lent, which other ranks read where they lie, are guarded in the
//! same way.

use super::clock::Clock;
use super::fault::{At, Fault};
use super::value::Value;
use super::world::World;
use crate::schedule::{Buffer, Rank};

#[derive(Default)]
pub(super) struct Memory {
    cells: Vec<Option<Value>>,
    /// Per cell; empty where the rank has one lane, whose steps are ordered anyway.
    touches: Vec<Touches>,
    /// Per cell, by whom it was read where it lies since it was written: the step, the lane and its tick. Empty where
    /// nothing is lent.
    borrowers: Vec<Vec<(At, usize, u32)>>,
    /// Offsets of input and output within a round's cells, cells of a round, and where scratch begins.
    input: usize,
    output: usize,
    round_cells: usize,
    scratch: usize,
    rank: Rank,
    size: usize,
    pieces: usize,
}

#[derive(Clone, Default)]
struct Touches {
    writer: Option<(At, u32)>,
    readers: Vec<(At, u32)>,
}

/// The lane that makes an access, at its present tick.
pub(super) struct Accessor<'a> {
    pub(super) at: At,
    pub(super) tick: u32,
    /// What the lane has seen.
    pub(super) clock: &'a Clock,
    /// The actor that is lane 0 of its rank.
    pub(super) first_lane: usize,
}

impl Memory {
    pub(super) fn new(world: &World, rank: Rank, rounds: usize) -> Memory {
        let round_cells = world.user_cells(rank);
        let scratch = rounds * round_cells;
        let total = scratch + world.sizes[rank].scratch;
        let mut memory = Memory {
            cells: vec![None; total],
            touches: if world.lanes(rank) > 1 { vec![Touches::default(); total] } else { Vec::new() },
            borrowers: if world.lends { vec![Vec::new(); total] } else { Vec::new() },
            input: world.offset(rank, Buffer::Input),
            output: world.offset(rank, Buffer::Output),
            round_cells,
            scratch,
            rank,
            size: world.size,
            pieces: world.pieces,
        };
        for round in 0..rounds {
            for chunk in 0..world.sizes[rank].input {
                let cell = memory.cell(Buffer::Input, chunk, round);
                memory.cells[cell] = Some(memory.original(chunk, round));
            }
        }
        memory
    }

    /// What the caller put into a chunk of the input.
    fn original(&self, chunk: usize, round: usize) -> Value {
        Value::leaf(self.rank, self.size, chunk / self.pieces, round)
    }

    fn cell(&self, buffer: Buffer, chunk: usize, round: usize) -> usize {
        match buffer {
            Buffer::Input => round * self.round_cells + self.input + chunk,
            Buffer::Output => round * self.round_cells + self.output + chunk,
            Buffer::Scratch => self.scratch + chunk,
        }
    }

    pub(super) fn read(&mut self, by: &Accessor, buffer: Buffer, chunk: usize) -> Result<Value, Fault> {
        let at = by.at;
        let cell = self.cell(buffer, chunk, at.round);
        if let Some(touches) = self.touches.get_mut(cell) {
            touches.ordered(by, false).map_err(|first| Fault::Race { first, second: at, buffer, chunk })?;
            touches.readers.retain(|(reader, _)| reader.lane != at.lane);
            touches.readers.push((at, by.tick));
        }
        match &self.cells[cell] {
            Some(value) if buffer == Buffer::Input && *value != self.original(chunk, at.round) => {
                Err(Fault::Overwritten { at, chunk, found: value.to_string() })
            }
            Some(value) if value.round == at.round => Ok(value.clone()),
            _ => Err(Fault::Uninitialised { at, buffer, chunk }),
        }
    }

    pub(super) fn write(&mut self, by: &Accessor, buffer: Buffer, chunk: usize, value: Value) -> Result<(), Fault> {
        let at = by.at;
        let cell = self.cell(buffer, chunk, at.round);
        if let Some(touches) = self.touches.get_mut(cell) {
            touches.ordered(by, true).map_err(|first| Fault::Race { first, second: at, buffer, chunk })?;
            *touches = Touches { writer: Some((at, by.tick)), readers: Vec::new() };
        }
        if let Some(borrowers) = self.borrowers.get_mut(cell) {
            if let Some((reader, ..)) = borrowers.iter().find(|(_, lane, tick)| by.clock.of(*lane) < *tick) {
                return Err(Fault::LentOverwritten { at, reader: *reader, buffer, chunk });
            }
            borrowers.clear();
        }
        self.cells[cell] = Some(value);
        Ok(())
    }

    /// A step of another rank, lane `by.1` of the world at a tick, reads a chunk where it lies: what is there.
    pub(super) fn lend(&mut self, by: (At, usize, u32), buffer: Buffer, chunk: usize) -> Option<&Value> {
        let cell = self.cell(buffer, chunk, by.0.round);
        self.borrowers[cell].push(by);
        self.cells[cell].as_ref()
    }

    /// The output at the end.
    pub(super) fn output(&self, chunk: usize, round: usize) -> Option<&Value> {
        self.cells[self.cell(Buffer::Output, chunk, round)].as_ref()
    }
}

impl Touches {
    /// Whether an access comes after the earlier ones that it conflicts with; if not, which it is.
    fn ordered(&self, by: &Accessor, writes: bool) -> Result<(), At> {
        let readers = if writes { &self.readers[..] } else { &[] };
        let unordered =
            self.writer.iter().chain(readers).find(|(at, tick)| by.clock.of(by.first_lane + at.lane) < *tick);
        unordered.map_or(Ok(()), |(at, _)| Err(*at))
    }
}
