//! What a user of the C library has: a prefix with the library and its headers, a compiler, and `maypole run`.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

/// The crate's folder.
pub fn crate_directory() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where Cargo has put the libraries: beside this test's executable.
pub fn built() -> PathBuf {
    let executable = std::env::current_exe().expect("the test's own path");
    executable.parent().expect("a file is in a folder").to_path_buf()
}

/// A prefix laid out by `capi/install`.
pub fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        // One for each test executable: those of a crate may run at the same time.
        let name = std::env::current_exe().expect("the test's own path").file_stem().expect("a name").to_os_string();
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).join("prefix");
        done(Command::new(crate_directory().join("install")).arg(&prefix).arg(built()));
        prefix
    })
}

/// A folder for what a test makes.
pub fn folder(name: &str) -> PathBuf {
    let folder = prefix().parent().expect("made above").join(name);
    std::fs::create_dir_all(&folder).expect("a folder under the target directory");
    folder
}

/// Run a command that must succeed; what it printed.
pub fn done(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything that a command printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether a tool is there. Where it is not, says that the test is skipped.
pub fn have(test: &str, tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        skip(test, &format!("there is no {tool}"));
    }
    there
}

/// The words that go before a program's, to run it under valgrind: any error, or a leak of these kinds, is the program's
/// failure.
pub fn under_valgrind(kinds: &str) -> Vec<String> {
    // Without --fair-sched a thread that polls can keep the others from running for seconds.
    let valgrind = ["valgrind", "-q", "--fair-sched=yes", "--error-exitcode=9", "--leak-check=full"];
    let kinds = ["errors-for", "show"].map(|what| format!("--{what}-leak-kinds={kinds}"));
    valgrind.map(str::to_string).into_iter().chain(kinds).collect()
}

/// Say that a test is skipped, past the test harness, which keeps what passing tests print to itself.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: capi::{test}: {why}");
}

/// What pkg-config says of the library installed in a prefix.
pub fn pkg_config(prefix: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).args(arguments).arg("maypole");
    done(&mut command).split_whitespace().map(str::to_string).collect()
}

/// Compile the C example with what pkg-config says of the library in a prefix, linked shared or static.
pub fn example(prefix: &Path, program: &Path, is_static: bool) {
    let mut compile = Command::new("cc");
    compile.arg(crate_directory().join("examples/all_reduce.c")).arg("-o").arg(program);
    compile.args(pkg_config(prefix, &["--cflags"]));
    if is_static {
        let libraries = pkg_config(prefix, &["--static", "--libs"]).into_iter();
        compile.args(libraries.map(|l| if l == "-lmaypole" { "-l:libmaypole.a".into() } else { l }));
    } else {
        compile.args(pkg_config(prefix, &["--libs"]));
        compile.arg(format!("-Wl,-rpath,{}", prefix.join("lib").display()));
    }
    done(&mut compile);
}

/// The example works, with two ranks.
pub fn works(program: &Path) {
    let lines = ranks(2, &[program.to_str().expect("UTF-8")]);
    assert!(lines.contains(&"[1] rank 1 of 2: sum[0] is 1".to_string()), "{lines:#?}");
}

/// What a program asks the dynamic linker for.
pub fn dynamic_section(program: &Path) -> String {
    done(Command::new("readelf").arg("-d").arg(program))
}

/// Whether all files that an installation consists of are in a prefix.
pub fn is_installed(prefix: &Path) {
    let library = format!("lib/libmaypole.so.{}", env!("CARGO_PKG_VERSION"));
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
        assert!(prefix.join(file).is_file(), "{file} is not in {}", prefix.display());
    }
}

/// The names of a library's global symbols; `which`: an option of nm that says which of them.
pub fn symbols(library: &Path, which: &str) -> Vec<String> {
    let listed = done(Command::new("nm").args(["--extern-only", "--format=posix", which]).arg(library));
    // The first line names the object.
    let names = listed.lines().filter(|line| !line.ends_with(':')).filter_map(|line| line.split_whitespace().next());
    // Without its version, which stands behind an `@`.
    names.map(|name| name.split('@').next().unwrap_or(name).to_string()).collect()
}

/// Compile a C or C++ program of the crate's against the prefix, as strictly as it goes. `headers`: where `maypole.h` is, if
/// not in the prefix.
pub fn compile(source: &str, headers: Option<&Path>) -> PathBuf {
    // Tests run at the same time, and none may write a program that another is running.
    static COMPILED: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let program = compiled.get_or_insert_default().entry(source.to_string());
    program.or_insert_with(|| compile_anew(source, headers)).clone()
}

fn compile_anew(source: &str, headers: Option<&Path>) -> PathBuf {
    let (prefix, source) = (prefix(), crate_directory().join(source));
    let stem = source.file_stem().expect("a name").to_owned();
    let program = folder("programs").join(stem);
    let (compiler, standard) = match source.extension().and_then(|end| end.to_str()) {
        Some("c") => ("cc", "-std=c11"),
        _ => ("c++", "-std=c++11"),
    };
    let mut command = Command::new(compiler);
    command.args([standard, "-g", "-Wall", "-Wextra", "-Werror", "-pedantic", "-pthread"]);
    command.arg(format!("-I{}", headers.unwrap_or(&prefix.join("include")).display()));
    command.arg(&source).arg("-o").arg(&program);
    // Of a program that opens the library by itself, this makes nothing that the linker opens.
    command.arg("-Wl,--as-needed").arg(format!("-L{}", prefix.join("lib").display())).args(["-lmaypole", "-ldl"]);
    command.arg(format!("-Wl,-rpath,{}", prefix.join("lib").display()));
    done(&mut command);
    program
}

/// The `maypole` command of this repository.
fn launcher() -> &'static Path {
    static LAUNCHER: OnceLock<PathBuf> = OnceLock::new();
    LAUNCHER.get_or_init(|| {
        let deps = built();
        let directory = deps.parent().expect("deps is in the profile's folder");
        let launcher = directory.join("maypole");
        // Cargo hands the path of an executable only to tests of its own package. Where the whole workspace is tested it
        // is there; one of an earlier build starts ranks as well.
        if launcher.is_file() {
            return launcher;
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-q", "-p", "maypole", "--bin", "maypole"]);
        if directory.ends_with("release") {
            build.arg("--release");
        }
        done(build.current_dir(crate_directory()));
        launcher
    })
}

/// Run a command as so many ranks; its lines, which begin with the rank in brackets.
pub fn ranks(ranks: usize, command: &[&str]) -> Vec<String> {
    ranks_in(&[], ranks, command)
}

/// [`ranks`], with some variables set.
pub fn ranks_in(environment: &[(OsString, OsString)], ranks: usize, command: &[&str]) -> Vec<String> {
    let mut run = Command::new(launcher());
    run.args(["run", "-n", &ranks.to_string(), "--"]).args(command);
    // Without patience for ranks that are late, so that what hangs fails then.
    run.env("MAYPOLE_TIMEOUT", "100").env("MAYPOLE_CONNECT_TIMEOUT", "100").env("MAYPOLE_LATE", "0");
    run.envs(environment.iter().map(|(name, value)| (name, value)));
    done(&mut run).lines().map(str::to_string).collect()
}
