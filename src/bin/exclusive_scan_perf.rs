//! As nccl-tests' binaries, for Maypole's `exclusive_scan`: measures and checks it under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("exclusive_scan")
}
