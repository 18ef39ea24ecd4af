//! The static library: only what the header declares is global in it, so that it goes together with whatever else a program
//! is made of.

mod prefix;

use std::path::{Path, PathBuf};
use std::process::Command;

use prefix::{crate_directory, done, folder, prefix, ranks, symbols};

/// What the static library needs of the system.
fn system() -> Vec<String> {
    let file = std::fs::read_to_string(prefix().join("lib/pkgconfig/maypole.pc")).expect("capi/install made it");
    let line = file.lines().find_map(|line| line.strip_prefix("Libs.private: ")).expect("the file names them");
    line.split_whitespace().map(str::to_string).collect()
}

/// Link a program from sources and libraries, with what the static library needs.
fn link(name: &str, compiler: &str, parts: &[&Path]) -> PathBuf {
    let program = folder("static").join(name);
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic"]).arg(format!("-I{}", prefix().join("include").display()));
    done(command.args(parts).args(system()).arg("-o").arg(&program));
    program
}

/// Run a program as two ranks; each prints this line.
fn prints(program: &Path, line: impl Fn(usize) -> String) {
    let lines = ranks(2, &[program.to_str().expect("UTF-8")]);
    for rank in 0..2 {
        let expected = format!("[{rank}] {}", line(rank));
        assert!(lines.contains(&expected), "{}: no {expected:?} in {lines:#?}", program.display());
    }
}

#[test]
fn only_the_headers_functions_are_global() {
    let archive = prefix().join("lib/libmaypole.a");
    let defined = symbols(&archive, "--defined-only");
    let strange: Vec<&String> = defined.iter().filter(|name| !name.starts_with("maypole_")).collect();
    assert!(strange.is_empty(), "{} other symbols are global: {strange:#?}", strange.len());
    let mut shared = symbols(&prefix().join("lib/libmaypole.so"), "--dynamic");
    shared.retain(|name| name.starts_with("maypole_"));
    assert!(shared.len() > 50 && shared.iter().all(|name| defined.contains(name)), "{defined:#?}");
    // Everything of Rust's is inside.
    let wanted = symbols(&archive, "--undefined-only");
    let rust: Vec<&String> = wanted.iter().filter(|name| name.starts_with("_R") || name.contains("rust_")).collect();
    assert!(rust.is_empty(), "not found inside: {rust:#?}");
    // An unoptimised build has 14 MB; all of its objects had 91.
    let bytes = archive.metadata().expect("it is there").len();
    assert!(bytes < 30_000_000, "{bytes} bytes");
}

#[test]
fn the_examples_link_against_it() {
    let archive = prefix().join("lib/libmaypole.a");
    let examples = crate_directory().join("examples");
    let program = link("all_reduce", "cc", &[&examples.join("all_reduce.c"), &archive]);
    prints(&program, |rank| format!("rank {rank} of 2: sum[0] is 1"));
    let program = link("ring", "c++", &[&examples.join("ring.cpp"), &archive]);
    prints(&program, |rank| format!("rank {rank} of 2: token 1"));
    // What a program does not call need not be in it.
    let small =
        link("all_reduce-small", "cc", &[&examples.join("all_reduce.c"), &archive, "-Wl,--gc-sections".as_ref()]);
    prints(&small, |rank| format!("rank {rank} of 2: sum[0] is 1"));
    let bytes = |name| folder("static").join(name).metadata().expect("it was linked").len();
    assert!(bytes("all_reduce-small") < bytes("all_reduce"));
}

/// A Rust library of the user's own, with a standard library of its own.
const OTHER: &str = r#"
#[unsafe(no_mangle)]
pub extern "C" fn other_sum(count: i32) -> i32 {
    let numbers = std::thread::spawn(move || (0..count).map(|x| x.to_string()).collect::<Vec<_>>()).join().unwrap();
    let caught = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(7)));
    numbers.iter().map(|x| x.parse::<i32>().unwrap()).sum::<i32>() + *caught.unwrap_err().downcast::<i32>().unwrap()
}
"#;

const BOTH: &str = r#"
#include <maypole.h>
#include <stdio.h>

int other_sum(int count);

int main(void) {
    maypole_comm comm;
    int one = 1, sum = 0;
    if (maypole_comm_init_env(NULL, &comm)) return 1;
    if (maypole_all_reduce(comm, &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL)) return 2;
    printf("%d ranks, %d\n", sum, other_sum(5));
    return maypole_comm_destroy(comm);
}
"#;

#[test]
fn it_goes_together_with_another_rust_library() {
    let archive = prefix().join("lib/libmaypole.a");
    let here = folder("static");
    let (source, other, program) = (here.join("other.rs"), here.join("libother.a"), here.join("both.c"));
    std::fs::write(&source, OTHER).expect("a source in the target directory");
    std::fs::write(&program, BOTH).expect("a source in the target directory");
    let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
    done(Command::new(rustc).args(["--edition=2024", "--crate-type=staticlib", "-o"]).arg(&other).arg(&source));
    for (name, parts) in [("both", [&program, &archive, &other]), ("both-turned", [&program, &other, &archive])] {
        prints(&link(name, "cc", &parts.map(PathBuf::as_path)), |_| "2 ranks, 17".into());
    }
}

#[test]
fn a_program_may_use_its_inner_names() {
    // Defined in every Rust library as it comes from the compiler, in an object that each program needs.
    let own = folder("static").join("own.c");
    let example = std::fs::read_to_string(crate_directory().join("examples/all_reduce.c")).expect("an example");
    std::fs::write(&own, format!("int rust_eh_personality = 1;\n{example}")).expect("a source");
    let program = link("own", "cc", &[&own, &prefix().join("lib/libmaypole.a")]);
    prints(&program, |rank| format!("rank {rank} of 2: sum[0] is 1"));
}
