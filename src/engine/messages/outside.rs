//! Messages that announce themselves as they like, see [`crate::outside`].

use maypole_transports::{LinkError, Receiver};

use super::peer::fingerprint;
use super::stash::{Allowance, Stashed};
use crate::outside::input::Input;

/// What all that is kept may take.
const LIMIT: usize = 1 << 20;

/// A link on which these bytes have come, and no more will.
struct Came<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Receiver for Came<'_> {
    fn peek(&mut self) -> Result<&[u8], LinkError> {
        Ok(&self.bytes[..self.bytes.len().min(self.step)])
    }
    fn release(&mut self, len: usize) {
        self.bytes = &self.bytes[len..];
    }
    fn end(&mut self) {}
}

/// Messages that nobody has asked for, one after the other: as far as they are whole they are kept as they came.
pub(crate) fn messages(data: &[u8]) -> bool {
    let mut input = Input(data);
    let step = 32 + usize::from(input.byte());
    let mut link = Came { bytes: input.rest(), step };
    let allowance = Allowance::new(LIMIT);
    let mut kept = Vec::new();
    while let Some(announced) = fingerprint(&mut link).expect("this link has no errors") {
        let text = announced.to_string();
        assert!(!text.is_empty() && text.len() < 256, "{text}");
        assert!(announced.digest() > 0 && announced.same_call(&announced) && announced.same_message(&announced));
        assert!(announced.other_side(3).is_none_or(|_| announced.is_point_to_point()));
        let before = link.bytes;
        let Ok(mut message) = Stashed::new(announced, &allowance) else { return false };
        let came = message.take_in(&mut link).expect("this link has no errors");
        assert_eq!(message.content(), &before[..came]);
        if !message.is_whole() {
            return false;
        }
        kept.push(message);
        assert!(kept.iter().map(|message| message.content().len()).sum::<usize>() <= LIMIT);
    }
    kept.iter().any(|message| !message.content().is_empty())
}
