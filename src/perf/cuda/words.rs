//! Words for measurements: in one piece of host memory that devices reach, of one rank alone or of
//! all ranks of a host.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use maypole_cuda::Word;
use maypole_cuda::driver::{HostRegion, HostRegistration};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{Gpu, cuda};
use crate::{Communicator, Error, Result};

/// Whole pages on every machine that has a driver.
const BYTES: usize = 64 << 10;
/// Words lie so many bytes apart that none shares a cache line.
const APART: usize = 128;

/// Words, all 0 at first, as long as this lives.
pub struct Words {
    registration: HostRegistration,
}

impl Words {
    /// Of this rank alone.
    ///
    /// # Errors
    /// The driver's.
    pub fn private(gpu: &Gpu) -> Result<Words> {
        Words::of(gpu, &HostRegion::private(BYTES))
    }

    /// The same words on all ranks of `comm`, which are on one host. Every rank calls it; it blocks
    /// until all have.
    ///
    /// # Errors
    /// The driver's, the communicator's, and the system's where it refuses memory.
    pub fn shared(gpu: &Gpu, comm: &Communicator) -> Result<Words> {
        let failed = |e: &dyn std::fmt::Display| Error::system("sharing words among ranks", e);
        // The others open it through the process that has made it; it goes with its last mapping.
        let made = (comm.rank() == 0).then(|| -> Result<File> {
            let fd = memfd_create(c"maypole-words", MFdFlags::MFD_CLOEXEC);
            let file = File::from(fd.map_err(|e| failed(&e))?);
            file.set_len(BYTES as u64).map_err(|e| failed(&e))?;
            Ok(file)
        });
        let made = made.transpose()?;
        let descriptor = made.as_ref().map_or(0, AsRawFd::as_raw_fd);
        let mut named = [u64::from(std::process::id()), descriptor as u64];
        comm.broadcast(&mut named, 0)?;
        let path = format!("/proc/{}/fd/{}", named[0], named[1]);
        let file = File::options().read(true).write(true).open(path).map_err(|e| failed(&e))?;
        let mapping = Mapping::of(&file).map_err(|e| failed(&e))?;
        comm.barrier()?;
        let at = mapping.0.cast();
        // SAFETY: the mapping is as long, stays as long as the `Arc`, and is used as atomics only.
        Words::of(gpu, &unsafe { HostRegion::new(at, BYTES, Arc::new(mapping)) })
    }

    fn of(gpu: &Gpu, region: &HostRegion) -> Result<Words> {
        let registration = HostRegistration::new(&gpu.context, region);
        Ok(Words { registration: registration.map_err(cuda("registering host memory with the device"))? })
    }

    /// A word by its number. It must not be used once this is gone.
    pub fn word(&self, number: usize) -> Word {
        let at = APART * number;
        assert!(at < BYTES, "there are {} words", BYTES / APART);
        let host = self.registration.region().as_ptr().wrapping_add(at).cast::<AtomicU32>();
        let host = NonNull::new(host).expect("memory is not at 0");
        // SAFETY: inside the region, which is registered as long as this lives, and used as
        // atomics only.
        unsafe { Word::new(host, self.registration.address() + at as u64) }
    }
}

/// Pages that other processes have too.
struct Mapping(NonNull<std::ffi::c_void>);

// SAFETY: an address; those who use the memory answer for that.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(file: &File) -> nix::Result<Mapping> {
        let length = NonZeroUsize::new(BYTES).expect("not 0");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the system's choice.
        unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }.map(Mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` with this length, and nobody uses it any more.
        let _ = unsafe { munmap(self.0, BYTES) };
    }
}
