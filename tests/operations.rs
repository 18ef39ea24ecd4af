//! Operations with operands of several elements, and those that do not commute: whatever is cut, by
//! whichever algorithm on whichever links, no operand is, and ranks are combined in their order;
//! pairs (value, index) with minloc and maxloc.

mod ranks;

use std::fmt::Debug;

use maypole::config::TransportChoice;
use maypole::{
    Algorithm, Call, Collective, Communicator, Config, DataType, Element, Error, Located, Operator, Pair, ReduceOp,
    UniqueId, UserOp, Verdict,
};
use ranks::{common_verdict, config, paths, threads};

const PRIME: u64 = 65_521;

/// Upper triangular 2x2 matrices modulo a prime, [a, b, 0, d] without the zero: 12 bytes, of which
/// no line is made. The product does not commute.
struct Triangles;

impl Operator for Triangles {
    type Element = [u32; 3];
    const ID: u32 = 31;
    const COMMUTES: bool = false;
    fn combine(a: [u32; 3], b: [u32; 3]) -> [u32; 3] {
        let [a, b] = [a, b].map(|matrix| matrix.map(u64::from));
        [a[0] * b[0], a[0] * b[1] + a[1] * b[2], a[2] * b[2]].map(|x| (x % PRIME) as u32)
    }
}

fn triangle(rank: usize, i: usize) -> [u32; 3] {
    let of = |k: usize| 1 + ((rank + 3) * 7919 + i * 104_729 + k * 1301) as u32 % (PRIME as u32 - 1);
    [of(0), of(1), of(2)]
}

/// Runs: the first of one, the last of the other, and everything in between added. 400 bytes.
struct Runs;

impl Operator for Runs {
    type Element = [u64; 50];
    const ID: u32 = 32;
    const COMMUTES: bool = false;
    fn combine(a: [u64; 50], b: [u64; 50]) -> [u64; 50] {
        std::array::from_fn(|k| match k {
            0 => a[0],
            49 => b[49],
            _ => a[k].wrapping_add(b[k]),
        })
    }
}

fn run(rank: usize, i: usize) -> [u64; 50] {
    std::array::from_fn(|k| (rank as u64) << 32 | (i * 50 + k) as u64)
}

/// Complex numbers times each other, modulo 2^32: two elements, in any order.
struct Complex;

impl Operator for Complex {
    type Element = [i32; 2];
    const ID: u32 = 33;
    fn combine([a, b]: [i32; 2], [c, d]: [i32; 2]) -> [i32; 2] {
        let re = a.wrapping_mul(c).wrapping_sub(b.wrapping_mul(d));
        [re, a.wrapping_mul(d).wrapping_add(b.wrapping_mul(c))]
    }
}

fn complex(rank: usize, i: usize) -> [i32; 2] {
    [(rank * 31 + i * 7 + 1) as i32, (rank * 17 + i * 3 + 2) as i32]
}

fn op<O: Operator>() -> ReduceOp {
    ReduceOp::User(UserOp::of::<O>())
}

/// Every reduction of `count` operands, against plain loops.
fn check<O, T, const N: usize>(comm: &Communicator, count: usize, make: fn(usize, usize) -> [T; N], what: &str)
where
    O: Operator<Element = [T; N]>,
    T: Element,
{
    let (me, size, op) = (comm.rank(), comm.size(), op::<O>());
    let folded = |ranks: usize, first: usize, count: usize| -> Vec<[T; N]> {
        let fold = |i| (1..ranks).fold(make(0, i), |sum, rank| O::combine(sum, make(rank, i)));
        (first..first + count).map(fold).collect()
    };
    let input: Vec<[T; N]> = (0..count * size).map(|i| make(me, i)).collect();
    let own = input[..count].as_flattened();
    let sum = folded(size, 0, count);
    let mut output = vec![[T::default(); N]; count];
    comm.all_reduce(own, output.as_flattened_mut(), op).unwrap();
    assert!(output == sum, "all_reduce, {what}");
    let mut buffer = input[..count].to_vec();
    comm.all_reduce_in_place(buffer.as_flattened_mut(), op).unwrap();
    assert!(buffer == sum, "all_reduce in place, {what}");
    for root in 0..size {
        let output = if me == root { output.as_flattened_mut() } else { &mut [] };
        comm.reduce(own, output, op, root).unwrap();
        assert!(me != root || *output == *sum.as_flattened(), "reduce to {root}, {what}");
    }
    comm.reduce_scatter(input.as_flattened(), output.as_flattened_mut(), op).unwrap();
    assert!(output == folded(size, me * count, count), "reduce_scatter, {what}");
    // Rank r gets r operands more than rank 0.
    let counts: Vec<usize> = (0..size).map(|rank| (count + rank) * N).collect();
    let first = |rank: usize| rank * count + rank * rank.saturating_sub(1) / 2;
    let uneven: Vec<[T; N]> = (0..first(size)).map(|i| make(me, i)).collect();
    let mut output = vec![[T::default(); N]; count + me];
    comm.reduce_scatter_v(uneven.as_flattened(), &counts, output.as_flattened_mut(), op).unwrap();
    assert!(output == folded(size, first(me), count + me), "reduce_scatter_v, {what}");
    let mut output = vec![[T::default(); N]; count];
    comm.scan(own, output.as_flattened_mut(), op).unwrap();
    assert!(output == folded(me + 1, 0, count), "scan, {what}");
    comm.exclusive_scan(own, output.as_flattened_mut(), op).unwrap();
    assert!(me == 0 || output == folded(me, 0, count), "exclusive_scan, {what}");
}

fn check_all(comm: &Communicator, what: &str) {
    for count in [1, 700] {
        let what = format!("{count} operands, {} ranks, {what}", comm.size());
        check::<Triangles, _, 3>(comm, count, triangle, &what);
        check::<Complex, _, 2>(comm, count, complex, &what);
    }
    check::<Runs, _, 50>(comm, 37, run, &format!("{} ranks, {what}", comm.size()));
}

fn settings(transport: TransportChoice, set: &[(&str, &str)]) -> Config {
    let mut config = config(transport);
    set.iter().for_each(|(name, value)| config.set(name, value).unwrap());
    config
}

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Tcp];

#[test]
fn operands_are_whole_and_ranks_in_order_in_worlds_of_every_size() {
    for transport in TRANSPORTS {
        for size in 1..=9 {
            threads(size, &config(transport), |comm| check_all(&comm, &format!("{transport:?}")));
        }
    }
}

#[test]
fn operands_are_whole_and_ranks_in_order_by_every_algorithm() {
    for transport in TRANSPORTS {
        for algorithm in Algorithm::ALL {
            let reduces = Collective::ALL.into_iter().any(|c| c.reduces() && algorithm.supports(c));
            if !reduces || algorithm.one_sided() && transport == TransportChoice::Tcp {
                continue;
            }
            for size in [2, 3, 5, 8] {
                let config = settings(transport, &[("MAYPOLE_ALGORITHM", algorithm.name())]);
                threads(size, &config, |comm| check_all(&comm, &format!("{transport:?}, {algorithm}")));
            }
        }
    }
}

#[test]
fn operands_are_whole_however_short_slices_and_links_are() {
    for transport in TRANSPORTS {
        for set in [
            &[("MAYPOLE_SLICE", "64")][..],
            &[("MAYPOLE_SLICE", "5000")],
            &[("MAYPOLE_RING", "4096"), ("MAYPOLE_WINDOW", "4096")],
            &[("MAYPOLE_RING", "4096"), ("MAYPOLE_ALGORITHM", "ring,chain")],
            &[("MAYPOLE_STREAM", "64"), ("MAYPOLE_ALGORITHM", "ring,chain")],
        ] {
            threads(5, &settings(transport, set), |comm| check_all(&comm, &format!("{transport:?}, {set:?}")));
        }
    }
}

#[test]
fn ranks_are_in_order_wherever_they_are() {
    for hosts in [&["a", "a", "b", "b"][..], &["a", "b", "a"], &["a", "b", "b", "b", "a", "c"]] {
        let id = UniqueId::create(&Config::default()).unwrap();
        std::thread::scope(|scope| {
            for (rank, host) in hosts.iter().enumerate() {
                let mut config = config(TransportChoice::Auto);
                config.host = Some(host.to_string());
                scope.spawn(move || {
                    let comm = Communicator::from_id(&id, rank, hosts.len(), config).unwrap();
                    check_all(&comm, &format!("hosts {hosts:?}"));
                });
            }
        });
    }
}

/// Asynchronous, persistent and in groups, some small enough to be done as one.
#[test]
fn operands_are_whole_and_ranks_in_order_in_every_form() {
    for path in paths() {
        threads(3, &path.config, |comm| {
            let (me, op, count) = (comm.rank(), op::<Triangles>(), path.count.div_ceil(3));
            let of = |rank| -> Vec<[u32; 3]> { (0..count).map(|i| triangle(rank, i)).collect() };
            let mine = of(me).as_flattened().to_vec();
            let product = |a: Vec<[u32; 3]>, b: Vec<[u32; 3]>| -> Vec<[u32; 3]> {
                a.into_iter().zip(b).map(|(a, b)| Triangles::combine(a, b)).collect()
            };
            let before = [of(0), of(0), product(of(0), of(1))][me].as_flattened().to_vec();
            let want = product(product(of(0), of(1)), of(2)).as_flattened().to_vec();

            let mut output = vec![0; mine.len()];
            maypole::scope(|scope| comm.start(scope).all_reduce(&mine, &mut output, op)?.wait()).unwrap();
            assert!(output == want, "started, {}", path.name);

            let mut kept = comm.persistent().all_reduce(mine.clone(), vec![0; mine.len()], op).unwrap();
            for _ in 0..3 {
                kept.output_mut().fill(7);
                assert!(kept.run().unwrap() == want, "persistent, {}", path.name);
            }
            let counts = vec![mine.len(); 3];
            let everybodys: Vec<u32> = [&mine[..]; 3].concat();
            let planned = comm.persistent();
            let mut kept = planned.reduce_scatter_v(everybodys, &counts, vec![0; mine.len()], op).unwrap();
            assert!(kept.run().unwrap() == want, "persistent reduce_scatter_v, {}", path.name);

            let mut several = [(); 4].map(|()| mine.clone());
            let mut scanned = vec![0; mine.len()];
            comm.group(|group| {
                several.iter_mut().for_each(|buffer| group.all_reduce_in_place(buffer, op));
                group.exclusive_scan(&mine, &mut scanned[..if me == 0 { 0 } else { mine.len() }], op);
                Ok(())
            })
            .unwrap();
            assert!(several.iter().all(|product| *product == want), "in a group, {}", path.name);
            assert!(me == 0 || scanned == before, "exclusive_scan in a group, {}", path.name);
        });
    }
}

/// Few values, so that many are equal; NaN now and then.
fn located(rank: usize, i: usize) -> Located<f64> {
    let value = ((i * 7 + rank * 13) % 11) as f64 - 5.0;
    Located { value: if (i + 3 * rank) % 17 == 5 { f64::NAN } else { value }, index: (100 - rank * i % 7) as i64 }
}

#[test]
fn the_least_and_the_greatest_of_pairs_with_the_lower_index() {
    for path in paths() {
        threads(4, &path.config, |comm| {
            let count = path.count.div_ceil(2);
            for op in [Located::<f64>::MINLOC, Located::<f64>::MAXLOC] {
                let better = |a: &Located<f64>, b: &Located<f64>| match (a.value.is_nan(), b.value.is_nan()) {
                    (true, false) => true,
                    (false, true) => false,
                    (false, false) if a.value != b.value => (a.value < b.value) == matches!(op, ReduceOp::MinLoc(_)),
                    _ => a.index < b.index,
                };
                let mut best: Vec<_> = (0..count).map(|i| located(comm.rank(), i)).collect();
                comm.all_reduce_in_place(Located::elements_mut(&mut best), op).unwrap();
                for (i, found) in best.iter().enumerate() {
                    let all = (0..4).map(|rank| located(rank, i));
                    let want = all.reduce(|a, b| if better(&b, &a) { b } else { a }).unwrap();
                    let same = found.value == want.value || found.value.is_nan() && want.value.is_nan();
                    assert!(same && found.index == want.index, "{op:?}, {}: {found:?}, not {want:?}", path.name);
                }
            }
        });
    }
}

/// A pair as C has it, padding of ones in between.
fn in_c(pair: Pair, value: i16, index: i32) -> Vec<u8> {
    let (value, half) = match pair {
        Pair::F32I32 => (f32::from(value).to_ne_bytes().to_vec(), 4),
        Pair::I32I32 => (i32::from(value).to_ne_bytes().to_vec(), 4),
        Pair::I16I32 => (value.to_ne_bytes().to_vec(), 4),
        Pair::F64I32 | Pair::F64I64 => (f64::from(value).to_ne_bytes().to_vec(), 8),
        Pair::I64I32 | Pair::I64I64 => (i64::from(value).to_ne_bytes().to_vec(), 8),
    };
    let index = match pair {
        Pair::F64I64 | Pair::I64I64 => i64::from(index).to_ne_bytes().to_vec(),
        _ => index.to_ne_bytes().to_vec(),
    };
    let padded = |mut bytes: Vec<u8>| {
        bytes.resize(half, 1);
        bytes
    };
    [padded(value), padded(index)].concat()
}

#[test]
fn pairs_of_every_type_in_every_reduction() {
    const COUNT: usize = 3001;
    let of = |rank: usize, i: usize| (((i * 5 + rank * 3) % 7) as i16 - 3, (9 - rank) as i32);
    for transport in TRANSPORTS {
        threads(3, &config(transport), |comm| {
            let (me, size) = (comm.rank(), comm.size());
            for (pair, greatest) in Pair::ALL.into_iter().flat_map(|pair| [(pair, false), (pair, true)]) {
                let op = if greatest { ReduceOp::MaxLoc(pair) } else { ReduceOp::MinLoc(pair) };
                let best = |ranks: usize, i: usize| {
                    let key = |(value, index): &(i16, i32)| (if greatest { -value } else { *value }, *index);
                    let (value, index) = (0..ranks).map(|rank| of(rank, i)).min_by_key(key).unwrap();
                    in_c(pair, value, index)
                };
                let bests = |ranks: usize, first: usize| -> Vec<u8> {
                    (first..first + COUNT).flat_map(|i| best(ranks, i)).collect()
                };
                let input: Vec<u8> = (0..COUNT * size).flat_map(|i| in_c(pair, of(me, i).0, of(me, i).1)).collect();
                let own = &input[..COUNT * pair.size()];
                for (collective, input, ranks, first) in [
                    (Collective::AllReduce, own, size, 0),
                    (Collective::ReduceScatter, &input[..], size, me * COUNT),
                    (Collective::Scan, own, me + 1, 0),
                ] {
                    let call = Call { collective, dtype: pair.dtype(), count: 2 * COUNT, op, root: 0 };
                    let mut output = vec![0; COUNT * pair.size()];
                    comm.call(call, input, &mut output).unwrap();
                    assert!(output == bests(ranks, first), "{} {op:?}, {transport:?}", collective.name());
                }
            }
        });
    }
}

fn refused<T: Debug>(outcome: maypole::Result<T>, words: &[&str]) {
    match outcome.unwrap_err() {
        Error::Argument { what, .. } if words.iter().all(|word| what.contains(word)) => {}
        other => panic!("{other} does not say {words:?}"),
    }
}

#[test]
fn parts_of_operands_are_refused_and_so_are_operands_that_no_link_takes() {
    let config = settings(TransportChoice::Auto, &[("MAYPOLE_RING", "4096"), ("MAYPOLE_WINDOW", "4096")]);
    threads(2, &config, |comm| {
        let op = op::<Triangles>();
        let mut seven = [1u32; 7];
        refused(comm.all_reduce_in_place(&mut seven, op), &["all_reduce", "block of 7", "u32", "3 at a time"]);
        refused(comm.scan_in_place(&mut seven, op), &["scan", "block of 7"]);
        refused(comm.reduce_scatter(&[1; 8], &mut seven[..4], op), &["reduce_scatter", "block of 4"]);
        let uneven = comm.reduce_scatter_v(&[1; 7], &[3, 4], &mut seven[..3 + comm.rank()], op);
        refused(uneven, &["reduce_scatter", "block of 4"]);
        refused(comm.persistent().all_reduce_in_place(vec![1u32; 4], op).map(|_| ()), &["block of 4"]);
        refused(
            comm.group(|group| {
                group.all_reduce_in_place(&mut seven, op);
                Ok(())
            }),
            &["group", "block of 7"],
        );
        refused(
            comm.all_reduce_in_place(&mut [1u32; 3], Located::<f64>::MAXLOC),
            &["maxloc", "u32", "(f64, i64)", "u64"],
        );
        refused(
            comm.all_reduce_in_place(&mut [1u64; 3], Located::<f64>::MINLOC),
            &["block of 3", "(f64, i64)", "2 of"],
        );
        // What combines nothing asks nothing.
        let call = Call { collective: Collective::Broadcast, dtype: DataType::U32, count: 7, op, root: 0 };
        comm.call_in_place(call, bytemuck::bytes_of_mut(&mut seven)).unwrap();
        let wide = |width| ReduceOp::User(UserOp::of::<Sums>().with_width(width));
        let mut long = vec![1u32; 5000];
        refused(comm.reduce_scatter_in_place(&mut long, wide(2500)), &["10000 bytes", "MAYPOLE_RING"]);
        // Nothing has happened, and what has room goes.
        let mut buffer = vec![1u32; 1000];
        comm.reduce_scatter_in_place(&mut buffer, wide(450)).unwrap_err();
        comm.reduce_scatter_in_place(&mut buffer[..900], wide(450)).unwrap();
        assert!(buffer[comm.rank() * 450..][..450].iter().all(|x| *x == 2));
    });
}

/// Plain sums, which may be called as if they had a width, or did not commute.
struct Sums;

impl Operator for Sums {
    type Element = u32;
    const ID: u32 = 34;
    fn combine(a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
}

#[test]
fn ranks_whose_operations_differ_in_width_or_order_are_told() {
    let plain = UserOp::of::<Sums>();
    for transport in TRANSPORTS {
        for (other, count) in [(plain.with_width(4), 8), (plain.not_commuting(), 8), (plain.with_width(3), 30_000)] {
            let errors = threads(2, &config(transport), |comm| {
                let op = if comm.rank() == 0 { plain } else { other };
                comm.all_reduce_in_place(&mut vec![1u32; count], ReduceOp::User(op)).unwrap_err()
            });
            let verdict = common_verdict(&errors);
            assert!(matches!(verdict, Verdict::Mismatch { .. }), "{verdict:?}");
            assert!(verdict.to_string().contains("the width or order"), "{verdict}");
        }
    }
}
