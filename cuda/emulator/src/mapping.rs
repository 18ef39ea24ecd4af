//! Addresses: reserving them, putting memory there, and remembering for a while that they were freed.

use crate::abi::*;
use parking_lot::RwLock;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Size of a page.
pub const PAGE: usize = 4096;
/// Freed ranges that stay reserved.
const QUARANTINE: usize = 4096;

/// Addresses that belong to an allocation, and the file behind them.
pub struct Mapping {
    start: u64,
    length: usize,
    /// Where the data ends and the page begins that nobody may touch.
    pub data: usize,
    pub file: Option<File>,
    /// Whether a page shared with those who import the memory lies behind.
    control: bool,
}

/// What the processes that have an allocation mapped know in common.
#[repr(C)]
pub struct Control {
    /// Tells this allocation from any other that had its descriptor before or after.
    pub nonce: AtomicU64,
    /// Its owner has freed it.
    pub freed: AtomicU32,
    /// How often it is open elsewhere. A process that died without closing stays counted.
    pub opened: AtomicU32,
}

/// Freed ranges that are still reserved.
struct Freed {
    /// By where each starts, where it ends.
    ends: BTreeMap<u64, u64>,
    /// Start and length, the longest freed first.
    order: VecDeque<(u64, usize)>,
}

static FREED: RwLock<Freed> = RwLock::new(Freed { ends: BTreeMap::new(), order: VecDeque::new() });

impl Mapping {
    /// Reserves addresses, with a page behind `data` bytes that nobody may touch.
    pub fn reserve(data: usize, control: bool) -> Outcome<Mapping> {
        let length = data + PAGE + if control { PAGE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        Ok(Mapping { start: start as u64, length, data, file: None, control })
    }

    /// Puts memory there: the file's pages, or nobody's.
    pub fn fill(&mut self, file: Option<File>) -> Outcome {
        let (sharing, descriptor) = file
            .as_ref()
            .map_or((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1), |file| (libc::MAP_SHARED, file.as_raw_fd()));
        let parts = [(0, self.data, 0), (self.data + PAGE, PAGE, self.data)];
        for (at, bytes, offset) in &parts[..1 + usize::from(self.control)] {
            let (place, flags) = ((self.start as usize + at) as *mut c_void, sharing | libc::MAP_FIXED);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: replaces pages of this reservation, which nobody uses yet.
            let put = unsafe { libc::mmap(place, *bytes, protection, flags, descriptor, *offset as libc::off_t) };
            if put == libc::MAP_FAILED {
                return Err(CUDA_ERROR_MAP_FAILED);
            }
        }
        self.file = file;
        Ok(())
    }

    /// Puts a file's pages at an offset of the data, or takes away what is there.
    pub fn place(&self, offset: usize, bytes: usize, file: Option<&File>) -> Outcome {
        let place = (self.start as usize + offset) as *mut c_void;
        let (protection, kind, descriptor) = match file {
            Some(file) => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
        };
        debug_assert!(offset + bytes <= self.data);
        // SAFETY: replaces pages of this reservation, in which no live allocation has any now.
        let put = unsafe { libc::mmap(place, bytes, protection, kind | libc::MAP_FIXED, descriptor, 0) };
        if put == libc::MAP_FAILED { Err(CUDA_ERROR_MAP_FAILED) } else { Ok(()) }
    }

    /// Where the data begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The page shared with importers.
    pub fn control(&self) -> Option<&Control> {
        // SAFETY: `fill` has put a page there, which stays as long as the mapping; all its fields are atomic, and any
        // bits are valid for them.
        self.control.then(|| unsafe { &*((self.start as usize + self.data + PAGE) as *const Control) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the reservation is this mapping's alone, and no live allocation refers to it any more.
        unsafe { libc::mmap(self.start as *mut c_void, self.length, libc::PROT_NONE, flags, -1, 0) };
        let mut freed = FREED.write();
        freed.ends.insert(self.start, self.start + self.length as u64);
        freed.order.push_back((self.start, self.length));
        while freed.order.len() > QUARANTINE
            && let Some((start, length)) = freed.order.pop_front()
        {
            freed.ends.remove(&start);
            // SAFETY: as above; nobody is told of these addresses any more.
            unsafe { libc::munmap(start as *mut c_void, length) };
        }
    }
}

/// Whether an address lies in a range that was freed not long ago.
pub fn was_freed(address: u64) -> bool {
    FREED.read().ends.range(..=address).next_back().is_some_and(|(_, end)| address < *end)
}

/// A file that lives as long as somebody has it open or mapped.
pub fn memory_file(bytes: usize) -> Outcome<File> {
    // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"maypole-emulated-device".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(CUDA_ERROR_OUT_OF_MEMORY);
        }
        File::from_raw_fd(descriptor)
    };
    file.set_len(bytes as u64).map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
    Ok(file)
}
