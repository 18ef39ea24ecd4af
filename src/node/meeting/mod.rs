//! A rank's way into the job: reach the meeting point, open its own doors, introduce itself, and
//! wait until all have come.
//!
//! `point`: where the ranks meet, and how one gets there. `doors`: what a rank opens for the
//! others.

mod doors;
mod point;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use self::doors::prepare;
use self::point::{Point, RETRY, WRONG_KEY_PATIENCE, go, names_this_host, reach};
use super::auth;
use super::frame::{Hello, HubPlace, TABLE_LIMIT, ToHub, ToNode};
use super::id::Meeting;
use super::key::Key;
use super::peer::{self, Peer};
use super::tag::Writer;
use super::wire::{self, Inbox, Outbox};
use super::{hub, roster};
use crate::config::Config;
use crate::descriptors;
use crate::error::{Error, Result, cut};
use crate::running::Limit;

/// How much longer than the hub a rank waits: the hub knows better what is wrong.
const GRACE: Duration = Duration::from_secs(3);

/// What a rank has when all have come.
pub(super) struct Met {
    pub key: Key,
    /// The control connection, non-blocking, what has arrived on it, and what goes out on it.
    pub control: TcpStream,
    pub inbox: Inbox,
    pub outbox: Outbox,
    pub peers: Vec<Peer>,
    pub hub: HubPlace,
    pub data: TcpListener,
    pub local: UnixListener,
}

/// Bring this rank into the job. Blocks until all ranks have come.
///
/// # Errors
/// [`Error::Bootstrap`]: what is wrong with the job, the same on every rank, or why the meeting
/// point cannot be reached.
pub(super) fn meet(meeting: Meeting, rank: usize, size: usize, config: &Config) -> Result<Met> {
    let start = Instant::now();
    descriptors::raise();
    if size == 0 || size > roster::LARGEST || u32::try_from(rank).is_err() {
        return Err(Error::bootstrap(format!(
            "rank {rank} of a world of {size}: the size must be from 1 to {} and the rank below it",
            roster::LARGEST
        )));
    }
    let open = matches!(&meeting, Meeting::Address { host, .. } if !names_this_host(host));
    // A world of this job that met there before is no stranger: it is waited for as long as a late
    // rank is.
    let patience = match &meeting {
        Meeting::Address { earlier: 1.., .. } => config.connect_timeout,
        _ => WRONG_KEY_PATIENCE,
    };
    let limit = Limit::after(config.connect_timeout);
    let (point, key) = go(meeting, rank, size, config, &limit)?;
    let met = come((&point, key), (rank, size), open, config, (start, &limit), patience);
    match (met, &point) {
        (Err(error), Point::Named { port, fallback: Some(_), .. }) => {
            let why = cut(format!("{} cannot take part: {error}", who(rank)));
            let knew = hub::give_up(*port, &why);
            Err(knew.map_or(error, |why| Error::bootstrap(format!("rank {rank}: {why}"))))
        }
        (met, _) => met,
    }
}

/// This rank, for the others.
fn who(rank: usize) -> String {
    format!("rank {rank} (process {} on host {})", std::process::id(), peer::host_name())
}

/// Come to the meeting point, and wait there for the others. `open`: as in
/// [`prepare`].
fn come(
    (point, key): (&Point, Key),
    (rank, size): (usize, usize),
    open: bool,
    config: &Config,
    (start, limit): (Instant, &Limit),
    patience: Duration,
) -> Result<Met> {
    let mut pause = RETRY.0;
    loop {
        let reached = reach(point, &key, rank, config, (start, limit), patience)?;
        let (control, address, session) = reached;
        let (mut inbox, mut outbox) = session.into_frames(Writer::Node);
        let (data, local, hello) = prepare(&control, open, (rank, size), config).inspect_err(|error| {
            // Without a word the others would wait for this rank as long as they may.
            let why = format!("{} cannot take part: {error}", who(rank));
            outbox.push(&ToHub::Unable { rank, size, why: cut(why) });
            let _ = outbox.flush(&control);
        })?;
        let within = config.connect_timeout.saturating_add(GRACE);
        let longer = Limit::after(within);
        let word = match introduce((&control, address), (&mut inbox, &mut outbox), hello, &longer) {
            // Rank 0 opens the port anew for the next attempt.
            Ok(ToNode::Again) if limit.left() > pause => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY.1);
                continue;
            }
            Ok(ToNode::Table { peers, hub }) if peers.len() == size && in_order(&peers) => {
                return Ok(Met { key, control, inbox, outbox, peers, hub, data, local });
            }
            word => word,
        };
        return Err(no_table(word, (rank, address), point, within));
    }
}

/// What it means that the hub said `word` to `rank` at `address`, or nothing, in place of who the
/// ranks are.
fn no_table(
    word: std::result::Result<ToNode, auth::Refusal>,
    (rank, address): (usize, SocketAddr),
    point: &Point,
    within: Duration,
) -> Error {
    Error::bootstrap(match word {
        Ok(ToNode::Failed { what }) => format!("rank {rank}: {what}"),
        Ok(ToNode::Again) => format!(
            "rank {rank} came to the meeting point {address} again after a failed attempt, but \
             rank 0 did not, in time"
        ),
        Ok(_) => {
            format!("rank {rank}: the meeting point at {address} answered something unexpected")
        }
        Err(refusal) => format!(
            "rank {rank} came to the meeting point {address}, but waited in vain for the other \
             ranks: {}; see the output of the process that holds it ({})",
            match refusal {
                auth::Refusal::Closed => "the process there ended".to_string(),
                auth::Refusal::Silent => format!("nothing was heard for {within:?}"),
                other => other.to_string(),
            },
            match point {
                Point::Named { .. } => "rank 0",
                Point::Known(_) => "the one that made the unique id",
            }
        ),
    })
}

/// Whether each rank has its place.
fn in_order(peers: &[Peer]) -> bool {
    peers.iter().enumerate().all(|(rank, peer)| peer.rank == rank)
}

/// Say who this is and wait for the hub's word.
fn introduce(
    (control, to): (&TcpStream, SocketAddr),
    (inbox, outbox): (&mut Inbox, &mut Outbox),
    hello: Hello,
    limit: &Limit,
) -> std::result::Result<ToNode, auth::Refusal> {
    let wait = |event| loop {
        let look = || {
            limit.left();
            false
        };
        match auth::wait(control, event, limit.if_not_stopped(), &look) {
            Err(auth::Refusal::Silent) if !limit.has_passed() => {}
            ready => return ready,
        }
    };
    outbox.push(&ToHub::Hello(hello));
    while !outbox.flush(control)? {
        wait(PollFlags::POLLOUT)?;
    }
    loop {
        let filled = inbox.fill(control, TABLE_LIMIT);
        let arrived = filled.and_then(|open| Ok((open, inbox.next(TABLE_LIMIT)?)));
        let open = match arrived {
            Ok((_, Some(word))) => return Ok(word),
            Ok((open, None)) => open,
            Err(e) if !wire::is_changed(&e) => return Err(e.into()),
            Err(e) => {
                // The other way may still hold, and then the others are told.
                outbox.push(&ToHub::Fallen { how: wire::changed_on_the_way(&to.to_string()) });
                let _ = outbox.flush(control);
                return Err(e.into());
            }
        };
        if !open {
            return Err(auth::Refusal::Closed);
        }
        wait(PollFlags::POLLIN)?;
    }
}
