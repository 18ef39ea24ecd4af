//! The training example as an executable, for the tests that run it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The example's executable. It is a package of its own, of which Cargo tells this one's tests nothing; so this builds
/// it, into the target directory and by the profile that this test was built by, and of the whole workspace, so that
/// its dependencies are those that were built with everything else.
pub static EXAMPLE: LazyLock<PathBuf> = LazyLock::new(|| {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let name = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        name => name,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--workspace", "--bin", "train_digits", "--profile", name, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(profile.parent().unwrap())
        .status()
        .unwrap();
    assert!(built.success(), "building the example: {built}");
    profile.join("train_digits")
});
