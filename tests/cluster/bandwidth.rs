//! What crosses the cables between hosts, and how fast: an all_reduce need not send more than the theory asks, nor
//! slower than a program that does nothing else.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maypole::{Communicator, ReduceOp};

use crate::job::{in_order, start};
use crate::net::{Cluster, skip};
use crate::ranks::{role, say};

const HOSTS: usize = 4;
/// Elements, f32: 16 MiB.
const COUNT: usize = 4 << 20;
const CALLS: usize = 8;
/// What each host must send and receive for one call, in bytes: what it lacks of the result, and what the others lack
/// of its part. Ranks of one host have memory in common.
const THEORY: f64 = 2.0 * (HOSTS - 1) as f64 / HOSTS as f64 * (COUNT * size_of::<f32>()) as f64;
/// How often it is tried to come close to iperf3. Both are measured in turn, since other programs on this machine take
/// cores from either; they can only make a run slower, so one good run shows what Maypole can do.
const TRIES: usize = 5;

/// The part of each rank: some calls, and how long they took.
fn sum_and_say_how_long() {
    let comm = Communicator::from_env().unwrap();
    let mut buffer = vec![0.0f32; COUNT];
    let mut call = || {
        buffer.fill(1.0 + comm.rank() as f32);
        let begun = Instant::now();
        comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
        let took = begun.elapsed();
        let sum = (comm.size() * (comm.size() + 1) / 2) as f32;
        assert!(buffer.iter().all(|x| *x == sum), "a wrong sum on rank {}", comm.rank());
        // Checking takes ranks different times, which is not the call's.
        comm.barrier().unwrap();
        took
    };
    let took: Duration = (0..CALLS).map(|_| call()).sum();
    say(took.as_secs_f64() / CALLS as f64);
}

/// What iperf3 moves from host 0 to host 1, in bytes per second.
fn iperf3(cluster: &Cluster) -> f64 {
    let host = |index: usize, args: &[&str]| {
        let mut command = Command::new("iperf3");
        cluster.hosts()[index].spawn(command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()))
    };
    let mut server = host(1, &["--server", "--one-off"]);
    let to = crate::net::address(1);
    let mut rate = None;
    for _ in 0..50 {
        // The server takes a moment to listen.
        std::thread::sleep(Duration::from_millis(100));
        let client = host(0, &["--client", &to, "--time", "2", "--json"]).wait_with_output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&client.stdout).unwrap();
        rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        if rate.is_some() {
            break;
        }
    }
    let _ = server.kill();
    server.wait().unwrap();
    rate.expect("iperf3 reaches its server") / 8.0
}

/// While this lives, iperf3 and the ranks, which this thread starts, go before what else the machine does: before other
/// programs of this session by the thread's nice value, which its children inherit, and before other sessions where the
/// scheduler groups processes by them. A real host has its cores to itself. Only root may, and only root has a cluster.
struct Ahead;

const GROUP: &str = "/proc/self/autogroup";

impl Ahead {
    fn of_others() -> Ahead {
        Ahead::be(-15);
        Ahead
    }

    fn be(nice: i32) {
        // Absent where the scheduler does not group.
        let _ = std::fs::write(GROUP, nice.to_string());
        // SAFETY: takes numbers only; 0 is this thread.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        Ahead::be(0);
    }
}

#[test]
fn an_all_reduce_fills_the_cables_and_sends_no_more_than_it_must() {
    const TEST: &str = "bandwidth::an_all_reduce_fills_the_cables_and_sends_no_more_than_it_must";
    role(|_| sum_and_say_how_long());
    if Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip(TEST, "iperf3 is not installed");
    }
    let Some(cluster) = Cluster::alone(TEST, HOSTS, "1gbit") else { return };
    let layout = in_order(&[2; HOSTS]);
    let all: Vec<usize> = (0..layout.len()).collect();
    let _ahead = Ahead::of_others();
    // Every host believes that it has the machine's cores to itself, but all of them share these: who spins takes the
    // core from the rank that it waits for.
    let settings = [("MAYPOLE_SPIN", "0")];
    let mut best: f64 = 0.0;
    for _ in 0..TRIES {
        let reference = iperf3(&cluster);
        let before: Vec<_> = cluster.hosts().iter().map(|host| host.traffic()).collect();
        let mut job = start(&cluster, &layout, TEST, "rank", &settings);
        let times = job.hear(&all).into_iter().map(|(_, said)| said.parse::<f64>().unwrap());
        let longest = times.fold(0.0, f64::max);
        job.end(&all);
        for (host, before) in cluster.hosts().iter().zip(before) {
            let after = host.traffic();
            let (sent, received) = ((after.sent - before.sent) as f64, (after.received - before.received) as f64);
            let ratio = sent.max(received) / (THEORY * CALLS as f64);
            println!("sent {sent} bytes, received {received}: {ratio:.3} times what the theory asks");
            assert!(ratio <= 1.05, "{ratio:.3} times the bytes that the theory asks");
        }
        let rate = THEORY / longest;
        println!("{:.1} MB/s in {longest:.4} s, iperf3 {:.1} MB/s", rate * 1e-6, reference * 1e-6);
        best = best.max(rate / reference);
        if best >= 0.9 {
            return;
        }
    }
    panic!("the best of {TRIES} runs reaches {best:.2} of iperf3's rate");
}
