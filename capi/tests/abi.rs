//! What programs that are compiled already rely on: exported symbols, signatures, values and layouts are those of
//! `capi/abi/abi.txt`, and a program made with the header of the first version works.

mod prefix;

use std::process::Command;

use prefix::{built, compile, crate_directory, done, prefix, ranks};

/// The exported symbols.
fn symbols() -> Vec<String> {
    let library = built().join("libmaypole_capi.so");
    let listed = done(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library));
    let mut symbols: Vec<String> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_string).collect();
    symbols.sort();
    symbols
}

/// The header without comments and line breaks: a declaration or a definition in each entry.
fn declarations() -> Vec<String> {
    let header = std::fs::read_to_string(crate_directory().join("../include/maypole.h")).expect("the header");
    let mut code = String::new();
    let mut rest = header.as_str();
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").expect("comments end").1;
    }
    code.push_str(rest);
    let (directives, code): (Vec<&str>, Vec<&str>) = code.lines().partition(|line| line.starts_with('#'));
    let values = directives.into_iter().filter(|line| line.starts_with("#define MAYPOLE_"));
    let values = values.filter(|line| line.split(' ').count() > 2 && !line.contains("MAYPOLE_VERSION"));
    let code = code.join(" ").replace("extern \"C\" {", "");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    // A struct's members are checked by their offsets: it may grow at its end.
    let declared = code.split(';').map(words).filter(|entry| entry.contains("maypole_") && entry.contains('('));
    let mut all: Vec<String> = declared.chain(values.map(words)).collect();
    all.sort();
    all
}

fn layouts() -> Vec<String> {
    let program = compile("tests/programs/layouts.c", None);
    done(&mut Command::new(program)).lines().map(str::to_string).collect()
}

#[test]
fn nothing_that_programs_rely_on_has_changed() {
    let symbols = symbols();
    assert!(symbols.iter().all(|symbol| symbol.starts_with("maypole_")), "only maypole_* is exported: {symbols:#?}");
    for symbol in &symbols {
        let declared = declarations().iter().any(|entry| entry.contains(&format!("{symbol}(")));
        assert!(declared, "{symbol} is exported, but not in the header");
    }
    let sections = [("symbols", symbols), ("declarations and values", declarations()), ("layouts", layouts())];
    let found: String = sections.iter().map(|(name, lines)| format!("[{name}]\n{}\n\n", lines.join("\n"))).collect();
    let at = crate_directory().join("abi/abi.txt");
    if std::env::var_os("MAYPOLE_RENEW").is_some() {
        std::fs::write(&at, &found).unwrap();
    }
    let listed = std::fs::read_to_string(&at).unwrap_or_default();
    let gone: Vec<&str> = listed.lines().filter(|line| !found.lines().any(|other| other == *line)).collect();
    assert!(
        gone.is_empty(),
        "programs that are compiled already rely on what is gone or changed: {gone:#?}\nIf that is meant, it needs \
         another soname (capi/build.rs, capi/install, capi/Cargo.toml)."
    );
    assert_eq!(
        listed, found,
        "there is something new in the ABI. If it is meant to stay, renew the list with\n    MAYPOLE_RENEW=1 cargo test \
         -p maypole-capi --test abi"
    );
}

#[test]
fn programs_ask_for_symbols_of_a_version() {
    let version = format!("MAYPOLE_{}", env!("CARGO_PKG_VERSION_MAJOR"));
    let library = prefix().join("lib/libmaypole.so");
    let listed = done(Command::new("readelf").args(["--dyn-syms", "--wide"]).arg(&library));
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().nth(7)).collect();
    for symbol in symbols() {
        assert!(names.contains(&format!("{symbol}@@{version}").as_str()), "{symbol} has no version: {listed}");
    }
    let program = compile("examples/all_reduce.c", None);
    let wanted = done(Command::new("readelf").args(["--version-info", "--wide"]).arg(program));
    assert!(wanted.contains(&version), "{wanted}");
}

#[test]
fn a_program_of_the_first_version_keeps_working() {
    let program = compile("tests/programs/first_version.c", Some(&crate_directory().join("abi/first")));
    let lines = ranks(2, &[program.to_str().expect("UTF-8")]);
    assert_eq!(lines.iter().filter(|line| line.ends_with("fine")).count(), 2, "{lines:#?}");
}
