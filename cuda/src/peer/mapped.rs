//! A piece of device memory of each member, mapped by all.
//!
//! It is made in steps between which the members tell each other things, which is for the caller to do: each member
//! describes itself ([`Member`]), allocates and [offers](Offer::new) its memory, and [joins](Mapped::join) when it has
//! everybody's offer. Members and offers are plain bytes.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock, Weak};

use bytemuck::{Pod, Zeroable};
use parking_lot::Mutex;

use crate::driver::{Context, CudaError, DeviceMemory, ImportedMemory, IpcHandle, Reach, Result};

/// Identifies this process among all of the host: a random number, since process numbers repeat between containers.
static PROCESS: LazyLock<u64> = LazyLock::new(|| {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
});

/// What the others need to know of a member before they decide how to reach it. Passed on as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Member {
    process: u64,
    uuid: [u8; 16],
    /// A `CUcontext`, which means something only to members of the same process.
    context: u64,
    memory_operations: u32,
    reserved: u32,
}

impl Member {
    /// The member whose device is that of `context`.
    pub fn new(context: &Context) -> Member {
        Member {
            process: *PROCESS,
            uuid: context.uuid(),
            context: context.raw() as u64,
            memory_operations: context.supports_memory_operations() as u32,
            reserved: 0,
        }
    }

    /// Whether both are threads of one process.
    pub fn shares_process_with(&self, other: &Member) -> bool {
        self.process == other.process
    }

    /// Whether an address means the same to both: they are threads of one process with one context.
    pub fn shares_context_with(&self, other: &Member) -> bool {
        self.shares_process_with(other) && self.context == other.context
    }

    /// What identifies its device.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Whether its streams can wait for words; otherwise host functions do it.
    pub fn has_memory_operations(&self) -> bool {
        self.memory_operations != 0
    }

    /// Whether kernels of `context` can use memory of this member's device directly. Where that device is not seen, what
    /// [`Mapped::join`] says is the answer.
    ///
    /// # Errors
    /// The driver's.
    pub fn is_reached_by(&self, context: &Context) -> Result<Reach> {
        context.reaches(self.uuid)
    }

    /// Checks that no other member of this process uses another context of the same device.
    ///
    /// # Errors
    /// [`CudaError::TwoContexts`], on all members concerned.
    pub fn check_contexts(context: &Context, me: usize, members: &[Member]) -> Result<()> {
        let own = &members[me];
        let strange =
            |other: &Member| other.process == own.process && other.uuid == own.uuid && other.context != own.context;
        match members.iter().any(strange) {
            true => Err(CudaError::TwoContexts { ordinal: context.ordinal() }),
            false => Ok(()),
        }
    }

    /// Checks that the members' streams can wait for each other: each has stream memory operations, or a process to
    /// itself.
    ///
    /// # Errors
    /// [`CudaError::NoMemoryOperations`], the same on every member that has none and on those that share its process.
    pub fn check_waiting(context: &Context, me: usize, members: &[Member]) -> Result<()> {
        let with_me = |other: &Member| other.process == members[me].process;
        let alone = members.iter().filter(|other| with_me(other)).count() == 1;
        match members.iter().all(|other| !with_me(other) || other.has_memory_operations()) {
            false if !alone => Err(CudaError::NoMemoryOperations { ordinal: context.ordinal() }),
            _ => Ok(()),
        }
    }
}

/// What a member tells the others about memory of its own. Passed on as bytes; whoever has them can reach the memory.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Offer {
    process: u64,
    address: u64,
    bytes: u64,
    handle: [u8; 64],
}

/// Memory that members of this process have offered, for the others that are its threads.
static OFFERED: Mutex<Option<HashMap<u64, Weak<DeviceMemory>>>> = Mutex::new(None);

impl Offer {
    /// Offers `memory` to the members. `beyond`: some of them are other processes, so it is exported; then it must have
    /// been allocated as [`exportable`](DeviceMemory::exportable).
    ///
    /// # Errors
    /// [`CudaError::IpcRefused`].
    pub fn new(memory: &Arc<DeviceMemory>, beyond: bool) -> Result<Offer> {
        let handle = if beyond { memory.export()?.0 } else { [0; 64] };
        let mut offered = OFFERED.lock();
        let offered = offered.get_or_insert_default();
        offered.retain(|_, memory| memory.strong_count() > 0);
        offered.insert(memory.address(), Arc::downgrade(memory));
        Ok(Offer { process: *PROCESS, address: memory.address(), bytes: memory.bytes() as u64, handle })
    }

    /// Bytes of the memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offer({} bytes of process {:x})", self.bytes, self.process)
    }
}

/// How the others' memory is held.
#[derive(Debug)]
enum Held {
    /// The own memory; a place in the list all the same.
    Own,
    /// Another thread's.
    Shared { _memory: Arc<DeviceMemory> },
    /// Another process's.
    Imported { _memory: ImportedMemory },
}

/// A piece of device memory of each member, at the addresses where this one sees them.
#[derive(Debug)]
pub struct Mapped {
    own: Arc<DeviceMemory>,
    addresses: Vec<u64>,
    held: Vec<Held>,
}

impl Mapped {
    /// Maps what all members have offered, in the order of the members; `own` is what member `me`, this one, has.
    ///
    /// # Errors
    /// With the member whose memory it was: [`CudaError::IpcRefused`], [`CudaError::PeerRefused`]; the driver's. What
    /// was mapped until then is closed again, and the members agree on what to do instead: those for whom it worked drop
    /// what they have.
    pub fn join(
        own: Arc<DeviceMemory>,
        me: usize,
        offers: &[Offer],
    ) -> std::result::Result<Mapped, (usize, CudaError)> {
        let context = own.context().clone();
        let (mut addresses, mut held) = (Vec::with_capacity(offers.len()), Vec::with_capacity(offers.len()));
        for (member, offer) in offers.iter().enumerate() {
            let mapped = match member {
                _ if member == me => Ok((own.address(), Held::Own)),
                _ if offer.process == *PROCESS => Mapped::share(&context, offer),
                _ => ImportedMemory::open(&context, IpcHandle(offer.handle))
                    .map(|memory| (memory.address(), Held::Imported { _memory: memory })),
            };
            let (address, memory) = mapped.map_err(|error| (member, error))?;
            addresses.push(address);
            held.push(memory);
        }
        Ok(Mapped { own, addresses, held })
    }

    fn share(context: &Arc<Context>, offer: &Offer) -> Result<(u64, Held)> {
        let found = OFFERED.lock().get_or_insert_default().get(&offer.address).and_then(Weak::upgrade);
        let gone = CudaError::NotDevice { address: offer.address, what: "the rank that offered it has dropped it" };
        let memory = found.ok_or(gone)?;
        context.enable_peer(memory.context())?;
        Ok((memory.address(), Held::Shared { _memory: memory }))
    }

    /// Where member `member`'s memory begins, for kernels of this member.
    pub fn address(&self, member: usize) -> u64 {
        self.addresses[member]
    }

    /// All members' addresses.
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// This member's own memory.
    pub fn own(&self) -> &Arc<DeviceMemory> {
        &self.own
    }

    /// Whether other processes have mapped this member's memory.
    pub fn is_exported(&self) -> bool {
        self.held.iter().any(|held| matches!(held, Held::Imported { .. }))
    }

    /// Closes the mappings of the others' memory, which no command uses any more, and returns the own memory. It may be
    /// dropped when every other member has closed its mapping of it; where that cannot be known,
    /// [abandon](Mapped::abandon) it.
    pub fn close(self) -> Arc<DeviceMemory> {
        self.own
    }

    /// Keeps memory until the process ends: somebody may still have it mapped.
    pub fn abandon(memory: Arc<DeviceMemory>) {
        tracing::warn!(bytes = memory.bytes(), "device memory is kept: another process may still have it mapped");
        std::mem::forget(memory);
    }
}
