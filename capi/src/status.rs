//! What calls return, and how an error of the library becomes it.

use std::ffi::c_int;

use maypole::{Error, Verdict};

/// What a call returns: MAYPOLE_OK, or why not. maypole_last_error() has the full text.
pub type maypole_status = c_int;

/// Done.
pub const MAYPOLE_OK: maypole_status = 0;
/// An argument was refused before anything started. Buffers are untouched and the communicator stays usable; ranks that
/// wait for this one in the same operation are told.
pub const MAYPOLE_ERROR_ARGUMENT: maypole_status = 1;
/// A handle is NULL, was destroyed before, or is of another kind. Nothing was started.
pub const MAYPOLE_ERROR_HANDLE: maypole_status = 2;
/// The communicator has failed, on every rank for the same reason (maypole_last_error_kind()). It cannot be used again.
pub const MAYPOLE_ERROR_FAILED: maypole_status = 3;
/// The ranks could not be brought together.
pub const MAYPOLE_ERROR_BOOTSTRAP: maypole_status = 4;
/// A setting (environment variable, member of maypole_config) makes no sense.
pub const MAYPOLE_ERROR_SETTING: maypole_status = 5;
/// CUDA refused something before anything was queued.
pub const MAYPOLE_ERROR_DEVICE: maypole_status = 6;
/// The operating system refused something that Maypole needs.
pub const MAYPOLE_ERROR_SYSTEM: maypole_status = 7;
/// A defect in Maypole was caught at its border. Destroy the communicator; please report the text.
pub const MAYPOLE_ERROR_PANIC: maypole_status = 8;
/// This process is a child by fork() of one that had used Maypole before: threads and connections stayed behind. Fork
/// before the first call, or exec in the child.
pub const MAYPOLE_ERROR_FORKED: maypole_status = 9;
/// Not done within the time given to maypole_wait_for(). No error: the operation goes on.
pub const MAYPOLE_PENDING: maypole_status = 10;

/// Why a communicator has failed; see maypole_last_error_kind().
pub type maypole_kind = c_int;

/// The latest error was no failure of a communicator.
pub const MAYPOLE_KIND_NONE: maypole_kind = 0;
/// A rank's process ended, or left while others still needed it.
pub const MAYPOLE_KIND_DIED: maypole_kind = 1;
/// Two ranks called different things as the same operation.
pub const MAYPOLE_KIND_MISMATCH: maypole_kind = 2;
/// A rank refused its arguments while others had started the operation.
pub const MAYPOLE_KIND_REFUSED: maypole_kind = 3;
/// The deadline passed.
pub const MAYPOLE_KIND_STALLED: maypole_kind = 4;
/// Somebody called maypole_comm_abort(), or an operation's callback failed.
pub const MAYPOLE_KIND_ABORTED: maypole_kind = 5;
/// A link between two ranks failed.
pub const MAYPOLE_KIND_LINK: maypole_kind = 6;

/// An error on its way to the caller.
#[derive(Debug)]
pub(crate) struct Fault {
    pub status: maypole_status,
    pub text: String,
    pub kind: maypole_kind,
    /// Whose fault it is, where that is a rank.
    pub rank: Option<usize>,
    pub host: String,
    /// The operation as the ranks know it, where the error tells.
    pub operation: String,
}

/// What the functions below the border return.
pub(crate) type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    pub fn new(status: maypole_status, text: impl Into<String>) -> Fault {
        let (host, operation) = (String::new(), String::new());
        Fault { status, text: text.into(), kind: MAYPOLE_KIND_NONE, rank: None, host, operation }
    }

    pub fn argument(text: impl Into<String>) -> Fault {
        Fault::new(MAYPOLE_ERROR_ARGUMENT, text)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let status = match &error {
            Error::Argument { .. } => MAYPOLE_ERROR_ARGUMENT,
            Error::Failed { .. } => MAYPOLE_ERROR_FAILED,
            Error::Bootstrap { .. } => MAYPOLE_ERROR_BOOTSTRAP,
            Error::Setting { .. } => MAYPOLE_ERROR_SETTING,
            Error::Device { .. } => MAYPOLE_ERROR_DEVICE,
            Error::System { .. } => MAYPOLE_ERROR_SYSTEM,
        };
        let mut fault = Fault::new(status, error.to_string());
        match error {
            Error::Argument { rank, .. } | Error::Device { rank, .. } => fault.rank = Some(rank),
            Error::Failed { verdict, .. } => fault.blame(verdict),
            Error::Bootstrap { .. } | Error::Setting { .. } | Error::System { .. } => {}
        }
        fault
    }
}

impl Fault {
    fn blame(&mut self, verdict: Verdict) {
        let (kind, rank) = match verdict {
            Verdict::Died { rank, host, .. } => {
                self.host = host;
                (MAYPOLE_KIND_DIED, Some(rank))
            }
            Verdict::Mismatch { one: (rank, operation), .. } => {
                self.operation = operation.to_string();
                (MAYPOLE_KIND_MISMATCH, Some(rank))
            }
            Verdict::Refused { rank, sequence, .. } => {
                self.operation = format!("operation #{sequence}");
                (MAYPOLE_KIND_REFUSED, Some(rank))
            }
            Verdict::Stalled { operation, culprits, .. } => {
                self.operation = operation.to_string();
                let missing = culprits.into_iter().next().map(|(rank, host, _)| {
                    self.host = host;
                    rank
                });
                (MAYPOLE_KIND_STALLED, missing)
            }
            Verdict::Aborted { rank, .. } => (MAYPOLE_KIND_ABORTED, Some(rank)),
            Verdict::Link { peer, host, .. } => {
                self.host = host;
                (MAYPOLE_KIND_LINK, Some(peer))
            }
            Verdict::Outside { host, .. } => {
                self.host = host;
                (MAYPOLE_KIND_DIED, None)
            }
        };
        (self.kind, self.rank) = (kind, rank);
    }
}
