//! NCCL's collectives in Maypole's perf loops: see `nccl_perf --help`.

fn main() -> std::process::ExitCode {
    maypole::perf::nccl_main()
}
