//! Steps of messages between two ranks, and of groups.

use maypole::perf::operation::NamedOp;
use maypole::perf::values::Values;
use maypole::{DataType, Pending, ReduceOp};

use crate::draws::Draws;
use crate::program::Program;

/// One message of a step.
#[derive(Clone, Copy, Debug)]
struct Letter {
    from: usize,
    to: usize,
    tag: u32,
    count: usize,
    seed: u64,
}

impl Letter {
    fn content(&self) -> Vec<u64> {
        let mut draws = Draws(self.seed);
        (0..self.count).map(|_| draws.next()).collect()
    }
}

/// The order in which a rank posts its receives: any, but those of one sender and tag in the order of sending.
fn shuffled(letters: &[Letter], draws: &mut Draws) -> Vec<usize> {
    let mut order = draws.permutation(letters.len());
    for i in 0..order.len() {
        for j in i + 1..order.len() {
            let (a, b) = (&letters[order[i]], &letters[order[j]]);
            if (a.from, a.tag) == (b.from, b.tag) && order[i] > order[j] {
                order.swap(i, j);
            }
        }
    }
    order
}

fn count(draws: &mut Draws, most: usize) -> usize {
    if draws.chance(85) { draws.count(most / 30) } else { draws.count(most) }
}

fn letters(draws: &mut Draws, size: usize, most: usize) -> Vec<Letter> {
    (0..draws.below(4 * size))
        .map(|_| Letter {
            from: draws.below(size),
            to: draws.below(size),
            tag: draws.below(3) as u32,
            count: count(draws, most),
            seed: draws.next(),
        })
        .collect()
}

impl Program {
    /// Any pattern of messages with tags, outstanding, received in another order than sent, a collective in between.
    pub(crate) fn messages(&mut self, family: usize) {
        let size = self.families[family].members.len();
        let letters = letters(&mut self.draws, size, 60_000);
        let (barrier, seed) = (self.draws.chance(50), self.draws.next());
        self.note(("messages", &letters), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let sent: Vec<(Letter, Vec<u64>)> =
            letters.iter().filter(|l| l.from == rank).map(|l| (*l, l.content())).collect();
        let received: Vec<Letter> = letters.iter().filter(|l| l.to == rank).copied().collect();
        let mut buffers: Vec<Vec<u64>> = received.iter().map(|l| vec![0; l.count]).collect();
        let mut slots: Vec<Option<&mut Vec<u64>>> = buffers.iter_mut().map(Some).collect();
        maypole::scope(|scope| {
            let mut requests = Vec::new();
            let receive_first = rank % 2 == 0;
            let mut draws = Draws(seed ^ rank as u64);
            let order = shuffled(&received, &mut draws);
            for sending in [!receive_first, receive_first] {
                if sending {
                    for (letter, content) in &sent {
                        requests.push(comm.start(scope).tag(letter.tag).send(content, letter.to).expect("to a rank"));
                    }
                } else {
                    for next in &order {
                        let (letter, buffer) = (&received[*next], slots[*next].take().expect("each once"));
                        requests.push(comm.start(scope).tag(letter.tag).recv(buffer, letter.from).expect("a rank"));
                    }
                }
            }
            if barrier {
                comm.barrier().unwrap_or_else(|e| panic!("{e}"));
            }
            while requests.len() > 4 {
                let next = maypole::wait_any(&requests).expect("there are some");
                requests.swap_remove(next).wait().unwrap_or_else(|e| panic!("{e}"));
            }
            maypole::wait_all(requests.iter().map(|r| r as &dyn Pending)).unwrap_or_else(|e| panic!("{e}"));
        });
        for (letter, buffer) in received.iter().zip(&buffers) {
            assert!(*buffer == letter.content(), "{letter:?} arrived as something else");
        }
    }

    /// Messages, small all-reduces and an all-gather in one group.
    pub(crate) fn group(&mut self, family: usize) {
        let size = self.families[family].members.len();
        let letters = letters(&mut self.draws, size, 20_000);
        let sums: Vec<(usize, u64)> =
            (0..self.draws.below(6)).map(|_| (self.draws.count(3000), self.draws.next())).collect();
        self.note(("group", &letters, &sums), family);
        let Some(comm) = &self.families[family].own else { return };
        let rank = comm.rank();
        let sent: Vec<(Letter, Vec<u64>)> =
            letters.iter().filter(|l| l.from == rank).map(|l| (*l, l.content())).collect();
        let received: Vec<Letter> = letters.iter().filter(|l| l.to == rank).copied().collect();
        let mut buffers: Vec<Vec<u64>> = received.iter().map(|l| vec![0; l.count]).collect();
        let values = |seed| Values::new(seed, DataType::I32, Some(NamedOp::Sum), size);
        let mut reduced: Vec<Vec<i32>> = sums
            .iter()
            .map(|(count, seed)| {
                let mut own = vec![0; *count];
                values(*seed).input(rank, 0, bytemuck::cast_slice_mut(&mut own));
                own
            })
            .collect();
        let (mine, mut everybody, mut before) = ([rank as u32], vec![0u32; size], [0u32]);
        // Rank r has r bytes of r.
        let counts: Vec<usize> = (0..size).collect();
        let all: Vec<u8> = (0..size).flat_map(|r| vec![r as u8; r]).collect();
        let mut uneven: Vec<u8> = all.iter().map(|r| if *r as usize == rank { *r } else { 255 }).collect();
        comm.group(|group| {
            for (letter, content) in &sent {
                group.tag(letter.tag).send(content, letter.to);
            }
            for vector in &mut reduced {
                group.all_reduce_in_place(vector, ReduceOp::Sum);
            }
            for (letter, buffer) in received.iter().zip(&mut buffers) {
                group.tag(letter.tag).recv(buffer, letter.from);
            }
            group.all_gather(&mine, &mut everybody);
            group.all_gather_v_in_place(&mut uneven, &counts);
            group.scan(&mine, &mut before, ReduceOp::Sum);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
        for (letter, buffer) in received.iter().zip(&buffers) {
            assert!(*buffer == letter.content(), "{letter:?} arrived as something else");
        }
        for ((count, seed), vector) in sums.iter().zip(&reduced) {
            let mut want = vec![0i32; *count];
            values(*seed).reduced(size, 0, bytemuck::cast_slice_mut(&mut want));
            assert!(*vector == want, "a sum of {count} elements is wrong");
        }
        assert_eq!((uneven, before[0] as usize), (all, (0..=rank).sum()), "all_gather_v and scan in a group");
        assert!(everybody.iter().copied().eq(0..size as u32), "all-gather in a group: {everybody:?}");
    }
}
