//! The same programs on Maypole and on Open MPI: random sequences of every collective that both have give the same
//! bits, for integers under every operation and for floats whose sums and products are exact.
//!
//! `same.c` is the MPI side. Both compute inputs and counts from the same formulas and write a digest of each output.
//! Without Open MPI's mpicc and mpirun the test says `skipped:` and why; with `MAYPOLE_TEST_LAUNCHERS` naming
//! `openmpi` their absence is a failure.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Communicator, Config, Element, ReduceOp};

/// SplitMix64's finaliser, as in `same.c`.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Element types that both sides have.
trait Number: Element {
    fn from_bits(bits: u64, op: &str) -> Self;
}

macro_rules! integers {
    ($($type:ty)*) => {
        $(impl Number for $type {
            fn from_bits(bits: u64, op: &str) -> Self {
                // Sums of bytes that do not overflow: Open MPI's vector code saturates there, its scalar code wraps.
                if size_of::<Self>() == 1 && op == "sum" { (bits % 16) as $type } else { bits as $type }
            }
        })*
    };
}
integers!(i8 u8 i32 u32 i64 u64);

macro_rules! floats {
    ($($type:ty)*) => {
        $(impl Number for $type {
            fn from_bits(bits: u64, op: &str) -> Self {
                match (op, bits % 4) {
                    ("prod", 0) => 0.5,
                    ("prod", 1) => 2.0,
                    ("prod", 2) => -1.0,
                    ("prod", _) => 1.0,
                    _ => (bits % 1025) as $type - 512.0,
                }
            }
        })*
    };
}
floats!(f32 f64);

/// One line of a script.
#[derive(Clone, Debug)]
struct Line {
    what: &'static str,
    dtype: &'static str,
    op: &'static str,
    count: usize,
    root: usize,
    seed: u64,
}

const MOVING: [&str; 10] = [
    "broadcast",
    "all_gather",
    "all_to_all",
    "gather",
    "scatter",
    "all_gather_v",
    "gather_v",
    "scatter_v",
    "all_to_all_v",
    "send_recv",
];
const REDUCING: [&str; 6] = ["all_reduce", "reduce", "reduce_scatter", "reduce_scatter_v", "scan", "exclusive_scan"];
const TYPES: [&str; 8] = ["i8", "u8", "i32", "u32", "i64", "u64", "f32", "f64"];
const OPS: [&str; 7] = ["sum", "prod", "min", "max", "and", "or", "xor"];

/// Every collective with every type, every operation that the type has, and a random count; then more of anything.
fn script(ranks: usize, mut seed: u64) -> Vec<Line> {
    let mut next = || {
        seed = mix(seed);
        seed
    };
    let mut lines = Vec::new();
    for what in MOVING.into_iter().chain(REDUCING) {
        for dtype in TYPES {
            let ops = match REDUCING.contains(&what) {
                true if dtype.starts_with('f') => &OPS[..4],
                true => &OPS[..],
                false => &["-"],
            };
            for op in ops {
                let count = match next() % 4 {
                    0 => next() % 4,
                    1 => next() % 100_000,
                    _ => 1 << (next() % 12),
                };
                let (count, root) = (count as usize, (next() % ranks as u64) as usize);
                lines.push(Line { what, dtype, op, count, root, seed: next() >> 1 });
            }
        }
    }
    lines
}

/// What rank `s` has for rank `r`, of blocks of up to `count` elements.
fn variable(seed: u64, s: usize, r: usize, count: usize) -> usize {
    let bits = mix(seed ^ mix(77_777 + s as u64 * 64 + r as u64));
    if bits.is_multiple_of(3) { 0 } else { ((bits >> 8) % (count as u64 + 1)) as usize }
}

/// Run a line and digest this rank's output.
fn run<T: Number>(comm: &Communicator, line: &Line) -> maypole::Result<u64> {
    let (rank, size) = (comm.rank(), comm.size());
    let Line { what, count, root, seed, .. } = *line;
    let op = match line.op {
        "prod" => ReduceOp::Prod,
        "min" => ReduceOp::Min,
        "max" => ReduceOp::Max,
        "and" => ReduceOp::And,
        "or" => ReduceOp::Or,
        "xor" => ReduceOp::Xor,
        _ => ReduceOp::Sum,
    };
    let sender = if what == "all_to_all_v" { rank } else { 0 };
    let counts: Vec<usize> = (0..size).map(|r| variable(seed, sender, r, count)).collect();
    let received: Vec<usize> = (0..size).map(|s| variable(seed, s, rank, count)).collect();
    let is_root = rank == root;
    let (inputs, outputs) = match what {
        "reduce" => (count, if is_root { count } else { 0 }),
        "exclusive_scan" | "all_reduce" | "scan" | "send_recv" | "broadcast" => (count, count),
        "reduce_scatter" => (count * size, count),
        "all_gather" => (count, count * size),
        "all_to_all" => (count * size, count * size),
        "gather" => (count, if is_root { count * size } else { 0 }),
        "scatter" => (if is_root { count * size } else { 0 }, count),
        "all_gather_v" => (counts[rank], counts.iter().sum()),
        "gather_v" => (counts[rank], if is_root { counts.iter().sum() } else { 0 }),
        "scatter_v" => (if is_root { counts.iter().sum() } else { 0 }, counts[rank]),
        "reduce_scatter_v" => (counts.iter().sum(), counts[rank]),
        _ => (counts.iter().sum(), received.iter().sum()),
    };
    let element = |i: usize| T::from_bits(mix(seed ^ mix(rank as u64 * 1_000_003 + i as u64)), line.op);
    let input: Vec<T> = (0..inputs).map(element).collect();
    let mut output: Vec<T> = vec![bytemuck::Zeroable::zeroed(); outputs];
    match what {
        "all_reduce" => comm.all_reduce(&input, &mut output, op)?,
        "reduce" => comm.reduce(&input, &mut output, op, root)?,
        "scan" => comm.scan(&input, &mut output, op)?,
        "exclusive_scan" => {
            comm.exclusive_scan(&input, &mut output, op)?;
            if rank == 0 {
                output.clear();
            }
        }
        "reduce_scatter" => comm.reduce_scatter(&input, &mut output, op)?,
        "broadcast" => {
            output.copy_from_slice(&input);
            comm.broadcast(&mut output, root)?;
        }
        "all_gather" => comm.all_gather(&input, &mut output)?,
        "all_to_all" => comm.all_to_all(&input, &mut output)?,
        "gather" => comm.gather(&input, &mut output, root)?,
        "scatter" => comm.scatter(&input, &mut output, root)?,
        "all_gather_v" => comm.all_gather_v(&input, &mut output, &counts)?,
        "gather_v" => comm.gather_v(&input, &mut output, &counts, root)?,
        "scatter_v" => comm.scatter_v(&input, &counts, &mut output, root)?,
        "reduce_scatter_v" => comm.reduce_scatter_v(&input, &counts, &mut output, op)?,
        "all_to_all_v" => comm.all_to_all_v(&input, &counts, &mut output, &received)?,
        _ => comm.send_recv(&input, (rank + 1) % size, &mut output, (rank + size - 1) % size)?,
    }
    // FNV-1a, as in `same.c`.
    let digest = |h: u64, byte: &u8| (h ^ *byte as u64).wrapping_mul(0x100_0000_01b3);
    Ok(bytemuck::cast_slice::<T, u8>(&output).iter().fold(0xcbf2_9ce4_8422_2325, digest))
}

fn digests(comm: &Communicator, lines: &[Line]) -> Vec<u64> {
    let run = |line: &Line| match line.dtype {
        "i8" => run::<i8>(comm, line),
        "u8" => run::<u8>(comm, line),
        "i32" => run::<i32>(comm, line),
        "u32" => run::<u32>(comm, line),
        "i64" => run::<i64>(comm, line),
        "u64" => run::<u64>(comm, line),
        "f32" => run::<f32>(comm, line),
        _ => run::<f64>(comm, line),
    };
    lines.iter().map(|line| run(line).unwrap_or_else(|e| panic!("{line:?}: {e}"))).collect()
}

/// Compile `same.c` into `directory`. `None`: skipped, after saying why.
fn compile(directory: &Path) -> Option<std::path::PathBuf> {
    let mpirun = std::env::var("MPIRUN").unwrap_or_else(|_| "mpirun".into());
    let version = Command::new(&mpirun).arg("--version").output();
    let is_open_mpi = version.is_ok_and(|out| {
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        said.contains("Open MPI") || said.contains("OpenRTE")
    });
    let program = directory.join("same");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openmpi/same.c");
    let compiled = Command::new("mpicc").args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).output();
    let why = match compiled {
        _ if !is_open_mpi => format!("{mpirun} is not Open MPI's"),
        Err(error) => format!("mpicc: {error}"),
        Ok(out) if !out.status.success() => panic!("mpicc: {}", String::from_utf8_lossy(&out.stderr)),
        Ok(_) => return Some(program),
    };
    let wanted = std::env::var("MAYPOLE_TEST_LAUNCHERS").unwrap_or_default();
    assert!(!wanted.split_whitespace().any(|name| name == "openmpi"), "{why}, but openmpi must be there");
    let _ = writeln!(std::io::stderr(), "skipped: openmpi::the_same_programs_give_the_same_bits: {why}");
    None
}

#[test]
fn the_same_programs_give_the_same_bits() {
    let directory = std::env::temp_dir().join(format!("maypole-openmpi-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let Some(program) = compile(&directory) else { return };
    for ranks in [1, 2, 3, 5] {
        let lines = script(ranks, 2026 + ranks as u64);
        let text = lines.iter().fold(String::new(), |mut text, line| {
            let Line { what, dtype, op, count, root, seed } = line;
            writeln!(text, "{what} {dtype} {op} {count} {root} {seed}").unwrap();
            text
        });
        let (path, output) = (directory.join("script"), directory.join(format!("output-{ranks}")));
        std::fs::write(&path, text).unwrap();
        let mpirun = std::env::var("MPIRUN").unwrap_or_else(|_| "mpirun".into());
        let out = Command::new("timeout")
            .args(["120", &mpirun, "--oversubscribe", "-n", &ranks.to_string()])
            .args([&program, &path, &output])
            .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
            .env("OMPI_MCA_mpi_yield_when_idle", "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "mpirun: {}", String::from_utf8_lossy(&out.stderr));
        let theirs: Vec<Vec<u64>> = (0..ranks)
            .map(|rank| {
                let text = std::fs::read_to_string(format!("{}.{rank}", output.display())).unwrap();
                text.lines().map(|line| u64::from_str_radix(line, 16).unwrap()).collect()
            })
            .collect();
        for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
            let mut config = Config::default();
            config.transport = transport;
            config.timeout = Duration::from_secs(60);
            config.late = Duration::ZERO;
            let world = Communicator::threads_with(ranks, config).unwrap();
            std::thread::scope(|scope| {
                for comm in world {
                    let (lines, theirs) = (&lines, &theirs);
                    scope.spawn(move || {
                        let ours = digests(&comm, lines);
                        assert_eq!(ours.len(), theirs[comm.rank()].len());
                        for ((line, ours), theirs) in lines.iter().zip(ours).zip(&theirs[comm.rank()]) {
                            assert_eq!(ours, *theirs, "{line:?} on rank {} of {ranks}, {transport:?}", comm.rank());
                        }
                    });
                }
            });
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
