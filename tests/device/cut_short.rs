//! Whoever runs the tests and is killed has seen what had ended, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::ranks::{ROLE, patience, role};
use crate::runner::{On, Test, checked};

pub const TESTS: &[Test] = &[Test { name: NAME, on: On::Nothing, run: killed }];

const NAME: &str = "cut short: tests end with who runs them";
/// A test that is soon done, and comes before.
const SOON: &str = "absent: without a driver";

fn killed() {
    // In the run below: longer than that is waited for.
    role(|file| {
        std::fs::write(file, std::process::id().to_string()).expect("written");
        std::thread::sleep(3 * patience());
    });
    let file = std::env::temp_dir().join(format!("maypole-cut-short-{}", std::process::id()));
    let mut command = Command::new(std::env::current_exe().expect("known"));
    command.args(["--jobs", "1", SOON, NAME]).env(ROLE, &file).stdout(Stdio::piped()).process_group(0);
    let mut runner = command.spawn().expect("this binary runs once more");
    let stdout = BufReader::new(runner.stdout.take().expect("piped"));
    let pid = until(|| std::fs::read_to_string(&file).ok().filter(|pid| !pid.is_empty()));
    // One line for the number of tests, one for the columns' names, then what has ended.
    let third = stdout.lines().map_while(Result::ok).nth(2);
    assert!(third.as_ref().is_some_and(|line| line.starts_with(SOON)), "{third:?}");
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state().contains(") "), "it runs: {}", state());
    runner.kill().expect("it runs");
    runner.wait().expect("a child");
    // Gone, or nobody's any more and not yet forgotten.
    until(|| (!state().contains(") ") || state().contains(") Z ")).then_some(()));
    std::fs::remove_file(&file).expect("ours");
    checked(2);
}

/// Wait until there is something.
fn until<T>(what: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(what) = what() {
            return what;
        }
        assert!(start.elapsed() < patience(), "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
