//! Which version this is and what it can do.

use std::ffi::{c_char, c_int};

use crate::entry::text_of;

/// A part of the version, which Cargo gives as text.
const fn number(text: &str) -> u32 {
    let (digits, mut at, mut value) = (text.as_bytes(), 0, 0);
    while at < digits.len() {
        value = 10 * value + (digits[at] - b'0') as u32;
        at += 1;
    }
    value
}

/// The library's version as one number: 1000000 x major + 1000 x minor + patch. Compare with MAYPOLE_VERSION, which is the
/// header's.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_version() -> u32 {
    let [major, minor, patch] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")].map(number);
    1_000_000 * major + 1_000 * minor + patch
}

/// The library's version as text: "0.1.0". Static.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Whether the library can do something, 1 or 0: "shm", "tcp", "threads", "groups", "persistent", "registered", "user_op",
/// "op_width" (maypole_op_create_with()), "minloc" (and maxloc, on pairs), "premulsum", "bf16",
/// "fp8", "cuda" (1 only where a driver with a device is found now). 0 for names that it does not
/// know, so a program may ask for what later versions have.
///
/// @param feature its name, UTF-8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_has_feature(feature: *const c_char) -> c_int {
    const ALWAYS: [&str; 12] = [
        "shm",
        "tcp",
        "threads",
        "groups",
        "persistent",
        "registered",
        "user_op",
        "op_width",
        "minloc",
        "premulsum",
        "bf16",
        "fp8",
    ];
    // SAFETY: the caller's promise.
    let feature = unsafe { text_of("feature", feature) };
    let has = match feature {
        Ok(Some("cuda")) => std::panic::catch_unwind(|| maypole::cuda::probe().is_ok()).unwrap_or(false),
        Ok(Some(feature)) => ALWAYS.contains(&feature),
        _ => false,
    };
    c_int::from(has)
}
