//! Compiles the kernels for the host, and gives the library the name under which it is looked for.
//!
//! Every `../kernels/*.cu` and `tests/kernels/*.cu` is compiled as C++ through `../kernels/host_shim.h` and linked,
//! with `src/kernel/run.cpp`, into one shared object that the library carries inside itself (`src/twins.rs`). A
//! shared object, so that a kernel is found by its entry name, as the driver finds it in PTX, whatever macro made that
//! name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    // cudarc asks for "libcuda.so" first, and the loader compares that with the names of what is already loaded before
    // it searches. So a process that has loaded this file by its path gets it, even where a real driver is installed.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    // Whoever looks whether a driver is there opens and closes it; its threads must not lose their code.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let kernels = here.join("../kernels");
    let shim = kernels.join("host_shim.h");
    let run = here.join("src/kernel/run.cpp");
    let mut sources = cu_files(&kernels);
    sources.extend(cu_files(&here.join("tests/kernels")));
    sources.push(run);
    for watched in [&kernels, &here.join("tests/kernels"), &here.join("src/kernel")] {
        println!("cargo:rerun-if-changed={}", watched.display());
    }

    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("twins.so");
    let compiler = cc::Build::new().cpp(true).cpp_link_stdlib(None).opt_level(2).get_compiler();
    let mut command: Command = compiler.to_command();
    command.args(["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]);
    // The device contracts products and sums into one rounding only where told to, and so must the host.
    command.args(["-ffp-contract=off", "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti", "-DMAYPOLE_HOST_TWIN"]);
    command.arg("-include").arg(&shim).args(&sources).arg("-o").arg(&out);
    let status =
        command.status().unwrap_or_else(|error| panic!("{} cannot be run: {error}", compiler.path().display()));
    assert!(status.success(), "the kernels do not compile for the host; the compiler's words stand above");
}

/// The `.cu` files of a folder, in a fixed order; none if there is no such folder.
fn cu_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "cu")).collect();
    files.sort();
    files
}
