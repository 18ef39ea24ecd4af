//! What a fuzz target is given, as the choices and the bytes that it makes of it.

/// A target's name and itself: whether it took the bytes whole, not only what it could say against them.
pub(crate) type Target = (&'static str, fn(&[u8]) -> bool);

/// Bytes that are used up from the front. At the end there are zeros.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// A small number.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below 65536.
    pub fn number(&mut self) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// A number and so many bytes, or as many as there are.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = self.number();
        self.take(length)
    }

    /// The next `length` bytes, or as many as there are.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `bytes` with one bit of them changed, chosen by `which`. There must be bytes.
pub(crate) fn flipped(bytes: &[u8], which: usize) -> Vec<u8> {
    let (mut changed, bit) = (bytes.to_vec(), which % (8 * bytes.len()));
    changed[bit / 8] ^= 1 << (bit % 8);
    changed
}
