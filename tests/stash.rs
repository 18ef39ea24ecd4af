//! Messages that come before anybody wants them take so much memory and no more, and who sends beyond it is named.

mod ranks;

use maypole::config::TransportChoice;
use maypole::{Config, Verdict};
use ranks::{common_verdict, config, threads};

fn settings(transport: TransportChoice, stash: &str) -> Config {
    let mut config = config(transport);
    config.set("MAYPOLE_STASH", stash).unwrap();
    config
}

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Tcp];

#[test]
fn who_sends_more_than_is_kept_is_named() {
    // Some large ones, one that is longer than everything, and very many that have no bytes at all.
    for (count, bytes) in [(40, 64 << 10), (1, 3 << 20), (30_000, 0)] {
        for transport in TRANSPORTS {
            let errors = threads(2, &settings(transport, "1M"), |comm| {
                let outcome = match comm.rank() {
                    0 => (0..count)
                        .try_for_each(|_| comm.tag(7).send(&vec![1u8; bytes], 1))
                        .and_then(|()| comm.tag(8).send(&[1u8], 1)),
                    _ => comm.tag(8).recv(&mut [0u8], 0),
                };
                outcome.and_then(|()| comm.barrier()).expect_err("more was sent than is kept")
            });
            let verdict = common_verdict(&errors);
            assert!(matches!(verdict, Verdict::Link { rank: 1, peer: 0, .. }), "{verdict}");
            let text = verdict.to_string();
            for part in ["MAYPOLE_STASH", "1048576", "tag 7", "from rank 0 to rank 1", &format!("{bytes} bytes")] {
                assert!(text.contains(part), "no {part:?} in: {text}");
            }
        }
    }
}

#[test]
fn room_is_given_back_when_messages_are_taken() {
    for transport in TRANSPORTS {
        threads(2, &settings(transport, "1M"), |comm| {
            // Together 12 MB, of which never more than 0.6 are kept.
            for round in 0..20u8 {
                for tag in 0..10 {
                    let mut message = vec![round ^ tag; 60_000];
                    match comm.rank() {
                        0 => comm.tag(tag.into()).send(&message, 1).unwrap(),
                        _ => {
                            // Backwards, so that all but the last are stashed.
                            let tag = 9 - tag;
                            comm.tag(tag.into()).recv(&mut message, 0).unwrap();
                            assert!(message.iter().all(|byte| *byte == round ^ tag));
                        }
                    }
                }
            }
            comm.barrier().unwrap();
        });
    }
}
