//! nccl-tests' `reduce_perf`, for Maypole: measures and checks `reduce` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("reduce")
}
