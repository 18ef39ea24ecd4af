//! `maypole info`: this build, this machine, the settings, and what a launcher says.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::footprint;
use crate::config::unknown::unknown_here;
use crate::config::{Config, KNOBS};
use crate::error::Result;
use crate::launch;
use crate::tuner::rules;

/// Show what Maypole finds: version, processors, transports, CUDA devices, launcher, and every setting with its default and present
/// value.
///
/// With --launch, meet the other ranks instead, twice, as a program with two worlds would, and say in one line which rank
/// this process is and whom it met. Start it as the ranks of a job to see whether a launcher is set up rightly.
///
/// With --footprint, take part in a job and say, on rank 0, what its ranks cost: time to make the world and memory, file
/// descriptors and threads of a rank, then and after the first operations.
///
/// With --tuner, print the rules by which the algorithm of a call is chosen where MAYPOLE_ALGORITHM names none.
///
/// Exit status: 0, or 1 if a setting makes no sense or the launcher cannot be used.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  maypole info
  mpirun -n 4 maypole info --launch
  srun -n 4 maypole info --launch
  maypole run -n 64 -- maypole info --footprint")]
pub struct Args {
    /// Take part in a job of ranks: one line per rank
    #[arg(long)]
    launch: bool,
    /// Take part in a job of ranks: what a rank costs
    #[arg(long, conflicts_with = "launch")]
    footprint: bool,
    /// Print the table by which algorithms are chosen, read from the top
    #[arg(long, conflicts_with_all = ["launch", "footprint"])]
    tuner: bool,
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Run the command.
pub(super) fn run(args: &Args) -> ExitCode {
    let outcome = match (args.launch, args.footprint) {
        (true, _) => meet(),
        (_, true) => footprint::measure(),
        _ if args.tuner => Ok((table(), true)),
        _ => Ok(page()),
    };
    match outcome {
        Ok((text, well)) => {
            let printed = text.is_empty() || super::print(&text);
            if well && printed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            super::say(format_args!("maypole info: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The rules of the tuner.
fn table() -> String {
    let lines = std::iter::once(rules::header()).chain(rules::RULES.iter().map(|rule| rule.to_string()));
    lines.map(|line| line + "\n").collect()
}

/// The page, and whether all settings make sense.
fn page() -> (String, bool) {
    let mut page = String::new();
    let mut well = true;
    let mut line = |name: &str, text: String| {
        let _ = writeln!(page, "{name:<12} {text}");
    };
    line(
        "maypole",
        format!(
            "{} ({})",
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) { "debug build: slow" } else { "release build" }
        ),
    );
    line("host", format!("{}, {}", host(), kernel()));
    line("processor", format!("{}, vector instructions: {}", processor(), maypole_collectives::reduce::level()));
    line("cores", cores());
    line("NUMA", numa());
    line("threads", "ranks as threads of one process: always".to_string());
    line("shm", shared_memory());
    line("tcp", tcp());
    for (number, text) in cuda().into_iter().enumerate() {
        line(if number == 0 { "cuda" } else { "" }, text);
    }
    line(
        "PMIx library",
        launch::pmix_library(&environment).unwrap_or_else(|_| "not found (only needed under Open MPI)".to_string()),
    );
    let launcher = launch::launcher_name(&environment).map(str::to_string);
    well &= launcher.is_ok();
    let launcher = launcher.unwrap_or_else(|error| format!("cannot be used: {error}"));
    line("launcher", launcher);

    let _ = writeln!(page, "\nSettings (environment variables; the same on all ranks of a job):");
    for knob in KNOBS {
        let value = match environment(knob.name).filter(|value| !value.trim().is_empty()) {
            None => String::new(),
            Some(value) => match Config::default().set(knob.name, &value) {
                Ok(()) if knob.name == "MAYPOLE_KEY" => " = (set)".to_string(),
                Ok(()) => format!(" = {value}"),
                Err(error) => {
                    well = false;
                    format!(" WRONG: {error}")
                }
            },
        };
        let _ = writeln!(page, "  {}{value}\n      {}\n      default: {}", knob.name, knob.meaning, knob.default);
    }
    for unknown in unknown_here() {
        let _ = writeln!(page, "  {unknown}");
    }
    (page.trim_end().to_string(), well)
}

/// Meet the other ranks as a program would, and say so. Twice, since a program may create two worlds.
fn meet() -> Result<(String, bool)> {
    let config = Config::from_env()?;
    let launch = launch::detect(&config, &environment)?;
    let local = match (launch.local_rank, launch.local_size) {
        (Some(rank), Some(size)) => format!(" (local {rank} of {size})"),
        (Some(rank), None) => format!(" (local {rank})"),
        _ => String::new(),
    };
    let who = format!("rank {} of {}{local} on {}, launcher {}", launch.rank, launch.size, host(), launch.launcher);
    let (first, second) = (join(launch, &config)?, join(launch::detect(&config, &environment)?, &config)?);
    Ok((format!("{who}: {first}; a second time: {second}"), true))
}

/// Meet once and part again: whom this rank met, and how long that took.
fn join(launch: launch::Launch, config: &Config) -> Result<String> {
    let began = Instant::now();
    let Some(node) = crate::communicator::join::join(launch, config)? else {
        return Ok("a world of one meets nobody".to_string());
    };
    let hosts: std::collections::BTreeSet<&str> = node.peers().iter().map(|peer| peer.host.as_str()).collect();
    let hosts: Vec<&str> = hosts.into_iter().collect();
    Ok(format!("met {} ranks of {} in {} ms", node.size(), hosts.join(", "), began.elapsed().as_millis()))
}

fn host() -> String {
    nix::unistd::gethostname().map_or("?".to_string(), |host| host.to_string_lossy().into_owned())
}

fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "?".to_string(),
        |name| format!("{} {} {}", name.sysname().display(), name.release().display(), name.machine().display()),
    )
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model));
    model.unwrap_or(std::env::consts::ARCH).to_string()
}

/// How many cores the machine has and which of them this process may use.
fn cores() -> String {
    let online = read("/sys/devices/system/cpu/online").unwrap_or_else(|| "?".to_string());
    let allowed = sched_getaffinity(Pid::from_raw(0)).map(|set| {
        let cores: Vec<usize> = (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect();
        format!("{} ({})", cores.len(), ranges(&cores))
    });
    format!("{} usable by this process; online: {online}", allowed.unwrap_or_else(|_| "?".to_string()))
}

fn numa() -> String {
    let nodes = crate::topology::numa_nodes();
    let cores = |words: &[u64]| -> Vec<usize> {
        (0..words.len() * 64).filter(|core| words[core / 64] >> (core % 64) & 1 == 1).collect()
    };
    let lists: Vec<String> =
        nodes.iter().map(|(node, words)| format!("node {node}: cores {}", ranges(&cores(words)))).collect();
    if lists.is_empty() { "unknown".to_string() } else { lists.join("; ") }
}

fn shared_memory() -> String {
    match maypole_transports::shm::Arena::create() {
        Ok(_) => "shared memory between processes: yes (memfd)".to_string(),
        Err(error) => format!("no: {error}"),
    }
}

fn tcp() -> String {
    let loopback = |address: &str| std::net::TcpListener::bind(address).is_ok();
    let mut families = Vec::new();
    if loopback("127.0.0.1:0") {
        families.push("IPv4");
    }
    if loopback("[::1]:0") {
        families.push("IPv6");
    }
    let mut interfaces: Vec<String> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let text = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().to_string(),
                (_, Some(v6)) => v6.ip().to_string(),
                _ => return None,
            };
            Some(format!("{} {text}", interface.interface_name))
        })
        .collect();
    interfaces.dedup();
    if families.is_empty() {
        return "no: neither 127.0.0.1 nor ::1 can be bound".to_string();
    }
    format!("{}; interfaces: {}", families.join(" and "), interfaces.join(", "))
}

/// The CUDA driver and a line per device, or why there is none.
fn cuda() -> Vec<String> {
    use maypole_cuda::driver::{Context, Reach, probe};
    let driver = match probe() {
        Ok(driver) => driver,
        Err(error) => return vec![error.to_string()],
    };
    let version = crate::perf::cuda::kernel_driver().map_or(String::new(), |version| format!(", driver {version}"));
    let (cuda, count) = (driver.version(), driver.device_count());
    let devices = if count == 1 { "1 device".to_string() } else { format!("{count} devices") };
    let mut lines = vec![format!("CUDA {}.{}{version}; {devices}", cuda / 1000, cuda % 1000 / 10)];
    let contexts: Vec<_> = (0..count).map(Context::primary).collect();
    for (ordinal, context) in contexts.iter().enumerate() {
        let context = match context {
            Ok(context) => context,
            Err(error) => {
                lines.push(format!("device {ordinal}: cannot be used: {error}"));
                continue;
            }
        };
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let memory = context.memory().map_or_else(
            |error| format!("memory unknown ({error})"),
            |(free, total)| format!("{:.1} of {:.1} GiB free", gib(free), gib(total)),
        );
        let waits = match context.supports_memory_operations() {
            true => "streams wait for and write words",
            false => "no stream memory operations: host functions wait, and ranks must be processes",
        };
        let others = contexts.iter().enumerate().filter(|&(other, _)| other != ordinal);
        let reaches = |other: &Context| matches!(context.reaches(other.uuid()), Ok(Reach::Reached));
        let reached = others.filter(|(_, other)| other.as_ref().is_ok_and(|other| reaches(other)));
        let reached: Vec<String> = reached.map(|(other, _)| other.to_string()).collect();
        let peers = match (count, reached.is_empty()) {
            (1, _) => String::new(),
            (_, true) => "; reaches no other device: through host memory".to_string(),
            (_, false) => format!("; reaches the memory of {}", reached.join(", ")),
        };
        let (major, minor) = context.capability();
        lines.push(format!(
            "device {ordinal}: {} at {}, capability {major}.{minor}, {} multiprocessors, {memory}; {waits}{peers}",
            context.name(),
            context.pci(),
            context.multiprocessors(),
        ));
    }
    lines
}

/// Numbers as ranges: 0-3,7.
fn ranges(numbers: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let run = rest.iter().enumerate().take_while(|&(i, &n)| n == first + i).count();
        let comma = if text.is_empty() { "" } else { "," };
        let _ = match run {
            1 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{}", first + run - 1),
        };
        rest = &rest[run..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
    }

    #[test]
    fn the_page_lists_every_setting() {
        let (page, _) = page();
        for knob in KNOBS {
            assert!(page.contains(knob.name) && page.contains(knob.meaning), "{}", knob.name);
        }
    }
}
