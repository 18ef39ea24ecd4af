//! The counters that members share.
//!
//! Each word has one writer, and a line of its own, since streams of different devices and hosts poll them. All are 0
//! in the beginning and count up, modulo 2^32. Beside each that streams wait for lies its *mark*, for hosts only: where
//! the word is set when streams are let go under a verdict, 0 before.
//!
//! | word | written by | counts |
//! | --- | --- | --- |
//! | `published[p]` | p's stream | publications of p that can be read |
//! | `finished[r]` | r's stream | turns whose publications, everybody's, r has finished with (see [`Window`](super::Window)) |
//! | `filled[f][t][c]` | f's stream | slots that f has filled on its link to t, channel c |
//! | `freed[f][t][c]` | t's stream | slots of that link that t has emptied |
//! | `started[m]`, `ended[m]` | m's stream | operations that m's stream has begun, and ended |
//! | `progress[m]` | m's stream | how many strides of long operations m's stream has passed |
//! | `trouble[m]` | m's kernels | peer + 1 from whom a foreign header came, 0 if none; it begins a [record](TROUBLE) |
//! | `left[m]` | m's host | 1 when m has closed its mappings of the others' memory |
//! | `released` | any host | not 0 once somebody has let streams go on under a verdict |
//! | `dropped[a]`, `closed[a]` | hosts, by addition | members that have dropped allocation a, closed their mappings |

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::ALLOCATIONS;
use crate::Word;
use crate::driver::{HostRegistration, PAGE};

/// Bytes from one word to the next.
pub const LINE: usize = 64;
/// Bytes of a member's record of a foreign header. It begins with the word `trouble`; the rest is for kernels to fill
/// and hosts to read.
pub const TROUBLE: usize = 2 * LINE;
/// Lines of a member's own: started, ended, left, progress, and the record.
const OWN: usize = 4 + TROUBLE / LINE;

/// Which line each word lies in.
#[derive(Clone, Copy, Debug)]
struct Layout {
    members: usize,
    channels: usize,
}

impl Layout {
    fn member(&self, member: usize) -> usize {
        assert!(member < self.members, "member {member} of {}", self.members);
        member
    }

    fn pair(&self, first: usize, second: usize) -> usize {
        self.member(first) * self.members + self.member(second)
    }

    fn published(&self, publisher: usize) -> usize {
        self.member(publisher)
    }

    fn finished(&self, reader: usize) -> usize {
        self.members + self.member(reader)
    }

    fn links(&self) -> usize {
        2 * self.members
    }

    fn filled(&self, from: usize, to: usize, channel: usize) -> usize {
        assert!(channel < self.channels, "channel {channel} of {}", self.channels);
        self.links() + 2 * (self.pair(from, to) * self.channels + channel)
    }

    fn freed(&self, from: usize, to: usize, channel: usize) -> usize {
        self.filled(from, to, channel) + 1
    }

    fn owns(&self) -> usize {
        self.links() + 2 * self.members * self.members * self.channels
    }

    /// Line `which` of the member's own.
    fn own(&self, member: usize, which: usize) -> usize {
        self.owns() + OWN * self.member(member) + which
    }

    fn single(&self) -> usize {
        self.owns() + OWN * self.members
    }
}

/// The shared words of one group of members, as one of them sees them.
#[derive(Debug)]
pub struct Words {
    registration: HostRegistration,
    layout: Layout,
}

impl Words {
    /// Bytes that the words of `members` members with `channels` channels take; a multiple of a page.
    pub fn bytes(members: usize, channels: usize) -> usize {
        let lines = Layout { members, channels }.single() + 1;
        (lines * LINE + ALLOCATIONS * 8).next_multiple_of(PAGE)
    }

    /// The words in `registration`'s region: zero before the first member came, and the same region for all members.
    ///
    /// # Panics
    /// Where the region is shorter than [`Words::bytes`].
    pub fn new(registration: HostRegistration, members: usize, channels: usize) -> Words {
        let (has, needs) = (registration.region().bytes(), Words::bytes(members, channels));
        assert!(has >= needs, "{members} members with {channels} channels need {needs} bytes of words, not {has}");
        Words { registration, layout: Layout { members, channels } }
    }

    /// How many members share them.
    pub fn members(&self) -> usize {
        self.layout.members
    }

    /// Links in each direction between two members.
    pub fn channels(&self) -> usize {
        self.layout.channels
    }

    fn atomic(&self, offset: usize) -> NonNull<AtomicU32> {
        assert!(offset + 4 <= self.registration.region().bytes());
        let at = self.registration.region().as_ptr().wrapping_add(offset).cast();
        NonNull::new(at).expect("a registered region does not lie at address 0")
    }

    /// The word in line `line`.
    fn line(&self, line: usize) -> Word {
        let offset = line * LINE;
        // SAFETY: the line lies in the registered region, and both addresses name its first four bytes, which everybody
        // uses as an atomic. That the words outlive their use is what `Words` asks of whoever queues commands.
        unsafe { Word::new(self.atomic(offset), self.registration.address() + offset as u64) }
    }

    /// The mark in line `line`.
    fn mark(&self, line: usize) -> Word {
        let offset = line * LINE + size_of::<u32>();
        // SAFETY: as in `line`, of the four bytes behind the word.
        unsafe { Word::new(self.atomic(offset), self.registration.address() + offset as u64) }
    }

    /// How many publications of `publisher` can be read.
    pub fn published(&self, publisher: usize) -> Word {
        self.line(self.layout.published(publisher))
    }

    /// Up to which turn the `reader` has finished with what the others have published.
    pub fn finished(&self, reader: usize) -> Word {
        self.line(self.layout.finished(reader))
    }

    /// How many slots of the link have been filled.
    pub fn filled(&self, from: usize, to: usize, channel: usize) -> Word {
        self.line(self.layout.filled(from, to, channel))
    }

    /// How many slots of the link have been emptied.
    pub fn freed(&self, from: usize, to: usize, channel: usize) -> Word {
        self.line(self.layout.freed(from, to, channel))
    }

    /// How many operations the member's streams have begun.
    pub fn started(&self, member: usize) -> Word {
        self.line(self.layout.own(member, 0))
    }

    /// How many operations the member's streams have ended.
    pub fn ended(&self, member: usize) -> Word {
        self.line(self.layout.own(member, 1))
    }

    /// How many strides of long operations the member's streams have passed. Only its own host looks at it.
    pub fn progress(&self, member: usize) -> Word {
        self.line(self.layout.own(member, 3))
    }

    /// 1 once the member has closed its mappings of the others' memory.
    pub fn left(&self, member: usize) -> Word {
        self.line(self.layout.own(member, 2))
    }

    /// Whether every member has closed its mappings of the others' memory.
    pub fn all_left(&self) -> bool {
        (0..self.members()).all(|member| self.left(member).load() != 0)
    }

    /// Whether all others have finished with what member `me`, whose streams are drained, has published, up to turn
    /// `published` ([`Window::unread`](super::Window::unread)), and sent.
    pub fn all_taken(&self, me: usize, published: u32) -> bool {
        let others = (0..self.members()).filter(|other| *other != me);
        { others }.all(|other| {
            let links = 0..self.channels();
            self.finished(other).is_at_least(published) && { links }
                .all(|c| self.freed(me, other, c).is_at_least(self.filled(me, other, c).load()))
        })
    }

    /// Where the member's kernels say that a header was not of their operation: the peer it came from, plus 1. The word
    /// begins a record of [`TROUBLE`] bytes.
    pub fn trouble(&self, member: usize) -> Word {
        self.line(self.layout.own(member, 4))
    }

    /// Not 0 once some member's host has begun to let streams go on under a verdict.
    pub fn released(&self) -> Word {
        self.line(self.layout.single())
    }

    fn allocation(&self, allocation: usize, which: usize) -> &AtomicU32 {
        assert!(allocation < ALLOCATIONS, "allocation {allocation} of {ALLOCATIONS}");
        let offset = (self.layout.single() + 1) * LINE + allocation * 8 + which * 4;
        // SAFETY: it lies in the region, which the registration keeps, and everybody uses it as an atomic.
        unsafe { self.atomic(offset).as_ref() }
    }

    /// How many members have dropped their part of a registered allocation. For hosts only.
    pub fn dropped(&self, allocation: usize) -> &AtomicU32 {
        self.allocation(allocation, 0)
    }

    /// How many members have closed their mappings of the others' parts of a registered allocation. For hosts only.
    pub fn closed(&self, allocation: usize) -> &AtomicU32 {
        self.allocation(allocation, 1)
    }

    /// Every word that streams of member `me` may wait for, all written by other members, and its mark: what a verdict
    /// has to release. Several members may wait for one word.
    pub fn waited_by(&self, me: usize) -> impl Iterator<Item = [Word; 2]> + '_ {
        let layout = self.layout;
        let others = (0..layout.members).filter(move |other| *other != me);
        let lines = others.flat_map(move |other| {
            let links = (0..layout.channels)
                .flat_map(move |channel| [layout.filled(other, me, channel), layout.freed(me, other, channel)]);
            [layout.published(other), layout.finished(other)].into_iter().chain(links)
        });
        lines.map(|line| [self.line(line), self.mark(line)])
    }

    /// The registered memory in which they lie.
    pub fn registration(&self) -> &HostRegistration {
        &self.registration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line numbers of all words, for shapes as they occur.
    #[test]
    fn no_two_words_share_a_line() {
        for (members, channels) in [(1, 1), (2, 3), (3, 2), (8, 3)] {
            let layout = Layout { members, channels };
            let mut taken = std::collections::HashSet::new();
            let mut take = |line: usize| assert!(taken.insert(line), "line {line} twice, {members} x {channels}");
            for a in 0..members {
                take(layout.published(a));
                take(layout.finished(a));
                (0..OWN).for_each(|which| take(layout.own(a, which)));
                for b in 0..members {
                    for channel in 0..channels {
                        take(layout.filled(a, b, channel));
                        take(layout.freed(a, b, channel));
                    }
                }
            }
            take(layout.single());
            assert_eq!(taken.len(), layout.single() + 1, "every line is used, and the single one is the last");
            assert!(Words::bytes(members, channels) >= (layout.single() + 1) * LINE + ALLOCATIONS * 8);
        }
    }
}
