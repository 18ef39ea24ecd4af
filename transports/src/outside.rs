//! Everything in this crate that reads bytes from outside, for the fuzzer (`fuzz/`) and for the replay of its corpus. What a
//! target is, `maypole::outside` says.

#[path = "../../fuzz/input.rs"]
pub(crate) mod input;
#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

use crate::tcp::outside;

/// All of them.
pub const TARGETS: &[input::Target] =
    &[("records", outside::records), ("handshakes", outside::handshakes), ("segments", outside::segments)];

#[test]
fn the_corpus_holds() {
    replay::replay(TARGETS, &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz"));
}
