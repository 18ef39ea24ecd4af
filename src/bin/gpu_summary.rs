//! The files of a gpu-check run as one table: see `gpu_summary --help`.

fn main() -> std::process::ExitCode {
    maypole::perf::cuda::summary::main()
}
