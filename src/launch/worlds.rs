//! How many worlds this process has met at a place: counts that all copies of this library in the
//! process share.
//!
//! There may be several: Python's extension module beside `libmaypole.so`, or plugins that each
//! have one linked in. Their worlds meet at the same address or on the same board, where they are
//! told apart by how many came before. So these are the process's counts, and not a copy's own.
//!
//! *Where they are.* In a page of memory that has a name, by which the other copies find it in
//! `/proc/self/maps`. Copies have no symbol in common (each is hidden from the others, and has to
//! be), and the environment is not for threads. A child by `fork` has a copy of the page, as of all
//! its memory. The name says how the page is laid out, since copies may be of different releases.
//!
//! *Who makes it.* Whoever does not find it; and that two who look at the same time do not make
//! two, they look within `dl_iterate_phdr`, which holds a lock of the C library's, of which the
//! process has only one.
//!
//! Where there is no `/proc`, or no memory with a name is to be had, each copy counts for itself.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The page's name, to its last letter.
const NAME: &std::ffi::CStr = c"maypole-worlds-1";
/// How many places there is room for: a page.
const PLACES: usize = 4096 / size_of::<Place>();

/// A place, and how many worlds this process has met there.
#[repr(C)]
struct Place {
    /// A hash of its name; 0: nobody has asked for this one yet.
    hash: AtomicU64,
    worlds: AtomicU64,
}

/// The page that this copy uses, once it has looked.
static PAGE: AtomicPtr<[Place; PLACES]> = AtomicPtr::new(null_mut());
/// In its place where there is none.
static OWN: [Place; PLACES] = empty();

const fn empty() -> [Place; PLACES] {
    [const { Place { hash: AtomicU64::new(0), worlds: AtomicU64::new(0) } }; PLACES]
}

/// How many worlds this process has met at the place of this name. Takes no lock once the page is
/// found.
pub fn met_at(place: &str) -> &'static AtomicU64 {
    count(page(), place)
}

fn count<'a>(page: &'a [Place; PLACES], place: &str) -> &'a AtomicU64 {
    let hash = blake3::hash(place.as_bytes());
    let hash = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes")) | 1;
    let first = hash as usize / 2 % PLACES;
    for place in page[first..].iter().chain(&page[..first]) {
        // An entry is taken once and never given back.
        match place.hash.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return &place.worlds,
            Err(taken) if taken == hash => return &place.worlds,
            Err(_) => {}
        }
    }
    // So many places that some share a count, which all ranks of a program do alike.
    &page[first].worlds
}

fn page() -> &'static [Place; PLACES] {
    let known = PAGE.load(Ordering::Acquire);
    // SAFETY: null, or a page that is never unmapped.
    if let Some(page) = unsafe { known.as_ref() } {
        return page;
    }
    let mut found: *mut [Place; PLACES] = null_mut();
    // SAFETY: `look` puts an address there, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    if found.is_null() {
        found = (&raw const OWN).cast_mut();
    }
    PAGE.store(found, Ordering::Release);
    // SAFETY: as above, or `OWN`.
    unsafe { &*found }
}

/// Called by the C library with its lock held, for the first object of the process only.
unsafe extern "C" fn look(_object: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    let page = find().or_else(make).unwrap_or(null_mut());
    // SAFETY: `page` called, which has such a place.
    unsafe { found.cast::<*mut [Place; PLACES]>().write(page) };
    1
}

/// The page, if some copy has made it.
fn find() -> Option<*mut [Place; PLACES]> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let end = format!("/memfd:{} (deleted)", NAME.to_str().ok()?);
    let line = maps.lines().find(|line| line.ends_with(&end))?;
    let (start, _) = line.split_once('-')?;
    usize::from_str_radix(start, 16).ok().map(std::ptr::with_exposed_provenance_mut)
}

fn make() -> Option<*mut [Place; PLACES]> {
    let size = size_of::<[Place; PLACES]>();
    // SAFETY: system calls; the mapping is new, and keeps the file when the descriptor is closed.
    unsafe {
        let file = libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC);
        if file < 0 {
            return None;
        }
        let sized = libc::ftruncate(file, size as libc::off_t) == 0;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        let at = if sized { libc::mmap(null_mut(), size, access, kind, file, 0) } else { libc::MAP_FAILED };
        libc::close(file);
        (at != libc::MAP_FAILED).then(|| {
            // Other copies turn the address into a pointer.
            std::ptr::with_exposed_provenance_mut(at.expose_provenance())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_a_count_that_other_copies_find() {
        let (one, other) = (met_at("a test of 127.0.0.1:1"), met_at("a test of 127.0.0.1:2"));
        assert!(!std::ptr::eq(one, other));
        one.fetch_add(3, Ordering::Relaxed);
        assert_eq!((one.load(Ordering::Relaxed), other.load(Ordering::Relaxed)), (3, 0));
        assert!(std::ptr::eq(met_at("a test of 127.0.0.1:1"), one));
        // What another copy would do.
        assert_eq!(find(), Some(PAGE.load(Ordering::Relaxed)), "it looks for what is there");
    }

    #[test]
    fn a_full_page_counts_on() {
        let page = empty();
        let counts: Vec<_> = (0..2 * PLACES).map(|i| count(&page, &i.to_string())).collect();
        let apart: std::collections::BTreeSet<_> = counts.iter().map(|count| std::ptr::from_ref(*count)).collect();
        assert_eq!(apart.len(), PLACES, "each place that has room has its own");
    }
}
