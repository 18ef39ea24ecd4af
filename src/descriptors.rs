//! How many file descriptors this process may have. A job takes one for every rank in the process that holds it together,
//! and up to two in every rank for each other that it talks to over TCP; the usual soft limit of 1024 was made for
//! programs that wait in `select`, which the hard limit beside it knows nothing of.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limit is raised no further: no world is larger, and there are programs that, between fork and exec, close every
/// descriptor that they could have.
const MOST: u64 = 1 << 20;

/// How long whoever needs a descriptor tries again where there is none left: others may close theirs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Raise this process' soft limit to its hard one.
pub(crate) fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = hard.min(MOST);
    if soft < wanted
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        tracing::debug!("the limit of {soft} file descriptors could not be raised to {wanted}: {e}");
    }
}

/// How many this process may have.
pub(crate) fn limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// How many it has.
pub(crate) fn open() -> usize {
    // The directory itself is among them while it is read.
    std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1))
}

/// The text of a system's error; where that is that descriptors ran out, with their number and what to do.
pub(crate) fn explain(error: impl std::fmt::Display) -> String {
    let mut text = error.to_string();
    // As `std::io` and as `nix` put it: errors come here through several kinds of types.
    if text.contains("(os error 24)") || text.contains("EMFILE") {
        text += &format!(": process {} may have {} file descriptors; {RAISE}", std::process::id(), limit());
    }
    text
}

/// Whether an error says that the process or the system has no more descriptors.
pub(crate) fn ran_out(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What to do when descriptors have run out.
pub(crate) const RAISE: &str = "raise its hard limit (ulimit -Hn, LimitNOFILE of systemd, /etc/security/limits.conf)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_is_explained_however_it_is_said() {
        let limit = limit().to_string();
        for text in [
            explain(std::io::Error::from_raw_os_error(libc::EMFILE)),
            explain(nix::errno::Errno::EMFILE),
            explain(format!("making a link: {}", std::io::Error::from_raw_os_error(libc::EMFILE))),
        ] {
            assert!(text.contains(&limit) && text.contains("ulimit -Hn"), "{text}");
        }
        assert_eq!(explain(nix::errno::Errno::EPERM), nix::errno::Errno::EPERM.to_string());
    }

    #[test]
    fn those_that_are_open_are_counted() {
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open() >= files.len() && open() < limit());
    }
}
