//! nccl-tests' `alltoallv_perf`, for Maypole: measures and checks `all_to_all_v` under any launcher, or with
//! `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("alltoallv")
}
