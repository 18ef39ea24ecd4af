//! How the ranks of a communicator bring their devices together.
//!
//! Each step ends with an exchange over the communicator's links between hosts' memories, in which every rank says how it
//! fared: all go on or all return the same rank's reason, and the communicator stays as it was. What they agree on: words
//! in memory that the ranks of a host share, staging memory on their devices (or in host memory where those do not reach
//! each other), and that all ranks can take part at all.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};
use maypole_collectives::ReduceOp;
use maypole_cuda::kernels::Kernels;
use maypole_cuda::peer::{Bases, HEADER, Mapped, Member, Offer, Shape, Staging, Window, Words};
use maypole_cuda::{Context, CudaError, DeviceMemory, HostRegion, HostRegistration, Reach};
use maypole_transports::shm::Allocation;

use super::assembled;
use super::executor::{CHANNELS, Executor, Reports};
use super::limbo;
use super::loans::Lendable;
use super::plan::Planner;
use super::state::{Device, Fabric};
use crate::Communicator;
use crate::capacity::{Capacity, growth};
use crate::config::{DeviceStaging, TransportChoice};
use crate::error::{Error, Result};
use crate::tuner::{Links, Tuner};

const DOING: &str = "attaching devices";

/// The driver's variable: hardware queues of a process on a device, for all of its streams.
const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// How a rank fared in a step.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Report {
    failed: u32,
    length: u32,
    text: [u8; 512],
}

impl Report {
    fn of(outcome: std::result::Result<(), String>) -> Report {
        let mut report = Report::zeroed();
        if let Err(what) = outcome {
            let end = (0..=what.len().min(report.text.len())).rev().find(|at| what.is_char_boundary(*at)).unwrap_or(0);
            report.failed = 1;
            report.length = end as u32;
            report.text[..end].copy_from_slice(&what.as_bytes()[..end]);
        }
        report
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text[..(self.length as usize).min(self.text.len())]).into_owned()
    }
}

/// What ranks tell each other first.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Hello {
    report: Report,
    member: Member,
    devices_reach: u64,
}

/// Why devices that this process does not see are not reached at last.
const UNSEEN: &str = "a device that another rank uses is not visible here, and its memory could not be opened either";

/// Ask `what` of the driver, as this rank.
fn asked<T>(rank: usize, what: std::result::Result<T, CudaError>) -> Result<T> {
    what.map_err(|source| Error::Device { rank, source })
}

/// Where NVIDIA's MPS can be found, unless the variable says otherwise.
const MPS: (&str, &str) = ("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");

/// Whether processes of this host that use a device together do so through NVIDIA's MPS: drivers connect to it where its
/// control daemon has left its pipe.
pub(crate) fn is_under_mps() -> bool {
    let folder = std::env::var_os(MPS.0).unwrap_or_else(|| MPS.1.into());
    std::path::Path::new(&folder).join("control").exists()
}

/// How many hardware queues a process should ask for in which so many streams wait for other ranks. Under MPS the clients
/// share one pool of them, and what one takes others lack; without, each process has its own, 32 at most.
fn queues_to_ask_for(streams: usize, under_mps: bool) -> usize {
    if under_mps { streams.next_power_of_two().clamp(8, 32) } else { 32 }
}

/// Streams of one process share hardware queues (see [`maypole_cuda::peer`]): say so where ranks that are its threads, or
/// its communicators, have fewer queues than they are. The first of the threads says it for all, and once.
fn warn_of_shared_queues(rank: usize, me: usize, members: &[Member]) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let mut here = (0..members.len()).filter(|other| members[*other].shares_process_with(&members[me]));
    let (first, threads) = (here.next(), 1 + here.count());
    // Each rank of each communicator may have a stream that waits.
    let streams = threads + limbo::attached();
    let queues = std::env::var(QUEUES).ok().filter(|queues| !queues.trim().is_empty());
    if first == Some(me) && queues_are_few(queues.as_deref(), streams) && !SAID.swap(true, Ordering::Relaxed) {
        let whose = match threads {
            1 => format!("this process is attached to devices by {streams} communicators"),
            _ => format!("{threads} ranks are threads of this process"),
        };
        tracing::warn!(
            rank,
            "{whose} and {QUEUES} is {}: a stream that waits can hold back another, perhaps the one that it waits for; \
             set it to {} before the program starts",
            queues.as_deref().unwrap_or("not set"),
            queues_to_ask_for(streams, is_under_mps())
        );
    }
}

/// Bytes of the links on each channel. Where all ranks are near, the tuner takes nothing that uses the second one: who wants
/// `double_tree` there must ask for it.
fn fifos(bytes: usize, tuned: bool) -> [usize; CHANNELS] {
    [bytes, if tuned { 0 } else { bytes }, bytes]
}

/// Whether so many streams of one process that wait for other ranks may have to share hardware queues. Not set, it is 8 on
/// most drivers, which is for all streams of the process, not only for those.
fn queues_are_few(queues: Option<&str>, streams: usize) -> bool {
    streams > 1 && queues.and_then(|queues| queues.trim().parse().ok()).is_none_or(|queues: usize| queues < streams)
}

impl Communicator {
    /// Every rank's bytes, in the order of the ranks.
    pub(super) fn told<T: Pod>(&self, mine: &T) -> Result<Vec<T>> {
        let mut all = vec![T::zeroed(); self.size()];
        self.all_gather(bytemuck::bytes_of(mine), bytemuck::cast_slice_mut(&mut all))?;
        Ok(all)
    }

    /// What this rank has, if all have it.
    ///
    /// # Errors
    /// This rank's own, or that of the first that has one.
    pub(crate) fn unanimous<T>(&self, doing: &str, mine: Result<T>) -> Result<T> {
        let reports = self.told(&Report::of(mine.as_ref().map(|_| ()).map_err(Error::to_string)))?;
        let mine = mine?;
        match reports.iter().find(|report| report.failed != 0) {
            Some(report) => Err(Error::system(doing, report.text())),
            None => Ok(mine),
        }
    }

    /// The ranks on this one's host that share memory with it, in order.
    pub(crate) fn near(&self) -> Vec<usize> {
        let (placement, me) = (self.topology().placement(), self.rank());
        let apart = self.config().transport == TransportChoice::Tcp;
        (0..self.size()).filter(|r| *r == me || !apart && placement.host(*r) == placement.host(me)).collect()
    }

    /// `bytes` bytes of zeroed memory that the ranks `near` this one share. Every rank calls it.
    fn shared_region(&self, near: &[usize], bytes: usize) -> Result<HostRegion> {
        let memory = self.share_among(near, bytes)?;
        Ok(match memory {
            None => HostRegion::private(bytes),
            Some(memory) => {
                let at = NonNull::new(memory.part(0).0.as_ptr().cast::<u8>()).expect("mapped somewhere");
                let keep: Arc<Allocation> = memory;
                // SAFETY: the part has `bytes` bytes, mapped as long as the allocation lives, and nobody makes references
                // to them.
                unsafe { HostRegion::new(at, bytes, keep) }
            }
        })
    }

    /// Staging in the memory of the members' devices; `beyond`: some members are other processes; `unseen`: those whose
    /// devices this process does not see. `None`, on all ranks alike, where a device reaches as many others already as it
    /// can, or where the memory of one that is not seen could not be opened.
    fn device_staging(
        &self,
        context: &Arc<Context>,
        (near, me): (&[usize], usize),
        shape: Shape,
        (beyond, unseen): (bool, &[usize]),
    ) -> Result<Option<Staging>> {
        let (rank, auto) = (self.rank(), self.config().device_staging == DeviceStaging::Auto);
        let offer = || {
            let memory = limbo::making_room(|| match beyond {
                true => DeviceMemory::exportable(context, shape.bytes()),
                false => DeviceMemory::new(context, shape.bytes()),
            })?;
            // Headers of nothing: no digest is 0.
            memory.fill(0, memory.bytes(), 0)?;
            let memory = Arc::new(memory);
            let offer = Offer::new(&memory, beyond)?;
            Ok((memory, offer))
        };
        let (memory, offer) = self.unanimous(DOING, asked(rank, offer()))?;
        let offers = self.told(&offer)?;
        let offers: Vec<Offer> = near.iter().map(|r| offers[*r]).collect();
        let joined = Mapped::join(memory.clone(), me, &offers);
        // What the driver could not be asked before, this has tried.
        let why = match &joined {
            Err((_, error)) if error.is_too_many_peers() => Some("it has access to as many others as it can have"),
            Err((member, _)) if unseen.contains(member) => Some(UNSEEN),
            _ => None,
        };
        let mut elsewhere = [u8::from(why.is_some() && auto)];
        self.all_reduce_in_place(&mut elsewhere, ReduceOp::Max)?;
        let elsewhere = elsewhere == [1];
        let fared = match &joined {
            _ if elsewhere && auto => Ok(()),
            Err((_, error)) => Err(error.clone()),
            Ok(_) if elsewhere => Err(CudaError::PeerRefused { from: context.ordinal(), to: "some rank's".into() }),
            Ok(_) => Ok(()),
        };
        let fared = self.unanimous(DOING, asked(rank, fared));
        if fared.is_ok() && !elsewhere {
            let joined = joined.map_err(|(_, error)| error);
            return Ok(Some(Staging::in_device(asked(rank, joined)?, shape)));
        }
        let refused = joined.as_ref().err().map(|(_, error)| error.to_string());
        // Nobody gives memory back before all have closed their mappings of it.
        drop(joined);
        self.told(&0u8)?;
        fared?;
        tracing::warn!(
            rank,
            error = refused,
            "a device cannot use another's memory ({}): what ranks exchange goes through host memory, which is slower",
            why.unwrap_or("another rank says why")
        );
        Ok(None)
    }

    /// Bring this rank's device together with the others'; or tell them why it has none.
    pub(crate) fn bring_together(&self, context: std::result::Result<&Arc<Context>, CudaError>) -> Result<Arc<Device>> {
        limbo::sweep();
        let (rank, size) = (self.rank(), self.size());
        let config = self.config();
        let near = self.near();
        let me = near.iter().position(|r| *r == rank).expect("a rank is near itself");
        let all_near = near.len() == size;

        // Who is there.
        let prepared = context
            .and_then(|context| Ok((context, Kernels::limited(context, config.device_blocks)?, Member::new(context))));
        let prepared = asked(rank, prepared);
        let mut hello =
            Hello { report: Report::of(prepared.as_ref().map(|_| ()).map_err(Error::to_string)), ..Zeroable::zeroed() };
        if let Ok((.., member)) = &prepared {
            hello.member = *member;
        }
        let hellos = self.told(&hello)?;
        let (context, kernels, own) = prepared?;
        if let Some(other) = hellos.iter().find(|hello| hello.report.failed != 0) {
            return Err(Error::system(DOING, other.report.text()));
        }
        let crowded = hellos.iter().filter(|hello| hello.member.shares_process_with(&own)).count() > 1;
        let members: Vec<Member> = near.iter().map(|r| hellos[*r].member).collect();
        let others_beyond = members.iter().any(|member| !member.shares_process_with(&members[me]));

        warn_of_shared_queues(rank, me, &members);
        assembled::warn_if_never_kept(rank);

        // Whether all devices of each host reach each other.
        let mut unseen = Vec::new();
        let mut reach = || -> std::result::Result<Option<usize>, CudaError> {
            Member::check_contexts(context, me, &members)?;
            Member::check_waiting(context, me, &members)?;
            let mut unreached = None;
            for (other, member) in members.iter().enumerate() {
                match member.is_reached_by(context)? {
                    Reach::Reached => {}
                    Reach::NotReached => unreached = Some(other),
                    // As with a `CUDA_VISIBLE_DEVICES` of each rank's own: tried when memory is shared.
                    Reach::NotSeen => unseen.push(other),
                }
            }
            match (config.device_staging, unreached) {
                (DeviceStaging::Device, Some(other)) => {
                    let to = format!("rank {}'s", near[other]);
                    Err(CudaError::PeerRefused { from: context.ordinal(), to })
                }
                _ => Ok(unreached),
            }
        };
        let unreached = self.unanimous(DOING, asked(rank, reach()))?;
        let on_device = config.device_staging != DeviceStaging::Host;
        let mut everywhere = [u8::from(on_device && unreached.is_none())];
        self.all_reduce_in_place(&mut everywhere, ReduceOp::Min)?;
        let on_device = everywhere == [1];
        if !on_device && config.device_staging == DeviceStaging::Auto {
            tracing::warn!(
                rank,
                "some devices of a host do not reach each other (no peer access): what they exchange goes through host \
                 memory, which is slower"
            );
        }

        // Words and staging.
        let region = self.shared_region(&near, Words::bytes(near.len(), CHANNELS))?;
        let tuned = all_near && config.algorithm.is_empty();
        let capacity = Capacity::of(size, config);
        // Threads with one context lend what is long.
        let one_space = members.iter().all(|member| member.shares_context_with(&own));
        let times = if all_near && !one_space { growth(size) } else { 1 };
        let shape = Shape::new(near.len(), times * capacity.device_window, &fifos(capacity.device_fifo, tuned));
        let staging = match on_device {
            true => self.device_staging(context, (&near, me), shape, (others_beyond, &unseen))?,
            false => None,
        };
        let staging = match staging {
            Some(staging) => staging,
            None => {
                let region = self.shared_region(&near, near.len() * shape.bytes())?;
                let registration = asked(rank, HostRegistration::new(context, &region));
                Staging::in_host(self.unanimous(DOING, registration)?, shape)
            }
        };
        let staged = if staging.is_on_device() { "device" } else { "host" };
        let made = || {
            let words = Words::new(HostRegistration::new(context, &region)?, near.len(), CHANNELS);
            let poison = DeviceMemory::new(context, size_of::<u32>())?;
            poison.fill(0, poison.bytes(), 0)?;
            Ok((words, Bases::new(context, near.len())?, poison))
        };
        let (words, bases, poison) = self.unanimous(DOING, asked(rank, made()))?;

        // The rest is this rank's own.
        let mut places = vec![None; size];
        near.iter().enumerate().for_each(|(place, r)| places[*r] = Some(place));
        let window = all_near.then(|| Window::new(&words, &staging, me));
        let reports = Reports { trouble: words.trouble(me).address(), poison: poison.address() };
        let executor = Executor::new((rank, size), kernels, places, window, bases, reports);
        let links = match all_near {
            true => Links::Shared,
            // Not from this rank's own links: one that is alone on its host reaches nobody there, though others do.
            false if config.transport == TransportChoice::Tcp || self.topology().host_count() == size => Links::Tcp,
            false => Links::Mixed,
        };
        // The slots of other hosts' links are of the same size as those of this host's.
        let limits = (shape.window, 2 * shape.message(0));
        let tuner = Tuner::for_device((rank, size), links, self.topology().placement(), config, limits);
        let planner = Planner::new(tuner, (rank, size));
        let routes = self.inner.device_routes();
        let routes = self.unanimous(DOING, routes)?;
        let lendable = match all_near && staging.is_on_device() {
            false => Lendable::Nothing,
            true if one_space => Lendable::Everything,
            true => Lendable::Registered,
        };
        let abort = config.device_abort;
        let fabric = Fabric { words: Arc::new(words), staging, poison, me, crowded, lendable, abort };
        let device = Device::new(context.clone(), self.inner.court()?, size, fabric, (executor, planner), routes);
        let device = self.unanimous(DOING, device)?;
        tracing::info!(
            rank,
            size,
            device = context.name(),
            staging = staged,
            bytes = shape.bytes(),
            header = HEADER,
            "device attached"
        );
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use maypole_collectives::schedule::Collective;
    use maypole_collectives::{Hosts, Order};
    use maypole_cuda::peer::Shape;

    use super::{fifos, growth, queues_are_few, queues_to_ask_for};
    use crate::config::Config;
    use crate::tuner::{Links, Needs, Tuner};

    #[test]
    fn the_second_channel_is_for_those_who_ask() {
        for (size, order) in (2..10).flat_map(|size| [Order::Free, Order::Canonical].map(|order| (size, order))) {
            let config = Config { order, ..Config::default() };
            let place = (size - 1, size);
            let mut tuner = Tuner::for_device(place, Links::Shared, Hosts::together(size), &config, (1 << 20, 1 << 20));
            for collective in Collective::ALL {
                for bytes in [8, 40 << 10, 300 << 10, 2 << 20, 64 << 20] {
                    let plans = [
                        tuner.plan(collective, 0, bytes, Needs::NOTHING),
                        tuner.plan_v(collective, 0, bytes, Needs::NOTHING),
                    ];
                    for schedule in plans.into_iter().flatten().map(|plan| plan.schedule) {
                        let first = (0..schedule.lanes()).all(|lane| schedule.channel(lane) == 0);
                        assert!(first, "{collective:?} of {bytes} bytes among {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn attaching_takes_megabytes() {
        let bytes = |members, times| {
            let config = Config::default();
            Shape::new(members, times * config.device_window, &fifos(config.device_fifo, true)).bytes() >> 20
        };
        assert_eq!([2, 4, 8].map(|members| bytes(members, 1)), [36, 44, 60]);
        assert_eq!([2, 4, 8].map(|members| bytes(members, growth(members))), [36, 76, 156]);
    }

    #[test]
    fn ranks_that_are_threads_need_a_queue_each() {
        assert!(!queues_are_few(None, 1) && !queues_are_few(Some("1"), 1), "a process per rank has queues of its own");
        assert!(queues_are_few(None, 2) && queues_are_few(Some("many"), 2) && queues_are_few(Some("3"), 4));
        assert!(!queues_are_few(Some("4"), 4) && !queues_are_few(Some(" 32"), 8));
    }

    /// MPS has one pool for all its clients.
    #[test]
    fn under_mps_a_process_asks_for_fewer_queues() {
        assert_eq!([2, 8, 16, 100].map(|threads| queues_to_ask_for(threads, false)), [32; 4]);
        assert_eq!([2, 8, 9, 100].map(|threads| queues_to_ask_for(threads, true)), [8, 8, 16, 32]);
    }
}
