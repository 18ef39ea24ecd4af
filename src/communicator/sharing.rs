//! The memory that the ranks of a host share in a communicator: where it is, and what happens where there can be none.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use maypole_transports::LinkError;
use maypole_transports::shm::{Arena, Group, Segment, Shape};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::capacity::Capacity;
use crate::config::{Config, TransportChoice};
use crate::engine::routes::{CHANNELS, POINT_TO_POINT};
use crate::error::{Error, Result};
use crate::node::Node;

/// The number under which a communicator's segment is handed out; its registered memory has those from 1.
pub(super) const SEGMENT: u32 = 0;

/// A place for the segment of some ranks of a host, in a file that they have open.
pub(super) struct Room {
    pub arena: Arc<Arena>,
    pub at: u64,
}

impl Room {
    pub(super) fn move_in(&self, rank: usize, place: usize, shape: Shape) -> Result<Group> {
        let segment = Segment::in_arena(shape, &self.arena, self.at);
        let segment = segment.map_err(|e| Error::system(format!("rank {rank}: sharing memory"), e))?;
        Ok(Group::new(segment, place))
    }
}

/// What is handed to the others in place of memory that there is not, for as long as the communicator is there.
fn stand_in() -> nix::Result<OwnedFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(OwnedFd::from)
}

fn is_stand_in(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|about| about.st_mode & libc::S_IFMT != libc::S_IFREG)
}

/// The most bytes that a segment may have: more addresses than this no process has on the machines there are.
const ADDRESSES: usize = 1 << 47;

/// The segment of a communicator with `members` ranks on this host and links of that capacity.
///
/// # Errors
/// [`Error::System`] where that is more than a process can address.
pub(crate) fn shape(members: usize, capacity: &Capacity) -> Result<Shape> {
    let shape = Shape {
        members,
        channels: CHANNELS,
        second_bell_from: POINT_TO_POINT,
        ring: capacity.ring,
        window: capacity.place(),
    };
    if shape.bytes() <= ADDRESSES {
        return Ok(shape);
    }
    let Capacity { ring, window, .. } = capacity;
    Err(Error::system(
        format!("sharing memory among {members} ranks"),
        format!(
            "with links of {ring} bytes, {CHANNELS} each way between any two, and publications of {window} it takes \
             more than the {ADDRESSES} bytes that a process can address; set MAYPOLE_RING or MAYPOLE_WINDOW lower, or \
             MAYPOLE_TRANSPORT=tcp"
        ),
    ))
}

/// The lowest local rank makes the segment, the others fetch it from there, until [`Node::unshare_fd`]. `None` where the
/// system does not let this rank share memory, or not the one that is to make it, and TCP will do.
pub(super) fn share_group(
    node: &Node,
    (context, members, local): (u64, &[usize], &[usize]),
    config: &Config,
    place: usize,
) -> Result<Option<Group>> {
    let shape = shape(local.len(), &Capacity::of(members.len(), config))?;
    let rank = local[place];
    let segment = if place > 0 {
        let fd = node.fetch_fd(members[local[0]], context, SEGMENT, config.connect_timeout)?;
        if is_stand_in(&fd) {
            return Ok(None);
        }
        Segment::open(shape, fd)
    } else {
        Segment::create(shape)
    };
    let segment = match segment {
        Ok(segment) => segment,
        Err(refusal) if config.transport == TransportChoice::Auto => {
            if place == 0 {
                node.share_fd(context, SEGMENT, stand_in().map_err(|e| Error::system("making an eventfd", e))?);
            }
            warn_of_tcp(rank, &refusal);
            return Ok(None);
        }
        Err(refusal) => return Err(Error::system(format!("rank {rank}: sharing memory"), refusal)),
    };
    if place == 0 {
        let fd = segment.fd().expect("made with a descriptor").try_clone_to_owned();
        node.share_fd(context, SEGMENT, fd.map_err(|e| Error::system("dup", e))?);
    }
    Ok(Some(Group::new(segment, place)))
}

/// Say, once, that ranks which might share memory do not, since `rank` cannot.
pub(super) fn warn_of_tcp(rank: usize, refusal: &LinkError) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        crate::log::warn(format_args!(
            "rank {rank}: the ranks of this host talk over TCP, which is slower, because they cannot share memory: \
             {refusal}; MAYPOLE_TRANSPORT=tcp says that this is meant"
        ));
    });
}
