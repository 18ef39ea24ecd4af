//! Splitting a communicator: who gets into which child and in which order, children that work at the same time, their
//! parents, and their children.

mod ranks;

use maypole::config::TransportChoice;
use maypole::{Communicator, Config, ReduceOp};
use ranks::{Job, config, role, say, threads};

/// The world ranks of a communicator's members, in its order.
fn members(comm: &Communicator, world_rank: usize) -> Vec<u64> {
    let mut all = vec![0; comm.size()];
    comm.all_gather(&[world_rank as u64], &mut all).unwrap();
    all
}

fn sum(comm: &Communicator, count: usize, what: &str) {
    let mut buffer = vec![comm.rank() as f64; count];
    comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap_or_else(|e| panic!("{what}: {e}"));
    let want = (0..comm.size()).sum::<usize>() as f64;
    assert!(buffer.iter().all(|x| *x == want), "{what}: wrong sums");
}

/// Everything that split promises, for a world of six.
fn check(world: &Communicator) {
    let me = world.rank();
    assert_eq!(world.size(), 6);

    // Colors divide, equal keys keep the order.
    let parity = world.split(Some((me % 2) as u32), 0).unwrap().expect("it gave a color");
    assert_eq!(members(&parity, me), if me.is_multiple_of(2) { [0, 2, 4] } else { [1, 3, 5] });
    assert_eq!((parity.rank(), parity.size()), (me / 2, 3));

    // Keys reorder, negative ones too; colors may be any number.
    let reversed = world.split(Some(u32::MAX), -(me as i64)).unwrap().unwrap();
    assert_eq!(members(&reversed, me), [5, 4, 3, 2, 1, 0]);
    assert_eq!(reversed.rank(), 5 - me);
    let keys = [3, i64::MIN, 3, i64::MAX, 0, -7];
    let sorted = world.split(Some(0), keys[me]).unwrap().unwrap();
    assert_eq!(members(&sorted, me), [1, 5, 4, 0, 2, 3]);

    // Some stay out.
    let some = world.split((me != 2).then_some(7), 0).unwrap();
    assert_eq!(some.is_some(), me != 2);
    if let Some(some) = &some {
        assert_eq!(members(some, me), [0, 1, 3, 4, 5]);
    }
    assert!(world.split(None, 0).unwrap().is_none(), "nobody wants a child");

    // Children of one, and children of children.
    let alone = world.split(Some(me as u32), 0).unwrap().unwrap();
    assert_eq!((alone.rank(), alone.size()), (0, 1));
    sum(&alone, 100, "alone");
    let grandchild = reversed.split(Some((me / 3) as u32), 0).unwrap().unwrap();
    assert_eq!(members(&grandchild, me), if me < 3 { [2, 1, 0] } else { [5, 4, 3] });
    let last = grandchild.split(Some(0), me as i64).unwrap().unwrap();
    assert_eq!(members(&last, me), if me < 3 { [0, 1, 2] } else { [3, 4, 5] });

    // All of them at once, and the parents in between. Each by a thread of its own.
    let all = [world, &parity, &reversed, &sorted, &grandchild, &last];
    std::thread::scope(|s| {
        for (i, comm) in all.iter().enumerate() {
            s.spawn(move || {
                for count in [1, 700, 20_000, 3] {
                    sum(comm, count, &format!("communicator {i}"));
                }
            });
        }
    });
    // Messages of different communicators do not mix.
    let (right, left) = ((reversed.rank() + 1) % 6, (reversed.rank() + 5) % 6);
    let (mut a, mut b) = ([0u32; 3], [0u32; 3]);
    reversed.send_recv(&[me as u32; 3], right, &mut a, left).unwrap();
    world.send_recv(&[100 + me as u32; 3], (me + 1) % 6, &mut b, (me + 5) % 6).unwrap();
    assert_eq!((a, b), ([(me as u32 + 1) % 6; 3], [100 + (me as u32 + 5) % 6; 3]));

    // A parent that goes first leaves its children whole, and children that go leave the parent whole.
    drop((reversed, parity, sorted));
    sum(&last, 5000, "a grandchild without its parent");
    drop((last, grandchild, some, alone));
    sum(world, 5000, "the world without its children");
}

#[test]
fn threads_split() {
    threads(6, &config(TransportChoice::Auto), |world| check(&world));
}

#[test]
fn threads_split_over_tcp() {
    threads(6, &config(TransportChoice::Tcp), |world| check(&world));
}

#[test]
fn processes_split() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        check(&world);
        let mut child = world.split(Some(0), 0).unwrap().unwrap();
        drop(world);
        // The last of a line is enough to make more.
        for _ in 0..5 {
            child = child.split(Some(1), 0).unwrap().unwrap();
            sum(&child, 50, "a line of children");
        }
        say("fine");
    });
    for transport in ["shm", "tcp"] {
        let mut job = Job::start("processes_split", "", 6, &[("MAYPOLE_TRANSPORT", transport)]);
        assert!(job.hear(&[0, 1, 2, 3, 4, 5]).iter().all(|(_, line)| line == "fine"));
        job.end(&[0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn processes_on_different_hosts_split() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        check(&world);
        // Children within a host, made from a world that spans several.
        let host = world.split(Some((world.rank() / 2) as u32), 0).unwrap().unwrap();
        sum(&host, 10_000, "a host");
        say("fine");
    });
    let hosts = ["a", "a", "b", "b", "c", "c"];
    let places: Vec<_> = (0..6).map(|rank| (rank, 6, vec![("MAYPOLE_HOST", hosts[rank].to_string())])).collect();
    let mut job = Job::start_at("processes_on_different_hosts_split", "", &places, &[]);
    assert!(job.hear(&[0, 1, 2, 3, 4, 5]).iter().all(|(_, line)| line == "fine"));
    job.end(&[0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_world_of_one_splits() {
    let world = Communicator::threads_with(1, Config::default()).unwrap().remove(0);
    assert!(world.split(None, 0).unwrap().is_none());
    let child = world.split(Some(3), 9).unwrap().unwrap();
    assert_eq!((child.rank(), child.size()), (0, 1));
    sum(&child, 10, "alone");
}

#[test]
fn children_dropped_at_once_disturb_nobody() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(3, &config(transport), |world| {
            for round in 0..20 {
                let child = world.split(Some(0), 0).unwrap().unwrap();
                if world.rank() == round % 3 {
                    drop(child);
                } else {
                    let other = child.split(None, 0);
                    // The rank that left is missed, but nothing hangs and the parent goes on.
                    assert!(other.is_err());
                }
                sum(&world, 10, "the parent");
            }
        });
    }
}
