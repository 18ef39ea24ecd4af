//! As nccl-tests' binaries, for Maypole's `all_gather_v`: measures and checks it under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("all_gather_v")
}
