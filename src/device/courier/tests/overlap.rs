//! That copying down, the wire and copying up really go on at the same time: with streams of the emulated driver and the
//! links that the executor uses, each stage held in the middle of its work by a word that the test writes.

use std::ptr::NonNull;

use maypole_cuda::kernels::{Job, Kernel, Kernels, Source};
use maypole_cuda::peer::{self, Place, Slots as Layout};
use maypole_cuda::{Commands, Context, DeviceMemory, Pinned, Stream, Word};

use super::*;

const SLOT: usize = 4096;
const SLOTS: usize = 6;
/// The slot that is on the wire while the next is being filled and the one before is being emptied.
const ON_THE_WIRE: usize = 2;

/// Pinned memory as a link between hosts has it, with a few words more.
struct Link {
    memory: Arc<Pinned>,
    layout: Layout,
}

impl Link {
    const WORDS: usize = 4;
    const STRIDE: usize = HEADER + SLOT;

    fn new(context: &Arc<Context>, count: usize) -> Link {
        let memory = Arc::new(Pinned::new(context, Link::WORDS * HEADER + count * Link::STRIDE).unwrap());
        let first = memory.address() + (Link::WORDS * HEADER) as u64;
        Link { memory, layout: Layout { first, stride: Link::STRIDE, bytes: SLOT, count: count as u32 } }
    }

    /// Filled, freed, and what says that the stage is in the middle, and that it may go on.
    fn words(&self) -> [Word; Link::WORDS] {
        std::array::from_fn(|line| {
            let at = NonNull::new(self.memory.as_ptr().wrapping_add(line * HEADER).cast()).unwrap();
            // SAFETY: both name the first bytes of a line of its own, in memory that outlives the stream's work.
            unsafe { Word::new(at, self.memory.address() + (line * HEADER) as u64) }
        })
    }

    fn ring(&self) -> Ring {
        let [filled, freed, ..] = self.words();
        let place = (self.memory.as_ptr().wrapping_add(Link::WORDS * HEADER), Link::STRIDE);
        let shape = (self.layout.count, SLOT);
        // SAFETY: the slots lie behind the words, at multiples of 64, and are kept.
        unsafe { Ring::new(place, shape, (filled.atomic(), freed.atomic()), self.memory.clone()) }
    }
}

/// Wait on the host until `word` is at least `value`, for a while. `false`: it is not.
fn reaches(word: &Word, value: u32, within: Duration) -> bool {
    let begun = Instant::now();
    while !word.is_at_least(value) {
        if begun.elapsed() > within {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Queue the copy of a slot's worth of bytes, in two halves; in the middle of the one that is `held`, `middle` is written
/// and `go` waited for.
fn in_halves(
    (commands, kernels): (&mut Commands<'_>, &Kernels),
    copy: impl Fn(usize) -> Job,
    held: bool,
    [middle, go]: [Word; 2],
) {
    for half in 0..2 {
        if held && half == 1 {
            commands.write(&middle, 1).unwrap();
            commands.wait(&go, 1).unwrap();
        }
        let job = copy(half * SLOT / 2);
        // SAFETY: half a slot lies on both sides, and both outlive the stream's work.
        commands.then(|stream| unsafe { kernels.launch(stream, Kernel::Copy, &job) }).unwrap();
    }
}

/// While the device is in the middle of filling slot j + 1, and the other host's in the middle of emptying slot j - 1,
/// slot j goes all the way from ring to ring.
#[test]
fn copying_down_the_wire_and_copying_up_overlap() {
    slot_by_slot(4, true, LONG);
    slot_by_slot(2, true, LONG);
}

/// And it would be seen if they did not: with a single slot on each side each stage waits for the one before.
#[test]
fn with_one_slot_nothing_overlaps() {
    slot_by_slot(1, false, Duration::from_millis(200));
}

/// Send slots over rings of `count`, and see whether the stages overlap; what is to happen is waited for so long.
fn slot_by_slot(count: usize, overlaps: bool, within: Duration) {
    maypole_cuda_emulator::testing::load();
    world(
        2,
        |_| (),
        |rank| {
            let me = rank.comm.rank();
            let context = Context::primary(0).unwrap();
            let (kernels, stream, link) =
                (Kernels::load(&context).unwrap(), Stream::new(&context).unwrap(), Link::new(&context, count));
            let [filled, freed, middle, go] = link.words();
            let data = DeviceMemory::new(&context, SLOTS * SLOT).unwrap();
            let trouble = DeviceMemory::new(&context, size_of::<maypole_cuda::kernels::Trouble>()).unwrap();
            trouble.fill(0, trouble.bytes(), 0).unwrap();
            let bytes: Vec<u8> = (0..SLOTS * SLOT).map(|i| (i / 7) as u8).collect();
            if me == 0 {
                data.copy_from_host(0, &bytes).unwrap();
            }
            let end = if me == 0 { End::to(1, 0) } else { End::from(0, 0) };
            rank.courier.open(end, link.ring());
            let passage = |slots: usize| Passage { operation: operation(1), bytes: slots * SLOT };
            rank.courier.carry(&[(end, passage(ON_THE_WIRE))]);

            let mut commands = Commands::new(&stream).unwrap();
            let at = |slot: usize, offset: usize| data.address() + (slot * SLOT + offset) as u64;
            if me == 0 {
                let mut outgoing = peer::Outgoing::new(link.layout, filled, freed);
                for slot in 0..SLOTS {
                    let place: Place = outgoing.begin(&mut commands).unwrap();
                    let fill = |offset| {
                        let copy =
                            Job::copy(place.data() + offset as u64, Source::plain(at(slot, offset)), SLOT as u64 / 2);
                        // With the last piece, as the executor does.
                        let publish = if offset == 0 { 0 } else { place.header };
                        Job { publish, head: ring::header(&operation(1)), ..copy }
                    };
                    in_halves((&mut commands, &kernels), fill, slot == ON_THE_WIRE + 1, [middle, go]);
                    outgoing.end(&mut commands).unwrap();
                }
            } else {
                let mut incoming = peer::Incoming::new(link.layout, filled, freed);
                for slot in 0..SLOTS {
                    let place: Place = incoming.begin(&mut commands).unwrap();
                    let empty = |offset| {
                        let (at_slot, header) = (place.data() + offset as u64, place.header);
                        let from = Source { at: at_slot, header, ..Source::default() };
                        let copy = Job::copy(at(slot, offset), from, SLOT as u64 / 2);
                        Job { digest: operation(1).digest(), trouble: trouble.address(), ..copy }
                    };
                    in_halves((&mut commands, &kernels), empty, slot == ON_THE_WIRE - 1, [middle, go]);
                    incoming.end(&mut commands).unwrap();
                }
            }
            commands.finish().unwrap();

            // Slot j is filled and has not left, and both are in the middle; the first only if there is another slot.
            let in_the_middle = reaches(&middle, 1, if me == 0 { within } else { LONG });
            assert_eq!(in_the_middle, me == 1 || overlaps, "rank {me}");
            assert!(me == 1 || reaches(&filled, ON_THE_WIRE as u32 + 1, LONG));
            assert_eq!(filled.load(), if me == 0 { ON_THE_WIRE + 1 } else { ON_THE_WIRE } as u32);
            rank.comm.barrier().unwrap();
            rank.courier.carry(&[(end, passage(SLOTS - ON_THE_WIRE))]);
            // It leaves, and arrives if there is another slot.
            let next = ON_THE_WIRE as u32 + 1;
            let on_its_way = if me == 0 { reaches(&freed, next, LONG) } else { reaches(&filled, next, within) };
            assert_eq!(on_its_way, me == 0 || overlaps, "rank {me}");
            assert!(!go.is_at_least(1) && !stream.is_idle().unwrap());
            rank.comm.barrier().unwrap();
            // Only now do the other two go on.
            go.store(1);
            stream.synchronize().unwrap();
            assert!(rank.courier.finish(LONG));
            if me == 1 {
                let mut got = vec![0; SLOTS * SLOT];
                data.copy_to_host(0, &mut got).unwrap();
                assert!(got == bytes, "what came is not what was sent");
            }
            rank.comm.barrier().unwrap();
        },
    );
}
