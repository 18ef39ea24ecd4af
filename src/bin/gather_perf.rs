//! nccl-tests' `gather_perf`, for Maypole: measures and checks `gather` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("gather")
}
