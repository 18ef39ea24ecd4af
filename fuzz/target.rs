//! Every binary: the target whose name it has.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8]) -> bool> = LazyLock::new(|| {
    let name = env!("CARGO_BIN_NAME");
    let all = maypole::outside::TARGETS.iter().chain(maypole_transports::outside::TARGETS);
    all.into_iter().find(|(listed, _)| *listed == name).expect("a [[bin]] for which there is no target").1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    TARGET(data);
});
