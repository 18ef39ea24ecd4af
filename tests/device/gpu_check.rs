//! `scripts/gpu-check-run` and its plans: a short dry run on the emulator with the programs of this build,
//! so that no name or flag in them rots; and what it promises of steps that hang and of runs that are
//! cut off.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use maypole_cuda_emulator::testing;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ranks::patience;
use crate::runner::{On, Test, checked};

pub const TESTS: &[Test] = &[
    Test { name: "gpu-check: the plans name tests that there are", on: On::Nothing, run: names },
    Test { name: "gpu-check: a dry run", on: On::Nothing, run: || dry_run("check") },
    Test { name: "gpu-check: a dry run of the tuning", on: On::Nothing, run: || dry_run("tune") },
    Test { name: "gpu-check: steps that hang", on: On::Nothing, run: hangs },
    Test { name: "gpu-check: a run that is cut off", on: On::Nothing, run: cut_off },
    Test { name: "gpu-check: no more than its time", on: On::Nothing, run: its_time },
];

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");

const PROGRAMS: [(&str, &str); 6] = [
    ("maypole", env!("CARGO_BIN_EXE_maypole")),
    ("primitives_perf", env!("CARGO_BIN_EXE_primitives_perf")),
    ("kernel_perf", env!("CARGO_BIN_EXE_kernel_perf")),
    ("overlap_perf", env!("CARGO_BIN_EXE_overlap_perf")),
    ("nccl_perf", env!("CARGO_BIN_EXE_nccl_perf")),
    ("gpu_summary", env!("CARGO_BIN_EXE_gpu_summary")),
];

fn names() {
    let mut named = 0;
    for plan in ["gpu-check-plan", "gpu-check-tune"] {
        let text = std::fs::read_to_string(format!("{SCRIPTS}/{plan}")).expect("the plan");
        for line in text.lines().filter(|line| line.contains("tested ")) {
            let name = line.split('\'').nth(1).expect("a name in quotes");
            assert!(crate::tests().iter().any(|test| test.name == name), "{plan}: no test is called {name:?}");
            named += 1;
        }
    }
    assert!(named > 5, "the plan runs tests");
    checked(named);
}

/// A folder as `scripts/gpu-check` makes it, of this build's programs, and where a run's files go.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(std::env::temp_dir().join(format!("maypole-gpu-check-{}", std::process::id())));
        for part in ["bin", "emulator", "plans"] {
            std::fs::create_dir_all(folder.0.join(part)).expect("a folder");
        }
        let link = |to: &Path, name: &str| symlink(to, folder.0.join(name)).expect("a link");
        for (name, program) in PROGRAMS {
            link(Path::new(program), &format!("bin/{name}"));
        }
        link(&std::env::current_exe().expect("known"), "bin/device_tests");
        link(&testing::library(), "emulator/libcuda.so.1");
        for (script, place) in [
            ("run", "run"),
            ("steps", "steps"),
            ("plan", "plans/check"),
            ("tune", "plans/tune"),
            ("ways", "plans/ways"),
        ] {
            link(Path::new(&format!("{SCRIPTS}/gpu-check-{script}")), place);
        }
        std::fs::write(folder.0.join("build.tsv"), "revision\tthis\n").expect("written");
        folder
    }

    /// A plan of its own.
    fn plan(&self, text: &str) -> String {
        let path = self.0.join("plan");
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new("bash");
        command.arg(self.0.join("run")).arg("--emulate").args(arguments).arg(self.0.join("out"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("there is bash")
    }

    fn run(&self, arguments: &[&str]) -> (Output, String) {
        let output = self.start(arguments).wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output, said)
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join("out").join(name)).unwrap_or_default()
    }

    /// How each step ended.
    fn outcomes(&self) -> Vec<(String, String)> {
        let lines = self.file("gpu-check.jsonl");
        let values = lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        let step = |value: serde_json::Value| {
            Some((value["step"].as_str()?.to_string(), value["outcome"].as_str()?.to_string()))
        };
        values.filter_map(step).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All of a plan but the device tests, which this is one of.
fn dry_run(plan: &str) {
    let folder = Folder::new();
    let (output, said) = folder.run(&["--plan", plan, "--seconds", "1000", "--only", "^[^t]|^th"]);
    let outcomes = folder.outcomes();
    assert!(output.status.success(), "{outcomes:#?}\n{said}");
    let (well, rest): (Vec<_>, Vec<_>) = outcomes.iter().partition(|(_, outcome)| outcome == "ok");
    assert!(well.len() >= 25, "{well:#?}");
    // What the emulator has not: NCCL, PyTorch, counters.
    assert!(rest.len() < 8 && rest.iter().all(|(_, outcome)| outcome.starts_with("skipped: ")), "{rest:#?}");
    let text = folder.file("gpu-check.txt");
    for part in ["== primitives", "== floors", "== small", "== collectives", "== overlap"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("NOT READ") && said.contains(text.trim_end()), "{text}");
    checked(well.len() as u64);
}

/// A step that hangs is shown and killed, with what it has started; the next one runs. After two only
/// what measures primitives does, and the diagnosis.
fn hangs() {
    let folder = Folder::new();
    let plan = folder.plan(
        r#"
        . "$here/plans/ways"
        step 'hangs' 5 "$bin/maypole" run -n 2 -- sleep 1234
        step 'goes on' 60 "$bin/maypole" info
        step 'hangs again' 1 sleep 1234
        step 'and again' 1 sleep 1234
        step 'is left out' 60 "$bin/maypole" info
        fact measure 'primitives' 60 "$bin/primitives_perf" "${primitive[@]}"
        "#,
    );
    let (output, said) = folder.run(&["--plan", &plan, "--seconds", "200"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let outcomes = folder.outcomes();
    let of = |name: &str| {
        let found = outcomes.iter().find(|(step, _)| step == name);
        found.unwrap_or_else(|| panic!("{name}: {outcomes:#?}\n{said}")).1.as_str()
    };
    assert!(of("hangs").starts_with("HUNG: killed after "), "{}", of("hangs"));
    assert_eq!((of("goes on"), of("primitives")), ("ok", "ok"), "{said}");
    assert_eq!(of("is left out"), "skipped: two steps in a row have hung");
    let diagnosis: Vec<_> = outcomes.iter().filter(|(step, _)| step.starts_with("diagnosis: ")).collect();
    // How they end is a machine's matter; that their flags are understood is not.
    let understood = diagnosis.iter().all(|(_, outcome)| !outcome.contains("status 2"));
    assert!(understood && diagnosis.len() == 5, "{outcomes:#?}\n{said}");
    // Threads of all processes of the step, with the calls that they are in.
    let dump = &said[said.find("!!! HUNG: hangs").expect("it is said")..said.find("goes on").expect("said")];
    assert!(dump.matches(" sleep [").count() >= 1 && dump.contains("maypole ["), "{dump}");
    let log = folder.file("gpu-check.log");
    assert!(log.contains("!!! HUNG: hangs again") && log.contains("verdict"), "{log}");
    let left = std::fs::read_dir("/proc").expect("/proc").flatten().filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line == b"sleep\x001234\x00"
    });
    assert_eq!(left.count(), 0, "what a step has started goes with it");
    checked(10);
}

/// Whoever ends a run early has the figures and the summary of what there was.
fn cut_off() {
    let folder = Folder::new();
    let plan = folder.plan(
        r#"
        . "$here/plans/ways"
        measure 'kernels' 60 "$bin/kernel_perf" -d f32 -o sum "${kernel[@]}"
        step 'is cut off' 200 sleep 2345
        step 'never comes' 60 true
        "#,
    );
    let child = folder.start(&["--plan", &plan, "--seconds", "240"]);
    let begun = Instant::now();
    while !folder.file("gpu-check.log").contains(": is cut off (at most") {
        assert!(begun.elapsed() < 2 * patience(), "{}", folder.file("gpu-check.log"));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Even what is killed has left a summary of the steps before.
    assert!(folder.file("gpu-check.txt").contains("== floors\ncopy rate"), "{}", folder.file("gpu-check.txt"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(143), "{said}");
    let outcomes = folder.outcomes();
    let names: Vec<&str> = outcomes.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(names, ["kernels", "is cut off"], "{said}");
    assert!(outcomes[1].1.starts_with("cut off after "), "{outcomes:?}");
    let text = folder.file("gpu-check.txt");
    assert!(text.contains("cut off after") && text.contains("== floors\ncopy rate"), "{text}");
    assert!(said.contains(text.trim_end()), "it is printed, too: {said}");
    checked(5);
}

/// What does not fit is cut short or left out, and the end comes in time.
fn its_time() {
    let folder = Folder::new();
    let plan = folder.plan("step 'too long' 100 sleep 3456\nstep 'too late' 100 true\n");
    let (output, said) = folder.run(&["--plan", &plan, "--seconds", "16"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let outcomes = folder.outcomes();
    assert!(outcomes[0].1.starts_with("HUNG: killed after "), "{outcomes:?}");
    assert_eq!(outcomes[1].1, "skipped: no time left");
    // The last seconds are for the summary.
    let limit = said.split("too long (at most ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    assert!(limit.is_some_and(|limit: u64| limit <= 10), "{said}");
    for wrong in [&["--minutes", "soon"][..], &["--plan", "nowhere"], &["--mode", "fast"], &["--often"]] {
        assert_eq!(folder.run(wrong).0.status.code(), Some(2), "{wrong:?}");
    }
    checked(7);
}
