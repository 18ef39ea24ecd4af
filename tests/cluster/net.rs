//! Hosts, cables and a switch, made of Linux network namespaces.
//!
//! ```text
//!   host0: eth0 10.88.0.1 ──── p0 ┐
//!   host1: eth0 10.88.0.2 ──── p1 ┤ bridge, in a namespace of its own
//!   host2: eth0 10.88.0.3 ──── p2 ┘
//! ```
//! Both ends of a cable send at most at the cluster's rate, by tc's token bucket. The namespaces have no names: open
//! files hold them, here and in the processes of their hosts. When those are gone, however they ended, so is the
//! cluster; nothing outside of it ever changes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::sched::{CloneFlags, setns, unshare};

/// Clusters that need the machine for themselves have it written, others read: those wait most of the time.
static TURN: RwLock<()> = RwLock::new(());

/// A thread's namespace, kept by an open file.
pub struct Namespace {
    file: File,
    kind: CloneFlags,
}

/// What makes up a host: its network and its name.
pub struct Host {
    name: String,
    network: Namespace,
    identity: Namespace,
}

/// Some hosts on one switch. See the [module](self).
pub struct Cluster {
    hosts: Vec<Host>,
    switch: Namespace,
    _turn: Turn,
}

/// A cluster's part of [`TURN`].
enum Turn {
    Beside(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

/// How a cable is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// Both ends see that there is no carrier.
    Unplugged,
    /// What is sent goes nowhere, and no end sees a reason.
    Silent,
}

/// What has gone through a host's end of its cable, in bytes with Ethernet's headers.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub sent: u64,
    pub received: u64,
}

impl Namespace {
    /// A new one of a thread's own; `prepare` runs within.
    fn new(kind: CloneFlags, prepare: impl FnOnce() -> Result<(), String> + Send) -> Result<Namespace, String> {
        let file = if kind == CloneFlags::CLONE_NEWUTS { "uts" } else { "net" };
        let make = || {
            unshare(kind).map_err(|e| format!("cannot make a namespace: {e} (it needs root)"))?;
            prepare()?;
            File::open(format!("/proc/thread-self/ns/{file}")).map_err(|e| format!("cannot open a namespace: {e}"))
        };
        Ok(Namespace { file: on_own_thread(make)?, kind })
    }

    /// The calling thread moves in.
    pub fn enter(&self) {
        setns(&self.file, self.kind).expect("moving into a namespace that this process made");
    }

    /// Run a command of iproute2 in it.
    fn run(&self, command: &str) -> Result<(), String> {
        let output = on_own_thread(|| {
            self.enter();
            let mut words = command.split_whitespace();
            Command::new(words.next().expect("a command")).args(words).stdin(Stdio::null()).output()
        });
        match output {
            Err(e) => Err(format!("{command}: {e}")),
            Ok(o) if !o.status.success() => Err(format!("{command}: {}", String::from_utf8_lossy(&o.stderr).trim())),
            Ok(_) => Ok(()),
        }
    }

    /// The same one, kept open once more.
    pub fn again(&self) -> Namespace {
        Namespace { file: self.file.try_clone().expect("an open file"), kind: self.kind }
    }

    /// A path by which other processes find it while this one runs.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// Namespaces are threads' own and are inherited by what threads start: what enters one does so on a thread that ends.
pub fn on_own_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

impl Host {
    fn new(index: usize) -> Result<Host, String> {
        let name = format!("host{index}");
        let named = || nix::unistd::sethostname(&name).map_err(|e| format!("cannot name a host: {e}"));
        let identity = Namespace::new(CloneFlags::CLONE_NEWUTS, named)?;
        let network = Namespace::new(CloneFlags::CLONE_NEWNET, || Ok(()))?;
        Ok(Host { name, network, identity })
    }

    /// The calling thread moves into its network; see [`on_own_thread`].
    pub fn enter(&self) {
        self.network.enter();
    }

    /// Start a process on it.
    pub fn spawn(&self, command: &mut Command) -> Child {
        on_own_thread(|| {
            self.network.enter();
            self.identity.enter();
            command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?} on {}: {e}", self.name))
        })
    }

    /// Its system takes ports that nobody asks for by number from `range`, two numbers.
    pub fn take_ports_from(&self, range: &str) {
        on_own_thread(|| {
            self.network.enter();
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).expect("a setting of its own network");
        });
    }

    /// What has gone through its end of the cable since the cluster was made.
    pub fn traffic(&self) -> Traffic {
        let table = on_own_thread(|| {
            self.network.enter();
            std::fs::read_to_string("/proc/thread-self/net/dev").expect("counters of a host's interfaces")
        });
        let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("every host has its eth0");
        let fields: Vec<u64> = line.split_whitespace().map(|n| n.parse().expect("a counter")).collect();
        Traffic { received: fields[0], sent: fields[8] }
    }
}

impl Cluster {
    /// A cluster of `hosts` hosts, whose cables carry `rate` (as tc has it, `1gbit`) each way. `None` after saying why
    /// `test` is skipped.
    pub fn new(test: &str, hosts: usize, rate: &str) -> Option<Cluster> {
        let turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
        Cluster::or_skip(test, Cluster::build(hosts, rate, Turn::Beside(turn)))
    }

    /// [`Cluster::new`], while there is no other cluster: for tests that compare times of the network with others.
    pub fn alone(test: &str, hosts: usize, rate: &str) -> Option<Cluster> {
        let turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
        Cluster::or_skip(test, Cluster::build(hosts, rate, Turn::Alone(turn)))
    }

    fn or_skip(test: &str, built: Result<Cluster, String>) -> Option<Cluster> {
        match built {
            Ok(cluster) => Some(cluster),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    fn build(count: usize, rate: &str, turn: Turn) -> Result<Cluster, String> {
        let switch = Namespace::new(CloneFlags::CLONE_NEWNET, || Ok(()))?;
        switch.run("ip link add br0 type bridge")?;
        switch.run("ip link set br0 up")?;
        let hosts: Vec<Host> = (0..count).map(Host::new).collect::<Result<_, _>>()?;
        for (index, host) in hosts.iter().enumerate() {
            let at = host.network.path();
            // A queue that is drained in 20 ms: enough that its end is a full pipe, not so much that it hides a cut.
            let shape = format!("root tbf rate {rate} burst 256kb latency 20ms");
            switch.run(&format!("ip link add p{index} type veth peer name eth0 netns {at}"))?;
            switch.run(&format!("ip link set p{index} master br0 up"))?;
            switch.run(&format!("tc qdisc add dev p{index} {shape}"))?;
            host.network.run("ip link set lo up")?;
            host.network.run(&format!("ip addr add {}/24 dev eth0", address(index)))?;
            host.network.run("ip link set eth0 up")?;
            host.network.run(&format!("tc qdisc add dev eth0 {shape}"))?;
        }
        Ok(Cluster { hosts, switch, _turn: turn })
    }

    /// Its hosts, in the order of their addresses.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Cut host `index`'s cable.
    pub fn cut(&self, index: usize, how: Cut) {
        self.switch_port(index, if how == Cut::Silent { "nomaster" } else { "down" });
    }

    /// Mend what [`Cluster::cut`] has cut.
    pub fn heal(&self, index: usize) {
        self.switch_port(index, "master br0 up");
    }

    /// Take host `index` off the switch, and put two namespaces in between: one at the host's cable, which has the
    /// addresses of `others`, and one at the switch, which has the host's.
    pub fn insert(&self, index: usize, others: &[usize]) -> (Namespace, Namespace) {
        let new = || Namespace::new(CloneFlags::CLONE_NEWNET, || Ok(())).expect("as the cluster's own");
        let (inner, outer) = (new(), new());
        let all = |namespace: &Namespace, commands: &[String]| {
            commands.iter().for_each(|command| namespace.run(command).expect("it worked for the cluster"));
        };
        all(
            &self.switch,
            &[
                format!("ip link set p{index} nomaster"),
                format!("ip link set p{index} netns {}", inner.path()),
                format!("ip link add o{index} type veth peer name eth0 netns {}", outer.path()),
                format!("ip link set o{index} master br0 up"),
            ],
        );
        let addresses = others.iter().map(|other| format!("ip addr add {}/24 dev p{index}", address(*other)));
        let inside: Vec<String> = addresses.chain([format!("ip link set p{index} up")]).collect();
        all(&inner, &inside);
        all(&outer, &[format!("ip addr add {}/24 dev eth0", address(index)), "ip link set eth0 up".to_string()]);
        (inner, outer)
    }

    /// Let nothing pass between any two of `among`; all still reach the other hosts.
    pub fn part(&self, among: &[usize]) {
        among.iter().for_each(|index| self.switch_port(*index, "type bridge_slave isolated on"));
    }

    fn switch_port(&self, index: usize, how: &str) {
        self.switch.run(&format!("ip link set p{index} {how}")).expect("the switch does as it is told");
    }
}

/// The address of host `index`.
pub fn address(index: usize) -> String {
    format!("10.88.0.{}", index + 1)
}

/// Say that `test` is skipped, past the test harness, which keeps what passing tests print to itself.
///
/// # Panics
/// With `MAYPOLE_TEST_CLUSTER` set: then nothing may be missing.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("MAYPOLE_TEST_CLUSTER").is_none(), "{test} cannot run: {why}");
    let _ = writeln!(std::io::stderr(), "skipped: cluster::{test}: {why}");
}

#[test]
fn a_cut_is_a_cut_and_heals() {
    let Some(cluster) = Cluster::new("net::a_cut_is_a_cut_and_heals", 3, "100mbit") else { return };
    let reaches_within = |seconds: &str, from: usize, to: usize| {
        let script = format!("exec 3<>/dev/tcp/{}/7", address(to));
        let mut bash = Command::new("timeout");
        let mut child = cluster.hosts()[from].spawn(bash.args([seconds, "bash", "-c", &script]).stderr(Stdio::piped()));
        let _ = child.wait();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("text");
        // Nobody listens: a host that is reached says so.
        said.contains("refused")
    };
    // What is to get through may take its time on a busy machine; what is not is given a second.
    let reaches = |from, to| (0..5).any(|_| reaches_within("5", from, to));
    let is_cut_off = |from, to| !reaches_within("1", from, to);
    assert!(reaches(0, 1) && reaches(1, 2));
    for how in [Cut::Silent, Cut::Unplugged] {
        cluster.cut(1, how);
        assert!(is_cut_off(0, 1) && is_cut_off(1, 2) && reaches(0, 2), "{how:?}");
        cluster.heal(1);
        assert!(reaches(0, 1) && reaches(1, 2), "{how:?}");
    }
    cluster.part(&[1, 2]);
    assert!(reaches(0, 1) && reaches(0, 2) && is_cut_off(1, 2));
    let before = cluster.hosts()[2].traffic();
    assert!(reaches(0, 2));
    let after = cluster.hosts()[2].traffic();
    assert!(after.received > before.received && after.sent > before.sent, "{before:?} {after:?}");
}
