//! The PTX in the tree is what its sources give, and assembles for every processor that the kernels are for.

use std::io::Write;
use std::path::Path;
use std::process::Command;

/// What `scripts/kernels` exits with where NVIDIA's compiler is not installed.
const NOT_INSTALLED: i32 = 77;

/// Past the test harness, which keeps the output of tests that pass to itself.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: kernels::the_ptx_is_what_its_sources_give: {why}");
}

#[test]
fn the_ptx_is_what_its_sources_give() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kernels");
    if !script.exists() {
        skipped("the sources are not here");
        return;
    }
    let output = Command::new(script).args(["--check", "--no-install"]).output().unwrap();
    if output.status.code() == Some(NOT_INSTALLED) {
        eprintln!(
            "skipped: the PTX is not compared with its sources: run scripts/kernels to install NVIDIA's compiler"
        );
        return;
    }
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
