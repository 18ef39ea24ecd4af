//! nccl-tests' `hypercube_perf`, for Maypole: measures and checks `all_gather` in a logarithmic number of steps under any launcher, or with
//! `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("hypercube")
}
