//! nccl-tests' `all_reduce_perf`, for Maypole: measures and checks `all_reduce` under any launcher, or with `--ranks
//! N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("all_reduce")
}
