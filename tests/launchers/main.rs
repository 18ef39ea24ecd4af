//! The scripts in `mpirun-scripts/` with the real launchers: ranks find each other without anybody typing an address,
//! compute the right thing, and a rank that dies takes the job down.
//!
//! Which launcher is used: `MPIRUN` (Open MPI), `MPIRUN5` (Open MPI 5 beside it), `MPIEXEC` (MPICH), `INTEL_MPIEXEC`,
//! `TORCHRUN`, or what PATH has. A test whose launcher is not there says `skipped:` and why on standard error; `scripts/test` installs them all. With
//! `MAYPOLE_TEST_LAUNCHERS` listing a launcher, its absence is a failure.

#[path = "../example/mod.rs"]
mod example;
mod mpi;
#[path = "../ranks/port.rs"]
mod port;
mod slurm;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use port::free_port;

/// A launcher, its script, and how to tell it from others of the same name.
#[derive(Clone, Copy)]
struct Launcher {
    name: &'static str,
    script: &'static str,
    variable: &'static str,
    command: &'static str,
    /// What `--version` says; several programs are called mpiexec.
    version: &'static [&'static str],
    /// What Maypole calls it.
    known_as: &'static str,
    /// Where a shell finds its rank.
    rank_variable: &'static str,
}

const OPEN_MPI: Launcher = Launcher {
    name: "openmpi",
    script: "openmpi.sh",
    variable: "MPIRUN",
    command: "mpirun",
    version: &["Open MPI", "OpenRTE"],
    known_as: "Open MPI",
    rank_variable: "OMPI_COMM_WORLD_RANK",
};
/// Open MPI from its fifth release on has another launcher and another PMIx.
const OPEN_MPI_5: Launcher =
    Launcher { name: "openmpi5", variable: "MPIRUN5", command: "mpirun5", version: &["(Open MPI) 5"], ..OPEN_MPI };
const MPICH: Launcher = Launcher {
    name: "mpich",
    script: "mpich.sh",
    variable: "MPIEXEC",
    command: "mpiexec",
    version: &["HYDRA"],
    known_as: "MPICH (PMI-1)",
    rank_variable: "PMI_RANK",
};
const INTEL: Launcher = Launcher {
    name: "intelmpi",
    script: "mpich.sh",
    variable: "INTEL_MPIEXEC",
    command: "mpiexec.hydra",
    version: &["Intel(R) MPI"],
    known_as: "MPICH (PMI-1)",
    rank_variable: "PMI_RANK",
};
const TORCHRUN: Launcher = Launcher {
    name: "torchrun",
    script: "torchrun.sh",
    variable: "TORCHRUN",
    command: "torchrun",
    version: &[],
    known_as: "torchrun",
    rank_variable: "RANK",
};

impl Launcher {
    /// The launcher's program, or `None` after saying why the test is skipped.
    fn find(&self, test: &str) -> Option<String> {
        let program = std::env::var(self.variable).unwrap_or_else(|_| self.command.to_string());
        let argument = if self.version.is_empty() { "--help" } else { "--version" };
        let why = match Command::new(&program).arg(argument).stdin(Stdio::null()).output() {
            Err(error) => format!("{program}: {error}"),
            Ok(out) => {
                let said = text(&out.stdout);
                if out.status.success() && (self.version.is_empty() || self.version.iter().any(|v| said.contains(v))) {
                    return Some(program);
                }
                format!("{program} is not {}", self.version.join(" or "))
            }
        };
        let wanted = std::env::var("MAYPOLE_TEST_LAUNCHERS").unwrap_or_default();
        assert!(!wanted.split_whitespace().any(|name| name == self.name), "{why}, but {} must be there", self.name);
        // Past the test harness, which keeps what passing tests print to itself.
        let _ = writeln!(std::io::stderr(), "skipped: launchers::{test}: {why}; set {} to its path", self.variable);
        None
    }

    /// Run `SCRIPT N ARGS...`. `None`: skipped.
    fn run(&self, test: &str, ranks: usize, args: &[&str]) -> Option<Output> {
        self.run_with(test, &[], ranks, args)
    }

    /// [`Launcher::run`] with variables for the launcher itself.
    fn run_with(&self, test: &str, variables: &[(&str, &str)], ranks: usize, args: &[&str]) -> Option<Output> {
        let program = self.find(test)?;
        let script = format!("{}/mpirun-scripts/{}", env!("CARGO_MANIFEST_DIR"), self.script);
        let variable = match self.script {
            "mpich.sh" => "MPIEXEC",
            "openmpi.sh" => "MPIRUN",
            _ => self.variable,
        };
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120", "sh", &script, &ranks.to_string()]).args(args).env(variable, program);
        for name in ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "MAYPOLE_KEY"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        // Open MPI's mpirun fails if another one ends just then and clears away the directory that both keep sessions in.
        // A short path: there are sockets in it.
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let sessions = std::env::temp_dir().join(format!("maypole-{}-{run}", std::process::id()));
        std::fs::create_dir_all(&sessions).unwrap();
        command.env("TMPDIR", &sessions).env("MAYPOLE_CONNECT_TIMEOUT", "30").stdin(Stdio::null());
        let output = command.output().unwrap();
        let _ = std::fs::remove_dir_all(&sessions);
        Some(output)
    }

    /// Ranks are told who they are, and all meet, twice: a program may create a second world when the first is gone.
    fn ranks_meet(&self) {
        let maypole = env!("CARGO_BIN_EXE_maypole");
        let Some(out) = self.run(&format!("{}_ranks_meet", self.name), 4, &[maypole, "info", "--launch"]) else {
            return;
        };
        let said = text(&out.stdout);
        assert!(out.status.success(), "{said}{}", text(&out.stderr));
        let mut lines: Vec<&str> = said.lines().filter(|line| line.starts_with("rank ")).collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), 4, "{said}");
        // Open MPI 5 numbers the ranks of a host by their sockets.
        let mut locals: Vec<usize> = (0..4).collect();
        if self.name == OPEN_MPI_5.name {
            let local = |line: &&str| line.split_once("(local ").and_then(|(_, rest)| rest[..1].parse().ok());
            locals = lines.iter().filter_map(local).collect();
            assert!((0..4).all(|rank| locals.contains(&rank)), "{said}");
        }
        for (rank, line) in lines.iter().enumerate() {
            assert!(line.starts_with(&format!("rank {rank} of 4 (local {} of 4) on ", locals[rank])), "{line}");
            assert!(line.contains(&format!("launcher {}:", self.known_as)), "{line}");
            assert_eq!(line.matches("met 4 ranks of ").count(), 2, "{line}");
        }
    }

    /// An outer launcher's numbers, as a pod of Kubernetes has them: this one, within it, counts, and rank 0 says so.
    fn outer_numbers_yield(&self) {
        let (maypole, test) = (env!("CARGO_BIN_EXE_maypole"), format!("{}_outer_numbers_yield", self.name));
        let outer = [("RANK", "0"), ("WORLD_SIZE", "1")];
        let Some(out) = self.run_with(&test, &outer, 3, &["sh", "-c", &format!("{maypole} info --launch; exit $?")])
        else {
            return;
        };
        let (said, warned) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{said}{warned}");
        assert_eq!(said.matches("met 3 ranks of ").count(), 6, "{said}{warned}");
        let all = said + &warned;
        assert_eq!(all.matches("RANK=0 and WORLD_SIZE=1 are an outer launcher's").count(), 1, "{all}");
        // Numbers that each rank sets for itself are innermost.
        let port = free_port();
        let script = format!(
            "for r in 0 1; do RANK=$((2 * {rank} + r)) WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT={port} \
             {maypole} info --launch & done; wait",
            rank = self.rank_variable
        );
        let out = self.run(&test, 2, &["sh", "-c", &script]).expect("it was there before");
        let said = text(&out.stdout);
        assert_eq!(said.matches("launcher environment: met 4 ranks of ").count(), 4, "{said}{}", text(&out.stderr));
    }

    /// The performance test of all-reduce: every element is checked.
    fn all_reduce(&self) {
        let perf = env!("CARGO_BIN_EXE_all_reduce_perf");
        let args = [perf, "-b", "8", "-e", "256K", "-f", "32", "-n", "5", "-w", "1"];
        let Some(out) = self.run(&format!("{}_all_reduce", self.name), 4, &args) else { return };
        let said = text(&out.stdout);
        assert!(out.status.success(), "{said}{}", text(&out.stderr));
        assert!(said.contains("all_reduce on 4 ranks"), "{said}");
        assert!(said.contains("Out of bounds values : 0 OK"), "{said}");
        let rows = said.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).count();
        assert_eq!(rows, 4, "8, 256, 8K and 256K bytes: {said}");
    }

    /// The training example: the ranks end with the same weights, which are a one-rank run's.
    fn training(&self) {
        let example = example::EXAMPLE.to_str().unwrap();
        let Some(out) = self.run(&format!("{}_training", self.name), 4, &[example]) else { return };
        let said = text(&out.stdout);
        assert!(out.status.success(), "{said}{}", text(&out.stderr));
        assert!(said.contains("weights bit-identical on 4 of 4 ranks"), "{said}");
    }

    /// A rank with another key meets nobody, and the errors of both name the variable.
    fn keys_count(&self) {
        let maypole = env!("CARGO_BIN_EXE_maypole");
        let said = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-keys", self.name));
        let _ = std::fs::remove_dir_all(&said);
        std::fs::create_dir_all(&said).unwrap();
        // No rank fails, for the launcher would end the other before it has spoken.
        let script = format!(
            "export MAYPOLE_CONNECT_TIMEOUT=8; if [ ${{{rank}}} = 1 ]; then export MAYPOLE_KEY=\"$KEY_B\"; \
             else export MAYPOLE_KEY=\"$KEY_A\"; fi; {maypole} info --launch > {}/${{{rank}}} 2>&1; exit 0",
            said.display(),
            rank = self.rank_variable
        );
        let (one, other) = ("a secret of at least sixteen bytes", "another secret, as long");
        let test = format!("{}_keys_count", self.name);
        for (zeros, ones) in [(one, other), (one, one)] {
            let keys = format!("KEY_A='{zeros}'; KEY_B='{ones}'; {script}");
            let Some(out) = self.run(&test, 2, &["sh", "-c", &keys]) else { return };
            assert!(out.status.success(), "{}", text(&out.stderr));
            for rank in ["0", "1"] {
                let said = std::fs::read_to_string(said.join(rank)).unwrap();
                assert!(!said.contains(one) && !said.contains(other), "{said}");
                match zeros == ones {
                    true => assert_eq!(said.matches("met 2 ranks of ").count(), 2, "rank {rank}: {said}"),
                    false => {
                        assert!(said.contains("another key") && said.contains("MAYPOLE_KEY"), "rank {rank}: {said}")
                    }
                }
            }
        }
    }

    /// Rank 1 is killed in the middle of its work; the job ends, long before that work would, and with a failure.
    fn a_death_ends_the_job(&self) {
        // A shell around the rank, so that the launcher is not what kills. No $$: torchrun takes it for one of its
        // macros.
        let perf = format!("{} -b 1M -e 1M -n 10000000", env!("CARGO_BIN_EXE_all_reduce_perf"));
        let rank = format!("${{{}}}", self.rank_variable);
        let killed = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-killed", self.name));
        let _ = std::fs::remove_file(&killed);
        // It is at work when it has mapped the memory that ranks share; starting takes as long as the machine is busy.
        let script = format!(
            "if [ {rank} = 1 ]; then {perf} & pid=$!; until grep -q memfd:maypole /proc/$pid/maps; do sleep 0.1; done; \
             sleep 1; touch {}; kill -KILL $pid; wait $pid; else exec {perf}; fi",
            killed.display()
        );
        let Some(out) = self.run(&format!("{}_a_death_ends_the_job", self.name), 3, &["sh", "-c", &script]) else {
            return;
        };
        let since = std::fs::metadata(&killed).unwrap().modified().unwrap().elapsed().unwrap();
        assert!(!out.status.success(), "{}", text(&out.stdout));
        assert!(text(&out.stdout).contains("all_reduce on 3 ranks"), "{}", text(&out.stderr));
        assert!(since < Duration::from_secs(30), "{since:?} after the death: {}", text(&out.stderr));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn openmpi_outer_numbers_yield() {
    OPEN_MPI.outer_numbers_yield();
}

#[test]
fn mpich_outer_numbers_yield() {
    MPICH.outer_numbers_yield();
}

#[test]
fn intelmpi_outer_numbers_yield() {
    INTEL.outer_numbers_yield();
}

#[test]
fn openmpi_ranks_meet() {
    OPEN_MPI.ranks_meet();
}

#[test]
fn openmpi5_ranks_meet() {
    OPEN_MPI_5.ranks_meet();
}

#[test]
fn openmpi5_a_death_ends_the_job() {
    OPEN_MPI_5.a_death_ends_the_job();
}

/// Ranks that come too late for an attempt of the others, and try again as these do, meet them through every launcher's
/// board.
#[test]
fn late_ranks_meet_the_others() {
    let meet = |launcher: &Launcher, late: &str| {
        let this = std::env::current_exe().unwrap();
        let command = [this.to_str().unwrap(), "--exact", "late_rank", "--nocapture"];
        let test = format!("late_ranks_meet_the_others ({}, rank {late})", launcher.name);
        let Some(out) = launcher.run_with(&test, &[("MAYPOLE_TEST_LATE", late)], 3, &command) else { return };
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.success(), "{}, rank {late} late: {said}", launcher.name);
        assert_eq!(said.matches("has met the others at attempt ").count(), 3, "{said}");
    };
    // All at the same time: they wait most of it.
    std::thread::scope(|scope| {
        for launcher in [OPEN_MPI, OPEN_MPI_5, MPICH, INTEL, TORCHRUN] {
            for late in ["0", "2"] {
                scope.spawn(move || meet(&launcher, late));
            }
        }
    });
}

/// One rank of them.
#[test]
fn late_rank() {
    let Ok(late) = std::env::var("MAYPOLE_TEST_LATE") else { return };
    let mut config = maypole::Config::from_env().unwrap();
    config.connect_timeout = Duration::from_secs(2);
    let numbers = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK"].into_iter();
    let rank = numbers.filter_map(|name| std::env::var(name).ok()).next().expect("a launcher");
    if rank == late {
        std::thread::sleep(Duration::from_millis(3500));
    }
    for attempt in 0..10 {
        match maypole::Communicator::from_env_with(config.clone()) {
            Ok(world) => {
                world.barrier().unwrap();
                return println!("rank {rank} has met the others at attempt {attempt}");
            }
            Err(error) => println!("rank {rank}, attempt {attempt}: {error}"),
        }
    }
    panic!("rank {rank} has not met the others");
}

#[test]
fn openmpi_all_reduce() {
    OPEN_MPI.all_reduce();
}

#[test]
fn openmpi_keys_count() {
    OPEN_MPI.keys_count();
}

#[test]
fn mpich_keys_count() {
    MPICH.keys_count();
}

#[test]
fn intelmpi_keys_count() {
    INTEL.keys_count();
}

#[test]
fn torchrun_keys_count() {
    TORCHRUN.keys_count();
}

#[test]
fn openmpi_training() {
    OPEN_MPI.training();
}

#[test]
fn openmpi_a_death_ends_the_job() {
    OPEN_MPI.a_death_ends_the_job();
}

#[test]
fn mpich_ranks_meet() {
    MPICH.ranks_meet();
}

#[test]
fn mpich_all_reduce() {
    MPICH.all_reduce();
}

#[test]
fn mpich_training() {
    MPICH.training();
}

#[test]
fn mpich_a_death_ends_the_job() {
    MPICH.a_death_ends_the_job();
}

#[test]
fn intelmpi_ranks_meet() {
    INTEL.ranks_meet();
}

#[test]
fn intelmpi_all_reduce() {
    INTEL.all_reduce();
}

#[test]
fn intelmpi_training() {
    INTEL.training();
}

#[test]
fn intelmpi_a_death_ends_the_job() {
    INTEL.a_death_ends_the_job();
}

#[test]
fn torchrun_ranks_meet() {
    TORCHRUN.ranks_meet();
}

#[test]
fn torchrun_all_reduce() {
    TORCHRUN.all_reduce();
}

#[test]
fn torchrun_training() {
    TORCHRUN.training();
}

#[test]
fn torchrun_a_death_ends_the_job() {
    TORCHRUN.a_death_ends_the_job();
}

/// Rank 0 comes late: later than Open MPI's server waits for a key (2 s). The others must wait for it, and not give up.
#[test]
fn openmpi_a_late_rank_0() {
    let maypole = env!("CARGO_BIN_EXE_maypole");
    let script = format!("[ $OMPI_COMM_WORLD_RANK != 0 ] || sleep 3; exec {maypole} info --launch");
    let Some(out) = OPEN_MPI.run("openmpi_a_late_rank_0", 3, &["sh", "-c", &script]) else { return };
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).matches("met 3 ranks of ").count(), 6, "{}", text(&out.stdout));
}

/// The last rank comes late: what rank 0 posted must still be there to read.
#[test]
fn openmpi_a_late_last_rank() {
    let maypole = env!("CARGO_BIN_EXE_maypole");
    let script = format!("[ $OMPI_COMM_WORLD_RANK != 2 ] || sleep 2; exec {maypole} info --launch");
    let Some(out) = OPEN_MPI.run("openmpi_a_late_last_rank", 3, &["sh", "-c", &script]) else { return };
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).matches("met 3 ranks of ").count(), 6, "{}", text(&out.stdout));
}

/// The slurm script without Slurm: a stand-in for srun shows what it would get.
#[test]
fn slurm_script_passes_everything_on() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("srun-stand-in");
    std::fs::create_dir_all(&directory).unwrap();
    let srun = directory.join("srun");
    std::fs::write(&srun, "#!/bin/sh\necho \"${#MAYPOLE_KEY} $*\"\n").unwrap();
    std::fs::set_permissions(&srun, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let script = format!("{}/mpirun-scripts/slurm.sh", env!("CARGO_MANIFEST_DIR"));
    let run = |name: &str, value: &str| {
        let mut command = Command::new("sh");
        command.args([&script, "4", "prog", "a b"]).env_remove("MAYPOLE_KEY").env("PATH", &path).env(name, value);
        text(&command.output().unwrap().stdout)
    };
    assert_eq!(run("SRUN_ARGS", "--mpi=pmix"), "64 -n 4 --mpi=pmix prog a b\n");
    assert_eq!(run("MAYPOLE_KEY", "own"), "3 -n 4 prog a b\n");
}
