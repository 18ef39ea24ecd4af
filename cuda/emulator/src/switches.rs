//! What tests can make the emulator do, by environment or while it runs.
//!
//! A switch `NAME` is the variable `MAYPOLE_EMULATOR_NAME` when the library is first called, or a call of
//! `maypole_emulator_set(name, value)` at any time later; both go through [`Switches::set`]. The list with what each
//! provokes stands on top of the crate.

use crate::abi::{Code, Outcome, code_named};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// A rule of the switch `FAIL`.
struct Failure {
    /// Function without `_v2`, or `*`.
    function: String,
    /// Counts down; the call that finds 1 fails.
    left: u64,
    /// All later calls fail too.
    onwards: bool,
    code: Code,
}

/// Commands that the switch `DROP` can lose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Droppable {
    /// A wait for a word in memory.
    Wait,
    /// A write of a word in memory.
    Write,
    /// A wait for an event.
    Event,
    /// The implicit order between the legacy default stream and the others.
    Legacy,
}

const DROPPABLE: [(&str, Droppable); 4] = [
    ("wait", Droppable::Wait),
    ("write", Droppable::Write),
    ("event", Droppable::Event),
    ("legacy", Droppable::Legacy),
];

/// The values of all switches. What is read on every command is an atomic.
pub struct Switches {
    pub devices: AtomicUsize,
    pub memory: AtomicU64,
    pub driver_version: AtomicU64,
    /// Compute capability times ten.
    pub capability: AtomicU64,
    /// Seed; 0 is off.
    pub chaos: AtomicU64,
    pub memory_operations: AtomicBool,
    /// Streams get handles of streams that were destroyed.
    pub reused_handles: AtomicBool,
    pub ipc: AtomicBool,
    pub peer_access: AtomicBool,
    pub host_register: AtomicBool,
    /// Devices see host memory at other addresses than the host does.
    pub second_address: AtomicBool,
    /// Devices that are not visible to this process have no node in its cgroup.
    pub hidden: AtomicBool,
    /// Devices take one process each.
    pub exclusive: AtomicBool,
    /// Host functions of all streams run one at a time.
    pub serial_host_functions: AtomicBool,
    /// Hardware queues that the streams of a context share; 0: one for each stream.
    pub connections: AtomicU64,
    pub lazy_loading: AtomicBool,
    /// Microseconds by which others see late what a kernel has stored behind its last fence.
    pub late_stores: AtomicU64,
    /// Commands that a stream's queue has room for; 0: any number.
    pub queue: AtomicU64,
    /// Allocating memory waits for the context, as freeing does.
    pub waiting_allocations: AtomicBool,
    /// Mixed into devices' UUIDs, so that processes can play different machines.
    pub machine: Mutex<String>,
    failures: Mutex<Vec<Failure>>,
    failures_set: AtomicBool,
    /// For each [`Droppable`]: 0 is none, `u64::MAX` all, else which one from now on.
    drops: [AtomicU64; 4],
    /// Commands that were lost so far.
    pub dropped: AtomicU64,
    calls: Mutex<HashMap<&'static str, u64>>,
}

/// The switches of this process, with the environment's values at first use.
pub static SWITCHES: LazyLock<Switches> = LazyLock::new(|| {
    let switches = Switches {
        devices: AtomicUsize::new(1),
        memory: AtomicU64::new(4 << 30),
        driver_version: AtomicU64::new(12040),
        capability: AtomicU64::new(90),
        chaos: AtomicU64::new(0),
        memory_operations: AtomicBool::new(true),
        reused_handles: AtomicBool::new(false),
        ipc: AtomicBool::new(true),
        peer_access: AtomicBool::new(true),
        host_register: AtomicBool::new(true),
        second_address: AtomicBool::new(false),
        hidden: AtomicBool::new(false),
        exclusive: AtomicBool::new(false),
        serial_host_functions: AtomicBool::new(true),
        connections: AtomicU64::new(0),
        lazy_loading: AtomicBool::new(false),
        late_stores: AtomicU64::new(0),
        queue: AtomicU64::new(0),
        waiting_allocations: AtomicBool::new(false),
        machine: Mutex::new(String::new()),
        failures: Mutex::new(Vec::new()),
        failures_set: AtomicBool::new(false),
        drops: [const { AtomicU64::new(0) }; 4],
        dropped: AtomicU64::new(0),
        calls: Mutex::new(HashMap::new()),
    };
    for (variable, value) in std::env::vars() {
        if let Some(name) = variable.strip_prefix("MAYPOLE_EMULATOR_")
            && let Err(why) = switches.set(name, &value)
        {
            // A test that believes in a switch that does not exist would prove nothing.
            eprintln!("maypole emulator: {variable}={value}: {why}");
            std::process::abort();
        }
    }
    switches
});

impl Switches {
    /// Sets one switch. An unknown name or a value that cannot be read is told in words.
    pub fn set(&self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "DEVICES" => self.devices.store(number(value)? as usize, Relaxed),
            "MEMORY" => self.memory.store(bytes(value)?, Relaxed),
            "DRIVER_VERSION" => self.driver_version.store(number(value)?, Relaxed),
            "CAPABILITY" => self.capability.store(number(&value.replace('.', ""))?, Relaxed),
            "CHAOS" => self.chaos.store(number(value)?, Relaxed),
            "MEMORY_OPERATIONS" => self.memory_operations.store(on_off(value)?, Relaxed),
            "REUSED_HANDLES" => self.reused_handles.store(on_off(value)?, Relaxed),
            "IPC" => self.ipc.store(on_off(value)?, Relaxed),
            "PEER_ACCESS" => self.peer_access.store(on_off(value)?, Relaxed),
            "HOST_REGISTER" => self.host_register.store(on_off(value)?, Relaxed),
            "SECOND_ADDRESS" => self.second_address.store(on_off(value)?, Relaxed),
            "HIDDEN" => self.hidden.store(on_off(value)?, Relaxed),
            "EXCLUSIVE" => self.exclusive.store(on_off(value)?, Relaxed),
            "HOST_FUNCTIONS" => self.serial_host_functions.store(
                match value {
                    "serial" => true,
                    "parallel" => false,
                    _ => return Err("expected serial or parallel".into()),
                },
                Relaxed,
            ),
            "CONNECTIONS" => self.connections.store(number(value)?, Relaxed),
            "QUEUE" => self.queue.store(number(value)?, Relaxed),
            "ALLOCATION_WAITS" => self.waiting_allocations.store(on_off(value)?, Relaxed),
            "LATE_STORES" => self.late_stores.store(number(value)?, Relaxed),
            "LAZY" => self.lazy_loading.store(on_off(value)?, Relaxed),
            "MACHINE" => *self.machine.lock() = value.into(),
            "FAIL" => self.set_failures(value)?,
            "DROP" => self.set_drops(value)?,
            _ => return Err("there is no such switch".into()),
        }
        Ok(())
    }

    /// `function:n:code[,...]`; `n+` for the nth and all later ones; nothing to fail no more.
    fn set_failures(&self, value: &str) -> Result<(), String> {
        let mut failures = Vec::new();
        for rule in value.split(',').filter(|rule| !rule.is_empty()) {
            let parts: Vec<&str> = rule.split(':').collect();
            let [function, nth, code] = parts[..] else { return Err(format!("{rule}: expected function:nth:code")) };
            let (nth, onwards) = nth.strip_suffix('+').map_or((nth, false), |nth| (nth, true));
            let left = number(nth)?.max(1);
            let code = code_named(code).ok_or(format!("{code} is none of the codes the emulator knows"))?;
            failures.push(Failure { function: function.into(), left, onwards, code });
        }
        self.failures_set.store(!failures.is_empty(), Relaxed);
        *self.failures.lock() = failures;
        Ok(())
    }

    /// `kind:n[,...]`, with `all` for every one; nothing to drop no more.
    fn set_drops(&self, value: &str) -> Result<(), String> {
        self.drops.iter().for_each(|left| left.store(0, Relaxed));
        for rule in value.split(',').filter(|rule| !rule.is_empty()) {
            let (kind, nth) = rule.split_once(':').ok_or(format!("{rule}: expected kind:nth or kind:all"))?;
            let index = DROPPABLE.iter().position(|(name, _)| *name == kind);
            let index = index.ok_or(format!("{kind}: expected wait, write, event or legacy"))?;
            self.drops[index].store(if nth == "all" { u64::MAX } else { number(nth)?.max(1) }, Relaxed);
        }
        Ok(())
    }

    /// Whether this one, of a kind that [`Droppable`] lists, is to be lost. Counts.
    pub fn drops(&self, kind: Droppable) -> bool {
        let left = &self.drops[kind as usize];
        if left.load(Relaxed) == 0 {
            return false;
        }
        let before = left.fetch_update(Relaxed, Relaxed, |left| match left {
            0 | u64::MAX => None,
            more => Some(more - 1),
        });
        let lost = matches!(before, Ok(1) | Err(u64::MAX));
        self.dropped.fetch_add(u64::from(lost), Relaxed);
        lost
    }

    /// Counts a call; the code with which it is to fail, if it is.
    pub fn call(&self, function: &'static str) -> Outcome {
        let function = unversioned(function);
        *self.calls.lock().entry(function).or_default() += 1;
        if !self.failures_set.load(Relaxed) {
            return Ok(());
        }
        for failure in self.failures.lock().iter_mut() {
            if failure.left == 0 || !(failure.function == "*" || failure.function == function) {
                continue;
            }
            if failure.left > 1 {
                failure.left -= 1;
            } else {
                failure.left = u64::from(failure.onwards);
                return Err(failure.code);
            }
        }
        Ok(())
    }

    /// How often a function was called, `_v2` or not; with `*` all of them together.
    pub fn calls(&self, function: &str) -> u64 {
        let calls = self.calls.lock();
        if function == "*" { calls.values().sum() } else { calls.get(unversioned(function)).copied().unwrap_or(0) }
    }
}

/// A function's name without the version behind it.
fn unversioned(function: &str) -> &str {
    function.strip_suffix("_v2").or(function.strip_suffix("_v3")).unwrap_or(function)
}

fn number(value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("{value} is not a number"))
}

fn bytes(value: &str) -> Result<u64, String> {
    let shift =
        [('K', 10), ('M', 20), ('G', 30)].iter().find(|(unit, _)| value.ends_with(*unit)).map_or(0, |(_, s)| *s);
    Ok(number(value.trim_end_matches(['K', 'M', 'G']))? << shift)
}

fn on_off(value: &str) -> Result<bool, String> {
    match value {
        "1" | "on" | "yes" => Ok(true),
        "0" | "off" | "no" => Ok(false),
        _ => Err(format!("{value}: expected 1 or 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_and_no_other() {
        let switches = &*SWITCHES;
        switches.set("FAIL", "cuFirst:2:CUDA_ERROR_UNKNOWN,cuSecond:1+:2").unwrap();
        assert_eq!(
            [switches.call("cuFirst_v2"), switches.call("cuFirst"), switches.call("cuFirst")],
            [Ok(()), Err(999), Ok(())]
        );
        assert_eq!([switches.call("cuSecond"), switches.call("cuSecond")], [Err(2), Err(2)]);
        switches.set("FAIL", "").unwrap();
        assert_eq!(switches.call("cuSecond"), Ok(()));
        assert_eq!(switches.calls("cuFirst"), 3);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (name, value) in [
            ("FAIL", "cuInit"),
            ("FAIL", "cuInit:1:CUDA_ERROR_SILLY"),
            ("DROP", "launch:1"),
            ("CHOAS", "1"),
            ("IPC", "maybe"),
        ] {
            assert!(SWITCHES.set(name, value).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn the_nth_of_a_kind_is_dropped() {
        SWITCHES.set("DROP", "event:2").unwrap();
        let dropped: Vec<bool> = (0..3).map(|_| SWITCHES.drops(Droppable::Event)).collect();
        assert_eq!(dropped, [false, true, false]);
        assert!(!SWITCHES.drops(Droppable::Wait));
    }
}
