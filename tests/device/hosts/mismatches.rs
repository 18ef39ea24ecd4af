//! A rank on another host calls something else: all learn the same, which names two that differ, and no rank has written
//! what is not its result.

use maypole::{Call, Collective, DataType, Error, ReduceOp, Verdict};

use super::{by, spread};
use crate::arena::Arena;
use crate::ranks::{Meeting, common_verdict};
use crate::runner::checked;
use crate::world::Rank;

/// Bytes of a block.
const BLOCK: usize = 4000;
const UNTOUCHED: u8 = 0xab;

/// This rank's calls until one fails, from the first, whose outcome is in doubt.
fn until_it_fails(rank: &Rank, arena: &Arena, first: maypole::Result<()>) -> Error {
    let on = rank.comm.on(&rank.stream);
    let mut outcome = first.and_then(|()| on.synchronize());
    // A root that only sends may be through before the others find out.
    for _ in 0..100_000 {
        match outcome {
            Err(error) => return error,
            Ok(()) => {
                outcome = on
                    .all_reduce_in_place(arena.elements_mut::<u64>(0, 1), ReduceOp::Sum)
                    .and_then(|()| on.synchronize())
            }
        }
    }
    panic!("no error")
}

/// Check what the ranks of a world of `hosts` say if `odd` does `otherwise`; each rank says also whether it left alone
/// what it should have.
fn check(what: &str, hosts: &[&str], odd: usize, parts: &[&str], act: impl Fn(&Rank, &Arena) -> (Error, bool) + Sync) {
    let meeting = Meeting::new(hosts.len());
    let seen = spread(hosts, &by(""), |rank| {
        let arena = Arena::new(rank, 8 * BLOCK);
        arena.fill(&rank.stream, 0, arena.bytes(), UNTOUCHED);
        rank.settle();
        // What comes next fails, for a rank that is still in the barrier as well.
        meeting.wait();
        let seen = act(rank, &arena);
        // Nobody gives memory back while another's stream may wait.
        meeting.wait();
        seen
    });
    let what = format!("{what}, rank {odd} of {hosts:?} is odd");
    let touched: Vec<usize> = (0..seen.len()).filter(|rank| !seen[*rank].1).collect();
    assert!(touched.is_empty(), "{what}: ranks {touched:?} wrote something");
    let said = common_verdict(&seen.into_iter().map(|(error, _)| error).collect::<Vec<_>>());
    let Verdict::Mismatch { one, other } = &said else { panic!("{what}: {said}") };
    assert!(one.0 != other.0 && [one.0, other.0].contains(&odd), "{what}: {said}");
    let text = said.to_string();
    let names = [one.0, other.0].map(|rank| format!("rank {rank}"));
    let told = names.iter().map(String::as_str).chain(parts.iter().copied());
    told.for_each(|part| assert!(text.contains(part), "{what}: {part} is not in: {text}"));
    checked(1);
}

pub fn mismatches() {
    let usual = |collective| Call { collective, dtype: DataType::F32, count: BLOCK / 4, op: ReduceOp::Sum, root: 0 };
    let (told, sum) = (usual(Collective::Broadcast), usual(Collective::AllReduce));
    let cases: [(&str, Call, Call, &[&str]); 6] = [
        ("count", told, Call { count: BLOCK / 8, ..told }, &["1000", "500"]),
        ("type", told, Call { dtype: DataType::I32, ..told }, &["f32", "i32"]),
        ("collective", told, sum, &["broadcast", "all_reduce"]),
        ("count of a sum", sum, Call { count: BLOCK / 8, ..sum }, &["1000", "500"]),
        ("operation", sum, Call { op: ReduceOp::Max, ..sum }, &["sum", "max"]),
        ("type of a sum", sum, Call { dtype: DataType::U32, ..sum }, &["f32", "u32"]),
    ];
    for hosts in [&["a", "b"][..], &["a", "a", "b"]] {
        for (what, most, one, parts) in cases {
            for odd in [0, hosts.len() - 1] {
                check(what, hosts, odd, parts, |rank, arena| {
                    let me = rank.comm.rank();
                    let call = if me == odd { one } else { most };
                    let block = call.count * call.dtype.size();
                    let given = call.collective.input_blocks(me, hosts.len(), call.root) * block;
                    let done = rank.comm.on(&rank.stream).call(
                        call,
                        arena.input(BLOCK, given),
                        arena.output(2 * BLOCK, block),
                    );
                    // The root of a broadcast has its own data; and a sum that spans hosts may have come as far as that of
                    // one host, if its ranks agree.
                    let own = call.collective == Collective::Broadcast && me == call.root;
                    let near = |rank: &usize| *rank != me && *rank != odd && hosts[*rank] == hosts[me];
                    let partial = me != odd && call.collective.reduces() && (0..hosts.len()).any(|rank| near(&rank));
                    let error = until_it_fails(rank, arena, done);
                    rank.stream.synchronize().expect("the stream has no error");
                    let left = arena.read(&rank.stream, 2 * BLOCK, BLOCK).iter().all(|byte| *byte == UNTOUCHED);
                    (error, left || own || partial)
                });
            }
        }
    }
    for hosts in [&["a", "b"][..], &["a", "a", "b"]] {
        let last = hosts.len() - 1;
        check("a message", hosts, last, &["900", "1000"], |rank, arena| {
            let on = rank.comm.on(&rank.stream);
            let done = match rank.comm.rank() {
                0 => on.send(arena.elements::<f32>(BLOCK, 900), last),
                me if me == last => on.recv(arena.elements_mut::<f32>(2 * BLOCK, 1000), 0),
                _ => Ok(()),
            };
            let error = until_it_fails(rank, arena, done);
            rank.stream.synchronize().expect("the stream has no error");
            (error, arena.read(&rank.stream, 2 * BLOCK, BLOCK).iter().all(|byte| *byte == UNTOUCHED))
        });
    }
}
