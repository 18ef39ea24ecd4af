//! A lender whose operation fails has its buffer back and writes it, while another process still reads. That one gets
//! what was lent or an error.

mod ranks;

use std::time::Duration;

use maypole::{Communicator, Config, ReduceOp, UniqueId};
use nix::sys::signal::{Signal, kill};
use ranks::{Job, role, say};

const ROUNDS: usize = 200;
/// Bytes that are lent. It takes about as long to read them as to learn of a death.
const LENT: usize = 8 << 20;
/// One publication holds all of it: the lender waits for nobody until the end.
const WINDOW: &str = "8M";
/// The first makes the world of each round and lends, the second reads, and the third, a new process each time, is
/// killed.
const WORLD: usize = 3;

fn settings() -> Config {
    let mut config = Config::from_env().unwrap();
    config.set("MAYPOLE_ALGORITHM", "one_shot").unwrap();
    config
}

/// A rank's part of one round: what rank 1 has in the end. Rank 0 lends `lent`, and writes it as soon as it may.
fn play(comm: &Communicator, round: usize, out: &mut [u8]) -> maypole::Result<()> {
    let me = comm.rank();
    let mut lent = comm.alloc::<u8>(LENT)?;
    lent.fill(u8::from(me == 0));
    out.fill(0);
    comm.barrier()?;
    let pause = |step: u64, steps: usize| Duration::from_micros(step * (round / 4 % steps) as u64);
    match me {
        0 => {}
        // So that it is at any place of what is lent when the lender fails.
        1 => std::thread::sleep(pause(250, 16)),
        _ => {
            let life = pause(100, 10);
            std::thread::spawn(move || {
                std::thread::sleep(life);
                kill(nix::unistd::getpid(), Signal::SIGKILL)
            });
            // Killed within the operation, or where the others have come and it has not.
            if round % 4 < 2 {
                std::thread::sleep(ranks::PATIENCE);
            }
        }
    }
    // A reader that copies what is lent, or one that folds it into its own.
    let outcome = match round % 2 {
        0 => comm.broadcast_from(&lent[..if me == 0 { LENT } else { 0 }], out, 0),
        _ => comm.scan(&lent, out, ReduceOp::Max),
    };
    if me == 0 {
        // From behind, where the reader comes last.
        lent.rchunks_mut(LENT / 16).for_each(|part| part.fill(2));
    }
    outcome
}

/// How a round ended for a rank.
const FAILED: u8 = 0;
const FINE: u8 = 1;
const TORN: u8 = 2;

/// The first two ranks, in every round.
fn stay() {
    let pair = Communicator::from_env().unwrap();
    let me = pair.rank();
    let mut out = vec![0; LENT];
    for round in 0..ROUNDS {
        let mut id = [0; 128];
        if me == 0 {
            id = *UniqueId::create(&settings()).unwrap().as_bytes();
            say(id.map(|byte| format!("{byte:02x}")).concat());
        }
        pair.broadcast(&mut id, 0).unwrap();
        let comm = Communicator::from_id(&UniqueId::from_bytes(&id).unwrap(), me, WORLD, settings());
        let outcome = comm.and_then(|comm| play(&comm, round, &mut out));
        let code = match outcome {
            Err(_) => FAILED,
            Ok(()) if me == 0 || out.iter().all(|byte| *byte == 1) => FINE,
            Ok(()) => TORN,
        };
        // One of them speaks for both, so that the test hears everything in order.
        let mut codes = [0; 2];
        pair.all_gather(&[code], &mut codes).unwrap();
        if me == 0 {
            say(format!("{} {}", codes[0], codes[1]));
        }
    }
}

/// The one that is killed.
fn die(round: usize) {
    let id = std::env::var("TAKEN_BACK_ID").unwrap();
    let bytes: Vec<u8> = (0..128).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()).collect();
    let id = UniqueId::from_bytes(&bytes).unwrap();
    let comm = Communicator::from_id(&id, WORLD - 1, WORLD, settings()).unwrap();
    let _ = play(&comm, round, &mut vec![0; LENT]);
    std::thread::sleep(ranks::PATIENCE);
}

#[test]
fn a_reader_returns_what_was_lent_or_an_error() {
    role(|role| match role.parse() {
        Ok(round) => die(round),
        Err(_) => stay(),
    });
    const NAME: &str = "a_reader_returns_what_was_lent_or_an_error";
    let shared = [("MAYPOLE_TRANSPORT", "shm"), ("MAYPOLE_WINDOW", WINDOW)];
    let mut two = Job::start(NAME, "stay", 2, &shared);
    let (mut failed, mut torn, mut intact) = (0, 0, 0);
    for round in 0..ROUNDS {
        let id = two.hear(&[0]).remove(0).1;
        let extra = [shared[0], shared[1], ("TAKEN_BACK_ID", &id)];
        let _victim = Job::start(NAME, &round.to_string(), 1, &extra);
        let codes = two.hear(&[0]).remove(0).1;
        let [lender, reader] = [0, 2].map(|at| codes.as_bytes()[at] - b'0');
        failed += usize::from(lender == FAILED);
        torn += usize::from(reader == TORN);
        intact += usize::from(reader == FINE);
    }
    two.end(&[0, 1]);
    println!(
        "of {ROUNDS} rounds the lender failed in {failed}; the reader had all in {intact} and a mixture in {torn}"
    );
    assert_eq!(torn, 0, "of {ROUNDS} readers so many returned Ok with what was written after it was lent");
    assert!(failed > ROUNDS / 2, "the lender failed in only {failed} of {ROUNDS} rounds: the others say nothing");
}
