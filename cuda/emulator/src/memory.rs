//! Memory that devices can use: what exists, what was freed, and `cuMemAlloc`.
//!
//! A device address is the address at which the memory lies in this process. Each allocation of a device is a file
//! without a name (a memfd), so that another process can map it; behind it is a page that nobody may touch, and the
//! allocation ends as near to that page as 512-byte alignment lets it. The bytes between its end and the page hold a
//! pattern that must still be there when it is freed. Freed ranges stay reserved for a while, so that a stale pointer
//! is known to be one.
//!
//! CUDA does not clear memory: fresh memory holds a pattern, at its ends always and throughout while `CHAOS` is on.

use crate::abi::*;
use crate::call::{entries, give};
use crate::context::{Context, current};
use crate::mapping::{Mapping, PAGE, memory_file, was_freed};
use crate::streams::stream_of;
use crate::switches::SWITCHES;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// What an allocation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Device memory of this process.
    Device,
    /// The same, from the device's pool: of no context, for no other process, and not for peers, whose access to a pool
    /// is another call's to allow.
    Pool,
    /// Device memory of another process.
    Imported,
    /// Device memory that was mapped into a reserved range, one mapping of it.
    Mapped,
    /// Memory that moves between host and device by itself.
    Managed,
    /// Pinned host memory that the driver allocated.
    Pinned,
    /// Memory of the host's that was registered.
    Registered,
    /// Pinned or registered memory as devices see it, where that is somewhere else.
    DeviceView,
}

/// One allocation.
pub struct Allocation {
    pub base: u64,
    pub bytes: usize,
    pub kind: Kind,
    pub context: Arc<Context>,
    /// The device it lies on, which for an imported one need not be the context's.
    pub device: usize,
    /// Never used twice: `CU_POINTER_ATTRIBUTE_BUFFER_ID`.
    pub id: u64,
    /// Flags that host memory was allocated or registered with.
    pub flags: u32,
    /// Devices that may use a mapping, a bit each.
    allowed: AtomicU64,
    /// Of host memory with a second address that address, and of that the host's; otherwise 0.
    pub beside: AtomicU64,
    pub mapping: Option<Mapping>,
}

/// Alignment of device memory. CUDA's is at least 256; allocations inside a driver's block have 512.
const ALIGNMENT: usize = 512;
/// What lies between the end of an allocation and the page behind it.
const CANARY: u8 = 0xC5;
/// What fresh memory holds.
const JUNK: u8 = 0xA5;
/// What is left in memory that its owner freed while another process had it open.
const POISON: u8 = 0xDB;

static LIVE: RwLock<BTreeMap<u64, Arc<Allocation>>> = RwLock::new(BTreeMap::new());
static IDS: AtomicU64 = AtomicU64::new(1);
/// Held while memory is counted and taken.
static ALLOCATING: Mutex<()> = Mutex::new(());

/// Allocations whose bytes behind the end were written to.
pub static OVERRUNS: AtomicU64 = AtomicU64::new(0);
/// Allocations that were freed while another process had them open.
pub static FREED_WHILE_OPEN: AtomicU64 = AtomicU64::new(0);

/// What a word among a kernel's parameters is.
pub enum Use {
    /// A pointer that the kernel may use.
    Allowed(Arc<Allocation>),
    /// A pointer into memory that was freed.
    Freed,
    /// A pointer into memory that is not mapped for this context, such as the host's.
    NotReachable,
    /// Not a pointer.
    NoDevicePointer,
}

impl Allocation {
    /// Enters an allocation in the table.
    pub fn enter(
        base: u64,
        bytes: usize,
        kind: Kind,
        context: &Arc<Context>,
        device: usize,
        flags: u32,
        mapping: Option<Mapping>,
    ) -> u64 {
        let id = IDS.fetch_add(1, Relaxed);
        let (context, allowed, beside) = (context.clone(), AtomicU64::new(0), AtomicU64::new(0));
        let allocation = Allocation { base, bytes, kind, context, device, id, flags, allowed, beside, mapping };
        LIVE.write().insert(base, Arc::new(allocation));
        base
    }

    /// Whether kernels of a context may use it.
    pub fn is_reached_from(&self, context: &Context) -> bool {
        const PORTABLE: u32 = 1;
        match self.kind {
            Kind::Pinned | Kind::Registered if self.beside.load(SeqCst) != 0 => false,
            Kind::Pinned | Kind::Managed => true,
            Kind::Registered | Kind::DeviceView => self.flags & PORTABLE != 0 || self.context.handle == context.handle,
            Kind::Device | Kind::Imported => context.reaches(&self.context),
            Kind::Pool => context.device == self.device,
            Kind::Mapped => self.allowed.load(SeqCst) & (1 << context.device) != 0,
        }
    }

    /// From now on that device may use this mapping.
    pub fn let_use(&self, device: usize) {
        self.allowed.fetch_or(1 << device, SeqCst);
    }
}

/// The allocation that an address lies in.
pub fn find(address: u64) -> Option<Arc<Allocation>> {
    let live = LIVE.read();
    let (_, allocation) = live.range(..=address).next_back()?;
    (address - allocation.base < allocation.bytes as u64).then(|| allocation.clone())
}

/// All of them.
pub fn all() -> Vec<Arc<Allocation>> {
    LIVE.read().values().cloned().collect()
}

/// Takes the allocation that begins at an address, if it is of one of these kinds, off the table.
pub fn remove(base: u64, kinds: &[Kind]) -> Outcome<Arc<Allocation>> {
    let mut live = LIVE.write();
    if !live.get(&base).is_some_and(|allocation| kinds.contains(&allocation.kind)) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    live.remove(&base).ok_or(CUDA_ERROR_INVALID_VALUE)
}

/// Whether any allocation has a byte in a range.
pub fn overlaps(start: u64, bytes: usize) -> bool {
    let live = LIVE.read();
    let before = live.range(..start + bytes as u64).next_back();
    before.is_some_and(|(_, allocation)| allocation.base + allocation.bytes as u64 > start)
}

/// For one side of a copy, when it is called: the allocation that holds the whole range; `None` for pageable memory.
pub fn range(address: u64, bytes: usize) -> Outcome<Option<Arc<Allocation>>> {
    match find(address) {
        Some(allocation) if (address - allocation.base) as usize + bytes <= allocation.bytes => Ok(Some(allocation)),
        // The rest may be mapped behind it.
        Some(allocation) if allocation.kind == Kind::Mapped => {
            let end = allocation.base + allocation.bytes as u64;
            let rest = range(end, bytes - (end - address) as usize)?;
            if rest.is_some_and(|rest| rest.kind == Kind::Mapped) {
                Ok(Some(allocation))
            } else {
                Err(CUDA_ERROR_INVALID_VALUE)
            }
        }
        Some(_) => Err(CUDA_ERROR_INVALID_VALUE),
        None if address == 0 || was_freed(address) || overlaps(address, bytes) => Err(CUDA_ERROR_INVALID_VALUE),
        None => Ok(None),
    }
}

/// The same when the command runs: what is gone by then is an illegal address.
pub fn still_there(address: u64, bytes: usize) -> Outcome<Option<Arc<Allocation>>> {
    range(address, bytes).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)
}

/// What a word among a kernel's parameters is.
pub fn use_of(word: u64, context: &Context) -> Use {
    // Where this system maps memory. Small numbers and the bits of most floating-point values are outside.
    if !(0x1000_0000_0000..0x1_0000_0000_0000).contains(&word) {
        return Use::NoDevicePointer;
    }
    if let Some(allocation) = find(word) {
        return if allocation.is_reached_from(context) { Use::Allowed(allocation) } else { Use::NotReachable };
    }
    if was_freed(word) {
        return Use::Freed;
    }
    if is_mapped(word, 1) { Use::NotReachable } else { Use::NoDevicePointer }
}

/// Whether all pages of a range are mapped in this process.
pub fn is_mapped(address: u64, bytes: usize) -> bool {
    let start = address as usize & !(PAGE - 1);
    let length = (address as usize + bytes.max(1)).next_multiple_of(PAGE) - start;
    let mut resident = vec![0u8; length / PAGE];
    // SAFETY: writes one byte for each page into a vector of that many, and changes no page.
    unsafe { libc::mincore(start as *mut c_void, length, resident.as_mut_ptr()) == 0 }
}

/// Whether it is device memory that this process has taken.
pub fn is_own(kind: Kind) -> bool {
    matches!(kind, Kind::Device | Kind::Pool | Kind::Managed | Kind::Mapped)
}

/// Bytes allocated on a device by this process.
pub fn bytes_in_use(device: usize) -> usize {
    let live = LIVE.read();
    let here = live.values().filter(|one| one.device == device && is_own(one.kind));
    here.map(|allocation| allocation.bytes).sum()
}

/// A context has ended, and what was allocated in it with it.
pub fn forget_context(handle: usize) {
    LIVE.write().retain(|_, allocation| allocation.context.handle != handle);
}

/// Waits for the context, where the switch `ALLOCATION_WAITS` says so.
pub fn before_allocating(context: &Context) -> Outcome {
    if SWITCHES.waiting_allocations.load(Relaxed) { context.synchronize() } else { Ok(()) }
}

fn allocate(context: &Arc<Context>, bytes: usize, kind: Kind) -> Outcome<u64> {
    if bytes == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let _counting = ALLOCATING.lock();
    let limit = SWITCHES.memory.load(Relaxed) as usize;
    if bytes_in_use(context.device).checked_add(bytes).is_none_or(|sum| sum > limit) {
        return Err(CUDA_ERROR_OUT_OF_MEMORY);
    }
    let (used, data) = (bytes.next_multiple_of(ALIGNMENT), bytes.next_multiple_of(PAGE));
    let shared = kind == Kind::Device;
    let mut mapping = Mapping::reserve(data, shared)?;
    mapping.fill(if shared { Some(memory_file(data + PAGE)?) } else { None })?;
    if let Some(control) = mapping.control() {
        control.nonce.store(nonce(), SeqCst);
    }
    let base = mapping.start() + (data - used) as u64;
    let edge = if SWITCHES.chaos.load(Relaxed) == 0 { (64 << 10).min(bytes) } else { bytes };
    for (at, length, byte) in [(0, edge, JUNK), (bytes - edge, edge, JUNK), (bytes, used - bytes, CANARY)] {
        // SAFETY: inside the pages that were mapped just now for this allocation, which nobody knows yet.
        unsafe { std::ptr::write_bytes((base as *mut u8).add(at), byte, length) };
    }
    Ok(Allocation::enter(base, bytes, kind, context, context.device, 0, Some(mapping)))
}

/// A number that two allocations of a machine do not share: it is made of a process, a time and a count.
fn nonce() -> u64 {
    let time =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    (time ^ (u64::from(std::process::id()) << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ IDS.fetch_add(1, Relaxed)
}

/// What `cuMemFree` takes back.
pub const FREED_BY_CALL: [Kind; 3] = [Kind::Device, Kind::Pool, Kind::Managed];

/// Frees what was allocated on a device. Waits for the whole context first, as the driver does.
fn free(base: u64) -> Outcome {
    let owner = find(base).filter(|one| one.base == base && FREED_BY_CALL.contains(&one.kind));
    let owner = owner.ok_or(CUDA_ERROR_INVALID_VALUE)?.context.clone();
    owner.synchronize()?;
    let allocation = remove(base, &FREED_BY_CALL)?;
    let behind = allocation.bytes.next_multiple_of(ALIGNMENT) - allocation.bytes;
    // SAFETY: the bytes behind the allocation up to its alignment are mapped with it.
    let canary = unsafe { std::slice::from_raw_parts((base as *const u8).add(allocation.bytes), behind) };
    let overrun = canary.iter().any(|byte| *byte != CANARY);
    if let Some(control) = allocation.mapping.as_ref().and_then(Mapping::control) {
        control.freed.store(1, SeqCst);
        if control.opened.load(SeqCst) > 0 {
            FREED_WHILE_OPEN.fetch_add(1, Relaxed);
            // SAFETY: the allocation is mapped as long as `allocation` lives, and no stream of this context runs.
            unsafe { std::ptr::write_bytes(base as *mut u8, POISON, allocation.bytes) };
        }
    }
    if overrun {
        OVERRUNS.fetch_add(1, Relaxed);
        eprintln!("maypole emulator: something wrote behind the {} bytes at {base:#x}", allocation.bytes);
        owner.break_with(CUDA_ERROR_ILLEGAL_ADDRESS);
        return Err(CUDA_ERROR_ILLEGAL_ADDRESS);
    }
    Ok(())
}

entries! {
    /// Device memory, uninitialised.
    fn cuMemAlloc_v2(to: *mut u64, bytes: usize) {
        let context = current()?;
        before_allocating(&context)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, allocate(&context, bytes, Kind::Device)?) }
    }

    /// Memory of the device's pool, to be used behind this on the stream. Waits for nothing; it is there at once, and
    /// freed as any other.
    fn cuMemAllocAsync(to: *mut u64, bytes: usize, stream: usize) {
        let context = stream_of(stream)?.context.clone();
        // SAFETY: the caller's promise.
        unsafe { give(to, allocate(&context, bytes, Kind::Pool)?) }
    }

    /// Memory for host and device; here the same pages for both.
    fn cuMemAllocManaged(to: *mut u64, bytes: usize, _flags: u32) {
        let context = current()?;
        before_allocating(&context)?;
        // SAFETY: the caller's promise.
        unsafe { give(to, allocate(&context, bytes, Kind::Managed)?) }
    }

    /// Frees it, once all streams of its context have done what they were given.
    fn cuMemFree_v2(address: u64) {
        current()?;
        if address == 0 { Ok(()) } else { free(address) }
    }

    /// The allocation that an address lies in; of mapped memory the mapping.
    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) {
        current()?;
        let allocation = find(address).ok_or(CUDA_ERROR_NOT_FOUND)?;
        if !base.is_null() {
            // SAFETY: the caller's promise.
            unsafe { give(base, allocation.base)? };
        }
        // SAFETY: checked here; a null pointer is allowed.
        if bytes.is_null() { Ok(()) } else { unsafe { give(bytes, allocation.bytes) } }
    }
}
