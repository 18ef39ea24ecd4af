//! What must hold when nobody can go on any more.

use super::fault::{Fault, Wait};
use super::machine::{Machine, ROUNDS};
use super::value::{Ranks, Value, describe};
use super::world::World;
use crate::schedule::{Collective, Rank};

impl Machine<'_> {
    /// Everybody has finished, every message was received and every publication fetched.
    pub(super) fn check_end(&self) -> Result<(), Fault> {
        let blocked = self.blocked();
        for b in &blocked {
            // A publisher that waits for a rank whose lane is over shows the cause; the others wait for the publisher.
            let Wait::Fetches(missing) = &b.wait else { continue };
            let lanes = self.world.lanes;
            if missing.iter().any(|rank| self.actors[rank * lanes + b.at.lane].round == ROUNDS) {
                return Err(self.never_fetched(b.at.rank * lanes + b.at.lane));
            }
        }
        if !blocked.is_empty() {
            return Err(Fault::Deadlock(blocked));
        }
        for (link, ends) in self.links.iter().zip(&self.world.links) {
            if let Some(parcel) = &link.message {
                return Err(Fault::LeftOver { sender: parcel.at, to: ends.to });
            }
        }
        match (0..self.windows.len()).find(|&owner| self.windows[owner].missing > 0) {
            Some(owner) => Err(self.never_fetched(owner)),
            None => Ok(()),
        }
    }

    fn never_fetched(&self, owner: usize) -> Fault {
        let publisher = self.windows[owner].parcel.as_ref().expect("only what was published is missed").at;
        Fault::NeverFetched { publisher, missing: self.not_fetched(owner) }
    }

    /// Every chunk of every output holds what the collective promises, and where all ranks get the same, they get the
    /// same bits.
    pub(super) fn check_outputs(&self) -> Result<(), Fault> {
        let world = self.world;
        for (rank, memory) in self.memories.iter().enumerate() {
            for chunk in 0..world.sizes[rank].output {
                let (block, ranks) = promised(world, rank, chunk / world.pieces);
                for round in 0..ROUNDS {
                    let found = memory.output(chunk, round);
                    if !found.is_some_and(|value| value.is(round, block, &ranks)) {
                        let found = found.map_or("nothing".to_owned(), Value::to_string);
                        return Err(Fault::Wrong { rank, round, chunk, found, expected: describe(block, &ranks) });
                    }
                }
            }
        }
        if world.collective == Collective::AllReduce {
            for chunk in 0..world.pieces {
                let bits = |rank: Rank| self.memories[rank].output(chunk, 0).map(|value| value.expression);
                if let Some(rank) = (1..world.size).find(|&rank| bits(rank) != bits(0)) {
                    return Err(Fault::Diverges { rank, chunk });
                }
            }
        }
        Ok(())
    }

    /// Barriers: every rank's leaving comes after every rank's coming.
    pub(super) fn check_barrier(&self) -> Result<(), Fault> {
        let World { size, lanes, .. } = *self.world;
        if self.world.collective != Collective::Barrier {
            return Ok(());
        }
        for (round, exits) in self.exits.iter().enumerate() {
            for rank in 0..size {
                let exits = &exits[rank * lanes..][..lanes];
                // A rank has come once any of its lanes has made its first step of the round.
                let heard = |actor: usize| {
                    let first = round * self.world.programs[actor].len() + 1;
                    exits.iter().any(|clock| clock[actor] as usize >= first)
                };
                let unheard = |&other: &Rank| other != rank && !(other * lanes..(other + 1) * lanes).any(heard);
                if let Some(other) = (0..size).find(unheard) {
                    return Err(Fault::EarlyExit { rank, other, round });
                }
            }
        }
        Ok(())
    }
}

/// Which block of whom block `block` of a rank's output ends as.
fn promised(world: &World, rank: Rank, block: usize) -> (usize, Ranks) {
    let World { size, root, .. } = *world;
    let only = |rank| Ranks::only(rank, size);
    match world.collective {
        Collective::AllReduce | Collective::Reduce => (0, Ranks::all(size)),
        Collective::ReduceScatter => (rank, Ranks::all(size)),
        Collective::Broadcast => (0, only(root)),
        Collective::Scatter => (rank, only(root)),
        Collective::AllGather | Collective::Gather => (0, only(block)),
        Collective::AllToAll => (rank, only(block)),
        Collective::Barrier => unreachable!("a barrier has no output"),
    }
}
