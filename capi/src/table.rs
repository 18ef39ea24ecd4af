//! Handles: numbers that are looked up, never dereferenced.
//!
//! C code destroys things twice, uses them afterwards, and passes what it never initialised. A pointer to the thing would
//! be read, and the process would crash or worse. Here a handle looks like a pointer to C (so that it has a type, and can
//! be NULL) but is a number: a mark and the kind of thing in the upper byte, which no address of a process has; the
//! generation of a slot; and the slot. A slot that is used again has another generation, so a stale handle is told from
//! a living one; a slot whose generations are used up is not used again.
//!
//! What a handle stands for is counted (`Arc`): a call that is under way in one thread keeps it while another thread
//! destroys the handle.

use std::sync::Arc;

use maypole_transports::lock::RwLock;

use crate::status::{Fault, MAYPOLE_ERROR_HANDLE, Outcome};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("Maypole's handles are 64 bits and pass through C as pointers, which have fewer here");

/// In the upper four bits of every handle. No address has them: those have all upper bits clear or all set.
const MARK: u64 = 0xA;
/// Generations are 24 bits.
const GENERATIONS: u32 = 1 << 24;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Communicator = 1,
    Request = 2,
    Persistent = 3,
    Stream = 4,
    Operation = 5,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Communicator, Kind::Request, Kind::Persistent, Kind::Stream, Kind::Operation];

    fn name(self) -> &'static str {
        match self {
            Kind::Communicator => "communicator",
            Kind::Request => "request",
            Kind::Persistent => "persistent operation",
            Kind::Stream => "stream",
            Kind::Operation => "reduction operation",
        }
    }
}

/// All living things of one kind.
pub(crate) struct Table<T> {
    kind: Kind,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    all: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<Arc<T>>,
}

impl<T> Table<T> {
    pub const fn new(kind: Kind) -> Table<T> {
        Table { kind, slots: RwLock::new(Slots { all: Vec::new(), free: Vec::new() }) }
    }

    /// A handle for `value`.
    pub fn insert(&self, value: T) -> u64 {
        let value = Some(Arc::new(value));
        let slots = &mut *self.slots.write();
        let index = match slots.free.pop() {
            Some(index) => {
                slots.all[index as usize].value = value;
                index
            }
            None => {
                slots.all.push(Slot { generation: 1, value });
                u32::try_from(slots.all.len() - 1).expect("so many handles do not fit into memory")
            }
        };
        let generation = slots.all[index as usize].generation;
        MARK << 60 | (self.kind as u64) << 56 | u64::from(generation) << 32 | u64::from(index)
    }

    /// What `handle` stands for. `name` is the argument's, for the error.
    #[inline]
    pub fn get(&self, name: &str, handle: u64) -> Outcome<Arc<T>> {
        let slots = self.slots.read();
        match self.slot(&slots, handle).and_then(|slot| slot.value.as_ref()) {
            Some(value) => Ok(value.clone()),
            None => Err(self.trouble(name, handle)),
        }
    }

    /// Take the handle out of use; what it stood for lives as long as somebody is at it.
    pub fn remove(&self, name: &str, handle: u64) -> Outcome<Arc<T>> {
        let slots = &mut *self.slots.write();
        if self.slot(slots, handle).is_none() {
            return Err(self.trouble(name, handle));
        }
        let index = handle as u32;
        let slot = &mut slots.all[index as usize];
        let Some(value) = slot.value.take() else { return Err(self.trouble(name, handle)) };
        slot.generation += 1;
        if slot.generation < GENERATIONS {
            slots.free.push(index);
        }
        Ok(value)
    }

    #[inline]
    fn slot<'a>(&self, slots: &'a Slots<T>, handle: u64) -> Option<&'a Slot<T>> {
        let slot = slots.all.get(handle as u32 as usize)?;
        let expected = MARK << 60 | (self.kind as u64) << 56 | u64::from(slot.generation) << 32;
        (handle >> 32 == expected >> 32).then_some(slot)
    }

    #[cold]
    fn trouble(&self, name: &str, handle: u64) -> Fault {
        let mine = self.kind.name();
        let kind = Kind::ALL.into_iter().find(|kind| handle >> 56 == MARK << 4 | *kind as u64);
        let text = match kind {
            _ if handle == 0 => format!("{name} is NULL, where the handle of a {mine} was expected"),
            None => format!("{name} ({handle:#x}) is no handle that Maypole has made; is it initialised?"),
            Some(kind) if kind == self.kind => {
                format!("{name} ({handle:#x}) is the handle of a {mine} that is gone: it was destroyed or waited for")
            }
            Some(kind) => format!("{name} ({handle:#x}) is the handle of a {}, not of a {mine}", kind.name()),
        };
        Fault::new(MAYPOLE_ERROR_HANDLE, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_good_until_it_is_removed_and_never_again() {
        let table = Table::new(Kind::Stream);
        let first = table.insert("first");
        assert_eq!(*table.get("stream", first).unwrap(), "first");
        let kept = table.remove("stream", first).unwrap();
        let second = table.insert("second");
        assert_eq!(first as u32, second as u32, "the slot is used again");
        assert_eq!((*kept, *table.get("stream", second).unwrap()), ("first", "second"));
        for stale in [table.get("stream", first), table.remove("stream", first)] {
            let fault = stale.unwrap_err();
            assert_eq!(fault.status, MAYPOLE_ERROR_HANDLE);
            assert!(fault.text.starts_with("stream (0xa") && fault.text.contains("is gone"), "{}", fault.text);
        }
    }

    #[test]
    fn what_is_no_handle_is_told_from_what_is_another() {
        let (table, others) = (Table::new(Kind::Request), Table::new(Kind::Communicator));
        table.insert(1);
        let foreign = others.insert(2);
        let told = |handle| table.get("request", handle).unwrap_err().text;
        assert!(told(0).contains("request is NULL"), "{}", told(0));
        assert!(told(foreign).contains("is the handle of a communicator, not of a request"), "{}", told(foreign));
        let address = std::ptr::from_ref(&table).addr() as u64;
        for stray in [address, 1, u64::MAX, 0xA2 << 56, 0xAF << 56, 0xA2 << 56 | 1 << 32 | 77] {
            assert_eq!(table.get("request", stray).unwrap_err().status, MAYPOLE_ERROR_HANDLE, "{stray:#x}");
        }
        assert!(told(address).contains("no handle that Maypole has made"), "{}", told(address));
    }

    #[test]
    fn a_slot_is_given_up_before_its_generations_come_round() {
        let table = Table::new(Kind::Request);
        let first = table.insert(0);
        table.slots.write().all[0].generation = GENERATIONS - 1;
        assert!(table.get("request", first).is_err());
        let last = MARK << 60 | (Kind::Request as u64) << 56 | u64::from(GENERATIONS - 1) << 32;
        table.remove("request", last).unwrap();
        assert_eq!(table.insert(1) as u32, 1, "another slot");
    }
}
