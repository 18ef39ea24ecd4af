//! Addresses and memory apart: a range of addresses is reserved, memory is made in pieces, and pieces are mapped into the
//! range one by one. So does PyTorch with `expandable_segments:True`. To Maypole it matters that one tensor then lies in
//! several mappings, and that the attributes of an address tell of neither: the range that they have is the reserved
//! one, with whatever is not mapped in it. `cuMemGetAddressRange` has the mapping.
//!
//! Of the memory's properties only the device counts: no handles for other processes, no compression. Bytes are counted
//! as the device's while they are mapped.

use crate::abi::*;
use crate::call::{Handles, entries, give};
use crate::context::current;
use crate::device::device;
use crate::mapping::{Mapping, memory_file};
use crate::memory::{self, Allocation, Kind, find};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::fs::File;
use std::sync::LazyLock;

/// Lengths and addresses are multiples of this. A driver's is 2 MiB, which would make tests large; programs ask.
pub const GRANULARITY: usize = 64 << 10;

/// `CUmemLocation`: a type, of which only "a device" is known here, and which device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    kind: u32,
    ordinal: c_int,
}

const ON_DEVICE: u32 = 1;
/// The one kind of memory that there is: it stays where it is.
const PINNED: u32 = 1;

/// `CUmemAllocationProp`: 32 bytes.
#[repr(C)]
pub struct Properties {
    kind: u32,
    handle_types: u32,
    location: Location,
    windows: usize,
    flags: [u8; 8],
}

impl Properties {
    /// Of memory on a device.
    pub fn on(ordinal: c_int) -> Properties {
        let location = Location { kind: ON_DEVICE, ordinal };
        Properties { kind: PINNED, handle_types: 0, location, windows: 0, flags: [0; 8] }
    }
}

/// `CUmemAccessDesc`.
#[repr(C)]
pub struct Access {
    location: Location,
    flags: u32,
}

impl Access {
    /// A device may read and write.
    pub fn by(ordinal: c_int) -> Access {
        Access { location: Location { kind: ON_DEVICE, ordinal }, flags: READ_WRITE }
    }
}

const READ_WRITE: u32 = 3;

const _: () = assert!(size_of::<Properties>() == 32 && size_of::<Access>() == 12);

/// A piece of memory. It stays while it is mapped, also when its handle is gone.
struct Piece {
    file: File,
    bytes: usize,
    device: usize,
}

static PIECES: LazyLock<Handles<Piece>> = LazyLock::new(|| Handles::new(HashMap::new()));
/// Reserved ranges by their first address.
static RESERVED: Mutex<BTreeMap<u64, Mapping>> = Mutex::new(BTreeMap::new());

/// The reserved range that holds an address: where it begins, and its bytes.
pub fn reservation(address: u64) -> Option<(u64, usize)> {
    let reserved = RESERVED.lock();
    let (start, mapping) = reserved.range(..=address).next_back()?;
    (address - start < mapping.data as u64).then_some((*start, mapping.data))
}

/// Whether this can be the length or the address of a mapping.
fn fits(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(GRANULARITY as u64)
}

/// The mappings that make up a range exactly, in order.
fn mapped(address: u64, bytes: usize) -> Outcome<Vec<std::sync::Arc<Allocation>>> {
    let (mut all, mut at) = (Vec::new(), address);
    while at < address + bytes as u64 {
        let next = find(at).filter(|one| one.base == at && one.kind == Kind::Mapped).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        at += next.bytes as u64;
        all.push(next);
    }
    if at == address + bytes as u64 { Ok(all) } else { Err(CUDA_ERROR_INVALID_VALUE) }
}

/// Runs `work` on the reservation that holds a range, with the range's offset in it.
fn in_reservation(address: u64, bytes: usize, work: impl FnOnce(&Mapping, usize) -> Outcome) -> Outcome {
    let reserved = RESERVED.lock();
    let (start, mapping) = reserved.range(..=address).next_back().ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let offset = (address - start) as usize;
    if offset + bytes > mapping.data {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    work(mapping, offset)
}

entries! {
    /// Of what lengths must be multiples.
    fn cuMemGetAllocationGranularity(to: *mut usize, _properties: *const Properties, _option: u32) {
        // SAFETY: the caller's promise.
        unsafe { give(to, GRANULARITY) }
    }

    /// Reserves addresses without memory. Neither a wanted address nor an alignment is heeded.
    fn cuMemAddressReserve(to: *mut u64, bytes: usize, _alignment: usize, _wanted: u64, _flags: u64) {
        if !fits(bytes as u64) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let mapping = Mapping::reserve(bytes, false)?;
        let start = mapping.start();
        RESERVED.lock().insert(start, mapping);
        // SAFETY: the caller's promise.
        unsafe { give(to, start) }
    }

    /// Gives them back; nothing may be mapped there.
    fn cuMemAddressFree(address: u64, bytes: usize) {
        let mut reserved = RESERVED.lock();
        if reserved.get(&address).is_none_or(|one| one.data != bytes) || memory::overlaps(address, bytes) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        reserved.remove(&address);
        Ok(())
    }

    /// Makes memory on a device, without an address.
    fn cuMemCreate(to: *mut u64, bytes: usize, properties: *const Properties, flags: u64) {
        if properties.is_null() || !fits(bytes as u64) || flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: not null; the rest is the caller's promise.
        let location = unsafe { (*properties).location };
        // SAFETY: as above.
        if location.kind != ON_DEVICE || unsafe { (*properties).kind } != PINNED {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        device(location.ordinal)?;
        let piece = Piece { file: memory_file(bytes)?, bytes, device: location.ordinal as usize };
        let handle = PIECES.adopt(std::sync::Arc::new(piece));
        // SAFETY: the caller's promise.
        unsafe { give(to, handle as u64) }
    }

    /// Gives the handle back.
    fn cuMemRelease(handle: u64) {
        PIECES.remove(handle as usize).map(|_| ()).map_err(|_| CUDA_ERROR_INVALID_VALUE)
    }

    /// Puts a whole piece at reserved addresses. Nobody may use it there before `cuMemSetAccess`.
    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        let context = current()?;
        let piece = PIECES.get(handle as usize).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
        if offset != 0 || flags != 0 || bytes != piece.bytes || memory::overlaps(address, bytes) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        in_reservation(address, bytes, |mapping, at| mapping.place(at, bytes, Some(&piece.file)))?;
        Allocation::enter(address, bytes, Kind::Mapped, &context, piece.device, 0, None);
        Ok(())
    }

    /// Lets devices use what is mapped in a range.
    fn cuMemSetAccess(address: u64, bytes: usize, access: *const Access, count: usize) {
        let mappings = mapped(address, bytes)?;
        for at in 0..count {
            // SAFETY: the caller's promise: `count` of them.
            let Access { location, flags } = unsafe { access.add(at).read_unaligned() };
            if location.kind != ON_DEVICE || flags != READ_WRITE {
                return Err(CUDA_ERROR_NOT_SUPPORTED);
            }
            device(location.ordinal)?;
            for one in &mappings {
                one.let_use(location.ordinal as usize);
            }
        }
        Ok(())
    }

    /// Takes what is mapped in a range away, once all streams of the context that mapped it have done what they were
    /// given.
    fn cuMemUnmap(address: u64, bytes: usize) {
        let mappings = mapped(address, bytes)?;
        for one in mappings {
            one.context.synchronize()?;
            memory::remove(one.base, &[Kind::Mapped])?;
            in_reservation(one.base, one.bytes, |mapping, at| mapping.place(at, one.bytes, None))?;
        }
        Ok(())
    }
}
