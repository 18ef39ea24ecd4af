//! nccl-tests' `broadcast_perf`, for Maypole: measures and checks `broadcast` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("broadcast")
}
