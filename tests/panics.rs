//! A user's operation that panics, in every form of a call: every rank gets the same verdict that says so, what a rank
//! returns as done is right, and nobody reads a buffer that its owner has back.

mod ranks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Call, Collective, Communicator, Config, DataType, ReduceOp, Result, Stream, UserOp, Verdict};
use ranks::{Meeting, PATIENCE, Path, common_verdict, config, paths, threads};

/// What the operation of one rank does.
#[derive(Default)]
struct Mood {
    /// Panic at the next element.
    panics: AtomicBool,
}

/// # Safety
/// As for [`maypole::UserFnWith`], for f32; the context is a [`Mood`].
unsafe fn moody(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        assert!(!(*context.cast::<Mood>()).panics.swap(false, Ordering::Relaxed), "a test's panic");
        for at in (0..count).map(|i| 4 * i) {
            let sum = a.add(at).cast::<f32>().read_unaligned() + b.add(at).cast::<f32>().read_unaligned();
            dst.add(at).cast::<f32>().write_unaligned(sum);
        }
    }
}

/// A sum that may panic.
fn sum_of(mood: &Mood) -> ReduceOp {
    // SAFETY: it does what it should, and the mood outlives the calls.
    ReduceOp::User(unsafe { UserOp::with_context(9, DataType::F32, moody, std::ptr::from_ref(mood).cast()) })
}

/// One call that reduces ones by `op`, into `output` or in place; `stream` is one of the rank's own.
struct Case<'a> {
    comm: &'a Communicator,
    stream: &'a Stream,
    op: ReduceOp,
    input: &'a [f32],
    output: &'a mut [f32],
}

impl Case<'_> {
    fn call(&self, collective: Collective, count: usize) -> Call {
        Call { collective, dtype: DataType::F32, count, op: self.op, root: 0 }
    }

    fn at(&mut self) -> (*const u8, *mut u8) {
        (self.input.as_ptr().cast(), self.output.as_mut_ptr().cast())
    }

    /// An element for each rank, and a rest for the last.
    fn counts(&self) -> Vec<usize> {
        let size = self.comm.size();
        let mut counts = vec![1; size];
        counts[size - 1] = self.input.len() - (size - 1);
        counts
    }

    /// Put the input where an operation in place finds it.
    fn fill(&mut self) -> &mut [f32] {
        self.output.copy_from_slice(self.input);
        self.output
    }
}

type Form = fn(&mut Case<'_>) -> Result<()>;

/// Every form in which a collective that reduces can be called.
fn forms() -> Vec<(&'static str, Form)> {
    vec![
        ("blocking", |c| c.comm.all_reduce(c.input, c.output, c.op)),
        ("in place", |c| {
            let (comm, op) = (c.comm, c.op);
            comm.all_reduce_in_place(c.fill(), op)
        }),
        ("call", |c| {
            let call = c.call(Collective::AllReduce, c.input.len());
            c.comm.call(call, bytemuck::cast_slice(c.input), bytemuck::cast_slice_mut(c.output))
        }),
        ("scan", |c| c.comm.scan(c.input, c.output, c.op)),
        ("reduce_scatter_v in place", |c| {
            let (comm, op, counts) = (c.comm, c.op, c.counts());
            comm.reduce_scatter_v_in_place(c.fill(), &counts, op)
        }),
        ("request", |c| maypole::scope(|s| c.comm.start(s).all_reduce(c.input, c.output, c.op)?.wait().map(|_| ()))),
        ("request on a stream", |c| {
            maypole::scope(|s| c.comm.start_on(c.stream, s).all_reduce(c.input, c.output, c.op)?.wait().map(|_| ()))
        }),
        ("request, reduce_scatter_v", |c| {
            let (comm, op, counts) = (c.comm, c.op, c.counts());
            let buffer = c.fill();
            maypole::scope(|s| comm.start(s).reduce_scatter_v_in_place(buffer, &counts, op)?.wait().map(|_| ()))
        }),
        ("group", |c| {
            let (input, output, op) = (c.input, &mut *c.output, c.op);
            let (one, other) = output.split_at_mut(input.len() / 2);
            c.comm.group(|g| {
                g.all_reduce(&input[..one.len()], one, op);
                g.all_reduce(&input[..other.len()], other, op);
                Ok(())
            })
        }),
        ("persistent", |c| {
            let mut all_reduce = c.comm.persistent().all_reduce_in_place(c.input.to_vec(), c.op)?;
            all_reduce.start()?;
            c.output.copy_from_slice(all_reduce.wait()?);
            Ok(())
        }),
        ("persistent, run", |c| {
            let mut all_reduce = c.comm.persistent().all_reduce_in_place(c.input.to_vec(), c.op)?;
            c.output.copy_from_slice(all_reduce.run()?);
            Ok(())
        }),
        ("persistent, reduce_scatter_v on a stream", |c| {
            let counts = c.counts();
            let mut kept = c.comm.persistent().reduce_scatter_v_in_place(c.input.to_vec(), &counts, c.op)?;
            kept.start_on(c.stream)?;
            kept.wait().map(|_| ())
        }),
        ("raw", |c| {
            let (call, (from, to)) = (c.call(Collective::AllReduce, c.input.len()), c.at());
            // SAFETY: both are as long as the call says, until the end of the case.
            unsafe { c.comm.run_at(call, from, to) }
        }),
        ("raw request", |c| {
            let (call, (from, to)) = (c.call(Collective::AllReduce, c.input.len()), c.at());
            // SAFETY: as above.
            unsafe { c.comm.start_at(call, from, to, None) }?.wait()
        }),
        ("raw group", |c| {
            let (call, (from, to)) = (c.call(Collective::AllReduce, c.input.len()), c.at());
            let mut group = c.comm.raw_group();
            // SAFETY: as above.
            unsafe { group.call_at(call, from, to) };
            group.run()
        }),
        ("raw group, started", |c| {
            let (call, (from, to)) = (c.call(Collective::AllReduce, c.input.len()), c.at());
            let mut group = c.comm.raw_group();
            // SAFETY: as above.
            unsafe { group.call_at(call, from, to) };
            group.start(Some(c.stream))?.wait()
        }),
        ("raw persistent", |c| {
            let (call, (from, to)) = (c.call(Collective::AllReduce, c.input.len()), c.at());
            // SAFETY: as above.
            let kept = unsafe { c.comm.persistent_at(call, from, to) }?;
            kept.run()
        }),
    ]
}

/// That `said` tells of rank 0's panic.
fn tells_of_it(said: &Verdict, what: &str) {
    tells_of(0, said, what);
}

fn tells_of(panicked: usize, said: &Verdict, what: &str) {
    let Verdict::Aborted { rank, why } = said else { panic!("{what}: {said}") };
    assert_eq!(*rank, panicked, "{what}: {said}");
    assert!(why.contains("a user's operation panicked in") && why.contains("a test's panic"), "{what}: {said}");
}

#[test]
fn a_panic_in_any_form_of_a_call_is_everyone_s_verdict() {
    for Path { name, config, count } in paths() {
        for (form, run) in forms() {
            // The first rank combines nothing in a scan.
            let (what, panics) = (format!("{name}, {form}"), if form == "scan" { 2 } else { 0 });
            let (start, all_done) = (Instant::now(), Meeting::new(3));
            let errors = threads(3, &config, |comm| {
                // Kept here: nobody learns of the panic from a communicator that goes.
                let (mood, stream) = (Mood::default(), Stream::new().unwrap());
                let (input, mut output) = (vec![1.0f32; count], vec![0.0f32; count]);
                let mut once = |panics: bool| {
                    mood.panics.store(panics, Ordering::Relaxed);
                    let (op, comm, stream) = (sum_of(&mood), &comm, &stream);
                    let result = run(&mut Case { comm, stream, op, input: &input, output: &mut output });
                    let sums = !form.contains("_v") && form != "scan";
                    assert!(
                        result.is_err() || !sums || output.iter().all(|x| *x == 3.0),
                        "{what}: a wrong result on rank {}",
                        comm.rank()
                    );
                    result
                };
                once(false).unwrap();
                all_done.wait();
                // A rank that needed nothing more of the one that panics may be done with that.
                let first = once(comm.rank() == panics);
                assert!(comm.rank() != panics || first.is_err(), "{what}");
                comm.all_reduce(&input, &mut output, ReduceOp::Sum).expect_err("it has failed")
            });
            tells_of(panics, &common_verdict(&errors), &what);
            assert!(start.elapsed() < PATIENCE / 2, "{what}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_peer_takes_no_later_call_for_the_rest_of_a_message() {
    const COUNT: usize = 250_000;
    // Two slices: rank 0 panics between them.
    let errors = threads(2, &config(TransportChoice::Tcp), |comm| {
        let mood = Mood::default();
        mood.panics.store(comm.rank() == 0, Ordering::Relaxed);
        let mut buffer = vec![1.0f32; COUNT];
        let call = std::panic::AssertUnwindSafe(|| comm.all_reduce_in_place(&mut buffer, sum_of(&mood)));
        let first = std::panic::catch_unwind(call);
        if comm.rank() == 0 {
            return comm.all_reduce_in_place(&mut vec![1.0f32; COUNT], ReduceOp::Sum).expect_err("it has panicked");
        }
        let wrong = buffer.iter().filter(|x| **x != 2.0).count();
        match first.expect("no panic here") {
            Ok(()) => panic!("rank 1's call succeeded, with {wrong} wrong elements"),
            Err(error) => error,
        }
    });
    tells_of_it(&common_verdict(&errors), "two slices");
}

#[test]
fn who_shares_the_communicator_need_not_drop_it_for_the_others_to_know() {
    let start = Instant::now();
    let errors = threads(2, &config(TransportChoice::Tcp), |comm| {
        let shared = Arc::new(comm);
        let sum = |comm: &Communicator| {
            let mood = Mood { panics: AtomicBool::new(comm.rank() == 0) };
            comm.all_reduce_in_place(&mut [1.0f32; 1000], sum_of(&mood))
        };
        if shared.rank() > 0 {
            // It may have got all that it needs for the first.
            return sum(&shared).and_then(|()| sum(&shared)).expect_err("rank 0 has failed");
        }
        let used = shared.clone();
        let _ = std::thread::spawn(move || drop(sum(&used))).join();
        // Rank 0 does other things, and keeps the communicator.
        let done = Instant::now();
        while shared.verdict().is_none() && done.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        shared.barrier().expect_err("it has failed")
    });
    tells_of_it(&common_verdict(&errors), "shared");
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

/// What the ranks of one of the tests below know of each other.
#[derive(Default)]
struct Scene {
    /// Rank 0's operation panics once the reader has come, and its later ones at once.
    read: AtomicBool,
    /// Rank 0's calls have returned.
    returned: AtomicBool,
    /// Operands that changed while they were read.
    torn: AtomicUsize,
    /// Where operands lie whose reader waits; empty: the first that it gets.
    from: AtomicUsize,
    bytes: AtomicUsize,
}

impl Scene {
    /// Wait, but not for ever, until `ready`.
    fn wait(&self, ready: impl Fn() -> bool, most: Duration) {
        let start = Instant::now();
        while !ready() && start.elapsed() < most {
            std::thread::yield_now();
        }
    }
}

/// One rank's part in a scene.
struct Part<'a> {
    scene: &'a Scene,
    rank: usize,
    /// The rank that reads slowly.
    reader: usize,
}

/// # Safety
/// As for [`maypole::UserFnWith`], for f32; the context is a [`Part`].
unsafe fn play(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: the caller's promise.
    let part = unsafe { &*context.cast::<Part<'_>>() };
    let scene = part.scene;
    if part.rank == 0 {
        scene.wait(|| scene.read.load(Ordering::Acquire), Duration::from_secs(20));
        panic!("a test's panic");
    }
    let (from, bytes) = (scene.from.load(Ordering::Relaxed), scene.bytes.load(Ordering::Relaxed));
    let within = |at: *const u8| (from..from + bytes).contains(&at.addr());
    if part.rank == part.reader && (bytes == 0 || within(a) || within(b)) && !scene.read.swap(true, Ordering::AcqRel) {
        let watched = if within(b) { b.cast::<u32>() } else { a.cast::<u32>() };
        // SAFETY: the caller's promise; volatile, as this is about whether somebody else writes there.
        let look = || unsafe { watched.read_volatile() };
        let before = look();
        scene.wait(|| scene.returned.load(Ordering::Acquire) || look() != before, Duration::from_millis(500));
        let given_back = bytes > 0 && scene.returned.load(Ordering::Acquire);
        scene.torn.fetch_add(usize::from(given_back || look() != before), Ordering::AcqRel);
    }
    // SAFETY: the caller's promise.
    unsafe {
        for at in (0..count).map(|i| 4 * i) {
            let sum = a.add(at).cast::<f32>().read_unaligned() + b.add(at).cast::<f32>().read_unaligned();
            dst.add(at).cast::<f32>().write_unaligned(sum);
        }
    }
}

/// A sum that plays a part.
fn played(part: &Part<'_>) -> ReduceOp {
    // SAFETY: it does what it should, and the part outlives the calls.
    ReduceOp::User(unsafe { UserOp::with_context(9, DataType::F32, play, std::ptr::from_ref(part).cast()) })
}

#[test]
fn no_rank_rewrites_a_vector_that_another_still_reads() {
    // Exchanges that use plain memory beside their lines.
    const COUNT: usize = 1024;
    let scene = Scene::default();
    let errors = threads(3, &config(TransportChoice::Auto), |comm| {
        let part = Part { scene: &scene, rank: comm.rank(), reader: 2 };
        // Rank 0 panics in two exchanges and begins a third, in the memory of the first. Rank 2 is still in that.
        let mut last = None;
        for call in 0..3 {
            let mut buffer = [1.0f32 + call as f32; COUNT];
            let all_reduce = std::panic::AssertUnwindSafe(|| comm.all_reduce_in_place(&mut buffer, played(&part)));
            if let Ok(result) = std::panic::catch_unwind(all_reduce) {
                assert!(comm.rank() > 0 || result.is_err());
                last = result.err();
            }
        }
        if comm.rank() == 0 {
            scene.returned.store(true, Ordering::Release);
        }
        last
    });
    assert_eq!(scene.torn.load(Ordering::Acquire), 0, "an operand was rewritten while it was read");
    assert!(scene.read.load(Ordering::Acquire), "the reader has not come");
    let errors: Vec<_> = errors.into_iter().map(|last| last.expect("no third exchange")).collect();
    tells_of_it(&common_verdict(&errors), "exchange");
}

#[test]
fn a_registered_buffer_comes_back_when_nobody_reads_it() {
    const COUNT: usize = 300_000;
    let mut lends: Config = config(TransportChoice::Auto);
    lends.set("MAYPOLE_ALGORITHM", "all_reduce=two_shot").unwrap();
    let scene = Scene::default();
    let outcomes = threads(3, &lends, |comm| {
        let part = Part { scene: &scene, rank: comm.rank(), reader: 1 };
        let mut input = comm.alloc::<f32>(COUNT).unwrap();
        assert!(input.is_shared());
        input.fill(1.0);
        if comm.rank() == 0 {
            scene.from.store(input.as_ptr().addr(), Ordering::Relaxed);
            scene.bytes.store(4 * COUNT, Ordering::Relaxed);
        }
        comm.barrier().unwrap();
        let mut output = vec![0.0; COUNT];
        let all_reduce = std::panic::AssertUnwindSafe(|| comm.all_reduce(&input, &mut output, played(&part)));
        let outcome = std::panic::catch_unwind(all_reduce);
        if comm.rank() == 0 {
            scene.returned.store(true, Ordering::Release);
            // What it does with the memory that it has back.
            input.fill(7.0);
        }
        outcome.ok()
    });
    assert!(scene.read.load(Ordering::Acquire), "rank 1 has read nothing of rank 0's buffer");
    assert_eq!(scene.torn.load(Ordering::Acquire), 0, "a buffer was given back while it was read");
    let errors = outcomes.into_iter().map(|outcome| outcome.expect("caught").expect_err("rank 0 has failed"));
    tells_of_it(&common_verdict(&errors.collect::<Vec<_>>()), "registered");
}
