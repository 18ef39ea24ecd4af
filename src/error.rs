//! What can go wrong, said so that the reader knows what happened, where, what was expected and what to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;

/// Result of Maypole's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this crate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An argument was refused before anything started: the buffers are untouched and the communicator stays usable.
    /// Ranks that wait for this one in the same operation are told.
    #[error("rank {rank}: {what}")]
    Argument {
        /// This rank.
        rank: usize,
        /// What was expected, what came and what to do.
        what: String,
    },
    /// The communicator has failed, on every rank with the same verdict. It cannot be used again.
    #[error("rank {rank}: {verdict}")]
    Failed {
        /// This rank.
        rank: usize,
        /// What all ranks were told.
        verdict: Verdict,
    },
    /// The ranks could not be brought together.
    #[error("{what}")]
    Bootstrap {
        /// What happened, which ranks are concerned and what to do.
        what: String,
    },
    /// A setting (environment variable, flag) makes no sense.
    #[error("{name}={value}: {expected}")]
    Setting {
        /// The setting's name.
        name: String,
        /// Its value.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// CUDA refused something before anything was queued: there is no driver, no device, no memory, or it is not shared
    /// as the ranks need it. The communicator stays usable.
    #[error("rank {rank}: {source}")]
    Device {
        /// The rank on which it was refused, which may be another.
        rank: usize,
        /// What was refused.
        source: maypole_cuda::CudaError,
    },
    /// The operating system refused something that Maypole needs.
    #[error("{doing}: {what}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        what: String,
    },
}

impl Error {
    /// An [`Error::System`] from an I/O error.
    pub(crate) fn system(doing: impl Into<String>, error: impl std::fmt::Display) -> Error {
        Error::System { doing: doing.into(), what: crate::descriptors::explain(error) }
    }
    /// An [`Error::Bootstrap`].
    pub(crate) fn bootstrap(what: impl Into<String>) -> Error {
        Error::Bootstrap { what: what.into() }
    }
}

/// Why a communicator failed. One is declared per communicator, the first reported, and every rank gets the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// A rank's process ended, or left while others still needed it.
    Died {
        /// Who.
        rank: usize,
        /// Its host.
        host: String,
        /// How it was noticed.
        how: String,
    },
    /// Two ranks called different things as the same operation.
    Mismatch {
        /// One side: rank and what it called.
        one: (usize, Fingerprint),
        /// The other side.
        other: (usize, Fingerprint),
    },
    /// A rank refused the operation's arguments while others had started it.
    Refused {
        /// Who.
        rank: usize,
        /// The operation's number.
        sequence: u64,
        /// Its error.
        why: String,
    },
    /// The deadline passed.
    Stalled {
        /// The operation that did not end, as the rank that reported saw it.
        operation: Fingerprint,
        /// Who reported.
        reporter: usize,
        /// How long it waited.
        after: Duration,
        /// Who had not entered the operation, or did not answer, each with its host and what is known of it.
        culprits: Vec<(usize, String, String)>,
    },
    /// Somebody called `abort`.
    Aborted {
        /// Who.
        rank: usize,
        /// With what reason.
        why: String,
    },
    /// A link failed in another way.
    Link {
        /// The rank that noticed.
        rank: usize,
        /// The peer.
        peer: usize,
        /// The peer's host.
        host: String,
        /// What the link said, and in which operation.
        what: String,
    },
    /// A process that is no member of the communicator ended what its members need, or got in their way.
    Outside {
        /// Its host.
        host: String,
        /// Which process, and what it did. Ranks in it are the world's, and say so.
        how: String,
    },
}

/// The longest text of a verdict or a refusal, in bytes. Ranks send them to each other: a reason may come with a program's
/// source or a traceback, and must not be what ends the job.
pub(crate) const LONGEST_TEXT: usize = 16 << 10;

/// `text`, or its beginning and a word that the rest is missing, if it is longer than other ranks need to be told.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let word = format!(" ... (cut here: {} bytes in all)", text.len());
        let mut ends = (0..=LONGEST_TEXT - word.len()).rev();
        text.truncate(ends.find(|end| text.is_char_boundary(*end)).unwrap_or(0));
        text.push_str(&word);
        text.shrink_to_fit();
    }
    text
}

impl Verdict {
    /// Whether somebody is gone, and what was done before may be all that is needed: see `engine/aftermath.rs`.
    pub(crate) fn is_of_a_death(&self) -> bool {
        matches!(self, Verdict::Died { .. } | Verdict::Outside { .. })
    }

    /// The same with each text [`cut`] to what ranks send to each other.
    pub(crate) fn cut(mut self) -> Verdict {
        let shorten = |text: &mut String| *text = cut(std::mem::take(text));
        match &mut self {
            Verdict::Died { host, how: text, .. }
            | Verdict::Link { host, what: text, .. }
            | Verdict::Outside { host, how: text } => {
                [host, text].into_iter().for_each(shorten);
            }
            Verdict::Refused { why, .. } | Verdict::Aborted { why, .. } => shorten(why),
            Verdict::Stalled { culprits, .. } => {
                culprits.iter_mut().flat_map(|(_, host, state)| [host, state]).for_each(shorten);
            }
            Verdict::Mismatch { .. } => {}
        }
        self
    }

    /// `operation` did not end within `after`, and the network is to blame: what rank `link.0` sends to rank `link.1`
    /// on `host` goes unanswered.
    pub(crate) fn unheard(operation: Fingerprint, link: (usize, usize), host: String, after: Duration) -> Verdict {
        let what = format!(
            "what it sends there is not even answered by the host, and {operation} did not end within {after:?}; look at \
             the network between the two hosts"
        );
        Verdict::Link { rank: link.0, peer: link.1, host, what }
    }
}

/// Who is missing, for people: rank, host and what is known of it.
pub(crate) struct Missing<'a>(pub &'a [(usize, String, String)]);

impl std::fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().enumerate().try_for_each(|(i, (rank, host, state))| {
            write!(f, "{}rank {rank} on host {host} ({state})", if i == 0 { "" } else { ", " })
        })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Died { rank, host, how } => write!(f, "rank {rank} on host {host} is gone: {how}"),
            Verdict::Mismatch { one: (a, one), other: (b, other) } if one.to_string() == other.to_string() => write!(
                f,
                "ranks disagree: rank {a} and rank {b} both called {one}, but do not run it in the same way: their settings (algorithm, slice, sizes), \
                 the width or order that their operations ask for, or earlier calls differ"
            ),
            Verdict::Mismatch { one: (a, what_a), other: (b, what_b) } => write!(
                f,
                "ranks disagree: rank {a} called {what_a}, but rank {b} called {what_b}; every rank must make the same \
                 calls, with the same counts, types, operations and roots, in the same order"
            ),
            Verdict::Refused { rank, sequence, why } => {
                write!(f, "rank {rank} refused operation #{sequence} that other ranks had started: {why}")
            }
            Verdict::Stalled { operation, reporter, after, culprits } => {
                write!(f, "{operation} did not end within {after:?} (reported by rank {reporter}); ")?;
                if culprits.is_empty() && operation.is_point_to_point() {
                    return write!(f, "its other side has not come to it, or is too slow");
                }
                if culprits.is_empty() {
                    return write!(f, "every rank has entered it: the network or a rank inside it is too slow");
                }
                write!(f, "missing: {}", Missing(culprits))
            }
            Verdict::Aborted { rank, why } => write!(f, "rank {rank} aborted the communicator: {why}"),
            Verdict::Link { rank, peer, host, what } => {
                write!(f, "rank {rank} lost its link to rank {peer} on host {host}: {what}")
            }
            Verdict::Outside { host, how } => {
                write!(f, "a process on host {host} that is no member of this communicator: {how}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_once_between_two_characters() {
        for text in ["x".repeat(LONGEST_TEXT), String::new(), "é".repeat(LONGEST_TEXT / 2)] {
            assert_eq!(cut(text.clone()), text);
        }
        for filler in ["x", "é", "€", "🦀"] {
            let short = cut(filler.repeat(2 << 20));
            let word = format!(" ... (cut here: {} bytes in all)", filler.len() << 21);
            let kept = short.strip_suffix(&word).unwrap_or_else(|| panic!("{}", &short[short.len() - 100..]));
            assert!(short.len() <= LONGEST_TEXT && short.len() > LONGEST_TEXT - 4, "{}", short.len());
            assert!(kept.replace(filler, "").is_empty());
            assert_eq!(cut(short.clone()), short);
        }
    }

    #[test]
    fn every_text_of_a_verdict_is_cut() {
        let long = || "x".repeat(LONGEST_TEXT + 1);
        let operation = Fingerprint::point_to_point(1, maypole_collectives::DataType::U8, 0, (0, 1), 0);
        let all = [
            Verdict::Died { rank: 0, host: long(), how: long() },
            Verdict::Refused { rank: 0, sequence: 1, why: long() },
            Verdict::Stalled { operation, reporter: 0, after: Duration::ZERO, culprits: vec![(0, long(), long()); 2] },
            Verdict::Aborted { rank: 0, why: long() },
            Verdict::Link { rank: 0, peer: 1, host: long(), what: long() },
            Verdict::Outside { host: long(), how: long() },
        ];
        for verdict in all {
            let said = format!("{:?}", verdict.cut());
            assert!(said.contains("(cut here: ") && !said.contains(&long()), "{said}");
        }
    }
}
