//! What a caller waits for: a number of messages that are not done yet.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Counts the messages of one caller that are not done. It lives with the caller (on its stack, or in its request);
/// the messages hold [`Tally`]s of it.
#[derive(Debug)]
pub(crate) struct Count {
    left: AtomicU32,
    failed: AtomicBool,
    /// The rank that has sent the latest message that was expected from any.
    source: AtomicU32,
}

/// The source of a count none of whose messages was expected from any rank, or has come.
const NO_RANK: u32 = u32::MAX;

impl Count {
    /// For `messages` messages.
    pub fn of(messages: usize) -> Count {
        let left = u32::try_from(messages).expect("so many messages do not fit into memory");
        Count { left: AtomicU32::new(left), failed: AtomicBool::new(false), source: AtomicU32::new(NO_RANK) }
    }

    /// Whether all messages are done or have failed: nothing touches their buffers, nor this count, any more.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// The rank that sends the message of this count that was expected from any, once it has begun
    /// to come.
    pub fn source(&self) -> Option<usize> {
        let source = self.source.load(Ordering::Relaxed);
        (source != NO_RANK).then_some(source as usize)
    }

    /// Whether a message has failed. To be asked once all are done.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// A message's place in a [`Count`]. Only for messages whose owner keeps the count until it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally(NonNull<Count>);

// SAFETY: a count is made of atomics.
unsafe impl Send for Tally {}

impl Tally {
    /// # Safety
    /// `count` stays where it is until it is done, and each tally on it is counted off once.
    pub unsafe fn on(count: &Count) -> Tally {
        Tally(NonNull::from(count))
    }

    /// Rank `from` sends the message, which was expected from any.
    pub fn came_from(self, from: usize) {
        // SAFETY: the count is there as long as this message is not counted off.
        unsafe { self.0.as_ref() }.source.store(from as u32, Ordering::Relaxed);
    }

    /// The message is done. After this the caller may take its buffer and the count away.
    #[inline]
    pub fn count_off(self) {
        // SAFETY: the count is there as long as this message is not counted off, and this is the last access.
        unsafe { self.0.as_ref() }.left.fetch_sub(1, Ordering::Release);
    }

    /// The message has failed.
    #[cold]
    pub fn fail(self) {
        // SAFETY: as above.
        unsafe { self.0.as_ref() }.failed.store(true, Ordering::Relaxed);
        self.count_off();
    }
}
