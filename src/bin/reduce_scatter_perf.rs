//! nccl-tests' `reduce_scatter_perf`, for Maypole: measures and checks `reduce_scatter` under any launcher, or with
//! `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("reduce_scatter")
}
