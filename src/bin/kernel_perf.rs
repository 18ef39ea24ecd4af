//! The copy and reduction kernels against the device's copy rate: see `kernel_perf --help`.

fn main() -> std::process::ExitCode {
    maypole::perf::cuda::kernels::main()
}
