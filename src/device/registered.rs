//! Registered device buffers: memory of the caller's that the ranks of its host can read where it lies.
//!
//! All ranks make one together, and each maps the others' parts. A part is given back in two steps, since memory must
//! not be freed under another process's mapping: whoever drops its part says so; when all have, each closes its mappings
//! and says so; when all have, each frees its part. Both counts are words that the ranks share, and what waits for them
//! lies in [`limbo`](super::limbo) meanwhile, so dropping waits for nobody.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use maypole_collectives::Element;
use maypole_cuda::DeviceMemory;
use maypole_cuda::peer::{ANYWHERE, Mapped, Member, Offer, Words};

use super::buffer::DeviceBuffer;
use super::limbo::{self, Parting};
use super::state::Device;
use crate::Communicator;
use crate::error::{Error, Result};

const DOING: &str = "allocating a registered device buffer";

impl Communicator {
    /// See [`Communicator::alloc_device`].
    pub(crate) fn alloc_on<T: Element>(&self, device: &Arc<Device>, len: usize) -> Result<DeviceBuffer<T>> {
        let rank = self.rank();
        let device_error = |source| Error::Device { rank, source };
        // One at a time, so that allocations have the same numbers on every rank.
        let _turn = device.registering.lock();
        limbo::sweep();
        let near = self.near();
        // Which number is free, the first rank of a host knows for all there.
        let chosen = if near[0] == rank { free_number(&device.words) } else { 0 };
        let number = self.told(&(chosen as u64))?[near[0]] as usize;
        let shares = device.state.lock().lends() && near.len() > 1;
        if shares && number == 0 {
            let most = ANYWHERE - 1;
            tracing::warn!(rank, "{most} registered device buffers are in use: this one is not read where it lies");
        }
        let usable = shares && number > 0;
        let made = DeviceBuffer::<T>::memory_of(&device.context, len, usable).map_err(device_error);
        let memory = self.unanimous(DOING, made)?;
        if !usable {
            return Ok(DeviceBuffer::of(memory, len, None));
        }
        let members = self.told(&Member::new(&device.context))?;
        let own = members[rank];
        let beyond = near.iter().any(|r| !members[*r].shares_process_with(&own));
        let offer = self.unanimous(DOING, Offer::new(&memory, beyond).map_err(device_error))?;
        let offers = self.told(&offer)?;
        let offers: Vec<Offer> = near.iter().map(|r| offers[*r]).collect();
        let mapped = Mapped::join(memory.clone(), device.me, &offers).map_err(|(_, error)| device_error(error));
        let mapped = self.unanimous(DOING, mapped)?;
        // Only now: an allocation that fails takes no number. No rank counts before all have come through `unanimous`.
        if near[0] == rank {
            take_number(&device.words, number);
        }
        // Kernels find it before any rank returns, and so before any rank lends it.
        let known = device.state.lock().register(number, &mapped).map_err(device_error);
        device.loans.lock().add(number, mapped.own().address(), memory.bytes());
        let registration = Registration {
            device: Arc::downgrade(device),
            parting: Some(PartingPart { words: device.words.clone(), number, mapped: Some(mapped), own: None }),
        };
        self.unanimous(DOING, known)?;
        Ok(DeviceBuffer::of(memory, len, Some(Box::new(registration))))
    }
}

/// A number that no allocation has. 0: there is none.
fn free_number(words: &Words) -> usize {
    let members = words.members() as u32;
    let free = |number: &usize| {
        let closed = words.closed(*number).load(Ordering::Acquire);
        // The mark of one that was chosen and has not been closed by all.
        closed == 0 && words.dropped(*number).load(Ordering::Acquire) == 0 || closed == CHOSEN + members
    };
    (1..ANYWHERE).find(free).unwrap_or(0)
}

/// From now on `number` is in use. Its words begin at 0 again.
fn take_number(words: &Words, number: usize) {
    words.dropped(number).store(0, Ordering::Release);
    words.closed(number).store(CHOSEN, Ordering::Release);
}

/// Added to the count of those that have closed their mappings while a number is in use.
const CHOSEN: u32 = 1 << 16;

/// What goes with a buffer that others can read.
struct Registration {
    device: Weak<Device>,
    parting: Option<PartingPart>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(parting) = self.parting.take() else { return };
        if let Some(device) = self.device.upgrade() {
            device.loans.lock().remove(parting.number);
            // The communicator may have left meanwhile, so that this was the last reference.
            limbo::let_go(device);
        }
        parting.words.dropped(parting.number).fetch_add(1, Ordering::AcqRel);
        limbo::part(Box::new(parting));
    }
}

/// A rank's part of an allocation on its way back.
struct PartingPart {
    words: Arc<Words>,
    number: usize,
    /// The others' parts, until they are closed.
    mapped: Option<Mapped>,
    /// The own part after that.
    own: Option<Arc<DeviceMemory>>,
}

impl Parting for PartingPart {
    fn go_on(&mut self) -> bool {
        let members = self.words.members() as u32;
        if self.words.dropped(self.number).load(Ordering::Acquire) < members {
            return false;
        }
        if let Some(mapped) = self.mapped.take() {
            self.own = Some(mapped.close());
            self.words.closed(self.number).fetch_add(1, Ordering::AcqRel);
        }
        // Another allocation may have the number already, if this rank was the last to look.
        let all_closed = self.words.closed(self.number).load(Ordering::Acquire) >= CHOSEN + members
            || self.words.dropped(self.number).load(Ordering::Acquire) < members;
        if all_closed {
            self.own = None;
        }
        all_closed
    }
}
