//! Ranks for the tests of the peer transport, as threads and as processes.
//!
//! What a communicator does when it attaches is done here in the simplest way: the members meet in a *hall*, memory
//! that they share, where each can show the others some bytes.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use maypole_cuda::peer::{Mapped, Member, Offer, Shape, Staging, Words};
use maypole_cuda::{Context, DeviceMemory, HostRegion, HostRegistration, Result, Stream};

/// Bytes that one member can show at a time.
const CARD: usize = 256;
/// How long a test waits for a stream before it says that nothing moves any more.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where members meet: counters and cards, in memory that all have mapped.
pub struct Hall {
    region: HostRegion,
    members: usize,
    met: u32,
}

impl Hall {
    pub fn bytes(members: usize) -> usize {
        (64 + members * CARD).next_multiple_of(4096)
    }

    pub fn new(region: HostRegion, members: usize) -> Hall {
        Hall { region, members, met: 0 }
    }

    fn arrived(&self) -> &AtomicU32 {
        // SAFETY: the region begins at a page, is zero in the beginning, and its first word is used as an atomic only.
        unsafe { NonNull::new(self.region.as_ptr().cast::<AtomicU32>()).unwrap().as_ref() }
    }

    /// Waits until all members have come here as often as this one.
    pub fn meet(&mut self) {
        self.met += 1;
        self.arrived().fetch_add(1, Ordering::AcqRel);
        let (until, all) = (Instant::now() + PATIENCE, self.met * self.members as u32);
        while self.arrived().load(Ordering::Acquire) < all {
            assert!(Instant::now() < until, "the other members did not come");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Everybody's values, in the order of the members.
    pub fn all_gather<T: Pod>(&mut self, me: usize, value: &T) -> Vec<T> {
        assert!(size_of::<T>() <= CARD);
        let card = |member: usize| self.region.as_ptr().wrapping_add(64 + member * CARD);
        // SAFETY: the card lies in the region; its owner alone writes it, between two meetings.
        unsafe { card(me).copy_from_nonoverlapping(bytemuck::bytes_of(value).as_ptr(), size_of::<T>()) };
        self.meet();
        let card = |member: usize| self.region.as_ptr().wrapping_add(64 + member * CARD);
        let read = |member| {
            let mut value = T::zeroed();
            let to = bytemuck::bytes_of_mut(&mut value);
            // SAFETY: as above; everybody wrote before the meeting, and nobody writes before the next.
            unsafe { to.as_mut_ptr().copy_from_nonoverlapping(card(member), to.len()) };
            value
        };
        let all = (0..self.members).map(read).collect();
        self.meet();
        all
    }
}

/// Where the members' staging lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Device,
    Host,
}

/// One member, attached.
pub struct Rank {
    pub me: usize,
    pub members: usize,
    pub context: Arc<Context>,
    pub stream: Stream,
    pub words: Words,
    pub staging: Staging,
    pub hall: Hall,
}

/// Memory that all members share: the hall, the words, and staging where it lies on the host.
pub fn shared_bytes(shape: Shape) -> usize {
    Hall::bytes(shape.members) + Words::bytes(shape.members, shape.channels) + pages(shape.members * shape.bytes())
}

fn pages(bytes: usize) -> usize {
    bytes.next_multiple_of(4096)
}

/// Whether a member could do something, as bytes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Yes(u32);

impl Rank {
    /// Member `me` attaches. `region`: [`shared_bytes`] bytes of zeros that all members have mapped.
    pub fn attach(context: &Arc<Context>, me: usize, shape: Shape, place: Place, region: &HostRegion) -> Result<Rank> {
        let members = shape.members;
        let mut at = 0;
        let mut part = |bytes: usize| {
            let start = NonNull::new(region.as_ptr().wrapping_add(at)).unwrap();
            at += bytes;
            // SAFETY: it lies in the region, which the clone keeps.
            unsafe { HostRegion::new(start, bytes, Arc::new(region.clone())) }
        };
        let mut hall = Hall::new(part(Hall::bytes(members)), members);
        let words = part(Words::bytes(members, shape.channels));
        let words = Words::new(HostRegistration::new(context, &words)?, members, shape.channels);
        let all = hall.all_gather(me, &Member::new(context));
        Member::check_waiting(context, me, &all)?;
        let staging = match place {
            Place::Host => {
                let pieces = part(pages(members * shape.bytes()));
                Staging::in_host(HostRegistration::new(context, &pieces)?, shape)
            }
            Place::Device => {
                let own = Arc::new(DeviceMemory::exportable(context, shape.bytes())?);
                own.fill(0, own.bytes(), 0)?;
                let beyond = all.iter().any(|other| !other.shares_process_with(&all[me]));
                let offer = Offer::new(&own, beyond);
                let offered = hall.all_gather(me, &Yes(offer.is_ok() as u32)).iter().all(|yes| yes.0 == 1);
                let offer = offer?;
                assert!(offered, "another member could not offer its memory");
                let offers = hall.all_gather(me, &offer);
                Staging::in_device(Mapped::join(own, me, &offers).map_err(|(_, error)| error)?, shape)
            }
        };
        Ok(Rank { me, members, context: context.clone(), stream: Stream::new(context)?, words, staging, hall })
    }

    /// Waits for the stream; says where the words stand if it does not end, and lets it go, since whoever unwinds from
    /// here frees memory, which waits for it.
    pub fn drain(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.stream.is_idle().expect("the stream has failed") {
            if Instant::now() >= until {
                let standing: Vec<u32> = self.words.waited_by(self.me).map(|[word, _]| word.load()).collect();
                self.words.waited_by(self.me).for_each(|[word, _]| word.store(word.load().wrapping_add(1 << 30)));
                panic!("rank {}'s stream does not end; the words it may wait for: {standing:?}", self.me);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Drops device memory while no stream of any member waits: the driver lets a thread that frees memory wait for all
    /// streams of the context, those of the members that are its other threads too.
    pub fn give_back<T>(&mut self, memory: T) {
        self.hall.meet();
        drop(memory);
        self.hall.meet();
    }

    /// Leaves; whether its memory was given back.
    pub fn leave(self) -> bool {
        self.drain();
        let Rank { staging, words, me, .. } = self;
        staging.leave(&words, me, Duration::from_secs(20))
    }
}

/// Two members on one device, attached, for one thread that drives both.
pub fn pair(context: &Arc<Context>, shape: Shape) -> [Rank; 2] {
    let region = HostRegion::private(shared_bytes(shape));
    std::thread::scope(|scope| {
        let attach = |me| {
            let (context, region) = (context, &region);
            scope.spawn(move || Rank::attach(context, me, shape, Place::Device, region).unwrap())
        };
        [attach(0), attach(1)].map(|rank| rank.join().unwrap())
    })
}
