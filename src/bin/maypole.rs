//! The `maypole` command; see [`maypole::command`].

fn main() -> std::process::ExitCode {
    maypole::command::main()
}
