//! In which order a group's messages go, slot by slot, where one stream does it all.
//!
//! A stream does one thing after the other, so sends and receives that wait for each other must be interleaved: a rank
//! that first sent everything would stop when the receiver's slots are full, and two that do so to each other would
//! wait for ever. So the group goes in steps. In step t a rank puts the t-th slot onto each link on which it sends, then
//! takes slot t - lead off each link on which it receives; positions count along a link through all its messages of the
//! group.
//!
//! # Why that cannot deadlock
//!
//! Where both ends of every link have the same messages in one group: order all events by step, sends before receives.
//! The send of position t waits for the receive of position t - slots, which its peer does in step t - slots + lead, an
//! earlier one since `lead` is below `slots`. The receive of position p, in step p + lead, waits for the send of position
//! p, in step p: an earlier one, or before it in the same. So each event waits for earlier ones only, and the first that
//! has not happened can.
//!
//! The lead is there so that ranks that exchange slots do not move in lockstep: what is taken was sent a step ago.

/// A message as far as its order goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub peer: usize,
    pub is_sent: bool,
    pub bytes: usize,
}

/// What goes through one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which message, by its place in the group.
    pub message: usize,
    /// Where in the message, in bytes.
    pub offset: usize,
    /// How much; 0 for a message without elements, which takes a slot all the same.
    pub bytes: usize,
}

/// The pieces of a group's messages, none of them to this rank itself, in the order in which rank `me` of `size` queues
/// them. `slot`: bytes of a slot; `slots`: how many a link has.
pub(super) fn pieces(messages: &[Shape], (me, size): (usize, usize), slot: usize, slots: usize) -> Vec<Piece> {
    let lead = slots / 2;
    let mut all: Vec<((usize, bool, usize), Piece)> = Vec::new();
    // Slots so far, by peer and direction.
    let mut ends: Vec<(usize, bool, usize)> = Vec::new();
    for (message, shape) in messages.iter().enumerate() {
        let link = |end: &(usize, bool, usize)| (end.0, end.1) == (shape.peer, shape.is_sent);
        let at = ends.iter().position(link).unwrap_or_else(|| {
            ends.push((shape.peer, shape.is_sent, 0));
            ends.len() - 1
        });
        // Ranks begin with different peers, so that not all send to the same one first.
        let turn = match shape.is_sent {
            true => (shape.peer + size - me) % size,
            false => (me + size - shape.peer) % size,
        };
        for piece in 0..shape.bytes.div_ceil(slot).max(1) {
            let offset = piece * slot;
            let position = ends[at].2 + piece;
            let step = if shape.is_sent { position } else { position + lead };
            let bytes = slot.min(shape.bytes - offset);
            all.push(((step, !shape.is_sent, turn), Piece { message, offset, bytes }));
        }
        ends[at].2 += shape.bytes.div_ceil(slot).max(1);
    }
    // No two of a link have the same key.
    all.sort_unstable_by_key(|(key, _)| *key);
    all.into_iter().map(|(_, piece)| piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// What came, by link, in order.
    type Came = HashMap<(usize, usize), Vec<Piece>>;

    /// Let all ranks run as far as credit allows; returns the bytes that came, by link, in order, or who is stuck.
    fn play(ranks: &[Vec<Shape>], slot: usize, slots: usize) -> Result<Came, Vec<usize>> {
        let size = ranks.len();
        let orders: Vec<Vec<Piece>> =
            ranks.iter().enumerate().map(|(me, group)| pieces(group, (me, size), slot, slots)).collect();
        let mut at = vec![0; size];
        let mut sent: HashMap<(usize, usize), Vec<Piece>> = HashMap::new();
        let mut taken: HashMap<(usize, usize), Vec<Piece>> = HashMap::new();
        loop {
            let mut moved = false;
            for me in 0..size {
                while let Some(piece) = orders[me].get(at[me]) {
                    let shape = ranks[me][piece.message];
                    let link = if shape.is_sent { (me, shape.peer) } else { (shape.peer, me) };
                    let (there, gone) = (sent.entry(link).or_default(), taken.entry(link).or_default());
                    match shape.is_sent {
                        true if there.len() < gone.len() + slots => there.push(*piece),
                        false if gone.len() < there.len() => gone.push(*piece),
                        _ => break,
                    }
                    at[me] += 1;
                    moved = true;
                }
            }
            let stuck: Vec<usize> = (0..size).filter(|me| at[*me] < orders[*me].len()).collect();
            match (moved, stuck.is_empty()) {
                (_, true) => {
                    for (link, pieces) in &sent {
                        let of = |piece: &Piece| (piece.offset, piece.bytes);
                        assert!(taken[link].iter().map(of).eq(pieces.iter().map(of)), "slots of {link:?} differ");
                    }
                    return Ok(taken);
                }
                (false, false) => return Err(stuck),
                _ => {}
            }
        }
    }

    #[test]
    fn groups_end_with_any_number_of_slots() {
        let mut draw = 7u64;
        let mut below = |n: u64| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (draw >> 33) % n
        };
        for round in 0..400 {
            let size = 2 + below(5) as usize;
            let mut ranks = vec![Vec::new(); size];
            for _ in 0..below(20) {
                let (from, to) = (below(size as u64) as usize, below(size as u64) as usize);
                if from == to {
                    continue;
                }
                let bytes = below(400) as usize;
                ranks[from].push(Shape { peer: to, is_sent: true, bytes });
                ranks[to].push(Shape { peer: from, is_sent: false, bytes });
            }
            // Only the order along a link matters; each rank names its links in its own.
            for (me, group) in ranks.iter_mut().enumerate() {
                group.sort_by_key(|shape| ((shape.peer * 7 + me * 3) % 5, shape.is_sent == (me % 2 == 0)));
            }
            for slots in 1..5 {
                let done = play(&ranks, 32, slots).unwrap_or_else(|stuck| panic!("{round}: {stuck:?} of {ranks:?}"));
                let all: usize = done.values().flatten().map(|piece| piece.bytes).sum();
                assert_eq!(all, ranks.iter().flatten().filter(|s| s.is_sent).map(|s| s.bytes).sum::<usize>());
            }
        }
    }

    #[test]
    fn an_exchange_goes_slot_by_slot() {
        let [out, back] = [true, false].map(|is_sent| Shape { peer: 1, is_sent, bytes: 100 });
        let order = pieces(&[back, out], (0, 2), 64, 4);
        let at = |message, offset| Piece { message, offset, bytes: 64.min(100 - offset) };
        assert_eq!(order, [at(1, 0), at(1, 64), at(0, 0), at(0, 64)]);
        assert_eq!(pieces(&[back, out], (0, 2), 64, 1), [at(1, 0), at(0, 0), at(1, 64), at(0, 64)]);
        let nothing = Shape { peer: 1, is_sent: true, bytes: 0 };
        assert_eq!(pieces(&[nothing], (0, 2), 64, 1), [Piece { message: 0, offset: 0, bytes: 0 }]);
    }
}
