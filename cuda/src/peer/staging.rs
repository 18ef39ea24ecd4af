//! Where bytes pass between members.
//!
//! Each member has one piece of memory of the same [`Shape`]: two places for its publications, and for each link *into*
//! it a ring of slots. It lies in its device's memory, which the others have mapped; or, where a device cannot reach
//! another's memory or the system refuses to share it, all members' pieces lie in host memory that all have mapped and
//! registered. Kernels see only addresses, so everything else is the same.
//!
//! Slots lie with the receiver: the sender's kernel writes across, the receiver's reads near by. Writes across a link
//! need no answer; reads wait for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{HEADER, Mapped, Place, Slots, Words};
use crate::driver::{DeviceMemory, HostRegistration};

/// Places begin so that their data, not their header, is at a multiple of this: kernels move whole lines.
const ALIGN: usize = 256;

/// Sizes of a member's piece. The same on all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many members there are.
    pub members: usize,
    /// Links in each direction between two members.
    pub channels: usize,
    /// Bytes of one publication.
    pub window: usize,
    /// Bytes of data of one slot of a link, by its channel.
    slot: [usize; Shape::CHANNELS],
    /// Slots of a link; at least 2, and even: a link has room for two messages.
    pub slots: usize,
}

impl Shape {
    /// Bytes of one publication, unless somebody sets another size. Each publication costs a launch and a wait or two
    /// on every member, some 5 us; a device copies 16 MiB in about 10.
    pub const WINDOW: usize = 16 << 20;
    /// Bytes of one link, unless somebody sets another size.
    pub const FIFO: usize = 4 << 20;
    /// Slots of a link. With two, a sender would wait for the receiver to empty each; more than four only shorten the
    /// slots, and every slot costs a launch on both sides.
    pub const SLOTS: usize = 4;

    /// The most channels.
    pub const CHANNELS: usize = 4;

    /// The shape with `window` bytes per publication and, for each channel, so many bytes per link, all rounded up.
    ///
    /// # Panics
    /// If there are more than [`Shape::CHANNELS`] channels.
    pub fn new(members: usize, window: usize, fifos: &[usize]) -> Shape {
        let round = |bytes: usize| bytes.max(ALIGN).next_multiple_of(ALIGN);
        let slots = Shape::SLOTS;
        let mut slot = [0; Shape::CHANNELS];
        slot[..fifos.len()].iter_mut().zip(fifos).for_each(|(slot, fifo)| *slot = round(fifo.div_ceil(slots)));
        Shape { members, channels: fifos.len(), window: round(window), slot, slots }
    }

    /// Bytes of data of one slot of a link on `channel`.
    pub fn slot(&self, channel: usize) -> usize {
        self.slot[..self.channels][channel]
    }

    /// The longest message for which a link on `channel` has room twice.
    pub fn message(&self, channel: usize) -> usize {
        self.slot(channel) * (self.slots / 2)
    }

    fn stride(data: usize) -> usize {
        ALIGN + data.next_multiple_of(ALIGN)
    }

    /// Bytes of a link on `channel`.
    fn link(&self, channel: usize) -> usize {
        self.slots * Shape::stride(self.slot(channel))
    }

    /// Bytes of the links from one member, on the channels below `channel`.
    fn links(&self, channel: usize) -> usize {
        (0..channel).map(|channel| self.link(channel)).sum()
    }

    /// Bytes of one member's piece.
    pub fn bytes(&self) -> usize {
        2 * Shape::stride(self.window) + (self.members - 1) * self.links(self.channels)
    }

    /// Offset of the header of a member's publication in place `parity`.
    fn place_at(&self, parity: usize) -> usize {
        parity * Shape::stride(self.window) + ALIGN - HEADER
    }

    /// Offset of the header of the first slot of the link from `from` into `to`.
    fn slots_at(&self, from: usize, to: usize, channel: usize) -> usize {
        assert!(from != to && from.max(to) < self.members && channel < self.channels);
        let nth = if from < to { from } else { from - 1 };
        2 * Shape::stride(self.window) + nth * self.links(self.channels) + self.links(channel) + ALIGN - HEADER
    }
}

/// What keeps the memory.
#[derive(Debug)]
enum Held {
    Device(Mapped),
    Host { _registration: HostRegistration },
}

/// All members' pieces, as one of them sees them.
#[derive(Debug)]
pub struct Staging {
    shape: Shape,
    addresses: Vec<u64>,
    held: Held,
}

impl Staging {
    /// In device memory: each member's piece has [`Shape::bytes`] bytes, at least.
    ///
    /// # Panics
    /// Where the own piece is shorter.
    pub fn in_device(mapped: Mapped, shape: Shape) -> Staging {
        assert!(mapped.own().bytes() >= shape.bytes() && mapped.addresses().len() == shape.members);
        Staging { shape, addresses: mapped.addresses().to_vec(), held: Held::Device(mapped) }
    }

    /// In host memory: all pieces one after the other in one region, [`Shape::bytes`] bytes each.
    ///
    /// # Panics
    /// Where the region is shorter.
    pub fn in_host(registration: HostRegistration, shape: Shape) -> Staging {
        assert!(registration.region().bytes() >= shape.members * shape.bytes(), "too short for {shape:?}");
        let piece = |member: usize| registration.address() + (member * shape.bytes()) as u64;
        Staging {
            shape,
            addresses: (0..shape.members).map(piece).collect(),
            held: Held::Host { _registration: registration },
        }
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether it lies in device memory.
    pub fn is_on_device(&self) -> bool {
        matches!(self.held, Held::Device(_))
    }

    /// Where publications of `member` lie whose number has this parity.
    pub fn place(&self, member: usize, parity: usize) -> Place {
        let header = self.addresses[member] + self.shape.place_at(parity & 1) as u64;
        Place { header, bytes: self.shape.window }
    }

    /// The slots of the link from `from` to `to`.
    pub fn slots(&self, from: usize, to: usize, channel: usize) -> Slots {
        Slots {
            first: self.addresses[to] + self.shape.slots_at(from, to, channel) as u64,
            stride: Shape::stride(self.shape.slot(channel)),
            bytes: self.shape.slot(channel),
            count: self.shape.slots as u32,
        }
    }

    /// As [`leave`](Staging::leave), but waits for nobody: closes the mappings of the others' memory and says so. What it
    /// returns is to be kept until [`Words::all_left`].
    pub fn part(self, words: &Words, me: usize) -> Option<Arc<DeviceMemory>> {
        let own = match self.held {
            Held::Device(mapped) => Some(mapped.close()),
            Held::Host { .. } => None,
        };
        words.left(me).store(1);
        own
    }

    /// Whether other processes have mapped this member's piece.
    pub fn is_exported(&self) -> bool {
        matches!(&self.held, Held::Device(mapped) if mapped.is_exported())
    }

    /// Member `me` leaves. Its streams are drained, and it queues nothing more that uses this. Waits at most `patience`
    /// for the others to leave, if any of them is a process of its own; if they have not, the memory is kept until the
    /// process ends. Returns whether it was given back. See the [module](super#leaving).
    pub fn leave(self, words: &Words, me: usize, patience: Duration) -> bool {
        let Held::Device(mapped) = self.held else {
            words.left(me).store(1);
            return true;
        };
        let exported = mapped.is_exported();
        let own = mapped.close();
        words.left(me).store(1);
        let begun = Instant::now();
        while exported && !words.all_left() {
            if begun.elapsed() >= patience {
                Mapped::abandon(own);
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_slots_lie_apart_and_inside() {
        let shapes: [(usize, usize, &[usize]); 3] =
            [(2, 4096, &[4096]), (3, 1, &[1, 3000]), (8, 100_000, &[10_000, 500, 20_000])];
        for (members, window, fifos) in shapes {
            let shape = Shape::new(members, window, fifos);
            assert!(shape.window >= window && shape.channels == fifos.len());
            for (channel, fifo) in fifos.iter().enumerate() {
                assert!(shape.slot(channel) * shape.slots >= *fifo && shape.message(channel) * 2 >= *fifo);
            }
            for me in 0..members {
                let mut ranges: Vec<(usize, usize)> =
                    [0, 1].map(|parity| (shape.place_at(parity), HEADER + shape.window)).to_vec();
                for from in (0..members).filter(|from| *from != me) {
                    for channel in 0..fifos.len() {
                        let first = shape.slots_at(from, me, channel);
                        let slots = (0..shape.slots)
                            .map(|n| (first + n * Shape::stride(shape.slot(channel)), HEADER + shape.slot(channel)));
                        ranges.extend(slots);
                    }
                }
                ranges.sort_unstable();
                for pair in ranges.windows(2) {
                    assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} overlap in {shape:?}");
                }
                assert!(ranges.iter().all(|(at, _)| (at + HEADER).is_multiple_of(ALIGN)), "data begins at whole lines");
                let (last, len) = ranges[ranges.len() - 1];
                assert!(last + len <= shape.bytes());
            }
        }
    }
}
