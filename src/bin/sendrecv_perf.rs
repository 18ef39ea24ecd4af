//! nccl-tests' `sendrecv_perf`, for Maypole: measures and checks `send_recv` under any launcher, or with `--ranks N`.

fn main() -> std::process::ExitCode {
    maypole::perf::main("send_recv")
}
