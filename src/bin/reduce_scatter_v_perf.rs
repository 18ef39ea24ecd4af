//! As nccl-tests' binaries, for Maypole's `reduce_scatter_v`: measures and checks it under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("reduce_scatter_v")
}
