//! nccl-tests' `barrier_perf`, for Maypole: measures and checks `barrier` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("barrier")
}
