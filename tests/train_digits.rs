//! Runs examples/train_digits as its reader would, and checks what it prints and how it exits.

mod example;

use std::process::{Command, Output};

use example::EXAMPLE;

/// Runs the example with a clean slate: no variable of a launcher or of Maypole's settings reaches it.
fn run(arguments: &str) -> Output {
    run_by(Command::new(&*EXAMPLE), arguments)
}

fn run_by(mut command: Command, arguments: &str) -> Output {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["MAYPOLE_", "OMPI_", "PMIX_", "PMI_", "SLURM_"].iter().any(|prefix| name.starts_with(prefix))
            || ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"].contains(&&*name)
        {
            command.env_remove(&*name);
        }
    }
    command.args(arguments.split_whitespace()).output().unwrap()
}

/// What a run printed.
struct Report {
    /// Mean loss of each epoch.
    losses: Vec<f64>,
    accuracy: f64,
    /// Ranks that hold rank 0's weights, of how many.
    identical: (usize, usize),
    hash: String,
    difference: f64,
    tolerance: f64,
}

/// Reads the output of a run that succeeded.
fn report(output: &Output) -> Report {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    // `maypole run` puts the rank before each line, hence the search within lines.
    let after = |mark: &str| -> Vec<&str> {
        text.lines().filter_map(|line| Some(line.split_once(mark)?.1.split([' ', ',', '%']).next().unwrap())).collect()
    };
    let one = |mark: &str| match after(mark)[..] {
        [word] => word,
        _ => panic!("expected one line with {mark:?}:\n{text}"),
    };
    assert_eq!(after("ok: ").len(), 3, "three checks are announced:\n{text}");
    Report {
        losses: after("  loss ").iter().map(|loss| loss.parse().unwrap()).collect(),
        accuracy: one("ok: test accuracy ").parse().unwrap(),
        identical: (one("bit-identical on ").parse().unwrap(), one(" of ").parse().unwrap()),
        hash: one("blake3 ").to_string(),
        difference: one("on the same batches by ").parse().unwrap(),
        tolerance: one("tolerance ").parse().unwrap(),
    }
}

/// What must hold of every run that succeeds.
fn check(report: &Report, ranks: usize, epochs: usize) {
    assert_eq!(report.losses.len(), epochs);
    assert!(report.losses.last().unwrap() < &(report.losses[0] / 2.0), "training lowers the loss: {:?}", report.losses);
    assert!((95.0..=100.0).contains(&report.accuracy), "{}%", report.accuracy);
    assert_eq!(report.identical, (ranks, ranks));
    assert!(report.hash.len() == 64 && report.hash.bytes().all(|b| b.is_ascii_hexdigit()), "{}", report.hash);
    assert!(report.difference <= report.tolerance && report.tolerance <= 1e-5);
    // One rank is the one-rank run itself. Several ranks add up in another order: some bit of 4,810 weights differs
    // after hundreds of steps, or else the comparison compares nothing.
    assert_eq!(report.difference == 0.0, ranks == 1);
}

#[test]
fn one_two_and_four_ranks_learn_the_same() {
    let reports: Vec<Report> = [1, 2, 4]
        .map(|ranks| {
            let report = report(&run(&format!("--ranks {ranks}")));
            check(&report, ranks, 20);
            report
        })
        .into();
    for other in &reports[1..] {
        for (a, b) in reports[0].losses.iter().zip(&other.losses) {
            assert!((a - b).abs() < 2e-4, "losses to four places: {a} and {b}");
        }
    }
}

#[test]
fn a_run_can_be_repeated_to_the_bit() {
    let hashes = ["7", "7", "8"].map(|seed| report(&run(&format!("--ranks 2 --seed {seed}"))).hash);
    assert_eq!(hashes[0], hashes[1]);
    assert_ne!(hashes[0], hashes[2], "the seed decides");
}

/// 1,437 images in batches of 8: each gives six ranks one or two images, and the last, of 5, leaves one rank with none.
#[test]
fn shards_may_be_uneven_or_empty() {
    check(&report(&run("--ranks 6 --batch 8 --lr 0.02 --epochs 5")), 6, 5);
}

#[test]
fn without_a_launcher_there_is_one_rank() {
    check(&report(&run("")), 1, 20);
}

#[test]
fn processes_train_like_threads() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maypole"));
    command.args(["run", "-n", "2", "--"]).arg(&*EXAMPLE);
    let processes = report(&run_by(command, ""));
    check(&processes, 2, 20);
    assert_eq!(processes.hash, report(&run("--ranks 2")).hash);
}

#[test]
fn a_network_that_learnt_too_little_fails_the_run() {
    let output = run("--ranks 2 --epochs 1 --lr 0.0001");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED: test accuracy "), "{text}");
    assert!(text.contains("ok: weights bit-identical on 2 of 2 ranks"), "the other checks still run: {text}");
}

#[test]
fn a_training_that_diverges_fails_the_run() {
    let output = run("--ranks 2 --epochs 1 --lr 1e30");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED: weights differ"), "NaN matches nothing: {text}");
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    for flags in ["--ranks 0", "--epochs 0", "--batch 0", "--lr 0", "--lr -1", "--lr NaN", "--lr fast", "--ranks two"] {
        let output = run(flags);
        let (flag, value) = flags.split_once(' ').unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags}: {errors}");
        assert!(errors.contains(flag) && errors.contains(value), "{flags}: {errors}");
    }
}
