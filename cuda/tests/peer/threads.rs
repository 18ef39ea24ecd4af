//! Ranks that are threads of one process.

use std::sync::Arc;
use std::time::Duration;

use maypole_cuda::peer::{Bases, FAR, Mapped, Member, Offer, SILENT, Shape, Window};
use maypole_cuda::{Commands, Context, CudaError, DeviceMemory, HostRegion, Reach, Stream, expect_device};

use crate::ranks::{Place, Rank, pair, shared_bytes};
use crate::traffic::{Lost, Traffic, pass_round, publish_and_fetch};
use crate::{TURN, emulated};

/// Runs `act` on every member, each a thread with a stream of its own, and returns how many of them panicked.
fn failing(members: usize, shape: Shape, place: Place, devices: usize, act: impl Fn(&mut Rank) + Sync) -> usize {
    let region = HostRegion::private(shared_bytes(shape));
    std::thread::scope(|scope| {
        let start = |me: usize| {
            let (region, act) = (&region, &act);
            scope.spawn(move || {
                let context = Context::primary(me % devices).unwrap();
                let mut rank = Rank::attach(&context, me, shape, place, region).unwrap();
                act(&mut rank);
                assert!(rank.leave(), "threads give their memory back at once");
            })
        };
        let threads: Vec<_> = (0..members).map(start).collect();
        threads.into_iter().map(|thread| thread.join().is_err() as usize).sum()
    })
}

/// [`failing`], and none does.
fn ranks(members: usize, shape: Shape, place: Place, devices: usize, act: impl Fn(&mut Rank) + Sync) {
    assert_eq!(failing(members, shape, place, devices, act), 0, "members whose part failed");
}

fn small(members: usize, channels: usize) -> Shape {
    Shape::new(members, 1000, &vec![4 * 256; channels])
}

#[test]
fn publications_arrive_whatever_the_order_that_cuda_leaves_open() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    for seed in 0..6 {
        emulator.set("CHAOS", &seed.to_string());
        let members = 2 + seed % 3;
        ranks(members, small(members, 1), Place::Device, 1, |rank| publish_and_fetch(rank, Traffic::of_all(12)));
        let one = Traffic { active: 1, ..Traffic::of_all(12) };
        ranks(members, small(members, 1), Place::Device, 1, |rank| publish_and_fetch(rank, one));
    }
    emulator.set("CHAOS", "0");
}

#[test]
fn messages_arrive_whatever_the_order_that_cuda_leaves_open() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    for seed in 0..6 {
        emulator.set("CHAOS", &seed.to_string());
        let members = 2 + seed % 3;
        ranks(members, small(members, 2), Place::Device, 1, |rank| pass_round(rank, Traffic::of_all(12)));
        let one = Traffic { active: 1, ..Traffic::of_all(12) };
        ranks(members, small(members, 2), Place::Device, 1, |rank| pass_round(rank, one));
    }
    emulator.set("CHAOS", "0");
}

#[test]
fn staging_in_host_memory_is_the_same_to_both() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    emulator.set("CHAOS", "3");
    ranks(3, small(3, 1), Place::Host, 1, |rank| {
        assert!(!rank.staging.is_on_device());
        publish_and_fetch(rank, Traffic::of_all(8));
        pass_round(rank, Traffic::of_all(6));
    });
    emulator.set("CHAOS", "0");
}

/// Threads with a device each, which reach each other's memory by plain addresses once that is allowed.
#[test]
fn threads_on_devices_of_their_own_reach_each_other() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    ranks(3, small(3, 1), Place::Device, 3, |rank| {
        assert_eq!(rank.context.ordinal(), rank.me);
        publish_and_fetch(rank, Traffic::of_all(6));
        pass_round(rank, Traffic::of_all(6));
    });
}

#[test]
fn devices_that_do_not_reach_each_other_are_named() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    emulator.set("PEER_ACCESS", "0");
    let [first, second] = [0, 1].map(|ordinal| Context::primary(ordinal).unwrap());
    let reaches = |other: &Context| first.reaches(other.uuid()).unwrap();
    assert_eq!([reaches(&second), reaches(&first)], [Reach::NotReached, Reach::Reached]);
    assert_eq!(Member::new(&second).is_reached_by(&first).unwrap(), Reach::NotReached);
    let error = first.enable_peer(&second).unwrap_err();
    assert_eq!(error, CudaError::PeerRefused { from: 0, to: "1".into() });
    assert!(error.to_string().contains("MAYPOLE_DEVICE_STAGING=host"), "{error}");
    // And through host memory they pass bytes all the same.
    ranks(3, small(3, 1), Place::Host, 3, |rank| publish_and_fetch(rank, Traffic::of_all(6)));
    emulator.set("PEER_ACCESS", "1");
}

/// Each kind of wait is needed, and its loss shows: otherwise the tests above would prove nothing.
#[test]
fn each_wait_that_is_left_out_shows() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    type Act = fn(&mut Rank, Traffic);
    let acts: [(&str, Act); 2] = [("publications", publish_and_fetch), ("messages", pass_round)];
    for (what, act) in acts {
        for lost in [Lost::Arrival, Lost::Room] {
            let shows = |seed: usize| {
                emulator.set("CHAOS", &seed.to_string());
                let traffic = Traffic { count: 12, active: 1, lost };
                failing(2, small(2, 1), Place::Device, 1, |rank| act(rank, traffic)) > 0
            };
            let seed = (1..=40).find(|seed| shows(*seed));
            assert!(seed.is_some(), "{what} arrive without the waits for {lost:?}, with each of 40 seeds");
            eprintln!("{what} without the waits for {lost:?}: wrong bytes with seed {seed:?}");
        }
    }
    emulator.set("CHAOS", "0");
}

/// The same from the driver's side: streams that lose a wait that was queued.
#[test]
fn waits_that_the_driver_loses_show() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    type Act = fn(&mut Rank);
    let acts: [(&str, Act); 2] = [
        ("publications", |rank| publish_and_fetch(rank, Traffic::of_all(12))),
        ("messages", |rank| pass_round(rank, Traffic::of_all(12))),
    ];
    for (what, act) in acts {
        let shown = |nth: &str, seeds: usize| {
            let shows = |seed: &usize| {
                emulator.set("CHAOS", &seed.to_string());
                emulator.set("DROP", &format!("wait:{nth}"));
                let shows = failing(2, small(2, 1), Place::Device, 1, act) > 0;
                emulator.set("DROP", "");
                shows
            };
            (1..=seeds).filter(shows).count()
        };
        assert!(shown("all", 4) > 0, "{what} without any wait");
        let single: Vec<usize> = ["1", "2", "3", "5", "8"].map(|nth| shown(nth, 8)).to_vec();
        eprintln!("{what}: of 8 seeds, wrong bytes after the loss of wait 1, 2, 3, 5, 8: {single:?}");
        assert!(single.iter().sum::<usize>() > 0, "{what}: the loss of a single wait never shows");
    }
    emulator.set("CHAOS", "0");
}

/// Without stream memory operations, threads that share a process are refused, since their host functions would wait
/// for each other in one queue.
#[test]
fn threads_without_memory_operations_are_refused() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let with = Member::new(&Context::primary(0).unwrap());
    emulator.set("MEMORY_OPERATIONS", "0");
    // Nobody holds the context from above any more, so this one is asked anew.
    let context = Context::primary(0).unwrap();
    emulator.set("MEMORY_OPERATIONS", "1");
    let without = Member::new(&context);
    assert!(with.has_memory_operations() && !without.has_memory_operations() && with.shares_process_with(&without));
    Member::check_waiting(&context, 0, &[with, with]).unwrap();
    Member::check_waiting(&context, 0, &[without]).unwrap();
    for members in [[without, without], [with, without]] {
        let error = Member::check_waiting(&context, 0, &members).unwrap_err();
        assert_eq!(error, CudaError::NoMemoryOperations { ordinal: 0 });
        assert!(error.to_string().contains("each rank in a process of its own"), "{error}");
    }
}

/// What is lent may be touched when everybody has read it, and not before.
#[test]
fn a_lender_waits_until_all_have_read() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let ranks = pair(&context, small(2, 1));
    let mut windows = [0, 1].map(|me| Window::new(&ranks[me].words, &ranks[me].staging, me));
    for number in 0..3 {
        let mut commands = Commands::new(&ranks[0].stream).unwrap();
        windows[0].begin_publish(&mut commands).unwrap();
        windows[0].end_publish(&mut commands).unwrap();
        windows[0].wait_unread(&mut commands).unwrap();
        windows[0].end_round(&mut commands, 1).unwrap();
        commands.finish().unwrap();
        while !ranks[0].words.published(0).is_at_least(number + 1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(5));
        let waits = !ranks[0].stream.is_idle().unwrap();
        let mut commands = Commands::new(&ranks[1].stream).unwrap();
        windows[1].begin_fetch(&mut commands, 0, number).unwrap();
        windows[1].end_fetch(0, number);
        windows[1].finish(&mut commands, 1).unwrap();
        windows[1].end_round(&mut commands, 1).unwrap();
        commands.finish().unwrap();
        ranks.iter().for_each(Rank::drain);
        assert!(waits, "the lender went on before anybody had read publication {number}");
    }
}

/// Who only publishes, as the root of many broadcasts, has nothing to say that it has read. The others' turns are so far
/// behind when they publish again that they must not be compared with.
#[test]
fn who_has_read_nothing_for_long_says_how_far_it_is() {
    const TURNS: u32 = FAR + SILENT + 10;
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let ranks = pair(&context, small(2, 1));
    let mut windows = [0, 1].map(|me| Window::new(&ranks[me].words, &ranks[me].staging, me));
    // One round, in which one publishes and the other fetches.
    let mut round = |publisher: usize, number: u32| {
        let reader = 1 - publisher;
        let mut commands = Commands::new(&ranks[publisher].stream).unwrap();
        windows[publisher].begin_publish(&mut commands).unwrap();
        windows[publisher].end_publish(&mut commands).unwrap();
        windows[publisher].end_round(&mut commands, 1).unwrap();
        commands.finish().unwrap();
        let mut commands = Commands::new(&ranks[reader].stream).unwrap();
        windows[reader].begin_fetch(&mut commands, publisher, number).unwrap();
        windows[reader].end_fetch(publisher, number);
        windows[reader].finish(&mut commands, 1).unwrap();
        windows[reader].end_round(&mut commands, 1).unwrap();
        commands.finish().unwrap();
        windows[publisher].unread()
    };
    assert_eq!(round(1, 0), 1);
    (0..TURNS).for_each(|number| assert_eq!(round(0, number), number + 2));
    ranks.iter().for_each(Rank::drain);
    let finished = |member| ranks[0].words.finished(member).load();
    assert_eq!(finished(1), TURNS + 1, "who reads says so each time");
    assert!(TURNS + 1 - finished(0) < SILENT, "{} of {TURNS}", finished(0));
    for number in 1..4 {
        round(1, number);
    }
    ranks.iter().for_each(Rank::drain);
    assert_eq!(ranks[0].words.published(1).load(), 4);
    let mut commands = Commands::new(&ranks[1].stream).unwrap();
    (0..TURNS).for_each(|_| windows[0].end_round(&mut commands, 1).unwrap());
    assert_eq!(windows[0].unread(), 2 * TURNS + 4 - FAR, "what is further back is not compared with");
    drop(commands);
}

/// Registered buffers: each member sees all parts, and kernels find the addresses in the table.
#[test]
fn registered_memory_is_found_by_its_number() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let parts = [7, 9].map(|value| {
        let part = Arc::new(DeviceMemory::exportable(&context, 64).unwrap());
        part.fill(0, 64, value).unwrap();
        part
    });
    let offers: Vec<Offer> = parts.iter().map(|part| Offer::new(part, false).unwrap()).collect();
    let mapped = Mapped::join(parts[0].clone(), 0, &offers).unwrap();
    assert!(mapped.addresses() == [parts[0].address(), parts[1].address()] && !mapped.is_exported());
    let bases = Bases::new(&context, 2).unwrap();
    bases.set(5, mapped.addresses()).unwrap();
    let (row, stream) = (DeviceMemory::new(&context, 8 * 8).unwrap(), Stream::new(&context).unwrap());
    for (member, part) in parts.iter().enumerate() {
        let mut commands = Commands::new(&stream).unwrap();
        // SAFETY: a row is longer than that, and everything stays until the stream is synchronized.
        unsafe { commands.copy(row.address(), bases.row(member), 8 * 8) }.unwrap();
        commands.finish().unwrap();
        stream.synchronize().unwrap();
        let mut found = [0u64; 8];
        row.copy_to_host(0, bytemuck::bytes_of_mut(&mut found)).unwrap();
        let mut expected = [0; 8];
        expected[5] = part.address();
        assert_eq!(found, expected);
    }
    // The others' memory stays as long as it is mapped, though its owner has dropped it.
    let [own, theirs] = parts;
    let address = theirs.address();
    drop((own, theirs));
    expect_device(&context, address, 64).unwrap();
    drop(mapped.close());
    expect_device(&context, address, 64).unwrap_err();
    // And an offer whose memory is gone is refused.
    let own = Arc::new(DeviceMemory::new(&context, 64).unwrap());
    let (_, error) = Mapped::join(own, 0, &offers).unwrap_err();
    assert!(error.to_string().contains("the rank that offered it has dropped it"), "{error}");
}
