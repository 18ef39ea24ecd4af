//! What must hold when nobody can go on any more.

use super::Folds;
use super::fault::{Blocked, Fault, Wait};
use super::machine::{Machine, ROUNDS};
use super::value::{Ranks, Value, describe};
use super::world::World;
use crate::catalogue::Contributions;
use crate::schedule::{Place, Rank};

impl Machine<'_> {
    /// Everybody has finished, every message was received and every publication fetched.
    pub(super) fn check_end(&self) -> Result<(), Fault> {
        let blocked = self.blocked();
        let over = |actor: usize| self.actors[actor].round == ROUNDS;
        // A lane that waits for a rank which has finished shows the cause; others may wait for that lane.
        for b in &blocked {
            let gone = |rank: &Rank| self.world.actors_of(*rank).all(over);
            if b.wait.ranks().iter().any(gone) {
                return Err(self.in_vain(b));
            }
        }
        if !blocked.is_empty() {
            return Err(Fault::Deadlock(blocked));
        }
        // What the last round left: nobody waits for its place any more.
        if let Some((link, ends)) = self.links.iter().zip(&self.world.links).find(|(link, _)| link.message.is_some()) {
            let sender = link.message.as_ref().expect("just found").at;
            return Err(Fault::NeverReceived { sender, to: ends.to });
        }
        match (0..self.windows.len()).find(|&owner| self.windows[owner].missing > 0) {
            Some(owner) => Err(self.never_fetched(owner)),
            None => Ok(()),
        }
    }

    /// What is wrong when a lane waits for a rank that has finished.
    fn in_vain(&self, b: &Blocked) -> Fault {
        let actor = self.world.actor(b.at.rank, b.at.lane);
        match b.wait {
            Wait::Message(_) | Wait::Publication(..) => Fault::NeverComes(b.clone()),
            Wait::Fetches(_) => self.never_fetched(actor),
            Wait::Room(to) => {
                let link = self.world.programs[actor][b.at.step].puts;
                let sender = self.links[link].message.as_ref().expect("a sender waits only for a full link").at;
                Fault::NeverReceived { sender, to }
            }
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
        if world.collective.reduces() && world.collective.gives_all_the_same() {
            for chunk in 0..world.pieces {
                let bits = |rank: Rank| self.memories[rank].output(chunk, 0).map(|value| value.expression);
                if let Some(rank) = (1..world.size).find(|&rank| bits(rank) != bits(0)) {
                    return Err(Fault::Diverges { rank, chunk });
                }
            }
        }
        Ok(())
    }

    /// Every chunk of every output is combined in the order that was promised. The outputs are
    /// right otherwise.
    pub(super) fn check_order(&self, promise: Folds) -> Result<(), Fault> {
        let world = self.world;
        if !world.collective.reduces() || promise == Folds::InAnyOrder {
            return Ok(());
        }
        for (rank, memory) in self.memories.iter().enumerate() {
            for chunk in 0..world.sizes[rank].output {
                let (block, ranks) = promised(world, rank, chunk / world.pieces);
                let found = memory.output(chunk, 0);
                if !found.is_some_and(|value| value.in_rank_order) {
                    return Err(Fault::OutOfOrder { rank, chunk });
                }
                let fold = || Value::left_fold(&ranks, world.size, block).expression;
                if promise == Folds::FromTheLeft && found.map(|value| value.expression) != Some(fold()) {
                    return Err(Fault::NotCanonical { rank, chunk });
                }
            }
        }
        Ok(())
    }

    /// Barriers: every rank's leaving comes after every rank's coming.
    pub(super) fn check_barrier(&self) -> Result<(), Fault> {
        let world = self.world;
        if !world.collective.is_barrier() {
            return Ok(());
        }
        for (round, exits) in self.exits.iter().enumerate() {
            for rank in 0..world.size {
                let exits = &exits[world.actors_of(rank)];
                // A rank has come once any of its lanes has made its first step of the round.
                let heard = |actor: usize| {
                    let first = round * world.programs[actor].len() + 1;
                    exits.iter().any(|clock| clock.of(actor) as usize >= first)
                };
                let unheard = |&other: &Rank| other != rank && !world.actors_of(other).any(heard);
                if let Some(other) = (0..world.size).find(unheard) {
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
    let Contributions { ranks, block } = world.collective.contributions(Place { rank, size, root }, block);
    (block, Ranks::of(ranks, size))
}
