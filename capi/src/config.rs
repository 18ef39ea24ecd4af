//! A communicator's settings, in a struct that may grow.

use std::ffi::{c_char, c_int};
use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Config, Order};

use crate::entry::text_of;
use crate::status::*;

/// Which transport carries bytes between two ranks: what MAYPOLE_TRANSPORT says, or shared memory within a host and TCP
/// between hosts.
pub const MAYPOLE_TRANSPORT_DEFAULT: c_int = 0;
/// Shared memory within a host, TCP between hosts.
pub const MAYPOLE_TRANSPORT_AUTO: c_int = 1;
/// Shared memory only; an error where two ranks share no host.
pub const MAYPOLE_TRANSPORT_SHM: c_int = 2;
/// TCP only, within a host too.
pub const MAYPOLE_TRANSPORT_TCP: c_int = 3;

/// In which order reductions combine ranks' elements: as MAYPOLE_ORDER says, or the fastest.
pub const MAYPOLE_ORDER_DEFAULT: c_int = 0;
/// The algorithm's order. All ranks of a call get the same bits.
pub const MAYPOLE_ORDER_FREE: c_int = 1;
/// The order of the ranks: the same bits whatever the algorithm, the transport and the message's length.
pub const MAYPOLE_ORDER_CANONICAL: c_int = 2;

/// Settings of a communicator. Begin with `maypole_config config = MAYPOLE_CONFIG_INIT;`. A member that is 0 or NULL leaves
/// its setting to the environment (MAYPOLE_* variables), and that to the default. All ranks should pass the same.
///
/// Later versions add members at the end. `size` tells the library which ones a program knows, so a program that was
/// compiled against an older header keeps working.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct maypole_config {
    /// sizeof(maypole_config), as the program knows it.
    pub size: usize,
    /// Deadline of an operation, seconds; a large number where there shall be none, since infinity
    /// is refused.
    pub timeout: f64,
    /// How long ranks wait for each other when a world is made, seconds.
    pub connect_timeout: f64,
    /// MAYPOLE_TRANSPORT_...
    pub transport: c_int,
    /// MAYPOLE_ORDER_...
    pub order: c_int,
    /// The algorithms to use, as in MAYPOLE_ALGORITHM: "ring" or "all_reduce=ring,broadcast=chain".
    pub algorithm: *const c_char,
    /// Any other settings, as lines NAME=value with the names of the environment variables: "MAYPOLE_SLICE=1M\n...".
    /// `maypole info` lists them.
    pub settings: *const c_char,
}

/// How large the struct was in its first version, which ended with `algorithm`.
const FIRST: usize = std::mem::offset_of!(maypole_config, settings);

/// The settings that `config` and the environment give; NULL: the environment's.
///
/// # Safety
/// `config` is NULL or valid for as many bytes as its `size` says, and its texts are C strings.
pub(crate) unsafe fn config_of(config: *const maypole_config) -> Outcome<Config> {
    let mut settings = Config::from_env()?;
    if config.is_null() {
        return Ok(settings);
    }
    // SAFETY: every version begins with the size.
    let size = unsafe { config.cast::<usize>().read() };
    let known = size_of::<maypole_config>();
    if !(FIRST..=1 << 16).contains(&size) {
        return Err(Fault::argument(format!(
            "config.size is {size}, but the struct has {FIRST} bytes at least; begin with MAYPOLE_CONFIG_INIT"
        )));
    }
    let mut given = std::mem::MaybeUninit::<maypole_config>::zeroed();
    // SAFETY: the caller promises `size` bytes, and there is room for what is copied. All-zero bytes are a config.
    let given = unsafe {
        std::ptr::copy_nonoverlapping(config.cast::<u8>(), given.as_mut_ptr().cast(), size.min(known));
        given.assume_init()
    };
    // SAFETY: the caller promises `size` bytes.
    let beyond = unsafe {
        std::slice::from_raw_parts(config.cast::<u8>().wrapping_add(size.min(known)), size.saturating_sub(known))
    };
    if beyond.iter().any(|byte| *byte != 0) {
        return Err(Fault::argument(format!(
            "config has members set that this version ({}) does not know: its struct has {known} bytes, the program's {size}",
            env!("CARGO_PKG_VERSION")
        )));
    }
    // SAFETY: the caller's promise.
    unsafe { apply(&given, &mut settings) }?;
    Ok(settings)
}

/// # Safety
/// The texts are NULL or C strings.
unsafe fn apply(given: &maypole_config, settings: &mut Config) -> Outcome {
    if let Some(timeout) = seconds("config.timeout", given.timeout)? {
        settings.timeout = timeout;
    }
    if let Some(timeout) = seconds("config.connect_timeout", given.connect_timeout)? {
        settings.connect_timeout = timeout;
    }
    settings.transport = match given.transport {
        MAYPOLE_TRANSPORT_DEFAULT => settings.transport,
        MAYPOLE_TRANSPORT_AUTO => TransportChoice::Auto,
        MAYPOLE_TRANSPORT_SHM => TransportChoice::Shm,
        MAYPOLE_TRANSPORT_TCP => TransportChoice::Tcp,
        other => {
            return Err(Fault::argument(format!("config.transport is {other}, which is no MAYPOLE_TRANSPORT_...")));
        }
    };
    if given.order != MAYPOLE_ORDER_DEFAULT {
        settings.order = order_of("config.order", given.order)?;
    }
    // SAFETY: the caller's promise, here and below.
    if let Some(algorithm) = unsafe { text_of("config.algorithm", given.algorithm) }? {
        settings.set("MAYPOLE_ALGORITHM", algorithm)?;
    }
    // SAFETY: as above.
    let lines = unsafe { text_of("config.settings", given.settings) }?.unwrap_or_default().lines();
    for (number, line) in lines.enumerate() {
        match line.split_once('=') {
            Some((name, value)) => settings.set(name.trim(), value)?,
            None if line.trim().is_empty() => {}
            // The line is not shown: it may hold a secret.
            None => {
                let number = number + 1;
                return Err(Fault::argument(format!("line {number} of config.settings is not of the form NAME=value")));
            }
        }
    }
    Ok(())
}

/// A time in seconds; `None` for 0.
pub(crate) fn seconds(name: &str, seconds: f64) -> Outcome<Option<Duration>> {
    let time = Duration::try_from_secs_f64(seconds);
    let time =
        time.map_err(|_| Fault::argument(format!("{name} is {seconds}, but a number of seconds is expected")))?;
    Ok(Some(time).filter(|time| !time.is_zero()))
}

pub(crate) fn order_of(name: &str, order: c_int) -> Outcome<Order> {
    match order {
        MAYPOLE_ORDER_FREE => Ok(Order::Free),
        MAYPOLE_ORDER_CANONICAL => Ok(Order::Canonical),
        other => Err(Fault::argument(format!("{name} is {other}, which is no MAYPOLE_ORDER_..."))),
    }
}
