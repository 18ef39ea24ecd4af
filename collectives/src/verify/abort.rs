//! What happens to the others when a rank stops.
//!
//! A rank that dies, or gives up, leaves others waiting. The executor frees them by telling those that wait for it,
//! which tell those that wait for them. That works, and puts the blame on the right rank, if from every lane that is
//! left waiting a chain of waits leads to the rank that stopped. Who waits for whom does not depend on values, nor on
//! whether the call is in place.

use super::fault::{At, Fault};
use super::machine::{Machine, ROUNDS};
use super::world::World;

/// Steps that may be run, over all stops, before the stops are thinned out.
const BUDGET: usize = 6000;

/// Stops a rank before each of its steps, in each round; in larger worlds before some of them, evenly spread.
pub(super) fn check(world: &World) -> Result<(), Fault> {
    let per_round: usize = world.programs.iter().map(Vec::len).sum();
    let stops = ROUNDS * per_round;
    if stops == 0 {
        return Ok(());
    }
    let tried = (BUDGET / stops).clamp(2, stops);
    // Half a stride in, shifted by root and size, so that different worlds stop at different places.
    let phase = (world.root * 7 + world.size * 3) % stops;
    for i in 0..tried {
        check_stop(world, nth_stop(world, per_round, (i * stops / tried + phase) % stops))?;
    }
    Ok(())
}

fn nth_stop(world: &World, per_round: usize, n: usize) -> At {
    let (round, mut step) = (n / per_round, n % per_round);
    let mut actor = 0;
    while step >= world.programs[actor].len() {
        step -= world.programs[actor].len();
        actor += 1;
    }
    let (rank, lane) = world.actors[actor];
    At { rank, lane, step, round }
}

fn check_stop(world: &World, stopped: At) -> Result<(), Fault> {
    let mut machine = Machine::stopping(world, stopped);
    machine.run()?;
    let mut left = machine.blocked();
    let mut told = vec![false; world.size];
    told[stopped.rank] = true;
    loop {
        let before = left.len();
        left.retain(|blocked| {
            let freed = blocked.wait.ranks().iter().any(|&rank| told[rank]);
            if freed {
                told[blocked.at.rank] = true;
            }
            !freed
        });
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == before {
            return Err(Fault::Stranded { stopped, blocked: left.remove(0) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Collective, Region, Schedule, Step};

    struct Written(Vec<Step>);

    impl Schedule for Written {
        fn pieces(&self) -> usize {
            1
        }
        fn steps(&self, _lane: usize) -> usize {
            self.0.len()
        }
        fn step(&self, _lane: usize, i: usize) -> Step {
            self.0[i]
        }
        fn message_chunks(&self) -> usize {
            1
        }
    }

    fn world(programs: [Vec<Step>; 3]) -> World {
        let schedules: Vec<Box<dyn Schedule>> = programs.map(|p| Box::new(Written(p)) as Box<dyn Schedule>).into();
        World::new(&schedules, Collective::Barrier, 0, false).unwrap()
    }

    fn send(to: usize) -> Step {
        Step::Send { to, src: Region::EMPTY }
    }
    fn recv(from: usize) -> Step {
        Step::Recv { from, dst: Region::EMPTY }
    }

    /// Whoever waits behind others for the stopped rank is freed; a wait that has nothing to do with it is not.
    #[test]
    fn blames_the_stopped_rank_only_for_what_it_causes() {
        let line = world([vec![send(1)], vec![recv(0), send(2)], vec![recv(1)]]);
        assert_eq!(check(&line), Ok(()));

        let apart = world([vec![send(1), recv(1)], vec![recv(0), recv(2), send(0)], vec![recv(1), send(1)]]);
        let stop = At { rank: 0, lane: 0, step: 0, round: 0 };
        // Rank 2 waits for rank 1, which waits for rank 0: all freed.
        assert_eq!(check_stop(&apart, stop), Ok(()));
        // Once rank 0 has sent, ranks 1 and 2 wait for each other, which is not the stopped rank's doing.
        let stop = At { step: 1, ..stop };
        let Err(Fault::Stranded { stopped, blocked }) = check_stop(&apart, stop) else { panic!("not noticed") };
        assert_eq!((stopped, blocked.at.rank), (stop, 1));
        assert_eq!(blocked.wait.ranks(), [2]);
    }
}
