//! Somebody between a host and all others: everything that goes over TCP passes through here, and a byte of it may be
//! changed on the way.
//!
//! ```text
//!   host 1 ── inner: has the others' addresses ═ this process ═ outer: has host 1's address ── switch ── the others
//! ```
//! Each connection to a door is taken here, on one side, and made again on the other. That needs to know the doors'
//! ports: hosts here take ports from a short range.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::net::{Cluster, Namespace, address, on_own_thread};

/// Where ranks meet.
const MEETING: u16 = 29500;
/// Where hosts have their doors.
const DOORS: std::ops::Range<u16> = 20_000..20_016;

/// What goes over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Control,
    Data,
}

/// To which side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    Host,
    Others,
}

/// See the [module](self). It passes everything on until it is told to change a byte.
pub struct Between {
    plan: Arc<Plan>,
    stop: Arc<AtomicBool>,
    acceptors: Vec<thread::JoinHandle<()>>,
    _namespaces: [Namespace; 2],
}

#[derive(Default)]
struct Plan {
    /// What to change one byte of; taken when it is done.
    change: Mutex<Option<(Carries, Towards)>>,
    changed: AtomicU64,
}

impl Between {
    /// Between host `index` of `hosts` and the others; before any rank is started.
    pub fn new(cluster: &Cluster, index: usize) -> Between {
        let doors = format!("{} {}", DOORS.start, DOORS.end - 1);
        cluster.hosts().iter().for_each(|host| host.take_ports_from(&doors));
        let others: Vec<usize> = (0..cluster.hosts().len()).filter(|other| *other != index).collect();
        let (inner, outer) = cluster.insert(index, &others);
        let (plan, stop) = (Arc::<Plan>::default(), Arc::<AtomicBool>::default());
        let acceptors = [(&inner, &outer, others, Towards::Others), (&outer, &inner, vec![index], Towards::Host)]
            .map(|(here, there, named, towards)| {
                let side = Side::new(here, there, &named, towards, &plan, &stop);
                thread::spawn(move || side.run())
            })
            .into();
        Between { plan, stop, acceptors, _namespaces: [inner, outer] }
    }

    /// Change one bit of the next byte that goes this way.
    pub fn change(&self, carries: Carries, towards: Towards) {
        *self.plan.change.lock().unwrap() = Some((carries, towards));
    }

    /// How many bytes were changed.
    pub fn changed(&self) -> u64 {
        self.plan.changed.load(Ordering::Relaxed)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for acceptor in self.acceptors.drain(..) {
            let _ = acceptor.join();
        }
    }
}

/// One side: who connects here is connected to the same address and port on the other side.
struct Side {
    listeners: Vec<TcpListener>,
    /// On the other side.
    there: Namespace,
    towards: Towards,
    plan: Arc<Plan>,
    stop: Arc<AtomicBool>,
}

impl Side {
    fn new(
        here: &Namespace,
        there: &Namespace,
        named: &[usize],
        towards: Towards,
        plan: &Arc<Plan>,
        stop: &Arc<AtomicBool>,
    ) -> Side {
        let listeners = on_own_thread(|| {
            here.enter();
            let places = named.iter().flat_map(|host| DOORS.chain([MEETING]).map(move |port| (address(*host), port)));
            places.map(|(ip, port)| TcpListener::bind((ip.as_str(), port)).expect("a port of its own")).collect()
        });
        let (plan, stop) = (plan.clone(), stop.clone());
        Side { listeners, there: there.again(), towards, plan, stop }
    }

    fn run(self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut fds: Vec<PollFd<'_>> =
                self.listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
            if poll(&mut fds, PollTimeout::from(50_u8)).is_err() {
                continue;
            }
            for (listener, fd) in self.listeners.iter().zip(fds) {
                if fd.any() == Some(true) {
                    self.pass(listener);
                }
            }
        }
    }

    /// Pass on what goes over the connection that waits at `listener`, both ways.
    fn pass(&self, listener: &TcpListener) {
        let (near, _) = listener.accept().expect("somebody waits");
        let to = listener.local_addr().expect("it is bound");
        let far = on_own_thread(|| {
            self.there.enter();
            TcpStream::connect(to)
        });
        // Nobody is at home there, so nobody is here.
        let Ok(far) = far else { return };
        let carries = if to.port() == MEETING { Carries::Control } else { Carries::Data };
        let back = if self.towards == Towards::Host { Towards::Others } else { Towards::Host };
        for (from, into, towards) in [(&near, &far, self.towards), (&far, &near, back)] {
            let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
            let _ = into.set_nodelay(true);
            let plan = self.plan.clone();
            thread::spawn(move || copy(from, into, &plan, (carries, towards)));
        }
    }
}

fn copy(mut from: TcpStream, mut into: TcpStream, plan: &Plan, way: (Carries, Towards)) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut bytes) {
            Ok(n @ 1..) => n,
            _ => {
                let _ = into.shutdown(Shutdown::Write);
                return;
            }
        };
        let mut change = plan.change.lock().unwrap();
        if *change == Some(way) {
            *change = None;
            // Not the last bit of a number, which rounding may hide.
            bytes[n / 2] ^= 0x40;
            plan.changed.fetch_add(1, Ordering::Relaxed);
        }
        drop(change);
        if into.write_all(&bytes[..n]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}
