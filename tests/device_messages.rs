//! Messages from device memory to device memory, queued on streams.

mod ranks;
mod streams;

use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::cuda::{DeviceBuffer, Stream};
use maypole::{Communicator, Config, Error, F8E4M3, Result, Verdict};
use ranks::{Job, Meeting, common_verdict, config, role, say};
use streams::{Rank, threads};

/// Links of four slots of 4 KiB, so that little memory takes many laps.
fn small_links() -> Config {
    let mut config = config(TransportChoice::Auto);
    config.set("MAYPOLE_DEVICE_FIFO", "16384").unwrap();
    config
}

/// What rank `from` sends to rank `to` as its message `number`: `count` elements that no other message has.
fn content(from: usize, to: usize, number: usize, count: usize) -> Vec<u32> {
    let seed = ((from * 31 + to) * 31 + number) as u32;
    (0..count as u32).map(|i| seed.wrapping_mul(0x9e37_79b9).wrapping_add(i.wrapping_mul(0x85eb_ca6b))).collect()
}

/// Counts of elements from none to many laps around the links.
const COUNTS: [usize; 8] = [0, 1, 7, 1023, 1024, 1025, 9000, 60_001];

/// Every rank sends to every other and to itself, one group.
fn all_to_all(rank: &Rank, count: usize) -> Result<()> {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let out: Vec<DeviceBuffer<u32>> =
        (0..size).map(|to| DeviceBuffer::from_slice(&rank.context, &content(me, to, 0, count + to)).unwrap()).collect();
    let mut back: Vec<DeviceBuffer<u32>> = (0..size).map(|_| rank.full(0u32, count + me)).collect();
    rank.comm.on(&rank.stream).group(|g| {
        for (to, buffer) in out.iter().enumerate() {
            g.send(buffer, to);
        }
        for (from, buffer) in back.iter_mut().enumerate() {
            g.recv(buffer, from);
        }
        Ok(())
    })?;
    for (from, buffer) in back.iter().enumerate() {
        assert!(rank.read(buffer) == content(from, me, 0, count + me), "{count} elements from {from} to {me}");
    }
    rank.comm.on(&rank.stream).synchronize()
}

/// A ring: each sends to its right and receives from its left.
fn around(rank: &Rank, count: usize) -> Result<()> {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let (left, right) = ((me + size - 1) % size, (me + 1) % size);
    let out = DeviceBuffer::from_slice(&rank.context, &content(me, right, 1, count)).unwrap();
    let mut back = rank.full(0u32, count);
    rank.comm.on(&rank.stream).send_recv(&out, right, &mut back, left)?;
    assert!(rank.read(&back) == content(left, me, 1, count), "{count} elements around, at {me}");
    rank.comm.on(&rank.stream).synchronize()
}

/// From rank 0 to 1 to 2 and so on, by plain sends and receives.
fn along(rank: &Rank, count: usize) -> Result<()> {
    let (me, size) = (rank.comm.rank(), rank.comm.size());
    let mut buffer = rank.full(0u32, count);
    let on = rank.comm.on(&rank.stream);
    match me {
        0 => buffer.copy_from(&content(0, 0, 2, count), &rank.stream).unwrap(),
        _ => on.recv(&mut buffer, me - 1)?,
    }
    if me + 1 < size {
        on.send(&buffer, me + 1)?;
    }
    assert!(rank.read(&buffer) == content(0, 0, 2, count), "{count} elements along, at {me}");
    on.synchronize()
}

fn every_pattern(rank: &Rank) {
    for count in COUNTS {
        all_to_all(rank, count).unwrap();
        around(rank, count).unwrap();
        along(rank, count).unwrap();
    }
    // Nobody gives back memory while another rank of the process waits for it.
    rank.comm.barrier().unwrap();
}

#[test]
fn messages_between_threads() {
    for size in [1, 2, 3, 5] {
        threads(size, &small_links(), |rank| {
            rank.comm.attach(&rank.context).unwrap();
            every_pattern(rank);
        });
    }
    // And with links as they come.
    threads(2, &config(TransportChoice::Auto), |rank| {
        rank.comm.attach(&rank.context).unwrap();
        every_pattern(rank);
    });
}

#[test]
fn messages_between_processes() {
    role(|_| {
        let rank = Rank::of(Communicator::from_env().unwrap());
        rank.comm.attach(&rank.context).unwrap();
        every_pattern(&rank);
        say("fine");
    });
    let environment = streams::environment();
    for size in [2, 4] {
        let mut extra = environment.clone();
        extra.push(("MAYPOLE_DEVICE_FIFO", "16384"));
        let mut job = Job::start("messages_between_processes", "", size, &extra);
        let all: Vec<usize> = (0..size).collect();
        assert!(job.hear(&all).iter().all(|(_, line)| line == "fine"));
        job.end(&all);
    }
}

#[test]
fn messages_lie_in_order_among_collectives_on_several_streams() {
    threads(3, &small_links(), |rank| {
        let me = rank.comm.rank();
        rank.comm.attach(&rank.context).unwrap();
        let other = Stream::new(&rank.context).unwrap();
        let mut token = rank.full(me as u32 + 1, 5000);
        for round in 0..20u32 {
            // Every rank's token goes to the right, then all become the sum: each step reads what the one before left.
            let mut next = rank.full(0u32, 5000);
            let (on, on_other) = (rank.comm.on(&rank.stream), rank.comm.on(&other));
            on.send_recv(&token, (me + 1) % 3, &mut next, (me + 2) % 3).unwrap();
            on_other.all_reduce_in_place(&mut next, maypole::ReduceOp::Sum).unwrap();
            on.synchronize().unwrap();
            on_other.synchronize().unwrap();
            let right = if round == 0 { 6 } else { 6 * 3u32.pow(round.min(15)) };
            if round <= 15 {
                assert!(rank.read(&next).iter().all(|x| *x == right), "round {round}");
            }
            token = next;
        }
        rank.comm.barrier().unwrap();
    });
}

#[test]
fn a_short_message_needs_no_receiver_on_the_stream() {
    threads(2, &small_links(), |rank| {
        rank.comm.attach(&rank.context).unwrap();
        let mut buffer = rank.full(9u32, 1000);
        if rank.comm.rank() == 0 {
            rank.comm.on(&rank.stream).send(&buffer, 1).unwrap();
            // The stream gets past it, though rank 1 has not come.
            rank.comm.on(&rank.stream).synchronize().unwrap();
            rank.comm.barrier().unwrap();
        } else {
            rank.comm.barrier().unwrap();
            rank.comm.on(&rank.stream).recv(&mut buffer, 0).unwrap();
            assert_eq!(rank.read(&buffer), [9; 1000]);
        }
        rank.comm.barrier().unwrap();
    });
}

fn argument(result: Result<()>, parts: &[&str]) {
    let Err(Error::Argument { what, .. }) = result else { panic!("not refused ({parts:?}): {result:?}") };
    assert!(parts.iter().all(|part| what.contains(part)), "not {parts:?} in: {what}");
}

#[test]
fn what_one_rank_gets_wrong_by_itself_is_refused() {
    threads(2, &small_links(), |rank| {
        let me = rank.comm.rank();
        let (three, mut four) = (rank.full(1.0f32, 3), rank.full(7.0f32, 4));
        let on = rank.comm.on(&rank.stream);
        argument(on.send(&three, 1 - me), &["attach"]);
        rank.comm.attach(&rank.context).unwrap();
        for _ in 0..2 {
            argument(on.send(&three, 2), &["send", "the peer is 2", "0 to 1"]);
            argument(on.recv(&mut four, usize::MAX), &["recv", "the peer is"]);
            argument(on.send(&three, me), &["itself"]);
            argument(on.send_recv(&three, me, &mut four, me), &["itself", "3 elements of f32", "4 elements"]);
            argument(on.send_recv(&three, me, &mut four, 1 - me), &["itself"]);
            let group = on.group(|g| {
                g.send(&three, 1 - me);
                g.recv(&mut four, 7);
                Ok(())
            });
            argument(group, &["call 2 of the group", "recv", "the peer is 7"]);
            let nothing: Result<()> = on.group(|g| {
                g.send(&three, 1 - me);
                Err(Error::Argument { rank: 0, what: "changed my mind".into() })
            });
            argument(nothing, &["changed my mind"]);
            assert_eq!(rank.read(&four), [7.0; 4]);
            around(rank, 5000).unwrap();
        }
        assert_eq!(rank.comm.verdict(), None);
        rank.comm.barrier().unwrap();
    });
}

#[test]
fn messages_that_do_not_fit_name_both_sides_and_change_nothing() {
    type Receive = fn(&Rank) -> (Result<()>, bool);
    fn receive<T: maypole::Element + PartialEq>(rank: &Rank, fill: T, count: usize) -> (Result<()>, bool) {
        let mut buffer = rank.full(fill, count);
        let on = rank.comm.on(&rank.stream);
        let done = on.recv(&mut buffer, 0).and_then(|()| on.synchronize());
        rank.stream.synchronize().unwrap();
        (done, rank.read(&buffer).iter().all(|x| *x == fill))
    }
    let cases: [(&str, usize, Receive, &[&str]); 5] = [
        ("fewer", 10, |r| receive(r, 7u32, 9), &["10 x u32", "9 x u32"]),
        ("more", 10, |r| receive(r, 7u32, 70_000), &["10 x u32", "70000 x u32"]),
        ("none", 10, |r| receive(r, 7u32, 0), &["10 x u32", "0 x u32"]),
        ("type", 60_000, |r| receive(r, 7.0f32, 60_000), &["60000 x u32", "60000 x f32"]),
        ("size", 60_000, |r| receive(r, F8E4M3::from_bits(7), 9), &["60000 x u32", "9 x f8e4m3"]),
    ];
    for (what, count, receive, parts) in cases {
        let meeting = Meeting::new(3);
        let seen = threads(3, &small_links(), |rank| {
            rank.comm.attach(&rank.context).unwrap();
            along(rank, 3000).unwrap();
            // The last to come along must be there before the first has a verdict for all.
            meeting.wait();
            let (error, untouched) = match rank.comm.rank() {
                0 => {
                    let buffer = rank.full(1u32, count);
                    let on = rank.comm.on(&rank.stream);
                    on.send(&buffer, 1).unwrap();
                    streams::until("a verdict", || rank.comm.verdict().is_some());
                    (on.synchronize().unwrap_err(), true)
                }
                1 => {
                    let (done, untouched) = receive(rank);
                    (done.expect_err("it does not fit"), untouched)
                }
                _ => {
                    streams::until("a verdict", || rank.comm.verdict().is_some());
                    (rank.comm.barrier().unwrap_err(), true)
                }
            };
            rank.stream.synchronize().unwrap();
            meeting.wait();
            (error, untouched)
        });
        assert!(seen.iter().all(|(_, untouched)| *untouched), "{what}: a buffer was touched");
        let said = common_verdict(&seen.into_iter().map(|(error, _)| error).collect::<Vec<_>>());
        let text = said.to_string();
        assert!(matches!(said, Verdict::Mismatch { .. }), "{what}: {text}");
        assert!(parts.iter().all(|part| text.contains(part)) && text.contains("from rank 0 to rank 1"), "{text}");
    }
}

#[test]
fn a_group_waits_for_the_one_that_does_not_come() {
    let meeting = Meeting::new(3);
    let errors = threads(3, &small_links(), |rank| {
        rank.comm.attach(&rank.context).unwrap();
        along(rank, 3000).unwrap();
        meeting.wait();
        rank.comm.set_timeout(Duration::from_millis(400));
        let me = rank.comm.rank();
        // What goes between 0 and 1 fits into one slot, so it does not wait for what comes behind it.
        let (out, mut from_1, mut from_2) = (rank.full(1u32, 1000), rank.full(0u32, 1000), rank.full(0u32, 9000));
        let on = rank.comm.on(&rank.stream);
        let error = match me {
            0 => {
                on.group(|g| {
                    g.send(&out, 1);
                    g.recv(&mut from_1, 1);
                    g.recv(&mut from_2, 2);
                    Ok(())
                })
                .unwrap();
                on.synchronize().expect_err("rank 2 does not come")
            }
            1 => {
                on.send_recv(&out, 0, &mut from_1, 0).unwrap();
                on.synchronize().expect("all of it came, though rank 0 waits in vain for another");
                streams::until("a verdict", || rank.comm.verdict().is_some());
                on.synchronize().unwrap_err()
            }
            _ => {
                streams::until("a verdict", || rank.comm.verdict().is_some());
                on.send(&out, 0).unwrap_err()
            }
        };
        rank.stream.synchronize().unwrap();
        meeting.wait();
        error
    });
    let said = common_verdict(&errors);
    let Verdict::Stalled { operation, culprits, .. } = &said else { panic!("{said}") };
    assert!(operation.to_string().contains("from rank 2 to rank 0"), "{said}");
    assert!(matches!(&culprits[..], [(2, ..)]), "{said}");
}
