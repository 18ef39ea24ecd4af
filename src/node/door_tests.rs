//! A door by itself: who is let stand there, and for how long a turn lasts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;

use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};
use socket2::{Domain, SockRef, Socket, Type};

use super::super::auth::{HUB, knock};
use super::super::ports::listen_at;
use super::*;
use crate::config::Family;

fn key() -> Key {
    Key::new([4; 32])
}

struct Entrance {
    door: Door<TcpListener>,
    epoll: Epoll,
    at: SocketAddr,
    admitted: Vec<Admitted<TcpStream>>,
}

impl Entrance {
    fn open() -> Entrance {
        descriptors::raise();
        let listener = listen_at(Some(Ipv4Addr::UNSPECIFIED.into()), 0, Family::V4).unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let door = Door::open(listener, 0, Purpose::Control, HUB, key(), &epoll).unwrap();
        Entrance { door, epoll, at, admitted: Vec::new() }
    }

    /// One turn of the loop; whether there was anything to do.
    fn turn(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); 64];
        let count = self.epoll.wait(&mut events, EpollTimeout::from(10u8)).unwrap();
        for event in &events[..count] {
            self.door.attend(split(event.data()).1, &self.epoll, &mut self.admitted);
        }
        self.door.sweep(Instant::now(), &self.epoll);
        count > 0
    }

    /// So many connect from this address and say nothing. Guests that were sent away are closed.
    fn crowd(&mut self, from: [u8; 4], count: usize) -> Vec<TcpStream> {
        let mut crowd = Vec::new();
        while crowd.len() < count {
            // No more at a time than the listener's queue holds.
            crowd.extend((0..TURN.min(count - crowd.len())).map(|_| call(from, self.at)));
            while self.turn() {}
        }
        crowd
    }
}

fn call(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

const ERRAND: Errand =
    Errand { purpose: Purpose::Control, sealed: false, from: 1, to: HUB, context: 0, channel: 0, index: 0, total: 0 };

#[test]
fn a_crowd_from_elsewhere_does_not_drive_a_guest_out() {
    let mut entrance = Entrance::open();
    let mut slow = call([127, 0, 0, 2], entrance.at);
    while entrance.turn() {}
    let crowd = entrance.crowd([127, 0, 0, 1], 3 * entrance.door.room);
    assert_eq!(entrance.door.guests(), entrance.door.room);
    slow.set_nonblocking(true).unwrap();
    let soon = Instant::now() + PATIENCE;
    let knocking = std::thread::spawn(move || knock(&mut slow, &key(), &ERRAND, soon, &|| false));
    while !knocking.is_finished() {
        entrance.turn();
    }
    knocking.join().unwrap().unwrap();
    drop(crowd);
}

#[test]
fn chance_spares_some_of_those_who_stand_there() {
    let mut entrance = Entrance::open();
    let half = entrance.door.room / 2;
    let first = entrance.crowd([127, 0, 0, 1], half);
    let others = entrance.crowd([127, 0, 0, 1], 3 * half);
    // Of half the room a share of 1/e should still be there when the whole room has been given away once.
    let spared = entrance.door.guests.range(..=half as u64).count();
    println!("{spared} of {half} are still there");
    assert!(spared > half / 8, "{spared} of {half}: those who have stood longest go first");
    drop((first, others));
}

#[test]
fn a_turn_ends_while_callers_keep_coming() {
    let mut entrance = Entrance::open();
    let callers: Vec<TcpStream> = (0..3 * TURN).map(|_| call([127, 0, 0, 1], entrance.at)).collect();
    entrance.door.attend(0, &entrance.epoll, &mut entrance.admitted);
    assert_eq!(entrance.door.arrivals, TURN as u64);
    while entrance.turn() {}
    assert_eq!(entrance.door.arrivals, callers.len() as u64, "the others come in the turns that follow");
}

#[test]
fn a_listener_that_fails_is_left_alone_for_a_while() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let mut entrance = Entrance::open();
        SockRef::from(&entrance.door.listener).shutdown(std::net::Shutdown::Both).unwrap();
        let until = Instant::now() + 3 * PAUSE;
        let mut turns = 0;
        while Instant::now() < until {
            turns += usize::from(entrance.turn());
        }
        done.send(turns).unwrap();
    });
    let turns = ended.recv_timeout(Duration::from_secs(20)).expect("a turn that ends");
    assert!((1..10).contains(&turns), "{turns} turns for nothing in 0.3 s");
}
