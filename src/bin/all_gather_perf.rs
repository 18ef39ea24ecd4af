//! nccl-tests' `all_gather_perf`, for Maypole: measures and checks `all_gather` under any launcher, or with `--ranks
//! N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("all_gather")
}
