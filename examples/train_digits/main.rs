//! Data-parallel training: every rank holds the whole network, works on its share of each batch, and all-reduces the
//! gradients, so that all ranks take the same step.
//!
//! ```text
//! cargo run --release -p train_digits -- --ranks 4
//! ```
//!
//! starts four ranks as threads. Without `--ranks`, this program is one rank of those that a launcher (mpirun, mpiexec,
//! torchrun, `maypole run`) started, each a process; with no launcher either, the only one.
//!
//! At the end it checks that the network reads digits, that all ranks hold the same weights to the bit, and that one
//! rank alone, given the same batches, ends at nearly the same weights. It exits with 1 if any of these fails.
//!
//! Read `train` below first; `model.rs` has the network, `data.rs` the images.

mod data;
mod model;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use maypole::{Communicator, ReduceOp};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use data::Digits;
use model::WEIGHTS;

/// Share of the test images that must be read correctly.
const REQUIRED_ACCURACY: f64 = 0.95;

/// How far a weight may end from where one rank alone takes it. Not zero, because floating-point sums depend on their
/// order: one rank adds up a batch in one order, four ranks in another. The weights themselves are of the order of 0.1.
const TOLERANCE: f32 = 1e-5;

const MOMENTUM: f32 = 0.9;

/// Trains a small network on handwritten digits, data-parallel.
#[derive(Parser)]
struct Options {
    /// Start this many ranks as threads; without it, be one of the ranks that a launcher started
    #[arg(long)]
    ranks: Option<NonZeroUsize>,
    /// Passes over the training images
    #[arg(long, default_value = "20")]
    epochs: NonZeroUsize,
    /// Images in a batch, over all ranks
    #[arg(long, default_value = "64")]
    batch: NonZeroUsize,
    /// Learning rate
    #[arg(long, default_value = "0.1", allow_negative_numbers = true, value_parser = learning_rate)]
    lr: f32,
    /// Decides the initial weights and the order of the images
    #[arg(long, default_value = "1")]
    seed: u64,
}

fn learning_rate(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(lr) if lr > 0.0 && lr.is_finite() => Ok(lr),
        _ => Err("expected a number above 0, such as 0.1".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    // One thread of arithmetic for each rank: the ranks already keep the cores busy.
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // SAFETY: no other thread exists yet, so none can be reading the environment.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    }
    let passed = match options.ranks {
        Some(ranks) => run_threads(ranks, &options),
        None => Communicator::from_env().context("joining the other ranks").map(|comm| run_rank(&comm, &options)),
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("train_digits: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every rank as a thread of this process. True if all of them passed.
fn run_threads(ranks: NonZeroUsize, options: &Options) -> Result<bool> {
    let communicators = Communicator::threads(ranks.get()).context("starting the ranks")?;
    Ok(std::thread::scope(|scope| {
        let threads: Vec<_> =
            communicators.into_iter().map(|comm| scope.spawn(move || run_rank(&comm, options))).collect();
        // A thread that panicked has said why, and its rank has not passed.
        let passed: Vec<bool> = threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        !passed.contains(&false)
    }))
}

/// Runs one rank. True if it passed; says why if not.
fn run_rank(comm: &Communicator, options: &Options) -> bool {
    train_and_check(comm, options).unwrap_or_else(|error| {
        eprintln!("train_digits, rank {}: {error:#}", comm.rank());
        // The other ranks would wait for this one until their deadline; this ends their wait now.
        comm.abort(&format!("{error:#}"));
        false
    })
}

fn train_and_check(comm: &Communicator, options: &Options) -> Result<bool> {
    let (training, test) = Digits::load()?;
    // All ranks compute the same results; one of them prints.
    let prints = comm.rank() == 0;
    if prints {
        println!("ranks {}, global batch {}, {WEIGHTS} weights", comm.size(), options.batch);
        println!("{} training images, {} test images", training.len(), test.len());
    }

    let mut accuracy = 0.0;
    let start = Instant::now();
    let weights = train(comm, options, &training, |epoch, loss, weights| {
        accuracy = test_accuracy(comm, weights, &test)?;
        if prints {
            println!("epoch {epoch:>3}  loss {loss:.4}  test accuracy {:.1}%", 100.0 * accuracy);
        }
        Ok(())
    })?;
    let seconds = start.elapsed().as_secs_f64();

    let accurate = accuracy >= REQUIRED_ACCURACY;
    if prints {
        println!("trained in {seconds:.2} s");
        println!(
            "{}: test accuracy {:.1}%, required {:.0}%",
            verdict(accurate),
            100.0 * accuracy,
            100.0 * REQUIRED_ACCURACY
        );
    }
    let same = same_on_all_ranks(comm, &weights)?;
    // The others need not wait for rank 0's last check: a launcher reports the failure of any rank.
    let matches = comm.rank() != 0 || matches_one_rank(options, &training, &weights)?;
    Ok(accurate && same && matches)
}

/// Trains, and returns the weights. After each epoch, calls `report` with its number, the mean loss of its images and
/// the weights so far.
fn train(
    comm: &Communicator,
    options: &Options,
    digits: &Digits,
    mut report: impl FnMut(usize, f32, &[f32]) -> Result<()>,
) -> Result<Vec<f32>> {
    // Ranks that started from different weights would never agree again, so one rank draws them for all. (Each could
    // draw them from the seed; weights loaded from a file, or a generator seeded by the clock, would need this.)
    let mut weights = if comm.rank() == 0 { model::initial_weights(options.seed) } else { vec![0.0; WEIGHTS] };
    comm.broadcast(&mut weights, 0)?;

    let mut velocity = vec![0.0; WEIGHTS];
    let mut order: Vec<usize> = (0..digits.len()).collect();
    // Seeded alike everywhere: all ranks see the same batches, and so does a run with another number of ranks.
    let mut random = StdRng::seed_from_u64(options.seed);

    for epoch in 1..=options.epochs.get() {
        order.shuffle(&mut random);
        let mut epoch_loss = 0.0;
        for batch in order.chunks(options.batch.get()) {
            let shard = &batch[share(comm, batch.len())];
            let mut sums = model::gradient_and_loss(&weights, digits, shard)?;
            // The one call that makes this training data-parallel. Every rank gets the same bits back.
            comm.all_reduce_in_place(&mut sums, ReduceOp::Sum)?;

            let (gradient, loss) = sums.split_at(WEIGHTS);
            epoch_loss += loss[0];
            // Stochastic gradient descent with momentum. The sum is divided by the batch's own length, which is right
            // for a short last batch and for shards of different lengths, where a mean of the ranks' means is not.
            for ((weight, velocity), sum) in weights.iter_mut().zip(&mut velocity).zip(gradient) {
                *velocity = MOMENTUM * *velocity + sum / batch.len() as f32;
                *weight -= options.lr * *velocity;
            }
        }
        report(epoch, epoch_loss / digits.len() as f32, &weights)?;
    }
    Ok(weights)
}

/// This rank's share of `count` things: consecutive, and as even as can be.
fn share(comm: &Communicator, count: usize) -> Range<usize> {
    comm.rank() * count / comm.size()..(comm.rank() + 1) * count / comm.size()
}

/// Share of the test images that the network reads correctly; each rank tests its part of them.
fn test_accuracy(comm: &Communicator, weights: &[f32], test: &Digits) -> Result<f64> {
    let images: Vec<usize> = share(comm, test.len()).collect();
    let mut correct = [model::count_correct(weights, test, &images)?];
    comm.all_reduce_in_place(&mut correct, ReduceOp::Sum)?;
    Ok(f64::from(correct[0]) / test.len() as f64)
}

/// Whether all ranks hold the same weights, bit for bit. Every rank shows every other a hash of its own.
fn same_on_all_ranks(comm: &Communicator, weights: &[f32]) -> Result<bool> {
    let hash = blake3::hash(bytemuck::cast_slice(weights));
    let mut hashes = vec![0u8; blake3::OUT_LEN * comm.size()];
    comm.all_gather(hash.as_bytes(), &mut hashes)?;
    let agreeing = hashes.chunks(blake3::OUT_LEN).filter(|other| other == hash.as_bytes()).count();
    let same = agreeing == comm.size();
    if comm.rank() == 0 {
        println!("{}: weights bit-identical on {agreeing} of {} ranks, blake3 {hash}", verdict(same), comm.size());
    }
    Ok(same)
}

/// Whether one rank alone, given the same batches, ends at `weights` to within [`TOLERANCE`].
fn matches_one_rank(options: &Options, training: &Digits, weights: &[f32]) -> Result<bool> {
    let alone = Communicator::threads(1)?.remove(0);
    let expected = train(&alone, options, training, |_, _, _| Ok(()))?;
    let differences = weights.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // `total_cmp` puts NaN above all numbers, so that a training that diverged does not pass.
    let difference = differences.max_by(f32::total_cmp).unwrap_or(0.0);
    let matches = difference <= TOLERANCE;
    println!(
        "{}: weights differ from a one-rank run's on the same batches by {difference:.1e}, tolerance {TOLERANCE:.0e}",
        verdict(matches)
    );
    Ok(matches)
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}
