//! How users build on the installed library: with pkg-config, with CMake, and with the static library.

mod prefix;

use std::path::Path;
use std::process::Command;

use prefix::{crate_directory, done, folder, have, prefix, ranks};

/// The example works, with two ranks.
fn works(program: &Path) {
    let lines = ranks(2, &[program.to_str().expect("UTF-8")]);
    assert!(lines.contains(&"[1] rank 1 of 2: sum[0] is 1".to_string()), "{lines:#?}");
}

/// What pkg-config says of the installed library.
fn pkg_config(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(arguments).arg("maypole");
    done(&mut command).split_whitespace().map(str::to_string).collect()
}

#[test]
fn with_pkg_config() {
    if !have("with_pkg_config", "pkg-config") {
        return;
    }
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let example = crate_directory().join("examples/all_reduce.c");
    let program = folder("pkg-config").join("all_reduce");
    let rpath = format!("-Wl,-rpath,{}", prefix().join("lib").display());
    let mut compile = Command::new("cc");
    done(compile.arg(&example).arg("-o").arg(&program).args(pkg_config(&["--cflags", "--libs"])).arg(rpath));
    works(&program);
    // What the program asks the dynamic linker for is the soname, so that a compatible library serves.
    let needed = done(Command::new("readelf").arg("-d").arg(&program));
    assert!(needed.contains("[libmaypole.so.0]"), "{needed}");

    let program = folder("pkg-config").join("all_reduce-static");
    let mut libraries = pkg_config(&["--static", "--libs"]);
    libraries
        .iter_mut()
        .filter(|library| *library == "-lmaypole")
        .for_each(|library| *library = "-l:libmaypole.a".into());
    let mut compile = Command::new("cc");
    done(compile.arg(&example).arg("-o").arg(&program).args(pkg_config(&["--cflags"])).args(libraries));
    works(&program);
    let needed = done(Command::new("readelf").arg("-d").arg(&program));
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
    let version = env!("CARGO_PKG_VERSION");
    let library = format!("lib/libmaypole.so.{version}");
    for file in [
        "lib/libmaypole.so",
        "lib/libmaypole.so.0",
        &library,
        "lib/libmaypole.a",
        "lib/pkgconfig/maypole.pc",
        "include/maypole.h",
        "include/maypole.hpp",
        "share/cmake/maypole/maypole-config.cmake",
    ] {
        assert!(prefix().join(file).is_file(), "{file} is not there");
    }
}
