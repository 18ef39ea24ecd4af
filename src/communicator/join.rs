//! Bringing the ranks of a launch together: at the address that all were told, or by what rank 0 leaves on the launcher's
//! board.
//!
//! Programs try again when their world cannot be made, and a rank may come late to each attempt. So whoever fails leaves
//! nothing that a later attempt would take for its own: the meeting point of an attempt that is over refuses whoever
//! comes, at once, and what stays on a board says that it is over, or is read again until rank 0 has put up something
//! else. A late rank so uses up the attempts that are over, and is with the others at the one that they make then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::build::host_name;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::launch::notice::Notice;
use crate::launch::{self, Board, Launch, LaunchMeeting};
use crate::node::{Meeting, Node, UniqueId};
use crate::running::Limit;

/// Between two looks at a board whose notice is of no use.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a rank that reads of a failure waits for another word at most: it may be left from ranks that have ended.
const OVERWRITTEN: Duration = Duration::from_millis(500);

/// Meet the other ranks in the way that the launcher offers, and wait until all have come; `None` in a world of one.
///
/// # Errors
/// [`Error::Bootstrap`] if they do not come together in `MAYPOLE_CONNECT_TIMEOUT`, and the launcher's.
pub(crate) fn join(launch: Launch, config: &Config) -> Result<Option<Arc<Node>>> {
    let (rank, size) = (launch.rank, launch.size);
    let node = match launch.meeting {
        LaunchMeeting::Alone => return Ok(None),
        LaunchMeeting::Address { host, port } => {
            let key = address_key(&host, port, &launch.run);
            config.refuse_open("an address")?;
            // Only those that stood count, on all ranks alike: a rank that gave up and tries again
            // means the same one.
            let worlds = launch::worlds::met_at(&format!("{host} {port}"));
            let earlier = worlds.load(Ordering::Relaxed) as usize;
            let node = Node::join(Meeting::Address { host, port, key, earlier }, rank, size, config)?;
            worlds.store(earlier as u64 + 1, Ordering::Relaxed);
            warn_if_guessable(&node, config);
            node
        }
        LaunchMeeting::Board(mut board) => {
            if board.is_open() {
                config.refuse_open("a store that others can read")?;
            }
            let node =
                if rank == 0 { invite(&mut *board, size, config) } else { follow(&mut *board, rank, size, config) };
            board.finish()?;
            node?
        }
    };
    Ok(Some(node))
}

/// Rank 0's way: make a meeting point, put it up, and wait there.
fn invite(board: &mut dyn Board, size: usize, config: &Config) -> Result<Arc<Node>> {
    let made = if board.is_local() { UniqueId::local(config) } else { UniqueId::create(config) };
    let unable = |error: &Error| Notice::Unable(format!("rank 0 on host {}: {error}", host_name()));
    let notice = made.as_ref().map_or_else(unable, |id| Notice::Meet(*id));
    let posted = board.post(&notice.bytes());
    // Some boards need every rank for that. Those who come later than this rank waits find nobody where it invited them.
    let read = posted.and_then(|()| board.read(config.connect_timeout));
    let id = made.inspect_err(|_| board.done())?;
    if let Err(error) = read {
        id.withdraw();
        board.done();
        return Err(error);
    }
    let node = Node::join(Meeting::Id(id), 0, size, config);
    board.done();
    // The world stands, or has failed, whether or not the board takes this.
    let last = match &node {
        // What rank 0 posted may vanish when it takes leave of the launcher: not before all have read it and come.
        Ok(_) => board.clear(),
        Err(error) if board.lasts() => board.post(&unable(error).bytes()),
        Err(_) => Ok(()),
    };
    if let Err(error) = last {
        tracing::warn!("what rank 0 posted for the others cannot be taken down: {error}");
    }
    node
}

/// Another rank's way: read where rank 0 is, and go there.
fn follow(board: &mut dyn Board, rank: usize, size: usize, config: &Config) -> Result<Arc<Node>> {
    let limit = Limit::after(config.connect_timeout);
    let mut deserted: Option<(UniqueId, Error)> = None;
    let mut unable: Option<Instant> = None;
    loop {
        let left = limit.left();
        // Another look might find the time up, and would know less.
        if let Some((_, error)) = deserted.take_if(|_| left <= 2 * PAUSE) {
            return Err(error);
        }
        match Notice::read(&board.read(left)?)? {
            Notice::Meet(id) => match deserted.take_if(|(before, _)| *before == id) {
                Some(still) => deserted = Some(still),
                None => match Node::join(Meeting::Id(id), rank, size, config) {
                    // Ranks that have ended may have left it, and rank 0 is about to put up another.
                    Err(error) if board.lasts() && id.is_deserted() => deserted = Some((id, error)),
                    ended => {
                        board.done();
                        return ended;
                    }
                },
            },
            Notice::Unable(why) => {
                let since = *unable.get_or_insert_with(Instant::now);
                if !board.lasts() || left <= PAUSE || since.elapsed() >= OVERWRITTEN.min(config.connect_timeout / 8) {
                    board.done();
                    return Err(Error::bootstrap(format!("rank {rank}: {why}")));
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// What ranks that meet at an address have in common without `MAYPOLE_KEY`, of this `run` of the job: only as secret as
/// the address. It keeps out accidents and other jobs, not an attacker.
fn address_key(host: &str, port: u16, run: &str) -> [u8; 32] {
    blake3::derive_key("maypole 2026 address", format!("{host}\n{port}\n{run}").as_bytes())
}

/// Say once, on rank 0, that strangers could join ranks on several hosts that met at an address without a secret.
fn warn_if_guessable(node: &Node, config: &Config) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let here = node.peers()[0].host_id;
    let far = node.peers().iter().find(|peer| peer.host_id != here && peer.data.iter().any(|a| !a.ip().is_loopback()));
    if let Some(far) = far.filter(|_| config.key.is_none() && node.rank() == 0)
        && !SAID.swap(true, Ordering::Relaxed)
    {
        crate::log::warn(format_args!(
            "the job's key is derived from the meeting point's address, and ranks are on several hosts ({}, {}): whoever \
             reaches their ports can join them; set MAYPOLE_KEY to the same secret on all ranks (`openssl rand -hex 32` \
             makes one), and MAYPOLE_REQUIRE_KEY=1 to have its absence refused",
            node.peers()[0].host,
            far.host
        ));
    }
}
