//! Logging: `MAYPOLE_LOG=info` (or `debug`, or any filter of `tracing-subscriber`) prints to standard error. Warnings
//! that somebody whose job hangs must see are printed there without it, too.

use std::fmt::Arguments;
use std::io::Write;

/// Install a subscriber for `filter`, if there is one. A program that has a subscriber of its own keeps it.
pub(crate) fn init(filter: Option<&str>) {
    let Some(filter) = filter else { return };
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "MAYPOLE_LOG={filter}: {error}; using info");
        tracing_subscriber::EnvFilter::new("info")
    });
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Warn whoever runs this program: through the program's subscriber or that of `MAYPOLE_LOG`, and where there is neither
/// on standard error.
pub(crate) fn warn(what: Arguments<'_>) {
    if tracing::dispatcher::has_been_set() {
        tracing::warn!("{what}");
    } else {
        say(what);
    }
}

/// In the same way, an error that no call may ever return.
pub(crate) fn error(what: Arguments<'_>) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{what}");
    } else {
        say(what);
    }
}

fn say(what: Arguments<'_>) {
    // Whoever has closed standard error does not want to know.
    let _ = writeln!(std::io::stderr(), "maypole: {what}");
}
