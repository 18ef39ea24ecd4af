//! Runs each test in a process of its own, so many at a time, with a limit on its time, and prints a line for each when it
//! has ended: who is cut off has seen what there was. A test ends with the process that started it, and so do its ranks.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::ranks::patience;
use crate::world::{Driver, driver};

/// No test takes this long, on a machine that is busy with other things too: four minutes, unless told otherwise.
fn limit() -> Duration {
    4 * patience()
}

/// Where a test can run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// On either driver.
    Either,
    /// It sets switches of the emulator.
    Emulator,
    /// Without any driver.
    Nothing,
}

/// One test: its name and what it does. It fails by panicking, in whatever thread.
#[derive(Clone, Copy)]
pub struct Test {
    pub name: &'static str,
    pub on: On,
    pub run: fn(),
}

/// Comparisons that this process has made; shown in the table, so that a test that compares nothing is seen.
static CHECKS: AtomicU64 = AtomicU64::new(0);

/// Count `n` comparisons that held.
pub fn checked(n: u64) {
    CHECKS.fetch_add(n, Ordering::Relaxed);
}

/// End this test's process: what it needs is not there.
pub fn skip(why: &str) -> ! {
    println!("\n#skipped: {why}");
    std::process::exit(0);
}

pub fn main(tests: &[Test]) -> ExitCode {
    let mut filters = Vec::new();
    let mut jobs = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => {
                tests.iter().for_each(|test| println!("{}: test", test.name));
                return ExitCode::SUCCESS;
            }
            "--exact" => return alone(tests, &arguments.next().unwrap_or_default()),
            "--jobs" | "--test-threads" => jobs = number(&arguments.next().unwrap_or_default()),
            option if option.starts_with("--jobs=") || option.starts_with("--test-threads=") => {
                jobs = number(option.split('=').next_back().unwrap_or_default());
            }
            option if option.starts_with('-') => {}
            filter => filters.push(filter.to_string()),
        }
    }
    let wanted = |test: &&Test| filters.is_empty() || filters.iter().any(|filter| test.name.contains(filter.as_str()));
    table(&tests.iter().filter(wanted).collect::<Vec<_>>(), jobs)
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number of tests at a time"))
}

/// Run one test here, or a rank of it.
fn alone(tests: &[Test], name: &str) -> ExitCode {
    set_pdeathsig(Signal::SIGKILL).expect("a signal that there is");
    let Some(test) = tests.iter().find(|test| test.name == name) else {
        eprintln!("no test is called {name}");
        return ExitCode::FAILURE;
    };
    // A rank that panics leaves others waiting for it: the process ends with it.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::exit(101);
    }));
    match (test.on, driver()) {
        (On::Emulator, Driver::Device) => skip("it sets switches that only the emulator has"),
        (On::Nothing, _) => {}
        // The number of devices is fixed when the driver is first asked; a test may set it before.
        (_, driver) => driver.load(),
    }
    (test.run)();
    println!("\n#checks: {}", CHECKS.load(Ordering::Relaxed));
    ExitCode::SUCCESS
}

/// What came of a test.
enum Outcome {
    Ok { checks: u64 },
    Skipped { why: String },
    Failed { why: String, said: String },
}

/// Run `tests`, `jobs` at a time.
fn table(tests: &[&Test], jobs: usize) -> ExitCode {
    println!("{} tests on {}", tests.len(), driver().name());
    println!("{:<64} {:>8} {:>8}", "test", "seconds", "checks");
    let (next, began) = (AtomicU64::new(0), Instant::now());
    // Failed, skipped, checks.
    let counted = Mutex::new((0, 0, 0));
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, 64) {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let began = Instant::now();
                    let outcome = apart(test);
                    let seconds = began.elapsed().as_secs_f64();
                    // Held while the line is printed, so that lines are whole.
                    let mut counted = counted.lock().unwrap();
                    let what = match outcome {
                        Outcome::Ok { checks } => {
                            counted.2 += checks;
                            format!("{checks:>8}")
                        }
                        Outcome::Skipped { why } => {
                            counted.1 += 1;
                            format!("skipped: {why}")
                        }
                        Outcome::Failed { why, said } => {
                            counted.0 += 1;
                            format!("FAILED: {why}\n{said}")
                        }
                    };
                    println!("{:<64} {seconds:>8.1} {what}", test.name);
                }
            });
        }
    });
    let (failed, skipped, total) = counted.into_inner().unwrap();
    let ran = tests.len() - failed - skipped;
    println!("{ran} ok, {skipped} skipped, {failed} failed; {total} checks in {:.1} s", began.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Run one test in a process of its own.
fn apart(test: &Test) -> Outcome {
    let mut command = Command::new(std::env::current_exe().expect("the system knows the running binary"));
    command.args(["--exact", test.name]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    // Ranks that are threads of one process have a stream each, which must not share hardware queues. A process of its
    // own has enough of them, and takes longer to give the device up with more.
    if !test.name.starts_with("processes: ") {
        command.env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    }
    let mut child = command.spawn().expect("this binary runs once more");
    let group = Pid::from_raw(child.id() as i32);
    let (out, errors) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let gather = |lines: &mut dyn BufRead| lines.lines().map_while(Result::ok).collect::<Vec<_>>();
    let out = std::thread::spawn(move || gather(&mut BufReader::new(out)));
    let errors = std::thread::spawn(move || gather(&mut BufReader::new(errors)));
    let until = Instant::now() + limit();
    let status = loop {
        match child.try_wait().expect("a child of this process") {
            Some(status) => break Some(status),
            None if Instant::now() > until => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    // Whatever the test started ends with it.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
    let (out, errors) = (out.join().unwrap_or_default(), errors.join().unwrap_or_default());
    let told = |what: &str| out.iter().find_map(|line| line.strip_prefix(what));
    match status {
        Some(status) if status.success() => match (told("#skipped: "), told("#checks: ")) {
            (Some(why), _) => Outcome::Skipped { why: why.to_string() },
            (_, Some(checks)) if checks != "0" => Outcome::Ok { checks: checks.parse().unwrap_or(0) },
            _ => Outcome::Failed { why: "it ended without having compared anything".to_string(), said: String::new() },
        },
        status => {
            let said = out.iter().chain(&errors).map(|line| format!("    {line}\n")).collect();
            let why = status.map_or(format!("killed after {} s", limit().as_secs()), |status| status.to_string());
            Outcome::Failed { why, said }
        }
    }
}
