//! Programs of this package, run as a user runs them, and what they leave.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

/// How long one run may take; a hang is a failure, not a stuck test.
const LIMIT: Duration = Duration::from_secs(120);

/// One run at a time: each starts several ranks, and the machine may have two cores.
static TURN: Mutex<()> = Mutex::new(());

/// Run `program`; whatever it starts is gone when this returns.
pub fn run(program: &str, arguments: &str, environment: &[(&str, &str)]) -> Output {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in
        ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"]
    {
        command.env_remove(variable);
    }
    let mut child = command.envs(environment.iter().copied()).process_group(0).spawn().expect("the binary starts");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    };
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || read(&mut stdout));
        let stderr = scope.spawn(move || read(&mut stderr));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if start.elapsed() > LIMIT {
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                panic!("{program} {arguments} did not end within {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().expect("a reader does not panic"));
        Output { status, stdout, stderr }
    })
}

/// Run with a JSON file, demand success, and return the report.
pub fn report(program: &str, arguments: &str, environment: &[(&str, &str)]) -> Value {
    let directory =
        std::env::temp_dir().join(format!("maypole-perf-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&directory).expect("a directory for the report");
    let path = directory.join("report.json");
    let output = run(program, &format!("{arguments} -J {}", path.display()), environment);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments}: {}\n{stdout}\n{stderr}", output.status);
    let text = std::fs::read_to_string(&path).expect("a report was written");
    std::fs::remove_dir_all(&directory).expect("the directory is ours");
    serde_json::from_str(&text).expect("the report is JSON")
}
