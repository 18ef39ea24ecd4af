//! Gives the shared library its soname, which a plain `cargo build` does not (`cargo cbuild`
//! would), and has it stay in memory after a `dlclose`: its threads may be on their way out still.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmaypole.so.0");
    println!("cargo:rerun-if-changed=build.rs");
}
