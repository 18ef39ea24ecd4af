//! A listening socket and the guests at it: connections that have not shown the job's key yet.
//!
//! A [`Door`] lives in an epoll loop (the hub's or a node's) and never waits. Strangers who connect and say nothing must
//! neither keep a rank out nor use up what the process has: a guest has a few seconds, there is room for a fraction of
//! the process' file descriptors, and when it is taken, one guest of the address that has most goes, whichever chance
//! picks. A rank needs a moment only, so chance rarely picks it, and it comes again; and as long as strangers call from
//! elsewhere, it is not among those to be picked from.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use maypole_transports::fork;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::auth::{Errand, Guest, Purpose, Standing};
use super::key::Key;
use super::session::Session;
use super::turned_away::TurnedAway;
use crate::descriptors;

/// How long a guest has to show the key.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many guests may stand at a door, and what part of the process' descriptors they may have.
const CROWD: usize = 512;
const SHARE: usize = 16;
/// So many may stand there in any case.
const FEW: usize = 8;
/// How many connections are accepted in one turn of the loop, which has others to serve.
const TURN: usize = 64;
/// So many failures to accept one after the other, and the door is shut for a while.
const FAILURES: usize = 8;
/// How long a door stays shut when the process has run out of file descriptors, or its listener fails.
const PAUSE: Duration = Duration::from_millis(100);

/// Two failures for want of a descriptor that are no further apart belong together: nothing was accepted in between.
const LAPSE: Duration = Duration::from_millis(500);

/// The place of a token's kind: the bits below are for the loop's parts to use.
const KIND_SHIFT: u32 = 56;

/// An epoll token: which part of the loop it is for, and which of that part's sockets.
pub(super) fn token(kind: u8, id: u64) -> u64 {
    u64::from(kind) << KIND_SHIFT | id
}

/// The two parts of a token.
pub(super) fn split(token: u64) -> (u8, u64) {
    ((token >> KIND_SHIFT) as u8, token & ((1 << KIND_SHIFT) - 1))
}

/// A listener as a door needs it.
pub(super) trait Listen: AsFd {
    /// What comes in.
    type Stream: Read + Write + AsFd;
    /// The next connection, non-blocking, and the address it comes from if it has one. `None`: one that is not for us,
    /// or is gone already.
    ///
    /// # Errors
    /// The listener's.
    fn admit(&self) -> io::Result<Option<(Self::Stream, Option<IpAddr>)>>;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    fn admit(&self) -> io::Result<Option<(TcpStream, Option<IpAddr>)>> {
        let (stream, from) = self.accept()?;
        fork::close_in_children(&stream);
        let prepared = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        Ok(prepared.is_ok().then_some((stream, Some(origin(from.ip())))))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;
    fn admit(&self) -> io::Result<Option<(UnixStream, Option<IpAddr>)>> {
        let (stream, _) = self.accept()?;
        fork::close_in_children(&stream);
        // Abstract sockets have no file permissions: the kernel's word on who calls takes their place.
        let caller = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
        let ours = caller.is_ok_and(|caller| caller.uid() == nix::unistd::geteuid().as_raw());
        Ok((ours && stream.set_nonblocking(true).is_ok()).then_some((stream, None)))
    }
}

/// The address of a caller, as guests are counted: of IPv6 the part that names a network, since whoever has one address
/// of it has them all.
fn origin(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => (v6.to_bits() >> 64 << 64).to_be_bytes().into(),
        canonical => canonical,
    }
}

/// One who stands at a door.
struct Standby<S> {
    guest: Guest<S>,
    from: Option<IpAddr>,
}

/// Who has shown the job's key: its connection, what it wants, and what both ends have in common.
pub(super) type Admitted<S> = (S, Errand, Session);

/// See the [module](self).
pub(super) struct Door<L: Listen> {
    listener: L,
    kind: u8,
    purpose: Purpose,
    me: u32,
    key: Key,
    /// By arrival; the listener itself is number 0.
    guests: BTreeMap<u64, Standby<L::Stream>>,
    /// How many of them there are from each address.
    origins: HashMap<Option<IpAddr>, usize>,
    /// How many there may be.
    room: usize,
    arrivals: u64,
    failures: usize,
    shut_until: Option<Instant>,
    /// Who has not been let in, since the door was opened.
    pub turned_away: TurnedAway,
    /// Since when, and when last, there was no descriptor for somebody at this door.
    ran_out: Option<(Instant, Instant)>,
    /// Whether a descriptor is kept for the time when there is no other, and that one.
    saves: bool,
    spare: Option<File>,
}

impl<L: Listen> Door<L> {
    /// Serve `listener` (non-blocking) in `epoll`, with tokens of `kind`, for callers of `me` with `purpose`.
    pub fn open(listener: L, kind: u8, purpose: Purpose, me: u32, key: Key, epoll: &Epoll) -> io::Result<Door<L>> {
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token(kind, 0)))?;
        Ok(Door {
            listener,
            kind,
            purpose,
            me,
            key,
            guests: BTreeMap::new(),
            origins: HashMap::new(),
            room: (descriptors::limit() / SHARE).clamp(FEW, CROWD),
            arrivals: 0,
            failures: 0,
            shut_until: None,
            turned_away: TurnedAway::default(),
            ran_out: None,
            saves: false,
            spare: None,
        })
    }

    /// Keep a descriptor from now on, so that callers can be heard, one at a time, when the process has no other left.
    pub fn save_one(mut self) -> io::Result<Door<L>> {
        self.saves = true;
        self.spare = Some(File::open("/dev/null")?);
        Ok(self)
    }

    /// How many guests stand here.
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// Whether the process has ever run out of descriptors here.
    pub fn ran_out(&self) -> bool {
        self.ran_out.is_some()
    }

    /// Whether somebody stands outside to whom the process could not open for want of a descriptor, and has not been
    /// able to for a while.
    pub fn starved(&self, now: Instant) -> bool {
        self.ran_out.is_some_and(|(since, last)| now < last + LAPSE && last >= since + descriptors::PATIENCE)
    }

    /// Something happened at number `id` of this door. Those who have shown the key are appended to `admitted`; they
    /// are no longer in `epoll`.
    pub fn attend(&mut self, id: u64, epoll: &Epoll, admitted: &mut Vec<Admitted<L::Stream>>) {
        if id != 0 {
            return self.hear(id, epoll, admitted);
        }
        // The listener is watched by level: what is left after this turn brings the loop here again.
        for _ in 0..TURN {
            match self.listener.admit() {
                Ok(caller) => {
                    self.failures = 0;
                    // That it ran out stays known; a new want is another one.
                    self.ran_out = self.ran_out.map(|(_, last)| (last, last));
                    if let Some((stream, from)) = caller {
                        self.welcome(stream, from, epoll, admitted);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e)
                    if descriptors::ran_out(&e) || matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) =>
                {
                    tracing::warn!("cannot accept a connection: {}", descriptors::explain(&e));
                    let now = Instant::now();
                    let since = self.ran_out.filter(|(_, last)| now < *last + LAPSE).map_or(now, |(since, _)| since);
                    self.ran_out = Some((since, now));
                    if self.spare.take().is_some() {
                        continue;
                    }
                    // The process needs them more than strangers do.
                    for _ in 0..self.guests.len().div_ceil(2) {
                        self.evict(epoll);
                    }
                    return self.shut(epoll);
                }
                // A caller that went away meanwhile, or the listener's end: then it goes on like this.
                Err(e) => {
                    self.failures += 1;
                    if self.failures >= FAILURES {
                        tracing::warn!("cannot accept connections: {e}");
                        return self.shut(epoll);
                    }
                }
            }
        }
    }

    /// Listen no more for a while.
    fn shut(&mut self, epoll: &Epoll) {
        let _ = epoll.delete(&self.listener);
        self.shut_until = Some(Instant::now() + PAUSE);
    }

    /// A new guest.
    fn welcome(
        &mut self,
        stream: L::Stream,
        from: Option<IpAddr>,
        epoll: &Epoll,
        admitted: &mut Vec<Admitted<L::Stream>>,
    ) {
        if self.guests.len() >= self.room {
            self.evict(epoll);
        }
        self.arrivals += 1;
        let id = self.arrivals;
        if epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token(self.kind, id))).is_ok() {
            let guest = Guest::new(stream, Instant::now() + PATIENCE);
            self.guests.insert(id, Standby { guest, from });
            *self.origins.entry(from).or_default() += 1;
            self.hear(id, epoll, admitted);
        }
    }

    /// One guest has to go.
    fn evict(&mut self, epoll: &Epoll) {
        let Some((&from, &count)) = self.origins.iter().max_by_key(|(_, count)| **count) else { return };
        // Without randomness the first one goes: it is the one that has had most time.
        let pick = getrandom::u64().map_or(0, |random| (random % count as u64) as usize);
        let id = self.guests.iter().filter(|(_, standby)| standby.from == from).nth(pick).map(|(id, _)| *id);
        self.dismiss(id.expect("they are counted"), epoll);
    }

    /// A guest is none any more. Its connection and where it comes from; nobody watches it.
    fn dismiss(&mut self, id: u64, epoll: &Epoll) -> Option<(L::Stream, Option<IpAddr>)> {
        let Standby { guest, from } = self.guests.remove(&id)?;
        let stream = guest.into_stream();
        // Closing it would not do where a child that no handler has seen holds a copy: events of a connection that is in
        // no list would come for ever.
        let _ = epoll.delete(&stream);
        if let Some(count) = self.origins.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.origins.remove(&from);
            }
        }
        Some((stream, from))
    }

    fn hear(&mut self, id: u64, epoll: &Epoll, admitted: &mut Vec<Admitted<L::Stream>>) {
        let Some(standby) = self.guests.get_mut(&id) else { return };
        match standby.guest.advance(&self.key, self.me, self.purpose) {
            Standing::Waiting => {}
            Standing::Admitted(errand, session) => {
                let (stream, _) = self.dismiss(id, epoll).expect("found above");
                admitted.push((stream, errand, session));
            }
            Standing::Rejected(why, from) => {
                let address = self.dismiss(id, epoll).and_then(|(_, from)| from);
                tracing::debug!("closed a connection for {:?} from {address:?}: {why}", self.purpose);
                self.turned_away.note(&why, from, address);
            }
        }
    }

    /// Close those whose time is up, and listen again after a pause.
    pub fn sweep(&mut self, now: Instant, epoll: &Epoll) {
        while let Some((&id, _)) = self.guests.first_key_value().filter(|(_, standby)| standby.guest.deadline <= now) {
            self.dismiss(id, epoll);
        }
        if self.saves && self.spare.is_none() {
            self.spare = File::open("/dev/null").ok();
        }
        if self.shut_until.is_some_and(|until| until <= now) {
            self.failures = 0;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token(self.kind, 0));
            self.shut_until = epoll.add(&self.listener, event).err().map(|_| now + PAUSE);
        }
    }

    /// When [`Door::sweep`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.guests.first_key_value().map(|(_, standby)| standby.guest.deadline);
        [oldest, self.shut_until].into_iter().flatten().min()
    }
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
