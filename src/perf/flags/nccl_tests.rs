//! What nccl-tests and rccl-tests have, and Maypole has no use for: flags that are taken, so that command lines written
//! for them run, and ignored with a word; and nccl-tests' environment variables.

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::{Error, Result};

/// A flag with one value.
struct Theirs {
    short: char,
    long: &'static str,
    /// Values that ask for what happens anyway.
    usual: &'static [&'static str],
    /// Why another is ignored.
    why: &'static str,
}

const THEIRS: &[Theirs] = &[
    Theirs { short: 'p', long: "parallel_init", usual: &["0", "1"], why: "" },
    Theirs {
        short: 'z',
        long: "blocking",
        usual: &["0"],
        why: "the table's median and 99th percentile are of calls that are waited for, its mean of calls that are not",
    },
    Theirs { short: 'y', long: "stream_null", usual: &["0"], why: "calls go to a stream of their own" },
    Theirs { short: 'x', long: "cta_policy", usual: &["0"], why: "MAYPOLE_DEVICE_BLOCKS is what there is of it" },
    Theirs { short: 'D', long: "device_implementation", usual: &["0"], why: "there is one implementation" },
    Theirs { short: 'V', long: "device_cta_count", usual: &["0", "16"], why: "MAYPOLE_DEVICE_BLOCKS says how many" },
    Theirs { short: 'G', long: "cudagraph", usual: &["0"], why: "calls are made one by one, not captured in a graph" },
    Theirs { short: 'C', long: "report_cputime", usual: &["0"], why: "times are those of the caller's clock" },
    Theirs { short: 'M', long: "memory_report", usual: &["0"], why: "`maypole info --footprint` shows memory" },
    // rccl-tests has these.
    Theirs { short: 'u', long: "cumask", usual: &["0"], why: "blocks run where the device puts them" },
    Theirs {
        short: 'Y',
        long: "memory_type",
        usual: &["coarse", "0"],
        why: "--device and --registered say what memory",
    },
];

/// Flags of nccl-tests that were given, by their place among those known, and their values.
#[derive(Clone, Debug, Default)]
pub struct Ignored(Vec<(usize, String)>);

impl Ignored {
    /// A line for each that asks for what does not happen.
    pub fn words(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().filter_map(|(place, value)| {
            let flag = &THEIRS[*place];
            let unusual = !flag.usual.contains(&value.as_str());
            unusual.then(|| format!("-{} {value} (--{}) is ignored: {}", flag.short, flag.long, flag.why))
        })
    }
}

impl clap::Args for Ignored {
    fn augment_args(command: Command) -> Command {
        // -V is theirs.
        let version = Arg::new("version").long("version").action(ArgAction::Version).help("Print version");
        let command = command.disable_version_flag(true).arg(version);
        THEIRS.iter().fold(command, |command, flag| {
            let arg = Arg::new(flag.long).short(flag.short).long(flag.long).allow_hyphen_values(true);
            command.arg(arg.hide(true).help("nccl-tests'"))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Ignored::augment_args(command)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Ignored, clap::Error> {
        let given = |(place, flag): (usize, &Theirs)| Some((place, matches.get_one::<String>(flag.long)?.clone()));
        Ok(Ignored(THEIRS.iter().enumerate().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Ignored::from_arg_matches(matches)?;
        Ok(())
    }
}

/// nccl-tests' environment variables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environment {
    /// `NCCL_TESTS_MIN_BW`, 10^9 bytes per second: a run fails whose average bus bandwidth is below nine tenths of it.
    pub least_bandwidth: Option<f64>,
    /// `NCCL_TESTS_SPLIT` or `NCCL_TESTS_SPLIT_MASK`: ranks with the same color run among themselves.
    pub split: Option<Split>,
    /// `NCCL_TESTS_DEVICE`: the device of each host's first rank.
    pub first_device: usize,
}

/// How a rank's color follows from its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split(Operator, u32);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    And,
    Or,
    Mod,
    Div,
}

impl Split {
    /// The color of `rank`.
    pub fn color(self, rank: usize) -> u32 {
        let rank = rank as u32;
        match self {
            Split(Operator::And, n) => rank & n,
            Split(Operator::Or, n) => rank | n,
            Split(Operator::Mod, n) => rank % n,
            Split(Operator::Div, n) => rank / n,
        }
    }

    /// `AND 0x7`, `MOD 8`, `%8` and so on.
    fn parse(text: &str) -> Option<Split> {
        let text = text.trim().to_ascii_uppercase();
        let names = [
            ("AND", Operator::And),
            ("&", Operator::And),
            ("OR", Operator::Or),
            ("|", Operator::Or),
            ("MOD", Operator::Mod),
            ("%", Operator::Mod),
            ("DIV", Operator::Div),
            ("/", Operator::Div),
        ];
        let (operator, number) =
            names.iter().find_map(|(name, operator)| Some((*operator, text.strip_prefix(name)?.trim())))?;
        let number =
            number.strip_prefix("0X").map_or_else(|| number.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())?;
        // By zero nothing can be divided.
        (number > 0 || matches!(operator, Operator::And | Operator::Or)).then_some(Split(operator, number))
    }
}

impl Environment {
    /// What `lookup` has of them; empty counts as unset.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the variable and what was expected.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Environment> {
        fn read<T>(
            lookup: &dyn Fn(&str) -> Option<String>,
            name: &str,
            expected: &str,
            parse: impl Fn(&str) -> Option<T>,
        ) -> Result<Option<T>> {
            let Some(value) = lookup(name).filter(|value| !value.trim().is_empty()) else { return Ok(None) };
            match parse(value.trim()) {
                Some(parsed) => Ok(Some(parsed)),
                None => Err(Error::Setting { name: name.to_string(), value, expected: format!("expected {expected}") }),
            }
        }
        let mask = read(lookup, "NCCL_TESTS_SPLIT_MASK", "a hexadecimal number", |text| {
            u32::from_str_radix(text.trim_start_matches("0x"), 16).ok().map(|mask| Split(Operator::And, mask))
        })?;
        let how = "AND, OR, MOD or DIV and a number, such as MOD 8 or AND 0x7";
        Ok(Environment {
            least_bandwidth: read(lookup, "NCCL_TESTS_MIN_BW", "10^9 bytes per second, such as 12.5", |text| {
                text.parse().ok().filter(|least: &f64| least.is_finite())
            })?,
            split: mask.map_or_else(|| read(lookup, "NCCL_TESTS_SPLIT", how, Split::parse), |mask| Ok(Some(mask)))?,
            first_device: read(lookup, "NCCL_TESTS_DEVICE", "a device's number", |text| text.parse().ok())?
                .unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> std::result::Result<Environment, String> {
        Environment::read(&|asked| (asked == name).then(|| value.to_string())).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_is_nccl_tests() {
        assert_eq!(Environment::read(&|_| Some(String::new())).unwrap(), Environment::default());
        assert_eq!(read("NCCL_TESTS_MIN_BW", "12.5").unwrap().least_bandwidth, Some(12.5));
        assert_eq!(read("NCCL_TESTS_DEVICE", "3").unwrap().first_device, 3);
        for (name, text, colors) in [
            ("NCCL_TESTS_SPLIT", "AND 0x1", [0, 1, 0, 1]),
            ("NCCL_TESTS_SPLIT", "&1", [0, 1, 0, 1]),
            ("NCCL_TESTS_SPLIT", "or 2", [2, 3, 2, 3]),
            ("NCCL_TESTS_SPLIT", "MOD 3", [0, 1, 2, 0]),
            ("NCCL_TESTS_SPLIT", "/2", [0, 0, 1, 1]),
            ("NCCL_TESTS_SPLIT_MASK", "0x2", [0, 0, 2, 2]),
        ] {
            let split = read(name, text).unwrap().split.unwrap();
            assert_eq!([0, 1, 2, 3].map(|rank| split.color(rank)), colors, "{text}");
        }
        for (name, nonsense) in [
            ("NCCL_TESTS_MIN_BW", "fast"),
            ("NCCL_TESTS_SPLIT", "MOD 0"),
            ("NCCL_TESTS_SPLIT", "XOR 1"),
            ("NCCL_TESTS_SPLIT_MASK", "g"),
            ("NCCL_TESTS_DEVICE", "-1"),
        ] {
            let error = read(name, nonsense).unwrap_err();
            assert!(error.contains(name) && error.contains("expected"), "{error}");
        }
    }
}
