//! What waits, writes and words between ranks cost: see `primitives_perf --help`.

fn main() -> std::process::ExitCode {
    maypole::perf::cuda::primitives::main()
}
