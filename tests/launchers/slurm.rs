//! srun, with a Slurm of the test's own: munged, slurmctld and slurmd on this machine, in a directory of the test's, and
//! gone with it. That takes root and Debian's packages; where something is missing, the test says `skipped:` and why.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

const DAEMONS: [&str; 3] = ["munged", "slurmctld", "slurmd"];
/// How long each of them may take until it is there.
const PATIENCE: Duration = Duration::from_secs(60);

struct Slurm {
    /// Short: there is a socket in it.
    directory: PathBuf,
    daemons: Vec<Child>,
}

/// Where a program of the system's administration is.
fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin"].iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists())
}

impl Slurm {
    /// Start it; why not, if it cannot be.
    fn start() -> Result<Slurm, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("Slurm's daemons need root".to_string());
        }
        for name in DAEMONS.into_iter().chain(["srun", "sinfo"]) {
            program(name).ok_or_else(|| format!("there is no {name}"))?;
        }
        let directory = std::env::temp_dir().join(format!("maypole-slurm-{}", std::process::id()));
        for part in ["state", "spool"] {
            std::fs::create_dir_all(directory.join(part)).map_err(|error| error.to_string())?;
        }
        let host = nix::unistd::gethostname().unwrap().to_string_lossy().split('.').next().unwrap().to_string();
        let [controller, node] = [(); 2].map(|()| free_port());
        let at = directory.display();
        let settings = format!(
            "ClusterName=maypole\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
             SlurmctldPort={controller}\nSlurmdPort={node}\nAuthType=auth/munge\nCredType=cred/munge\n\
             AuthInfo=socket={at}/munge\nStateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
             SelectType=select/linear\nMpiDefault=none\nReturnToService=2\nSlurmdParameters=config_overrides\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN\n\
             PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
        );
        let key: Vec<u8> = (0..128).map(|i| (i * 37 + std::process::id() as usize) as u8).collect();
        let private = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        };
        private("munge.key", &key);
        private("slurm.conf", settings.as_bytes());
        let mut slurm = Slurm { directory, daemons: Vec::new() };
        let file = |name: &str| slurm.directory.join(name).display().to_string();
        let (munge, conf) = (file("munge"), file("slurm.conf"));
        let munged = [
            "--foreground".to_string(),
            "--force".to_string(),
            format!("--socket={munge}"),
            format!("--key-file={}", file("munge.key")),
            format!("--pid-file={}", file("munge.pid")),
            format!("--log-file={}", file("munge.log")),
            format!("--seed-file={}", file("munge.seed")),
        ];
        let slurmctld = ["-D".to_string(), "-c".to_string(), "-f".to_string(), conf.clone()];
        let slurmd = ["-D".to_string(), "-f".to_string(), conf];
        slurm.daemon(DAEMONS[0], &munged);
        slurm.until("munged", || Path::new(&munge).exists())?;
        slurm.daemon(DAEMONS[1], &slurmctld);
        slurm.daemon(DAEMONS[2], &slurmd);
        let idle = |slurm: &Slurm| slurm.client("sinfo").args(["-h", "-o", "%t"]).output().unwrap().stdout == b"idle\n";
        slurm.until("an idle node", || idle(&slurm))?;
        Ok(slurm)
    }

    fn daemon(&mut self, name: &str, arguments: &[String]) {
        let said = std::fs::File::create(self.directory.join(format!("{name}.said"))).unwrap();
        let mut command = Command::new(program(name).unwrap());
        command.args(arguments).stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        self.daemons.push(command.spawn().unwrap());
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(program(name).unwrap());
        command.env("SLURM_CONF", self.directory.join("slurm.conf")).stdin(Stdio::null());
        command
    }

    fn until(&self, what: &str, ready: impl Fn() -> bool) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        while !ready() {
            if Instant::now() > end {
                let said = DAEMONS.map(|name| {
                    std::fs::read_to_string(self.directory.join(format!("{name}.said"))).unwrap_or_default()
                });
                return Err(format!("no {what} within {PATIENCE:?}: {said:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// `slurm.sh N ARGS...`, as a user starts it.
    fn run(&self, ranks: &str, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let script = format!("{}/mpirun-scripts/slurm.sh", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120", "sh", &script, ranks]).args(args).stdin(Stdio::null());
        for name in ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "MAYPOLE_KEY"] {
            command.env_remove(name);
        }
        command.env("SLURM_CONF", self.directory.join("slurm.conf")).envs(variables.iter().copied()).output().unwrap()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // The node first: it has processes of its own.
        for daemon in self.daemons.iter_mut().rev() {
            let _ = kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM);
            let end = Instant::now() + Duration::from_secs(10);
            while daemon.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// By its own variables, and by what else it offers; an outer launcher's numbers yield to it.
#[test]
fn slurm_ranks_meet() {
    let slurm = match Slurm::start() {
        Ok(slurm) => slurm,
        Err(why) => {
            let wanted = std::env::var("MAYPOLE_TEST_LAUNCHERS").unwrap_or_default();
            assert!(!wanted.split_whitespace().any(|name| name == "slurm"), "{why}, but slurm must be there");
            let _ = writeln!(std::io::stderr(), "skipped: launchers::slurm_ranks_meet: {why}");
            return;
        }
    };
    let maypole = env!("CARGO_BIN_EXE_maypole");
    let offered = slurm.client("srun").arg("--mpi=list").output().unwrap();
    let offered = text(&offered.stdout) + &text(&offered.stderr);
    for (mpi, launcher) in [("none", "Slurm"), ("pmi2", "MPICH (PMI-1)"), ("pmix", "Slurm")] {
        if !offered.contains(mpi) {
            let _ = writeln!(std::io::stderr(), "skipped: launchers::slurm_ranks_meet: this Slurm has no --mpi={mpi}");
            continue;
        }
        let arguments = format!("--mpi={mpi} --overcommit");
        let out = slurm.run("4", &[("SRUN_ARGS", &arguments)], &[maypole, "info", "--launch"]);
        let said = text(&out.stdout);
        assert!(out.status.success(), "{mpi}: {said}{}", text(&out.stderr));
        assert_eq!(said.matches(&format!("launcher {launcher}: met 4 ranks of ")).count(), 4, "{mpi}: {said}");
        assert_eq!(said.matches("a second time: met 4 ranks of ").count(), 4, "{mpi}: {said}");
    }
    let outer = [("RANK", "0"), ("WORLD_SIZE", "1"), ("SRUN_ARGS", "--mpi=none")];
    let out = slurm.run("3", &outer, &[maypole, "info", "--launch"]);
    let said = text(&out.stdout) + &text(&out.stderr);
    assert_eq!(said.matches("launcher Slurm: met 3 ranks of ").count(), 3, "{said}");
    assert_eq!(said.matches("RANK=0 and WORLD_SIZE=1 are an outer launcher's").count(), 1, "{said}");
    let perf = env!("CARGO_BIN_EXE_all_reduce_perf");
    let out = slurm.run("4", &[], &[perf, "-b", "8", "-e", "64K", "-f", "64", "-n", "5", "-w", "1"]);
    let said = text(&out.stdout);
    assert!(out.status.success() && said.contains("Out of bounds values : 0 OK"), "{said}{}", text(&out.stderr));
}
