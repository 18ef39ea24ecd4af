//! Forks: which process something belongs to, and what a child must not keep.
//!
//! A child by `fork` has a copy of its parent's memory and of its descriptors, and of its threads
//! the one that called. It is no rank. So four things are seen to here, by a handler of
//! `pthread_atfork` that runs in every such child before `fork` returns there:
//!
//! * **Descriptors.** The kernel closes a connection when its *last* copy is closed. A child that
//!   kept one would hide its parent's death from the other ranks, hold the port of its doors, and
//!   could write into its streams. What was given to [`close_in_children`] is therefore gone in the
//!   child; its number leads to nothing, so that whoever closes it there closes nothing of the
//!   child's own.
//! * **Values.** Dropping what was inherited would say goodbye in the parent's name, or wait for a
//!   lock or a thread that is not there. An [`Own`] value is dropped in the process that made it,
//!   and in no other.
//! * **Statics.** A lock that another thread of the parent held while it forked is never given back
//!   in the child. What lies behind [`PerProcess`] the child has anew.
//! * **Calls.** [`Process::is_this`] costs a load, so that every call can refuse to serve a child.
//!
//! `vfork` and `posix_spawn` run no handlers and need none: the child has its parent's memory until
//! it executes another program, and all descriptors are closed then. A child by the bare system
//! call `clone` is not seen; it keeps copies of the descriptors, as does one that is forked in the
//! instant in which another thread makes one. That the parent has died must then be found out by
//! other means.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// How often, since [`watch`] was first called, this process' ancestors have forked down to it.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Descriptors whose entries lie together: memory for them is taken when one of them is noted, and
/// kept.
const BLOCK: usize = 1 << 13;
/// So many blocks have room for every number that a descriptor can have.
const BLOCKS: usize = (1 << 31) / BLOCK;
/// What children must not keep, by the number of the descriptor: which file it was, 0 for none. An
/// entry is not removed when the descriptor is closed, since that happens in too many places: by
/// then the number leads to another file, or to none. No locks: a child would find them as they
/// were.
static KEPT: [AtomicPtr<Block>; BLOCKS] = [const { AtomicPtr::new(ptr::null_mut()) }; BLOCKS];
/// All entries from here on are 0.
static END: AtomicUsize = AtomicUsize::new(0);

/// Entries of descriptors in a row.
type Block = [AtomicU64; BLOCK];

/// The block with that number, if it was made.
fn block(number: usize) -> Option<&'static Block> {
    // SAFETY: what is there was leaked by `block_for`, whose Release wrote it before the address.
    unsafe { KEPT[number].load(Ordering::Acquire).as_ref() }
}

/// The block with that number, made if it is not there.
fn block_for(number: usize) -> &'static Block {
    block(number).unwrap_or_else(|| {
        let new = Box::into_raw(Box::new([const { AtomicU64::new(0) }; BLOCK]));
        match KEPT[number].compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: never freed from now on.
            Ok(_) => unsafe { &*new },
            Err(other) => {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: as in `block`.
                unsafe { &*other }
            }
        }
    })
}

/// Notice forks from now on. Called by everything here; a fork before the first call leaves nothing
/// behind in the child.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler touches atomics and makes system calls, which the child of a process
        // with threads may do. Should the system refuse it, forks are not noticed.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// How often this process' ancestors, since one of them first used this crate, have forked down to
/// it: 0 in one that was not forked off. One relaxed load.
#[inline]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// A process, to be told from its forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(u64);

impl Process {
    /// The one that calls.
    pub fn this() -> Process {
        watch();
        Process(generation())
    }

    /// Whether it is the one that calls. One relaxed load.
    #[inline]
    pub fn is_this(self) -> bool {
        self.0 == generation()
    }
}

/// A value of the process that made it. The copy that a fork has of it is never dropped, only
/// forgotten.
#[derive(Debug)]
pub struct Own<T> {
    process: Process,
    value: ManuallyDrop<T>,
}

impl<T> Own<T> {
    /// The caller's.
    pub fn new(value: T) -> Own<T> {
        Own { process: Process::this(), value: ManuallyDrop::new(value) }
    }

    /// Whether it is this process'.
    #[inline]
    pub fn is_ours(&self) -> bool {
        self.process.is_this()
    }
}

impl<T> Deref for Own<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Own<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: dropped only here, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// A static value that each process of a line of forks has for itself, as `T::default()` makes it
/// at the first use: a child does not see its parent's, which another thread may have been at.
///
/// Made under a pointer, not a lock, since the child would inherit that. Of two threads that come
/// first one wins; the other drops what it has made.
pub struct PerProcess<T>(AtomicPtr<(Process, T)>);

impl<T: Default + Send + Sync> PerProcess<T> {
    /// None has been made yet.
    pub const fn new() -> PerProcess<T> {
        PerProcess(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// The caller's, if it has made one. Does not allocate.
    pub fn made(&'static self) -> Option<&'static T> {
        let there = self.0.load(Ordering::Acquire);
        // SAFETY: null, or made in `get` and never freed: a child forgets what its parent had.
        unsafe { there.as_ref() }.filter(|(process, _)| process.is_this()).map(|(_, value)| value)
    }

    /// The caller's.
    pub fn get(&'static self) -> &'static T {
        let mut there = self.0.load(Ordering::Acquire);
        loop {
            // SAFETY: as in `made`.
            match unsafe { there.as_ref() } {
                Some((process, value)) if process.is_this() => return value,
                _ => {}
            }
            let made = Box::into_raw(Box::new((Process::this(), T::default())));
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match self.0.compare_exchange(there, made, order.0, order.1) {
                Ok(_) => there = made,
                Err(other) => {
                    // SAFETY: made above, and nobody else has seen it.
                    drop(unsafe { Box::from_raw(made) });
                    there = other;
                }
            }
        }
    }
}

impl<T: Default + Send + Sync> Default for PerProcess<T> {
    fn default() -> PerProcess<T> {
        PerProcess::new()
    }
}

/// Have children by `fork` not keep `fd`, a socket or a file that is this process' own, which may
/// close it at any time.
pub fn close_in_children(fd: impl AsFd) {
    watch();
    let fd = fd.as_fd().as_raw_fd();
    let Some(file) = file(fd) else { return };
    block_for(fd as usize / BLOCK)[fd as usize % BLOCK].store(file, Ordering::Relaxed);
    END.fetch_max(fd as usize + 1, Ordering::Relaxed);
}

/// Which file a descriptor leads to: never 0, and never the same for two sockets or two files that
/// exist at the same time. `None` if it is closed.
fn file(fd: RawFd) -> Option<u64> {
    let mut about = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: there is room for what is asked. The call may be made in a signal handler and after a
    // fork.
    if unsafe { libc::fstat(fd, about.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in, as the call succeeded.
    let about = unsafe { about.assume_init() };
    Some(about.st_ino.rotate_left(32) ^ about.st_dev | 1)
}

/// What `fork` runs in the child. Nothing here allocates, locks or panics.
extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    // What stands in place of the descriptors: reads and writes of it fail at once.
    let mut nothing = -1;
    let end = END.swap(0, Ordering::Relaxed);
    let blocks = (0..end.div_ceil(BLOCK)).filter_map(|number| Some((number * BLOCK, block(number)?)));
    for (fd, entry) in blocks.flat_map(|(first, block)| (first..).zip(block)) {
        let kept = entry.swap(0, Ordering::Relaxed);
        let fd = fd as RawFd;
        if kept == 0 || file(fd) != Some(kept) {
            continue;
        }
        // SAFETY: system calls on a descriptor that is the parent's own, as its file shows; nobody
        // in the child uses it.
        unsafe {
            if nothing < 0 {
                nothing = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            }
            // Without a number to spare it is merely closed, and then there is one.
            if nothing < 0 || libc::dup3(nothing, fd, libc::O_CLOEXEC) < 0 {
                libc::close(fd);
            }
        }
    }
    if nothing >= 0 {
        // SAFETY: made above.
        unsafe { libc::close(nothing) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Read;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Run `body` in a child; whether it returned `true` there.
    fn in_a_child(body: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child only runs `body`, which makes system calls and touches atomics, and
        // exits.
        match unsafe { libc::fork() } {
            0 => {
                let code = i32::from(!body());
                // SAFETY: no conditions.
                unsafe { libc::_exit(code) }
            }
            child => {
                assert!(child > 0);
                let mut status = 0;
                // SAFETY: waits for the child made above.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                status == 0
            }
        }
    }

    #[test]
    fn a_child_keeps_no_copy_and_other_files_are_left_alone() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (other, _end) = UnixStream::pair().unwrap();
        close_in_children(&ours);
        // A number that was noted and leads to another file by now.
        let (closed, _also) = UnixStream::pair().unwrap();
        close_in_children(&closed);
        let number = closed.as_raw_fd();
        // SAFETY: `closed` owned the number, and is the stream made here from now on.
        unsafe { assert_eq!(libc::dup2(other.as_raw_fd(), number), number) };
        std::mem::forget(closed);
        // SAFETY: as above.
        let reused = unsafe { UnixStream::from_raw_fd(number) };
        let open = |fd: RawFd| file(fd).is_some();
        assert!(in_a_child(|| {
            let byte = c"x".as_ptr().cast();
            // SAFETY: the byte is there.
            let sent = unsafe { libc::send(ours.as_raw_fd(), byte, 1, libc::MSG_NOSIGNAL) };
            sent < 0 && open(ours.as_raw_fd()) && file(reused.as_raw_fd()) == file(other.as_raw_fd())
        }));
        // While a child lives that had a copy, the end of the parent's is the end of the connection.
        // SAFETY: as in `in_a_child`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: no conditions.
                unsafe { libc::pause() };
            }
        }
        drop(ours);
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let read = theirs.read(&mut [0]);
        // SAFETY: the child made above.
        unsafe { assert!(libc::kill(child, libc::SIGKILL) == 0 && libc::waitpid(child, &mut 0, 0) == child) };
        assert_eq!(read.expect("the child keeps the connection"), 0);
    }

    /// Large jobs have as many: the library raises the limit to the hard one.
    #[test]
    fn descriptors_of_any_number_are_closed() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let number = 70_000.min(hard as RawFd - 1);
        if (number as usize) < BLOCK {
            eprintln!("skipped: fork::descriptors_of_any_number_are_closed: the hard limit is {hard}");
            return;
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        // SAFETY: a new descriptor, which is owned by what is made of it.
        let high = unsafe {
            let high = libc::fcntl(ours.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number);
            assert!(high >= number, "{}", std::io::Error::last_os_error());
            UnixStream::from_raw_fd(high)
        };
        close_in_children(&high);
        let stream = file(high.as_raw_fd());
        assert!(in_a_child(|| file(high.as_raw_fd()) != stream));
        assert_eq!(file(high.as_raw_fd()), stream, "the parent keeps it");
    }

    #[test]
    fn a_lock_that_was_held_is_not_held_in_the_child() {
        static COUNT: PerProcess<std::sync::Mutex<u32>> = PerProcess::new();
        let mut count = COUNT.get().lock().unwrap();
        *count = 7;
        assert!(in_a_child(|| {
            let inherited = COUNT.made().is_some();
            !inherited && COUNT.get().try_lock().is_ok_and(|count| *count == 0)
        }));
        drop(count);
        assert_eq!(*COUNT.get().lock().unwrap(), 7);
    }

    #[test]
    fn what_is_inherited_is_forgotten() {
        struct Flag<'a>(&'a AtomicU64);
        impl Drop for Flag<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let dropped = AtomicU64::new(0);
        let (value, process) = (Own::new(Flag(&dropped)), Process::this());
        assert!(value.is_ours() && process.is_this());
        let value = std::cell::Cell::new(Some(value));
        assert!(in_a_child(|| {
            let foreign = value.take().is_some_and(|value| !value.is_ours()) && !process.is_this();
            // One of the child's own is dropped there.
            drop(Own::new(Flag(&dropped)));
            foreign && dropped.load(Ordering::Relaxed) == 1
        }));
        drop(value);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }
}
