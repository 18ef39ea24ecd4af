//! For tests: how a process gets the emulator in place of a driver.
//!
//! Cargo builds the shared object whenever a crate that has this one as a dev-dependency builds its tests, and puts it
//! beside the test binaries. There are two ways from there:
//!
//! * **in this process**, [`load`] opens it by its path. Whoever asks the loader for `libcuda.so` from then on is given
//!   it, since the loader compares names with what is loaded before it searches. It must be the first in the process
//!   that asks: whoever found a driver before keeps that;
//! * **a child** gets it by [`environment`], which puts a folder with `libcuda.so` and `libcuda.so.1` in front of the
//!   loader's search.
//!
//! A test binary that links this crate contains a second copy of the emulator's code, which nothing calls.

mod segments;

pub use segments::Segments;

use crate::control::Counters;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, CString, OsString, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The emulator that was loaded into this process.
pub struct Emulator {
    library: Library,
}

/// Loads the emulator into this process, once. To be called before anything asks for a driver.
///
/// # Panics
/// If the shared object is not there or cannot be loaded; the text says where it was looked for.
pub fn load() -> &'static Emulator {
    static LOADED: OnceLock<Emulator> = OnceLock::new();
    LOADED.get_or_init(|| {
        let path = library();
        // SAFETY: the library is this crate's; it has no initialisers.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        Emulator { library: library.unwrap_or_else(|error| panic!("{} cannot be loaded: {error}", path.display())) }
    })
}

impl Emulator {
    /// Sets a switch (see the crate's documentation) for the whole process. Tests of one binary that do so must take
    /// turns.
    ///
    /// # Panics
    /// If there is no such switch, or it cannot have this value.
    pub fn set(&self, name: &str, value: &str) {
        type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char;
        let texts = [name, value].map(|text| CString::new(text).expect("no zero inside"));
        // SAFETY: the type is that of the function in src/control.rs, and both are C strings.
        let why = unsafe {
            self.library.get::<Set>(b"maypole_emulator_set\0").expect("exported")(texts[0].as_ptr(), texts[1].as_ptr())
        };
        if !why.is_null() {
            // SAFETY: not null, so a C string that stays.
            let why = unsafe { CStr::from_ptr(why) }.to_string_lossy();
            panic!("the emulator's switch {name} cannot be {value:?}: {why}");
        }
    }

    /// What exists in this process now.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: the type is that of the function in src/control.rs, and the place is valid.
        unsafe {
            self.library.get::<unsafe extern "C" fn(*mut Counters)>(b"maypole_emulator_counters\0").expect("exported")(
                &mut counters,
            );
        }
        counters
    }

    /// How often a function of the driver was called in this process, `_v2` or not; with `*` all of them together.
    pub fn calls(&self, function: &str) -> u64 {
        type Calls = unsafe extern "C" fn(*const c_char) -> u64;
        let name = CString::new(function).expect("no zero inside");
        // SAFETY: the type is that of the function in src/control.rs, and the name is a C string.
        unsafe { self.library.get::<Calls>(b"maypole_emulator_calls\0").expect("exported")(name.as_ptr()) }
    }
}

/// Variables with which a child process finds the emulator in place of a driver. Add switches beside them.
///
/// # Panics
/// As [`load`], and if links cannot be made beside the shared object.
pub fn environment() -> Vec<(OsString, OsString)> {
    let library = library();
    let folder = library.with_file_name("emulated-driver");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{} cannot be made: {error}", folder.display()));
    for name in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        // Test binaries run at the same time: made beside, then put in place.
        let made = folder.join(format!("{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&made);
        let done = std::os::unix::fs::symlink(&library, &made).and_then(|()| std::fs::rename(&made, &link));
        done.unwrap_or_else(|error| panic!("{} cannot be made: {error}", link.display()));
    }
    let mut path = OsString::from(folder);
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    vec![("LD_LIBRARY_PATH".into(), path)]
}

/// Where the shared object is: beside the running binary, in `deps` below it, in `deps` beside its folder, or where
/// `scripts/gpu-check` packs it.
///
/// # Panics
/// If it is in none of these places.
pub fn library() -> PathBuf {
    const NAME: &str = "libmaypole_cuda_emulator.so";
    let binary = std::env::current_exe().expect("the system knows the running binary");
    let folder = binary.parent().unwrap_or(Path::new("/"));
    let packed = folder.join("../emulator/libcuda.so.1");
    let places = [folder.join(NAME), folder.join("deps").join(NAME), folder.join("../deps").join(NAME), packed];
    match places.iter().find(|place| place.exists()) {
        Some(place) => place.canonicalize().expect("it exists"),
        None => panic!("the emulator's shared object is at none of {places:?}: build it with cargo test --no-run"),
    }
}
