//! The gate of registered memory: readers go in and out, the owner shuts it and writes.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;
use maypole_transports::shm::allocation::Gate;

use crate::{Bytes, check, poll};

/// Two readers, each going in once or finding the gate shut, and an owner who writes once nobody is inside.
#[test]
fn nobody_reads_what_the_owner_writes() {
    check(3, || {
        let (gate, bytes) = (Arc::new(Gate::default()), Bytes::new(1));
        let readers: [_; 2] = std::array::from_fn(|_| {
            let (gate, bytes) = (gate.clone(), bytes.clone());
            thread::spawn(move || {
                if gate.enter() {
                    assert_eq!(bytes.read(0), 0);
                    gate.leave();
                }
            })
        });
        gate.shut();
        poll(|| gate.is_empty().then_some(()));
        bytes.write(0, 1);
        let _ = readers.map(|reader| reader.join().unwrap());
        assert!(!gate.enter());
    });
}

/// Which fences there are, and how the count is read.
#[derive(Clone, Copy)]
struct Rules {
    fences: bool,
    leave: Ordering,
    empty: Ordering,
}

const RULES: Rules = Rules { fences: true, leave: Ordering::Release, empty: Ordering::Acquire };

fn copy_of_the_gate(rules: Rules) {
    check(3, move || {
        let words: Arc<[AtomicU32; 2]> = Arc::default();
        let bytes = Bytes::new(1);
        let between = move || {
            if rules.fences {
                fence(Ordering::SeqCst);
            }
        };
        let reader = thread::spawn({
            let (words, bytes) = (words.clone(), bytes.clone());
            move || {
                let [inside, shut] = &*words;
                inside.fetch_add(1, Ordering::Relaxed);
                between();
                if shut.load(Ordering::Relaxed) == 0 {
                    assert_eq!(bytes.read(0), 0);
                }
                inside.fetch_sub(1, rules.leave);
            }
        });
        let [inside, shut] = &*words;
        shut.store(1, Ordering::Relaxed);
        between();
        poll(|| (inside.load(rules.empty) == 0).then_some(()));
        bytes.write(0, 1);
        reader.join().unwrap();
    });
}

/// The copy as the gate is.
#[test]
fn the_copy_is_faithful() {
    copy_of_the_gate(RULES);
}

/// Negative control: no fences; reader and owner may each miss the other.
#[test]
#[should_panic]
fn caught_without_fences() {
    copy_of_the_gate(Rules { fences: false, ..RULES });
}

/// Negative control: left without release; the owner may write while it is read.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_leaving_without_release() {
    copy_of_the_gate(Rules { leave: Ordering::Relaxed, ..RULES });
}

/// Negative control: looked at without acquire.
#[test]
#[should_panic(expected = "Causality violation")]
fn caught_looking_without_acquire() {
    copy_of_the_gate(Rules { empty: Ordering::Relaxed, ..RULES });
}
