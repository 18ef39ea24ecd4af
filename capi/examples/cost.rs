//! What a C call costs above the Rust call: all-reduces of 8 bytes, two ranks as threads, by turns through either.
//!
//!     cargo run --release -p maypole-capi --example cost

use std::ffi::c_void;
use std::time::Instant;

use maypole::{Communicator, ReduceOp};
use maypole_capi::collectives::maypole_all_reduce;
use maypole_capi::communicator::{maypole_comm, maypole_comm_init_threads};
use maypole_capi::operation::MAYPOLE_SUM;
use maypole_capi::status::MAYPOLE_OK;
use maypole_capi::values::MAYPOLE_F64;

const CALLS: usize = 2000;
const TURNS: usize = 401;

/// A handle, for another thread.
#[derive(Clone, Copy)]
struct Handle(maypole_comm);

// SAFETY: a handle is a number.
unsafe impl Send for Handle {}

/// Microseconds per call of each turn, through C and through Rust.
fn measure(Handle(handle): Handle, comm: &Communicator) -> [Vec<f64>; 2] {
    let (input, mut output) = ([1.0f64], [0.0f64]);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        let begun = Instant::now();
        for _ in 0..CALLS {
            let (from, to) = (input.as_ptr().cast::<c_void>(), output.as_mut_ptr().cast::<c_void>());
            let no_stream = std::ptr::null_mut();
            // SAFETY: both buffers have one element, and the call blocks.
            let status = unsafe { maypole_all_reduce(handle, from, to, 1, MAYPOLE_F64, MAYPOLE_SUM, no_stream) };
            assert_eq!(status, MAYPOLE_OK);
        }
        times[0].push(begun.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
        let begun = Instant::now();
        for _ in 0..CALLS {
            comm.all_reduce(&input, &mut output, ReduceOp::Sum).expect("an all-reduce");
        }
        times[1].push(begun.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
    }
    assert_eq!(output, [2.0]);
    times
}

fn main() {
    let mut handles = [std::ptr::null_mut(); 2];
    // SAFETY: there is room for two handles.
    assert_eq!(unsafe { maypole_comm_init_threads(2, std::ptr::null(), handles.as_mut_ptr()) }, MAYPOLE_OK);
    let world = Communicator::threads(2).expect("two ranks");
    let ranks = std::thread::scope(|scope| {
        let threads: Vec<_> = handles
            .map(Handle)
            .into_iter()
            .zip(&world)
            .map(|(handle, comm)| scope.spawn(move || measure(handle, comm)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect::<Vec<_>>()
    });
    let [c, rust] = ranks.into_iter().next().expect("rank 0").map(|mut times| {
        times.sort_by(f64::total_cmp);
        (times[0], times[TURNS / 2])
    });
    println!("all_reduce of 8 bytes, 2 ranks, {TURNS} turns of {CALLS} calls, us per call: median (best)");
    println!("C    {:.3} ({:.3})\nRust {:.3} ({:.3})", c.1, c.0, rust.1, rust.0);
    println!("a C call costs {:.0} ns more (best: {:.0} ns)", 1e3 * (c.1 - rust.1), 1e3 * (c.0 - rust.0));
}
