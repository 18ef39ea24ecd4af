//! As nccl-tests' binaries, for Maypole's `scan`: measures and checks it under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("scan")
}
