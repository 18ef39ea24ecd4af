//! Gives the shared library its soname, which a plain `cargo build` does not (`cargo cbuild` would).

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmaypole.so.0");
    println!("cargo:rerun-if-changed=build.rs");
}
