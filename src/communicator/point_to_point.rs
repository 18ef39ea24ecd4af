//! Messages from one rank to another.
//!
//! They have an engine of their own ([`crate::engine::messages`]), so they have no turn among the communicator's
//! collectives and wait for none. A message's first bytes are its fingerprint: if the receiver expects another count or
//! type, every rank gets an error that shows both sides.

use maypole_collectives::Element;

use super::{Communicator, Inner};
use crate::engine::messages::Message;
use crate::error::{Error, Result};

/// A communicator's messages with one tag; made by [`Communicator::tag`].
#[derive(Clone, Copy, Debug)]
pub struct Tagged<'c> {
    comm: &'c Communicator,
    tag: u32,
}

impl Communicator {
    /// Send `buffer` to rank `to`, which must [`recv`](Communicator::recv) as many elements of the same type. Returns
    /// when the buffer may be reused: small messages do not wait for the receiver.
    ///
    /// Messages of two ranks with the same tag (0 here; see [`Communicator::tag`]) arrive in the order in which they
    /// were sent. Collectives of the same communicator, under way in other threads, neither wait for a message nor keep
    /// it waiting.
    ///
    /// # Errors
    /// [`Error::Argument`] if `to` is no rank, or is this rank, which does not receive meanwhile; [`Error::Failed`] as
    /// everywhere.
    pub fn send<T: Element>(&self, buffer: &[T], to: usize) -> Result<()> {
        self.tag(0).send(buffer, to)
    }

    /// Receive `buffer.len()` elements from rank `from`, which must [`send`](Communicator::send) as many. Blocks until
    /// they are there.
    ///
    /// # Errors
    /// Those of [`Communicator::send`].
    pub fn recv<T: Element>(&self, buffer: &mut [T], from: usize) -> Result<()> {
        self.tag(0).recv(buffer, from)
    }

    /// Send to one rank and receive from one (the same, or another) at the same time: a ring of ranks that all call
    /// this does not deadlock. `to` and `from` may both be this rank, which copies. For more messages at once, or
    /// different tags, there is [`Communicator::group`].
    ///
    /// # Errors
    /// Those of [`Communicator::send`].
    pub fn send_recv<T: Element>(&self, send: &[T], to: usize, recv: &mut [T], from: usize) -> Result<()> {
        self.tag(0).send_recv(send, to, recv, from)
    }

    /// Receive `buffer.len()` elements from whichever rank sends them first, and return that rank.
    /// Blocks until they are there.
    ///
    /// It has its place in the order of the calls: a message goes to the earliest receive with its
    /// tag, be that one from its sender or from any rank. Where several have sent, the ranks take
    /// turns. While it waits, messages with other tags that come are kept in memory until somebody
    /// wants them, as far as `MAYPOLE_STASH` allows.
    ///
    /// ```
    /// let world = maypole::Communicator::threads(3)?;
    /// std::thread::scope(|s| {
    ///     for comm in world {
    ///         s.spawn(move || {
    ///             if comm.rank() > 0 {
    ///                 return comm.send(&[comm.rank() as u32], 0).unwrap();
    ///             }
    ///             for _ in 1..comm.size() {
    ///                 let mut number = [0u32];
    ///                 let sender = comm.recv_any(&mut number).unwrap();
    ///                 assert_eq!(sender, number[0] as usize);
    ///             }
    ///         });
    ///     }
    /// });
    /// # Ok::<(), maypole::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] in a world of one rank, which has sent nothing to itself;
    /// [`Error::Failed`] as everywhere: a rank that has left is blamed once all others have, a rank
    /// that has died when nothing comes of the others for a while (see [`Error::Failed`]).
    pub fn recv_any<T: Element>(&self, buffer: &mut [T]) -> Result<usize> {
        self.tag(0).recv_any(buffer)
    }

    /// A rank from which a message with tag `tag` has come that nobody receives yet, if there is one. Does not wait: to
    /// receive from whoever sends first there is [`recv_any`](Communicator::recv_any). The ranks take turns. Messages
    /// with other tags that came before it are kept in memory until somebody wants them.
    ///
    /// # Errors
    /// [`Error::Failed`] as everywhere.
    pub fn sender(&self, tag: u32) -> Result<Option<usize>> {
        self.inner.owner.check()?;
        self.inner.messages.look_for(tag)
    }

    /// Messages with a tag. A receiver gets the messages of one tag from one rank in the order in which they were sent,
    /// and may take those of different tags in any order: `comm.tag(7).recv(..)` waits for a message with that tag. If
    /// others arrive from that rank before it, they are kept in memory until somebody wants them.
    ///
    /// ```
    /// let world = maypole::Communicator::threads(2)?;
    /// std::thread::scope(|s| {
    ///     for comm in world {
    ///         s.spawn(move || {
    ///             let (mut size, mut text) = ([0u64], [0u8; 5]);
    ///             if comm.rank() == 0 {
    ///                 comm.tag(1).send(b"hello", 1).unwrap();
    ///                 comm.tag(2).send(&[5u64], 1).unwrap();
    ///             } else {
    ///                 comm.tag(2).recv(&mut size, 0).unwrap();
    ///                 comm.tag(1).recv(&mut text, 0).unwrap();
    ///                 assert_eq!((size, &text), ([5], b"hello"));
    ///             }
    ///         });
    ///     }
    /// });
    /// # Ok::<(), maypole::Error>(())
    /// ```
    pub fn tag(&self, tag: u32) -> Tagged<'_> {
        Tagged { comm: self, tag }
    }
}

/// As the communicator's methods of the same names, whose tag is 0.
impl Tagged<'_> {
    /// See [`Communicator::send`].
    ///
    /// # Errors
    /// Those of [`Communicator::send`].
    pub fn send<T: Element>(&self, buffer: &[T], to: usize) -> Result<()> {
        // SAFETY: the buffer is borrowed until this returns.
        unsafe { self.run(&[Message::to(buffer, to, self.tag)]) }
    }

    /// See [`Communicator::recv`].
    ///
    /// # Errors
    /// Those of [`Communicator::send`].
    pub fn recv<T: Element>(&self, buffer: &mut [T], from: usize) -> Result<()> {
        // SAFETY: the buffer is borrowed until this returns.
        unsafe { self.run(&[Message::from(buffer, from, self.tag)]) }
    }

    /// See [`Communicator::recv_any`].
    ///
    /// # Errors
    /// Those of [`Communicator::recv_any`].
    pub fn recv_any<T: Element>(&self, buffer: &mut [T]) -> Result<usize> {
        let data = buffer.as_mut_ptr().cast();
        // SAFETY: the buffer is borrowed until this returns.
        unsafe { self.comm.recv_any_at(T::DTYPE, buffer.len(), data, self.tag) }
    }

    /// See [`Communicator::send_recv`].
    ///
    /// # Errors
    /// Those of [`Communicator::send`].
    pub fn send_recv<T: Element>(&self, send: &[T], to: usize, recv: &mut [T], from: usize) -> Result<()> {
        let rank = self.comm.rank();
        if to == rank && from == rank && send.len() != recv.len() {
            let what = format!("send_recv with itself: sends {} elements, but receives {}", send.len(), recv.len());
            return Err(Error::Argument { rank, what });
        }
        // SAFETY: both buffers are borrowed until this returns.
        unsafe { self.run(&[Message::from(recv, from, self.tag), Message::to(send, to, self.tag)]) }
    }

    /// # Safety
    /// The messages' buffers are valid until this returns.
    #[inline]
    unsafe fn run(&self, messages: &[Message]) -> Result<()> {
        let inner = &self.comm.inner;
        inner.check_peers(messages)?;
        // SAFETY: the caller's promise.
        unsafe { inner.messages.run(messages) }
    }
}

impl Inner {
    /// Refuse messages to or from ranks that there are not, and addresses that are none; all, in a child of this rank.
    #[inline]
    pub(super) fn check_peers(&self, messages: &[Message]) -> Result<()> {
        self.owner.check()?;
        let bytes = |message: &Message| message.count.checked_mul(message.dtype.size());
        let right = |message: &Message| {
            let possible = bytes(message).is_some_and(|bytes| isize::try_from(bytes).is_ok());
            let has_peer = message.peer < self.size || message.is_from_anyone();
            has_peer && possible && (message.count == 0 || !message.address().is_null())
        };
        match messages.iter().find(|message| !right(message)) {
            None => Ok(()),
            Some(message) => Err(self.wrong_message(message)),
        }
    }

    #[cold]
    fn wrong_message(&self, message: &Message) -> Error {
        let name = if message.is_sent() { "send" } else { "recv" };
        let Message { peer, count, dtype, .. } = *message;
        let what = match peer < self.size || message.is_from_anyone() {
            false => format!("{name}: the peer is {peer}, but the ranks are 0 to {}", self.size - 1),
            true if message.address().is_null() => format!("{name}: the data is NULL, but {count} elements were named"),
            true => format!("{name}: {count} elements of {dtype} are more bytes than there are"),
        };
        Error::Argument { rank: self.rank, what }
    }
}
