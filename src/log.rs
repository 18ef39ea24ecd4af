//! Logging: `MAYPOLE_LOG=info` (or `debug`, or any filter of `tracing-subscriber`) prints to standard error.

/// Install a subscriber for `filter`, if there is one. A program that has a subscriber of its own keeps it.
pub(crate) fn init(filter: Option<&str>) {
    let Some(filter) = filter else { return };
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("MAYPOLE_LOG={filter}: {error}; using info");
        tracing_subscriber::EnvFilter::new("info")
    });
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
