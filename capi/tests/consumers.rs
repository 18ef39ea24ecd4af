//! How users build on the installed library: with pkg-config, with CMake, and with the static library.

mod prefix;

use std::process::Command;

use prefix::{crate_directory, done, dynamic_section, example, folder, have, is_installed, pkg_config, prefix, works};

#[test]
fn with_pkg_config() {
    if !have("with_pkg_config", "pkg-config") {
        return;
    }
    assert_eq!(pkg_config(prefix(), &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let program = folder("pkg-config").join("all_reduce");
    example(prefix(), &program, false);
    works(&program);
    // What the program asks the dynamic linker for is the soname, so that a compatible library serves.
    let needed = dynamic_section(&program);
    assert!(needed.contains("[libmaypole.so.0]"), "{needed}");

    let program = folder("pkg-config").join("all_reduce-static");
    example(prefix(), &program, true);
    works(&program);
    let needed = dynamic_section(&program);
    assert!(!needed.contains("libmaypole"), "{needed}");
}

#[test]
fn with_cmake() {
    if !have("with_cmake", "cmake") {
        return;
    }
    let build = folder("cmake");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(crate_directory().join("tests/cmake")).arg("-B").arg(&build);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display()));
    configure.arg(format!("-DEXAMPLE={}", crate_directory().join("examples/all_reduce.c").display()));
    done(&mut configure);
    done(Command::new("cmake").arg("--build").arg(&build));
    works(&build.join("shared"));
    works(&build.join("static"));
}

#[test]
fn the_installed_files() {
    is_installed(prefix());
}
