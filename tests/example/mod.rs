//! The training example as an executable, for the tests that run it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The example's executable. Cargo hands tests the paths of binaries but not of examples, and `cargo test --test` does
/// not even build them; so this builds it, into the target directory and by the profile that this test was built by.
pub static EXAMPLE: LazyLock<PathBuf> = LazyLock::new(|| {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let name = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        name => name,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", "train_digits", "--profile", name, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(profile.parent().unwrap())
        .status()
        .unwrap();
    assert!(built.success(), "building the example: {built}");
    profile.join("examples").join("train_digits")
});
