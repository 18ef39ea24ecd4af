//! nccl-tests' `alltoall_perf`, for Maypole: measures and checks `all_to_all` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("all_to_all")
}
