//! `include/maypole.h` is what cbindgen makes of the sources today.

use std::path::Path;

/// The header as it should be.
fn generated() -> String {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = crate_directory.join("cbindgen.toml");
    let mut config = cbindgen::Config::from_file(&file).expect("capi/cbindgen.toml");
    let parts = ["MAJOR", "MINOR", "PATCH"].map(|part| {
        let value = std::env::var(format!("CARGO_PKG_VERSION_{part}")).expect("Cargo sets it for tests");
        value.parse::<u32>().expect("a number")
    });
    let version = parts[0] * 1_000_000 + parts[1] * 1_000 + parts[2];
    config.after_includes = config.after_includes.map(|text| text.replace("@VERSION@", &version.to_string()));
    let sources = cbindgen::Builder::new().with_config(config);
    // Module by module, in the order in which a reader wants them.
    let modules = [
        "status",
        "error",
        "version",
        "values",
        "operation",
        "config",
        "communicator",
        "stream",
        "request",
        "collectives",
        "collectives_v",
        "messages",
        "start",
        "start_v",
        "persistent",
        "persistent_v",
        "group",
        "memory",
    ];
    let sources =
        modules.iter().fold(sources, |all, name| all.with_src(crate_directory.join(format!("src/{name}.rs"))));
    let mut header = Vec::new();
    sources.generate().expect("cbindgen understands the sources").write(&mut header);
    String::from_utf8(header).expect("UTF-8")
}

#[test]
fn the_checked_in_header_is_up_to_date() {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/maypole.h");
    let generated = generated();
    if std::env::var_os("MAYPOLE_RENEW").is_some() {
        std::fs::write(&at, &generated).unwrap();
    }
    let there = std::fs::read_to_string(&at).unwrap_or_default();
    let first = generated.lines().zip(there.lines()).position(|(new, old)| new != old);
    assert!(
        there == generated,
        "include/maypole.h is stale (line {}); renew it with\n    MAYPOLE_RENEW=1 cargo test -p maypole-capi --test header",
        first.map_or(0, |line| line + 1)
    );
    assert!(there.contains("Every rank's output becomes the reduction"), "comments come through");
}
