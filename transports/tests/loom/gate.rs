//! The gate of registered memory: readers go in and out, the owner shuts it and writes, once they are out or, where it is
//! another process, at once.

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

/// What two readers found in two elements of the part of an owner that waits for nobody, if they may trust it.
fn an_owner_that_is_a_process(look: impl Fn(&Gate) -> bool + Copy + Send + Sync + 'static) {
    check(3, move || {
        // The owner's writes race with the reads, so these are atomics: every value that a read may find, loom tries.
        let (gate, bytes): (Arc<Gate>, Arc<[AtomicU32; 2]>) = Default::default();
        let readers: [_; 2] = std::array::from_fn(|_| {
            let (gate, bytes) = (gate.clone(), bytes.clone());
            thread::spawn(move || {
                if gate.enter() {
                    let found = [1, 0].map(|at: usize| bytes[at].load(Ordering::Relaxed));
                    if look(&gate) {
                        assert_eq!(found, [0, 0], "taken for what was lent");
                    }
                    gate.leave();
                }
            })
        });
        gate.shut();
        bytes.iter().for_each(|byte| byte.store(1, Ordering::Relaxed));
        let _ = readers.map(|reader| reader.join().unwrap());
        assert!(!gate.is_open());
    });
}

/// Two readers, and an owner who writes as soon as the gate is shut, as one that is another process does.
#[test]
fn what_is_read_behind_an_open_gate_is_what_was_lent() {
    an_owner_that_is_a_process(Gate::is_open);
}

/// Negative control: it is enough to have entered.
#[test]
#[should_panic(expected = "taken for what was lent")]
fn caught_without_a_look_afterwards() {
    an_owner_that_is_a_process(|_| true);
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

/// A reader that looks at the gate when it has read, and an owner that writes behind a fence as soon as it has shut it:
/// with both fences, or one of them weakened.
fn copy_of_the_look(owner: Option<Ordering>, reader: Option<Ordering>) {
    check(3, move || {
        let words: Arc<[AtomicU32; 2]> = Arc::default();
        let looking = thread::spawn({
            let words = words.clone();
            move || {
                let [shut, byte] = &*words;
                let found = byte.load(Ordering::Relaxed);
                reader.into_iter().for_each(fence);
                if shut.load(Ordering::Relaxed) == 0 {
                    assert_eq!(found, 0, "taken for what was lent");
                }
            }
        });
        let [shut, byte] = &*words;
        shut.store(1, Ordering::Relaxed);
        owner.into_iter().for_each(fence);
        byte.store(1, Ordering::Relaxed);
        looking.join().unwrap();
    });
}

/// The copy as the look is.
#[test]
fn the_copy_of_the_look_is_faithful() {
    copy_of_the_look(Some(Ordering::SeqCst), Some(Ordering::Acquire));
}

/// Negative control: looked without a fence; the look may come before the reads.
#[test]
#[should_panic(expected = "taken for what was lent")]
fn caught_looking_without_a_fence() {
    copy_of_the_look(Some(Ordering::SeqCst), None);
}

/// Negative control: shut without a fence; what is written may be seen first.
#[test]
#[should_panic(expected = "taken for what was lent")]
fn caught_shutting_without_a_fence() {
    copy_of_the_look(None, Some(Ordering::Acquire));
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
