//! Memory that processes share: memfds and mappings of them.
//!
//! A memfd is a file without a name (and not one under /dev/shm, which containers keep small).
//! Whoever has its descriptor can map it, and could cut it off under everybody's feet, which is a
//! signal at the next touch. So each is sealed when it is made, and one that was received is asked
//! for its seals and its length.
//!
//! # When memory is taken
//!
//! A mapping costs addresses; memory is taken page by page when it is first touched, or when it is
//! [set aside](set_aside). The two differ in how they fail: setting aside returns an error, a touch
//! that the system cannot serve is a signal. Memory that is surely used and would be noticed is set
//! aside (registered buffers). The rest of a segment is touched as it is used: it is laid out for
//! all pairs of ranks, of which most never exchange a byte. That is safe as long as the system
//! promises more memory than it has, as it does by default: it then never refuses a page, though it
//! may end a process for want of one. Where it [is strict](is_strict) (`vm.overcommit_memory=2`) a
//! segment is set aside whole, since nothing else gives an error in time.
//!
//! # What others see of it
//!
//! A core dump would give memory to every page of a segment, touched or not, so segments are left
//! out. A child by `fork` does not get them mapped: it is no rank, and copying the page tables
//! would take time.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};

use crate::{LinkError, Result, fork};

/// Bytes that are set aside at a time. The system takes back what it has done of a call that a
/// signal interrupts, so one call for much would never end under a profiler's timer.
const PORTION: usize = 1 << 20;

const MAKING: &str = "making shared memory";
const OPENING: &str = "opening shared memory";

/// Bytes of a page: what can be mapped, and given back to the system, lies at multiples of it.
pub(super) fn page() -> usize {
    #[cfg(test)]
    if let Some(size) = fake::PAGE.get() {
        return size;
    }
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        // SAFETY: it asks a number.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
    })
}

/// Whether the system promises no more memory than it has, so that a page that was not set aside
/// may be refused.
pub(super) fn is_strict() -> bool {
    #[cfg(test)]
    if fake::STRICT.get() {
        return true;
    }
    static STRICT: OnceLock<bool> = OnceLock::new();
    *STRICT
        .get_or_init(|| std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2"))
}

fn error(doing: &'static str, what: impl std::fmt::Display) -> LinkError {
    LinkError::Io { doing, source: std::io::Error::other(what.to_string()) }
}

/// A new memfd of `bytes` zero bytes, which nobody can shorten. `grows`: it may become longer.
///
/// # Errors
/// [`LinkError::Io`] when the system allows no memfds, or none as long.
pub(super) fn memfd(bytes: usize, grows: bool) -> Result<OwnedFd> {
    let refused = |e| error(MAKING, format!("memfd_create: {e}{}", advice(e)));
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Nobody executes it: some systems want that said, and those before Linux 6.3 do not know the
    // word.
    let not_executable = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let fd = match memfd_create(c"maypole", flags | not_executable) {
        Err(Errno::EINVAL) => memfd_create(c"maypole", flags),
        made => made,
    };
    let fd = fd.map_err(refused)?;
    fork::close_in_children(&fd);
    check_limit(bytes as u64)?;
    nix::unistd::ftruncate(&fd, bytes as i64).map_err(|e| error(MAKING, e.desc()))?;
    let growth = if grows { SealFlag::empty() } else { SealFlag::F_SEAL_GROW };
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL | growth;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| error(MAKING, format!("sealing it: {e}")))?;
    Ok(fd)
}

/// What to do about a refusal, for people.
fn advice(refusal: Errno) -> &'static str {
    match refusal {
        Errno::EACCES | Errno::EPERM | Errno::ENOSYS => {
            " (refused by the sysctl vm.memfd_noexec or by a seccomp filter: allow it, or set MAYPOLE_TRANSPORT=tcp)"
        }
        _ => "",
    }
}

/// Refuse to make a file longer than the process may: the system says it by a signal.
fn check_limit(end: u64) -> Result<()> {
    match getrlimit(Resource::RLIMIT_FSIZE) {
        Ok((limit, _)) if end > limit => Err(error(
            MAKING,
            format!(
                "it takes {end} bytes, and files of this process are limited to {limit} (ulimit -f): raise that, or set MAYPOLE_TRANSPORT=tcp"
            ),
        )),
        _ => Ok(()),
    }
}

/// Check that a descriptor that another process handed over is a memfd that nobody can shorten, of
/// at least `bytes` bytes.
pub(super) fn check(fd: &OwnedFd, bytes: usize) -> Result<()> {
    let sealed = fcntl(fd, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK));
    let about = nix::sys::stat::fstat(fd).map_err(|e| error(OPENING, e))?;
    if !sealed || about.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(error(OPENING, "what was handed over is not memory that Maypole made"));
    }
    check_size(about.st_size, bytes)
}

fn check_size(size: i64, bytes: usize) -> Result<()> {
    match usize::try_from(size) {
        Ok(size) if size >= bytes => Ok(()),
        _ => Err(error(OPENING, format!("it has {size} bytes, but this rank's settings ask for {bytes}"))),
    }
}

/// Have the system set `bytes` bytes from `at` on aside now, near the core this runs on; the file
/// grows as far as that.
///
/// # Errors
/// [`LinkError::Io`] when there is not enough memory, or the file may not be as long.
pub(super) fn set_aside(fd: impl AsFd, at: u64, bytes: usize) -> Result<()> {
    check_limit(at.saturating_add(bytes as u64))?;
    let mut done = 0;
    while done < bytes {
        let portion = PORTION.min(bytes - done);
        match fallocate(&fd, FallocateFlags::empty(), (at + done as u64) as i64, portion as i64) {
            Ok(()) => done += portion,
            Err(Errno::EINTR) => {}
            // A filter allows the usual calls only. What is set aside reads as zero and nobody uses
            // it yet, so it may as well be written.
            Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                done += write_zeros(&fd, at + done as u64, portion)?;
            }
            Err(e) => return Err(error("setting memory aside", e)),
        }
    }
    Ok(())
}

/// Write zeros from `at` on; how many, `bytes` at most.
fn write_zeros(fd: impl AsFd, at: u64, bytes: usize) -> Result<usize> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    loop {
        match nix::sys::uio::pwrite(&fd, &ZEROS[..bytes.min(ZEROS.len())], at as i64) {
            Ok(written @ 1..) => return Ok(written),
            Err(Errno::EINTR) => {}
            Ok(0) => return Err(error("setting memory aside", "nothing can be written")),
            Err(e) => return Err(error("setting memory aside", e)),
        }
    }
}

/// Give the memory of `bytes` bytes from `at` on back. They read as zero.
pub(super) fn give_back(fd: impl AsFd, at: u64, bytes: usize) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Where the system does not do it, the memory goes with the file.
    while fallocate(&fd, flags, at as i64, bytes as i64) == Err(Errno::EINTR) {}
}

/// Map `bytes` bytes, at least one, from an offset in a file, or of memory that only threads of
/// this process share.
pub(super) fn map(bytes: usize, file: Option<(&OwnedFd, u64)>) -> Result<NonNull<u8>> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
    let length = std::num::NonZeroUsize::new(bytes).expect("shared memory is never empty");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
    let mapped = unsafe {
        match file {
            Some((fd, at)) => mmap(None, length, access, flags, fd, at as i64),
            None => mmap_anonymous(None, length, access, flags),
        }
    };
    Ok(mapped.map_err(|e| error("mapping shared memory", e))?.cast())
}

/// Do one of madvise(2)'s things to memory that was mapped. Where the system does not know it,
/// nothing is lost but what it is for.
///
/// # Safety
/// The bytes are mapped, begin at a page, and may have that done to them.
pub(super) unsafe fn advise(at: NonNull<u8>, bytes: usize, advice: libc::c_int) {
    // SAFETY: the caller's promise.
    let _ = unsafe { libc::madvise(at.as_ptr().cast(), bytes, advice) };
}

/// [`map`] what is the ranks' alone: no core dump shows it, and no child by `fork` has it.
pub(super) fn map_apart(bytes: usize, file: Option<(&OwnedFd, u64)>) -> Result<NonNull<u8>> {
    let at = map(bytes, file)?;
    for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // SAFETY: mapped above, and nobody relies on either.
        unsafe { advise(at, bytes, advice) };
    }
    Ok(at)
}

#[cfg(test)]
pub(super) mod fake {
    use std::cell::Cell;

    thread_local! {
        /// A page size that this thread takes for the system's.
        pub static PAGE: Cell<Option<usize>> = const { Cell::new(None) };
        /// Whether this thread takes the system for strict.
        pub static STRICT: Cell<bool> = const { Cell::new(false) };
    }
}
