//! nccl-tests' `scatter_perf`, for Maypole: measures and checks `scatter` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("scatter")
}
