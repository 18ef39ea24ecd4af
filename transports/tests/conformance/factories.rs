//! Pairs of connected ends, for each transport.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use maypole_transports::fault::Fault;
use maypole_transports::shm::{Group, Segment, Shape};
use maypole_transports::tcp::{self, Wire, seal};
use maypole_transports::{Receiver, Sender};

/// One rank's ends of the links between two ranks.
pub struct End {
    pub sender: Box<dyn Sender>,
    pub receiver: Box<dyn Receiver>,
    /// What must live as long as the links.
    pub _group: Option<Group>,
}

/// Makes connected pairs of one kind.
pub trait Factory: Sync {
    /// The ends of two ranks; what one sends the other receives. Each direction takes at least `credit` bytes.
    fn pair(&self, credit: usize) -> (End, End);
}

/// TCP over loopback.
pub struct Tcp {
    address: IpAddr,
    connections: usize,
}

impl Tcp {
    pub const fn v4(connections: usize) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::LOCALHOST), connections }
    }

    pub const fn v6(connections: usize) -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), connections }
    }

    /// Connected sockets, not made into links yet.
    pub fn streams(&self) -> (Vec<TcpStream>, Vec<TcpStream>) {
        let listener = TcpListener::bind((self.address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = |_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
        (0..self.connections).map(connect).unzip()
    }
}

impl Factory for Tcp {
    fn pair(&self, credit: usize) -> (End, End) {
        let (a, b) = self.streams();
        (tcp_end(a, credit), tcp_end(b, credit))
    }
}

fn tcp_end<W: Into<Wire>>(wires: Vec<W>, credit: usize) -> End {
    let (sender, receiver) = tcp::link(wires, credit).unwrap();
    End { sender: Box::new(sender), receiver: Box::new(receiver), _group: None }
}

/// The same, encrypted.
pub struct Sealed(pub Tcp);

impl Sealed {
    /// Connected sockets with their keys, not made into links yet.
    pub fn wires(&self) -> (Vec<Wire>, Vec<Wire>) {
        let (a, b) = self.0.streams();
        let meet = |(a, b)| {
            let key = [9; 32];
            let (caller, hello) = seal::call(&key);
            let (hello, theirs) = seal::answer(&key, &hello).unwrap();
            let ours = caller.answered(&hello).unwrap();
            (Wire { stream: a, seal: Some(ours) }, Wire { stream: b, seal: Some(theirs) })
        };
        a.into_iter().zip(b).map(meet).unzip()
    }
}

impl Factory for Sealed {
    fn pair(&self, credit: usize) -> (End, End) {
        let (a, b) = self.wires();
        (tcp_end(a, credit), tcp_end(b, credit))
    }
}

/// Shared memory between threads of this process; between processes nothing but the mapping differs.
pub struct Shm;

impl Shm {
    pub const fn shape(credit: usize) -> Shape {
        Shape { members: 2, channels: 1, second_bell_from: 1, ring: credit.next_power_of_two(), window: 4096 }
    }
}

impl Factory for Shm {
    fn pair(&self, credit: usize) -> (End, End) {
        let segment = Segment::anonymous(Self::shape(credit)).unwrap();
        let end = |me: usize| {
            let group = Group::new(segment.clone(), me);
            End { sender: group.sender(1 - me, 0), receiver: group.receiver(1 - me, 0), _group: Some(group) }
        };
        (end(0), end(1))
    }
}

/// Any of the others, moving a few bytes a call, late. Faults of this kind break no promise.
pub struct Dribbling<F>(pub F);

impl<F: Factory> Factory for Dribbling<F> {
    fn pair(&self, credit: usize) -> (End, End) {
        let wrap = |end: End, seed| {
            let fault = Fault { delay: Duration::from_nanos(50), ..Fault::dribble(700).seed(seed) };
            End { sender: fault.sender(end.sender), receiver: fault.receiver(end.receiver), ..end }
        };
        let (a, b) = self.0.pair(credit);
        (wrap(a, 1), wrap(b, 2))
    }
}
