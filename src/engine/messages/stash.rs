//! Messages that came before anybody wanted them, kept in memory of this rank's, and how much of it they may take.
//!
//! Who sends faster than its receiver asks must not take the receiver's memory without end, be it in large messages or
//! in very many small ones. So all that a communicator keeps at a time is counted, by its bytes and what keeping it
//! costs besides, and beyond `MAYPOLE_STASH` the sender is named in a verdict. No memory is touched before the bytes
//! for it have come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use maypole_transports::{LinkError, Receiver};

use crate::fingerprint::Fingerprint;

/// How many bytes are taken in at a time. They are zeroed first, while they are about to be in the cache anyway.
const PIECE: usize = 64 << 10;

/// What all unwanted messages of a communicator may take together, and what they take now. Changed only by whoever
/// holds the messages' lock.
pub(super) struct Allowance {
    limit: usize,
    taken: AtomicUsize,
    messages: AtomicUsize,
}

impl Allowance {
    /// `limit`: bytes.
    pub fn new(limit: usize) -> Arc<Allowance> {
        Arc::new(Allowance { limit, taken: AtomicUsize::new(0), messages: AtomicUsize::new(0) })
    }
}

/// A message in memory of this rank's, as far as it has come.
pub(super) struct Stashed {
    pub operation: Fingerprint,
    content: Vec<u8>,
    bytes: usize,
    allowance: Arc<Allowance>,
}

impl Stashed {
    /// Keep the message that begins with `operation`, of which nothing has come yet.
    ///
    /// # Errors
    /// Why it cannot be kept, with figures.
    pub fn new(operation: Fingerprint, allowance: &Arc<Allowance>) -> Result<Stashed, String> {
        let bytes =
            operation.dtype().and_then(|dtype| usize::try_from(operation.count).ok()?.checked_mul(dtype.size()));
        let bytes = bytes.ok_or_else(|| format!("{operation} is longer than this machine can address"))?;
        let Allowance { limit, taken, messages } = &**allowance;
        let (so_far, others) = (taken.load(Ordering::Relaxed), messages.load(Ordering::Relaxed));
        let with_it = bytes.checked_add(Stashed::COST).and_then(|cost| so_far.checked_add(cost));
        let Some(with_it) = with_it.filter(|all| all <= limit) else {
            return Err(format!(
                "{operation} has {bytes} bytes and came before anybody wanted it, as {others} others did that take \
                 {so_far} bytes; MAYPOLE_STASH allows {limit} in all. Receive in the order of sending, or set it higher"
            ));
        };
        let mut content = Vec::new();
        if content.try_reserve_exact(bytes).is_err() {
            return Err(format!(
                "there is no memory for the {bytes} bytes of {operation}, which came before anybody wanted it"
            ));
        }
        taken.store(with_it, Ordering::Relaxed);
        messages.store(others + 1, Ordering::Relaxed);
        Ok(Stashed { operation, content, bytes, allowance: allowance.clone() })
    }

    /// What a message costs besides its bytes.
    const COST: usize = size_of::<Stashed>();

    /// What has come of it.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    pub fn is_whole(&self) -> bool {
        self.content.len() == self.bytes
    }

    /// Take in what has come. Returns how many bytes.
    ///
    /// # Errors
    /// The link's.
    pub fn take_in(&mut self, link: &mut dyn Receiver) -> Result<usize, LinkError> {
        let before = self.content.len();
        while !self.is_whole() {
            let got = self.content.len();
            self.content.resize((got + PIECE).min(self.bytes), 0);
            let came = link.recv(&mut self.content[got..]);
            self.content.truncate(got + *came.as_ref().unwrap_or(&0));
            if came? == 0 {
                break;
            }
        }
        Ok(self.content.len() - before)
    }
}

impl Drop for Stashed {
    fn drop(&mut self) {
        self.allowance.taken.fetch_sub(self.bytes + Stashed::COST, Ordering::Relaxed);
        self.allowance.messages.fetch_sub(1, Ordering::Relaxed);
    }
}
