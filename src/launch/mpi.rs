//! MPI in the same process: it may use the launcher's connection, too.
//!
//! A launcher gives each rank one connection (PMI's descriptor, the session of the PMIx library), and programs that use
//! both MPI and Maypole have two users of it. Whoever comes second finds it greeted already, which launchers allow. But
//! a farewell counts for the whole process. So Maypole never says it before the process ends, and leaves it to MPI where
//! that has been initialised. (Open MPI 5.0's `MPI_Init` fails where anybody has initialised PMIx before: there it must
//! come first.)

use std::ffi::c_int;
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_LAZY};

/// `RTLD_NOLOAD`: only what is loaded already.
const NOT_TO_LOAD: c_int = libc::RTLD_NOLOAD;

/// Shared objects of this process whose file's name begins with `prefix`.
pub(super) fn loaded(prefix: &str) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    let named =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix));
    let mut found: Vec<PathBuf> = paths.filter(named).collect();
    found.dedup();
    found
}

/// A library that is in this process already.
pub(super) fn already_loaded(path: &std::path::Path) -> Option<Library> {
    // SAFETY: with this flag nothing is loaded, so no initialisers run.
    unsafe { Library::open(Some(path), RTLD_LAZY | NOT_TO_LOAD) }.ok()
}

/// Whether an MPI library of this process has been initialised, finalised or not.
pub(super) fn was_initialised() -> bool {
    let everywhere = std::iter::once(Library::this());
    // Languages load extensions with their libraries apart from the program's own symbols.
    let apart = loaded("libmpi").into_iter().filter_map(|path| already_loaded(&path));
    everywhere.chain(apart).any(|library| {
        let mut yes: c_int = 0;
        // SAFETY: by MPI's standard the function has this type in every implementation, may be called at any time,
        // from any thread, and writes one int.
        unsafe {
            let Ok(ask) = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"MPI_Initialized\0") else {
                return false;
            };
            ask(&mut yes) == 0 && yes != 0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_is_found_and_nothing_else() {
        let libc = loaded("libc.so");
        assert_eq!(libc.len(), 1, "{libc:?}");
        assert!(already_loaded(&libc[0]).is_some());
        assert!(already_loaded(std::path::Path::new("libmpi-that-nobody-has.so")).is_none());
        assert!(!was_initialised());
    }
}
