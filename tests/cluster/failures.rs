//! What ranks are told when the network between hosts fails, or a host does: all of them, soon, and who it was.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use maypole::cuda::{Context, DeviceBuffer, Stream};
use maypole::{Communicator, ReduceOp};
use nix::sys::signal::Signal;

use crate::job::{Layout, in_order, start};
use crate::net::{Cluster, Cut};
use crate::ranks::{Job, role, say};

/// How much later than it should a rank may speak on a machine that is busy with other things.
const SLACK: Duration = Duration::from_secs(10);
/// How long a rank waits for the hub after its deadline before it speaks for itself.
const HUB_PATIENCE: Duration = Duration::from_secs(3);

/// A sum over all ranks by messages: what each has goes once round the world.
fn sum_by_messages(comm: &Communicator, buffer: &mut [f32]) -> maypole::Result<()> {
    let (me, size) = (comm.rank(), comm.size());
    let (mut passed, mut got) = (buffer.to_vec(), buffer.to_vec());
    for _ in 1..size {
        comm.send_recv(&passed, (me + 1) % size, &mut got, (me + size - 1) % size)?;
        buffer.iter_mut().zip(&got).for_each(|(sum, x)| *sum += x);
        std::mem::swap(&mut passed, &mut got);
    }
    Ok(())
}

/// A sum over all ranks in the memory of an emulated device.
fn sum_on_device(
    comm: &Communicator,
    (stream, memory): &mut (Stream, DeviceBuffer<f32>),
    buffer: &mut [f32],
) -> maypole::Result<()> {
    memory.copy_from(buffer, stream).expect("the emulated device takes it");
    let on = comm.on(stream);
    on.all_reduce_in_place(&mut *memory, ReduceOp::Sum)?;
    on.synchronize()?;
    memory.copy_to(buffer, stream).expect("the emulated device gives it");
    Ok(())
}

/// The part of each rank: all_reduce (with `MESSAGES`, by messages between two ranks; with `DEVICE`, of device memory)
/// until something goes wrong or `SECONDS` are over, then say what came of it.
fn sum_on_and_on() {
    let number = |name: &str| std::env::var(name).unwrap().parse::<f64>().unwrap();
    let comm = Communicator::from_env().unwrap_or_else(|error| {
        say(format!("no world: {error}"));
        std::process::exit(0)
    });
    say("met");
    if let Some(gate) = std::env::var_os("GATE") {
        while !std::fs::exists(&gate).unwrap() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut buffer = vec![0.0f32; 1 + number("COUNT") as usize];
    let mut device = std::env::var_os("DEVICE").map(|_| {
        maypole_cuda_emulator::testing::load();
        let context = Context::primary(0).expect("an emulated device");
        let memory = DeviceBuffer::new(&context, buffer.len()).expect("memory of the emulated device");
        (Stream::new(&context).expect("a stream of the emulated device"), memory)
    });
    let (began, end, mut longest) = (Instant::now(), Duration::from_secs_f64(number("SECONDS")), Duration::ZERO);
    for call in 1.. {
        buffer.fill(1.0);
        // Rank 0 says when it is enough; the sum tells all at once.
        buffer[0] = f32::from(comm.rank() == 0 && began.elapsed() > end);
        let start = Instant::now();
        let summed = match (std::env::var_os("MESSAGES"), &mut device) {
            (Some(_), _) => sum_by_messages(&comm, &mut buffer),
            (None, Some(device)) => sum_on_device(&comm, device, &mut buffer),
            (None, None) => comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum),
        };
        if let Err(error) = summed {
            return say(error);
        }
        longest = longest.max(start.elapsed());
        assert!(buffer[1..].iter().all(|x| *x == comm.size() as f32), "a wrong sum on rank {}", comm.rank());
        if call == 3 {
            say("works");
        }
        if buffer[0] > 0.0 {
            return say(format!("done {}", longest.as_millis()));
        }
    }
}

/// Four hosts and a world on them whose ranks run [`sum_on_and_on`].
struct Scene {
    cluster: Cluster,
    layout: Vec<usize>,
    job: Job,
}

impl Scene {
    /// `None`: skipped. In a process that was started as a rank: plays the part and does not return.
    fn new(test: &str, layout: &Layout, extra: &[(&str, &str)], before: impl FnOnce(&Cluster)) -> Option<Scene> {
        role(|_| sum_on_and_on());
        let cluster = Cluster::new(&format!("failures::{test}"), 4, "1gbit")?;
        before(&cluster);
        let mut settings = vec![("COUNT", "100000"), ("SECONDS", "1000"), ("MAYPOLE_TIMEOUT", "3")];
        settings.extend(extra);
        let job = start(&cluster, layout, &format!("failures::{test}"), "rank", &settings);
        Some(Scene { cluster, layout: layout.to_vec(), job })
    }

    /// The ranks on these hosts.
    fn ranks_on(&self, hosts: &[usize]) -> Vec<usize> {
        (0..self.layout.len()).filter(|rank| hosts.contains(&self.layout[*rank])).collect()
    }

    /// What all ranks say next.
    fn hear_all(&self, what: &str) {
        let all: Vec<usize> = (0..self.layout.len()).collect();
        assert!(self.job.hear(&all).iter().all(|(_, line)| line == what));
    }

    /// What each rank says next, by rank.
    fn hear_each(&self) -> Vec<(Instant, String)> {
        self.job.hear(&(0..self.layout.len()).collect::<Vec<_>>())
    }
}

/// Every one of `ranks` has spoken at the latest `within` after `since`, and has said all of `names`.
fn expect(heard: &[(Instant, String)], ranks: &[usize], since: Instant, within: Duration, names: &[&str]) {
    for rank in ranks {
        let (at, text) = &heard[*rank];
        let after = at.duration_since(since);
        println!("rank {rank} after {after:.2?}: {text}");
        assert!(names.iter().all(|name| text.contains(name)), "rank {rank} should say {names:?}, but says: {text}");
        assert!(after < within + SLACK, "rank {rank} speaks {after:?} after the cut: {text}");
    }
}

/// Cut `victim`'s host, while its ranks and the others are in an all_reduce, for good.
fn cut_for_good(test: &str, victim: usize, how: Cut, extra: &[(&str, &str)]) {
    let Some(scene) = Scene::new(test, &in_order(&[2, 2, 2, 2]), extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.hear_all("works");
    let deadline = Duration::from_secs(3);
    let (begun, lost) = (Instant::now(), scene.ranks_on(&[victim]));
    let others: Vec<usize> = (0..8).filter(|rank| !lost.contains(rank)).collect();
    scene.cluster.cut(victim, how);
    // The host that has the hub is told by it who is missing, the others speak for themselves.
    let (with_hub, without) = if victim == 0 { (&lost, &others) } else { (&others, &lost) };
    let missing: Vec<String> =
        without.iter().map(|rank| format!("rank {rank} on host host{} (it does not answer", rank / 2)).collect();
    let missing: Vec<&str> = missing.iter().map(|s| &**s).collect();
    let heard = scene.hear_each();
    expect(&heard, with_hub, begun, deadline, &missing);
    let itself = ["did not end within 3s", "rank 0 on host host0"];
    expect(&heard, without, begun, deadline + HUB_PATIENCE, &itself);
}

#[test]
fn a_host_that_is_cut_off_is_named_on_both_sides() {
    cut_for_good("a_host_that_is_cut_off_is_named_on_both_sides", 2, Cut::Silent, &[]);
}

/// Sums in device memory, which peer copies carry inside a host and couriers between hosts, end as others do.
#[test]
fn device_buffers_over_a_cut_end_as_others_do() {
    cut_for_good("device_buffers_over_a_cut_end_as_others_do", 2, Cut::Silent, &[("DEVICE", "1")]);
}

#[test]
fn so_is_the_host_that_holds_the_job_together() {
    cut_for_good("so_is_the_host_that_holds_the_job_together", 0, Cut::Unplugged, &[]);
}

#[test]
fn messages_over_a_cut_end_as_collectives_do() {
    const TEST: &str = "messages_over_a_cut_end_as_collectives_do";
    let Some(scene) = Scene::new(TEST, &in_order(&[2, 2, 2, 2]), &[("MESSAGES", "1")], |_| ()) else { return };
    scene.hear_all("met");
    scene.hear_all("works");
    let begun = Instant::now();
    scene.cluster.cut(2, Cut::Silent);
    let heard = scene.hear_each();
    let deadline = Duration::from_secs(3);
    let (lost, others) = (scene.ranks_on(&[2]), scene.ranks_on(&[0, 1, 3]));
    expect(&heard, &others, begun, deadline, &["send/recv", "on host host2", "did not end within 3s"]);
    expect(&heard, &lost, begun, deadline + HUB_PATIENCE, &["send/recv", "rank 0 on host host0"]);
}

#[test]
fn a_cut_that_heals_before_the_deadline_harms_nobody() {
    const TEST: &str = "a_cut_that_heals_before_the_deadline_harms_nobody";
    let extra = [("MAYPOLE_TIMEOUT", "60"), ("SECONDS", "9")];
    let Some(mut scene) = Scene::new(TEST, &in_order(&[2, 2, 2, 2]), &extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.hear_all("works");
    for how in [Cut::Silent, Cut::Unplugged] {
        scene.cluster.cut(2, how);
        std::thread::sleep(Duration::from_millis(2500));
        scene.cluster.heal(2);
        std::thread::sleep(Duration::from_millis(1500));
    }
    let all: Vec<usize> = (0..8).collect();
    for (rank, (_, said)) in scene.job.hear(&all).into_iter().enumerate() {
        let longest: u64 = said.strip_prefix("done ").and_then(|n| n.parse().ok()).expect(&said);
        assert!(longest > 2000, "rank {rank} has not felt the cut: its longest call took {longest} ms");
    }
    scene.job.end(&all);
}

#[test]
fn a_host_that_vanishes_is_noticed_long_before_the_deadline() {
    const TEST: &str = "a_host_that_vanishes_is_noticed_long_before_the_deadline";
    let extra = [("MAYPOLE_TIMEOUT", "40")];
    let Some(scene) = Scene::new(TEST, &in_order(&[1, 1, 1, 1]), &extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.hear_all("works");
    let begun = Instant::now();
    scene.cluster.cut(3, Cut::Silent);
    let said = ["rank 3 on host host3 is gone: nothing has come from its host for 10s", "host host0 is cut"];
    let heard = scene.hear_each();
    expect(&heard, &[0, 1, 2], begun, Duration::from_secs(10), &said);
    expect(&heard, &[3], begun, Duration::from_secs(10), &["rank 0 on host host0 is gone", "cannot be reached"]);
}

#[test]
fn a_process_killed_on_another_host_is_named_at_once() {
    const TEST: &str = "a_process_killed_on_another_host_is_named_at_once";
    let extra = [("MAYPOLE_TIMEOUT", "60")];
    let Some(mut scene) = Scene::new(TEST, &in_order(&[2, 2, 2, 2]), &extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.hear_all("works");
    let begun = Instant::now();
    scene.job.signal(5, Signal::SIGKILL);
    let others = [0, 1, 2, 3, 4, 6, 7];
    let heard = scene.job.hear(&others);
    for (rank, (at, text)) in others.iter().zip(heard) {
        let after = at - begun;
        assert!(text.contains("rank 5 on host host2 is gone: its process ended"), "rank {rank}: {text}");
        assert!(after < Duration::from_secs(20), "rank {rank} speaks after {after:?}: {text}");
    }
    scene.job.end(&others);
}

#[test]
fn two_hosts_that_lose_each_other_only_are_named() {
    const TEST: &str = "two_hosts_that_lose_each_other_only_are_named";
    let extra = [("MAYPOLE_TIMEOUT", "5")];
    let Some(scene) = Scene::new(TEST, &in_order(&[1, 1, 1, 1]), &extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.hear_all("works");
    let begun = Instant::now();
    scene.cluster.part(&[1, 2]);
    let heard = scene.hear_each();
    expect(&heard, &[0, 1, 2, 3], begun, Duration::from_secs(5), &["lost its link to", "look at the network"]);
    let said = &heard[0].1;
    let named = |a: usize, b: usize| said.contains(&format!("rank {a} lost its link to rank {b} on host host{b}"));
    assert!(named(1, 2) || named(2, 1), "{said}");
}

#[test]
fn hosts_that_can_never_connect_are_named() {
    const TEST: &str = "hosts_that_can_never_connect_are_named";
    let gate = Gate::shut(TEST);
    let extra = [("MAYPOLE_TIMEOUT", "5"), ("GATE", gate.path())];
    let Some(scene) = Scene::new(TEST, &in_order(&[1, 1, 1, 1]), &extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.cluster.part(&[1, 2]);
    let begun = Instant::now();
    gate.open();
    let said = ["rank 1 lost its link to rank 2 on host host2"];
    expect(&scene.hear_each(), &[0, 1, 2, 3], begun, Duration::from_secs(5), &said);
}

#[test]
fn a_stopped_process_that_nobody_has_connected_to_is_named_at_the_deadline() {
    const TEST: &str = "a_stopped_process_that_nobody_has_connected_to_is_named_at_the_deadline";
    let gate = Gate::shut(TEST);
    let extra = [("GATE", gate.path())];
    let Some(scene) = Scene::new(TEST, &[0, 1], &extra, |_| ()) else { return };
    scene.hear_all("met");
    scene.job.signal(1, Signal::SIGSTOP);
    let begun = Instant::now();
    gate.open();
    let said = ["did not end within 3s", "rank 1 on host host1 (it does not"];
    expect(&scene.job.hear(&[0]), &[0], begun, Duration::from_secs(3), &said);
}

#[test]
fn a_host_that_does_not_come_is_named() {
    const TEST: &str = "a_host_that_does_not_come_is_named";
    let extra = [("MAYPOLE_CONNECT_TIMEOUT", "3")];
    let cut = |cluster: &Cluster| cluster.cut(2, Cut::Silent);
    let Some(scene) = Scene::new(TEST, &in_order(&[2, 2, 2, 2]), &extra, cut) else { return };
    let begun = Instant::now();
    let (lost, others) = (scene.ranks_on(&[2]), scene.ranks_on(&[0, 1, 3]));
    let heard = scene.hear_each();
    expect(&heard, &others, begun, Duration::from_secs(4), &["ranks 4, 5 did not come within 3s"]);
    expect(&heard, &lost, begun, Duration::from_secs(4), &["could not reach the meeting point 10.88.0.1"]);
}

/// A file that is there once the ranks shall begin, for `GATE`.
struct Gate(PathBuf);

impl Gate {
    fn shut(test: &str) -> Gate {
        Gate(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path in the target directory")
    }

    fn open(&self) {
        std::fs::write(&self.0, "").expect("a file in the target directory");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
