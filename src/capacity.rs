//! How much one link and one publication hold: what the settings ask for, and never less than the world needs.
//!
//! A schedule's messages and publications have up to a chunk for each rank of the world
//! ([`message_chunks`](maypole_collectives::schedule::Schedule::message_chunks)), and each chunk's slice has a line at
//! least, [`SLICE`]. So the smallest message grows with the world, whatever the settings say. Two promises are made to
//! schedules, and the tuner cuts slices by them:
//!
//! * *A publication fits into a window*, behind its header.
//! * *A message is at most half of a link's credit*, fingerprint included. A rank that passes on what it receives needs
//!   room for one message besides the one that still waits to be taken; the verifier runs every schedule with no more.
//!
//! Both hold for every algorithm, every size of world and all settings, since whoever makes a link and whoever cuts a
//! slice ask here, each with the size of its communicator. The test below goes through all of them.

use crate::config::Config;
use crate::engine::links::WINDOW_HEADER;

/// The shortest slice, bytes.
pub(crate) const SLICE: usize = 64;

/// Bytes that a message has besides its slices: its fingerprint takes less.
const OPENING: usize = 64;

/// Bytes that a TCP link takes in before they are asked for, where peers are few. A link has memory
/// for what it holds only, but all peers of a rank may be ahead of it at the same time.
const SOCKET: usize = 1 << 20;
/// Bytes that the links from all peers take in together, at most: where peers are many, each takes
/// less.
const SOCKETS: usize = 64 << 20;

/// What the links and publications of a communicator hold, in bytes. The same on all its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// A link in shared memory; a power of two.
    pub ring: usize,
    /// A link over TCP, before its receiver asks.
    pub socket: usize,
    /// A publication in shared memory, its header aside; a multiple of 64.
    pub window: usize,
    /// A publication in the staging memory of a device.
    pub device_window: usize,
    /// A link between two devices.
    pub device_fifo: usize,
}

impl Capacity {
    /// For a communicator of `size` ranks.
    pub fn of(size: usize, config: &Config) -> Capacity {
        let smallest = size * SLICE;
        let link = 2 * (smallest + OPENING);
        Capacity {
            ring: config.ring.max(link).next_power_of_two(),
            socket: SOCKET.min(SOCKETS / size.max(1)).max(link),
            window: config.window.max(smallest).next_multiple_of(64),
            device_window: config.device_window.max(smallest),
            device_fifo: config.device_fifo.max(link),
        }
    }

    /// Bytes of one place of a window in shared memory.
    pub fn place(&self) -> usize {
        self.window + WINDOW_HEADER
    }
}

/// How many times as long a publication in the staging memory of a device is with `members` ranks as with two, where it
/// is what they exchange large buffers through. The algorithms for those publish a part for each rank at once, and each
/// part is read by a kernel of its own, or a share of one, which should be as long as ever. But no more than with eight.
pub(crate) fn growth(members: usize) -> usize {
    members.div_ceil(2).clamp(1, 4)
}

/// The longest slice such that `chunks` of them make a message that a link with `credit` takes twice.
pub(crate) fn slice_of_message(credit: usize, chunks: usize) -> usize {
    whole_lines(credit / 2 - OPENING, chunks)
}

/// The longest slice such that `chunks` of them fit into a publication of `window` bytes.
pub(crate) fn slice_of_publication(window: usize, chunks: usize) -> usize {
    whole_lines(window, chunks)
}

fn whole_lines(bytes: usize, chunks: usize) -> usize {
    bytes / chunks.max(1) / SLICE * SLICE
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use maypole_collectives::algorithms::{Algorithm, schedule};
    use maypole_collectives::schedule::{Collective, Place};
    use maypole_collectives::{DataType, Hosts, ReduceOp};
    use maypole_cuda::peer;

    use super::*;
    use crate::communicator::sharing::shape;
    use crate::engine::bound::Bound;
    use crate::fingerprint::Fingerprint;
    use crate::tuner::{Links, Tuner};

    /// Every world up to 300 ranks, and those around powers of two up to 16,384.
    fn worlds() -> impl Iterator<Item = usize> {
        let around = |power: u32| (1 << power) - 1..=(1 << power) + 1;
        (1..=300).chain((9..=14).flat_map(around)).chain([1000, 3000, 8192 + 300])
    }

    /// Placements in which schedules that know of hosts differ: few hosts, many, uneven ones.
    fn placements(size: usize) -> [Hosts; 4] {
        let hosts = |of: fn(usize) -> usize| Hosts::new((0..size).map(of));
        [hosts(|r| r % 2), hosts(|r| r / 8), hosts(|r| r.saturating_sub(3)), hosts(|r| (r as f64).sqrt() as usize)]
    }

    /// Which algorithms and how many chunks a message of theirs has: all there are in a world.
    fn messages(size: usize) -> BTreeSet<(Algorithm, usize)> {
        let flat = Arc::new(Hosts::together(size));
        let known = placements(size).map(Arc::new);
        let mut all = BTreeSet::new();
        for algorithm in Algorithm::ALL {
            let flat = std::slice::from_ref(&flat);
            let hosts = if matches!(algorithm, Algorithm::Hierarchical | Algorithm::Leaders) { &known } else { flat };
            for (collective, hosts) in Collective::ALL.iter().flat_map(|c| hosts.iter().map(move |hosts| (*c, hosts))) {
                for (rank, root) in [(0, 0), (size - 1, size / 2)] {
                    let schedule = schedule(algorithm, collective, Place { rank, size, root }, hosts);
                    all.extend(schedule.map(|schedule| (algorithm, schedule.message_chunks())));
                }
            }
        }
        all
    }

    /// The settings at both ends of what is allowed, and as they are by default.
    fn settings() -> Vec<Config> {
        let sizes = ["4096", "256K", "256M"];
        let mut all = Vec::new();
        for (ring, window, slice) in
            sizes.iter().flat_map(|r| sizes.iter().flat_map(move |w| ["64", "", "1G"].map(|s| (r, w, s))))
        {
            let mut config = Config::default();
            let set = [("RING", *ring), ("WINDOW", window), ("DEVICE_WINDOW", window), ("DEVICE_FIFO", ring)];
            set.iter().for_each(|(name, value)| config.set(&format!("MAYPOLE_{name}"), value).unwrap());
            if !slice.is_empty() {
                config.set("MAYPOLE_SLICE", slice).unwrap();
            }
            all.push(config);
        }
        all
    }

    /// A slice as the engine cuts it, at most: of blocks of so many lines that every length of slice comes up.
    fn cut(slice: usize) -> usize {
        let cut = |dtype: DataType, count| {
            Bound::new(dtype, ReduceOp::Sum, count, 3, slice, (std::ptr::null(), std::ptr::null_mut())).stride
        };
        let counts = [0, 1, 1000, slice / 4 + 1, 3 * slice - 1, 1 << 40];
        counts.into_iter().flat_map(|n| [cut(DataType::U8, n), cut(DataType::F64, n)]).max().unwrap_or(0)
    }

    #[test]
    fn messages_and_publications_fit_in_every_world_whatever_is_set() {
        let (settings, mut checked) = (settings(), 0);
        for size in worlds() {
            let messages = messages(size);
            for config in &settings {
                let capacity = Capacity::of(size, config);
                let on_devices = peer::Shape::new(size, capacity.device_window, &[capacity.device_fifo; 3]);
                let shape = shape(2, &capacity).expect("two ranks have room for anything");
                let shared = shape.window - WINDOW_HEADER;
                let tuner = |links| Tuner::new((0, size), links, Hosts::together(size), config);
                let device = (on_devices.window, 2 * on_devices.message(0));
                // A tuner, the credit of each link that its ranks may have, and what its publications hold.
                let link = |bytes: usize| (bytes / 2, size_of::<Fingerprint>());
                let ways = [
                    (tuner(Links::Shared), vec![link(shape.ring)], shared),
                    (tuner(Links::Mixed), vec![link(shape.ring), link(capacity.socket)], 0),
                    (tuner(Links::Tcp), vec![link(capacity.socket)], 0),
                    (
                        Tuner::for_device((0, size), Links::Shared, Hosts::together(size), config, device),
                        // Headers of slots are not in the slots.
                        vec![(on_devices.message(0), 0)],
                        on_devices.window,
                    ),
                ];
                for (tuner, links, window) in &ways {
                    for (algorithm, chunks) in &messages {
                        let slice = tuner.slice(*algorithm, *chunks);
                        let message = chunks * cut(slice);
                        let of = || format!("{algorithm} with {chunks} chunks of {slice} among {size}, {config:?}");
                        assert!(slice >= SLICE, "{}", of());
                        match algorithm.one_sided() {
                            true if *window > 0 => assert!(message <= *window, "{window}: {}", of()),
                            true => {}
                            false => { links }.iter().for_each(|(half, opening)| {
                                assert!(message + opening <= *half, "half of a link is {half}: {}", of());
                            }),
                        }
                        checked += 1;
                    }
                }
            }
        }
        println!("{checked} cases");
    }

    /// What the default leaves to each rank's part of an all-reduce.
    #[test]
    fn parts_of_publications_do_not_shrink_as_ranks_are_more() {
        let part = |members: usize| {
            let chunks = if members == 2 { 1 } else { members };
            slice_of_publication(Config::default().device_window * growth(members), chunks)
        };
        assert!((2..=8).all(|members| part(members) >= 8 << 20), "{:?}", [2, 3, 4, 5, 6, 7, 8].map(part));
        assert_eq!([part(4), part(8), part(16)], [8 << 20, 8 << 20, 4 << 20]);
    }

    /// The figures of DESIGN.md's table of bytes per peer, which `transports/tests/footprint.rs`
    /// makes links of.
    #[test]
    fn links_take_less_where_peers_are_many() {
        let socket = |peers: usize| Capacity::of(peers + 1, &Config::default()).socket;
        assert_eq!([1, 8, 63, 1000].map(socket), [1 << 20, 1 << 20, 1 << 20, 128_256]);
        assert!((2..2000).all(|size| size * socket(size - 1) <= SOCKETS.max(3 * size * size * SLICE)));
    }

    #[test]
    fn more_than_there_are_addresses_is_an_error_with_figures() {
        let mut config = Config::default();
        config.set("MAYPOLE_RING", "256M").unwrap();
        let error = |members: usize| shape(members, &Capacity::of(members, &config)).unwrap_err().to_string();
        for members in [512, 1 << 20] {
            let text = error(members);
            assert!(text.contains(&members.to_string()) && text.contains("268435456"), "{text}");
            assert!(text.contains("MAYPOLE_RING"), "{text}");
        }
        assert!(shape(256, &Capacity::of(256, &config)).is_ok());
    }
}
