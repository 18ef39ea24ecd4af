//! The command line of `maypole run`.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::bind::Bind;
use super::stdin::Readers;

/// Start N ranks of PROGRAM on this machine, prefix their output, pass signals on, and end all when one fails.
///
/// Each rank gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and a fresh MAYPOLE_KEY, so
/// a program that calls Communicator::from_env() finds its peers, and so does one that uses torch.distributed.
///
/// Lines are printed whole, as "[rank] line", standard output to standard output and standard error to standard error;
/// progress bars and prompts, which have no end, when nothing follows them. Whoever reads slowly holds up the ranks, but
/// no signal and no --timeout. Rank 0 reads standard input if that is a file or a pipe; see --stdin.
///
/// SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to every rank; Ctrl-Z stops and fg continues
/// them; a second SIGINT or SIGTERM kills, and so does the end of --grace after the first SIGTERM.
///
/// Exit status: 0 if every rank returned 0; otherwise that of the rank that failed first, 128 + N if signal N ended it;
/// 124 after --timeout; 126 or 127 if PROGRAM cannot be run or found; 2 for a wrong command line. What happens to the
/// output does not change it. A rank that aborts a communicator has failed before those that are told of it, if it ends
/// within two seconds.
#[derive(clap::Args)]
#[command(after_help = "Example: maypole run -n 4 -x MAYPOLE_LOG=info -- ./train --epochs 3")]
pub struct Args {
    /// Number of ranks
    #[arg(short = 'n', long = "ranks", visible_alias = "np", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) ranks: u32,
    /// End the ranks after so many seconds, of which none pass while this command is stopped; the exit status is then 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,
    /// How long ranks may take to end after SIGTERM before they get SIGKILL
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) grace: Duration,
    /// Prefix each line with its rank (the default)
    #[arg(long, overrides_with = "no_prefix")]
    pub(super) tag_output: bool,
    /// Leave the output as it comes: the ranks write to this terminal or file themselves
    #[arg(long)]
    pub(super) no_prefix: bool,
    /// Have the ranks write to pseudo-terminals, so that programs print each line at once, as they do at a terminal
    #[arg(long, conflicts_with = "no_prefix")]
    pub(super) pty: bool,
    /// Who reads standard input: a rank, all (each gets all of it), or none [default: 0, or none at a terminal]
    #[arg(long, value_name = "WHO")]
    pub(super) stdin: Option<Readers>,
    /// Bind each rank to cores of its own
    #[arg(long, value_enum, default_value_t = Bind::None, value_name = "WHERE")]
    pub(super) bind: Bind,
    /// Set an environment variable for all ranks. NAME alone passes on this environment's, as ranks inherit it anyway;
    /// MAYPOLE_KEY can only be passed on like that, since command lines are for all to see. Repeatable
    #[arg(short = 'x', value_name = "NAME[=VALUE]", value_parser = assignment)]
    pub(super) set: Vec<(String, Option<String>)>,
    /// The program and its arguments; write -- before it
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(super) program: Vec<OsString>,
}

impl Args {
    /// `ranks` ranks of `program`, which write to this process's own output.
    pub(super) fn plain(program: Vec<OsString>, ranks: u32) -> Args {
        Args {
            ranks,
            timeout: None,
            grace: Duration::from_secs(5),
            tag_output: false,
            no_prefix: true,
            pty: false,
            stdin: None,
            bind: Bind::None,
            set: Vec::new(),
            program,
        }
    }

    /// What makes no sense, although each part does. (Assignments are not looked at while the command line is parsed:
    /// errors there show the value.)
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if let Some(Readers::One(rank)) = self.stdin
            && rank >= self.ranks
        {
            return Err(format!("--stdin {rank}: there is no such rank; they are 0 to {}", self.ranks - 1));
        }
        check_assignments(&self.set)
    }

    /// Have a script of Python's run by `python`.
    pub(crate) fn interpret(&mut self, python: OsString) {
        if Path::new(&self.program[0]).extension().is_some_and(|extension| extension == "py") {
            self.program.insert(0, python);
        }
    }
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..1e9).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected a number of seconds".to_string()),
    }
}

fn assignment(text: &str) -> std::result::Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("expected NAME=VALUE or NAME".to_string()),
        Some((name, value)) => Ok((name.to_string(), Some(value.to_string()))),
        None if text.is_empty() => Err("expected NAME=VALUE or NAME".to_string()),
        None => Ok((text.to_string(), None)),
    }
}

/// What is wrong with the variables that are to be set or passed on.
fn check_assignments(set: &[(String, Option<String>)]) -> std::result::Result<(), String> {
    for (name, value) in set {
        if value.is_some() && name == "MAYPOLE_KEY" {
            return Err(
                "-x MAYPOLE_KEY=...: everybody on this host can read command lines; export MAYPOLE_KEY before \
                        and write -x MAYPOLE_KEY, or leave it out: then a fresh key is made"
                    .to_string(),
            );
        }
        if value.is_none() && std::env::var_os(name).is_none() {
            return Err(format!(
                "-x {name}: there is no such variable in the environment; export it, or write {name}=VALUE"
            ));
        }
    }
    Ok(())
}

/// A command line in which `-np N` of other launchers and `-n4` are written as they are here. `arguments`: all of it; `command`: how
/// it is read. What belongs to the ranks' program stays as it is.
pub(crate) fn with_np(arguments: Vec<OsString>, command: &clap::Command) -> Vec<OsString> {
    let Some(run) = command.find_subcommand("run").filter(|_| arguments.get(1).is_some_and(|name| name == "run"))
    else {
        return arguments;
    };
    let takes_value = |argument: &str| {
        run.get_arguments().any(|known| {
            let named = match argument.strip_prefix("--") {
                Some(long) => known.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long)),
                None => known.get_short().is_some_and(|short| argument == format!("-{short}")),
            };
            named && known.get_action().takes_values()
        })
    };
    let mut arguments = arguments;
    let mut at = 2;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()).map(str::to_string) {
        let count = argument.strip_prefix("-np").or(argument.strip_prefix("-n"));
        let flag = match count.map(|count| count.trim_start_matches('=')) {
            Some("") => {
                arguments[at] = "-n".into();
                "-n"
            }
            // clap takes a flag and its value in one word for the program, whose own words may look like that.
            Some(count) if count.parse::<u32>().is_ok() => {
                arguments.splice(at..=at, ["-n".into(), count.into()]);
                "-n"
            }
            _ => &argument,
        };
        if flag == "--" || !flag.starts_with('-') {
            break;
        }
        at += if takes_value(flag) { 2 } else { 1 };
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(clap::Subcommand)]
    enum Command {
        Run(Args),
    }

    fn read(line: &str) -> Args {
        let words = with_np(line.split(' ').map(OsString::from).collect(), &Line::command());
        let Command::Run(args) = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).command;
        args
    }

    #[test]
    fn other_launchers_numbers_of_ranks_are_understood() {
        for (line, ranks, program) in [
            ("maypole run -np 3 prog", 3, "prog"),
            ("maypole run -np=3 prog", 3, "prog"),
            ("maypole run -np3 -- prog", 3, "prog"),
            ("maypole run -n3 -- prog -n4", 3, "prog -n4"),
            ("maypole run --np 3 prog -np 4", 3, "prog -np 4"),
            ("maypole run --no-prefix --timeout 5 -x A=1 -np 3 -- prog -np 4", 3, "prog -np 4"),
            ("maypole run -n 3 -- prog -np 4", 3, "prog -np 4"),
            ("maypole run -n 3 prog -np 4", 3, "prog -np 4"),
            ("maypole run -n 3 --grace=1 prog", 3, "prog"),
        ] {
            let args = read(line);
            let words: Vec<&str> = args.program.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!((args.ranks, words.join(" ").as_str()), (ranks, program), "{line}");
        }
    }

    #[test]
    fn whoever_is_to_read_must_be_there() {
        assert!(read("maypole run -n 2 --stdin 1 prog").check().is_ok());
        assert!(read("maypole run -n 2 --stdin all prog").check().is_ok());
        let error = read("maypole run -n 2 --stdin 2 prog").check().unwrap_err();
        assert!(error.contains("--stdin 2") && error.contains("0 to 1"), "{error}");
    }
}
