//! Collectives beside matrix products: see `overlap_perf --help`.

fn main() -> std::process::ExitCode {
    maypole::perf::cuda::overlap::main()
}
