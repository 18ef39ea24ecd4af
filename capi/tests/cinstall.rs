//! `cargo cinstall` lays out the prefix that `capi/install` does. It needs cargo-c (`cargo install cargo-c`); without it the
//! test is skipped, and says so.

mod prefix;

use std::path::Path;
use std::process::Command;

use prefix::{
    crate_directory, done, dynamic_section, example, folder, have, is_installed, pkg_config, skip, symbols, works,
};

const TEST: &str = "cinstall";

/// Whether there is a cargo-c that understands this workspace.
fn found() -> bool {
    let Ok(said) = Command::new("cargo-cbuild").args(["cbuild", "--version"]).output() else {
        skip(TEST, "there is no cargo-cbuild in PATH; `cargo install cargo-c` makes it");
        return false;
    };
    // 0.10.11 is the first that is made of a cargo for edition 2024. Some old ones do not say what they are.
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let number = said.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let parts: Vec<u32> = number.unwrap_or("0").split(['.', '+', '-']).map_while(|part| part.parse().ok()).collect();
    let serves = parts >= vec![0, 10, 11];
    if !serves {
        skip(TEST, &format!("cargo-c is too old for edition 2024: {said:?}, but 0.10.11 or later is needed"));
    }
    serves
}

#[test]
fn cinstall() {
    if !found() || !have(TEST, "pkg-config") {
        return;
    }
    let prefix = folder("cinstall");
    let mut install = Command::new("cargo-cinstall");
    install.args(["cinstall", "--profile", "dev", "--libdir", "lib", "--manifest-path"]);
    install.arg(crate_directory().join("Cargo.toml")).arg("--prefix").arg(&prefix);
    done(&mut install);
    is_installed(&prefix);
    assert_eq!(pkg_config(&prefix, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    for header in ["maypole.h", "maypole.hpp"] {
        let read = |folder: &Path| std::fs::read_to_string(folder.join("include").join(header)).expect("a header");
        let ours = crate_directory().parent().expect("the workspace");
        assert!(read(&prefix) == read(ours), "{header} is another one");
    }

    let shared = prefix.join("all_reduce");
    example(&prefix, &shared, false);
    works(&shared);
    let needed = dynamic_section(&shared);
    assert!(needed.contains("[libmaypole.so.0]"), "{needed}");
    let exported = symbols(&prefix.join("lib/libmaypole.so"), "--dynamic");
    assert!(exported.iter().any(|name| name == "maypole_all_reduce"), "{exported:#?}");

    // As it comes, and with its inner symbols hidden.
    let archive = prefix.join("lib/libmaypole.a");
    for is_hidden in [false, true] {
        if is_hidden {
            done(Command::new(crate_directory().join("hide")).arg(&archive));
            let defined = symbols(&archive, "--defined-only");
            assert!(defined.iter().all(|name| name.starts_with("maypole_")), "{defined:#?}");
        }
        let program = prefix.join("all_reduce-static");
        example(&prefix, &program, true);
        works(&program);
        let needed = dynamic_section(&program);
        assert!(!needed.contains("libmaypole"), "{needed}");
    }
}
