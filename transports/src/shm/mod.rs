//! Ranks that share memory.
//!
//! A [`Segment`] is the memory, a [`Group`] one rank's place in it. Processes share a file, an [`Arena`]; threads share
//! an anonymous mapping. Nothing else differs, so ranks as threads run the very code that ranks as processes do.
//!
//! * `memory`: memfds and mappings of them, when memory is taken, and what happens where there is none.
//! * [`ring`]: links, a ring of bytes for each ordered pair of ranks and channel.
//! * [`window`]: publications that all members read, for one-sided schedules.
//! * [`allocation`]: memory of the application's own that members read where it lies.
//! * [`mod@line`]: small publications in single cache lines, for the smallest messages.
//!
//! Each file argues its protocol in prose on top; `tests/loom` checks all of them.

pub mod allocation;
mod arena;
pub mod line;
mod memory;
pub mod ring;
mod segment;
pub mod window;

use std::sync::Arc;

use crate::wait::Bell;
use crate::{Receiver, Sender, Window};
pub use allocation::Allocation;
pub use arena::Arena;
pub use line::Exchange;
pub use segment::{Segment, Shape, Shared};

use ring::{Cursors, Ends, Presence, RingReceiver, RingSender};
use window::ShmWindow;

/// One rank's place in a segment. Dropping it tells the others that this rank has left.
pub struct Group {
    segment: Arc<Segment>,
    me: usize,
}

impl Group {
    /// Take member `me`'s place. Each place is taken once in a segment's life, and each link, window and exchange made
    /// once.
    pub fn new(segment: Arc<Segment>, me: usize) -> Group {
        assert!(me < segment.shape().members, "member {me} of {}", segment.shape().members);
        let group = Group { segment, me };
        group.presence(me).come();
        group
    }

    /// The file that the group's memory lies in, unless its members are threads.
    pub fn arena(&self) -> Option<&Arc<Arena>> {
        self.segment.arena()
    }

    /// The members that have not taken their places yet.
    pub fn absent(&self) -> Vec<usize> {
        (0..self.segment.shape().members).filter(|m| !self.presence(*m).has_come()).collect()
    }

    /// The bell on which this rank sleeps for news of links on `channel`; that of channel 0 is also the one for news of
    /// windows and exchanges.
    pub fn bell(&self, channel: usize) -> Shared<Bell> {
        self.bell_of(self.me, channel)
    }

    fn bell_of(&self, member: usize, channel: usize) -> Shared<Bell> {
        // SAFETY: a bell is made of atomics, at an offset that every member computes alike.
        unsafe { self.segment.shared(self.segment.shape().bell(member, channel)) }
    }

    fn presence(&self, member: usize) -> Shared<Presence> {
        // SAFETY: a presence is made of atomics, at an offset that every member computes alike.
        unsafe { self.segment.shared(self.segment.shape().presence(member)) }
    }

    fn ends(&self, from: usize, to: usize, channel: usize) -> (Shared<Cursors>, Ends) {
        let shape = self.segment.shape();
        let peer = if from == self.me { to } else { from };
        assert!(peer < shape.members && channel < shape.channels && from != to, "no link {from} to {to} on {channel}");
        let ends = Ends {
            segment: self.segment.clone(),
            data: self.segment.bytes_at(shape.ring_data(from, to, channel), shape.ring),
            capacity: shape.ring,
            peer_bell: self.bell_of(peer, channel),
            peer: self.presence(peer),
        };
        // SAFETY: cursors are atomics, at an offset that every member computes alike.
        (unsafe { self.segment.shared(shape.ring_state(from, to, channel)) }, ends)
    }

    /// The sending end of the link to member `to` on `channel`.
    pub fn sender(&self, to: usize, channel: usize) -> Box<dyn Sender> {
        let (cursors, ends) = self.ends(self.me, to, channel);
        Box::new(RingSender::new(cursors, ends))
    }

    /// The receiving end of the link from member `from` on `channel`.
    pub fn receiver(&self, from: usize, channel: usize) -> Box<dyn Receiver> {
        let (cursors, ends) = self.ends(from, self.me, channel);
        Box::new(RingReceiver::new(cursors, ends))
    }

    /// This rank's window.
    pub fn window(&self) -> Box<dyn Window> {
        Box::new(ShmWindow::new(&self.segment, self.me))
    }

    /// This rank's part in small exchanges.
    pub fn exchange(&self) -> Exchange {
        Exchange::new(&self.segment, self.me)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.presence(self.me).leave();
        let shape = self.segment.shape();
        for member in (0..shape.members).filter(|m| *m != self.me) {
            self.bell_of(member, 0).ring();
            self.bell_of(member, shape.second_bell_from).ring();
        }
    }
}
