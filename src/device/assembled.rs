//! Whether the driver keeps kernels that it has assembled.
//!
//! PTX is assembled for the device at hand when a context is attached, which takes seconds, and
//! the driver keeps the outcome in a folder of the user's. Where that cannot be written (a home
//! that is read-only, or none), every process assembles at every start, under the deadline of what
//! the ranks wait in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Once;

use nix::unistd::{AccessFlags, access};

/// Say so, once, if they are not kept.
pub(super) fn warn_if_never_kept(rank: usize) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Some(why) = why_never_kept(|name| std::env::var_os(name)) {
            tracing::warn!(
                rank,
                "the driver assembles Maypole's kernels at every start, which takes seconds, since it cannot keep them: \
                 {why}; set CUDA_CACHE_PATH to a folder that can be written"
            );
        }
    });
}

/// Why they are not kept, if they are not, by what the driver goes by.
fn why_never_kept(variable: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    if variable("CUDA_CACHE_DISABLE").is_some_and(|value| value == "1") {
        return Some("CUDA_CACHE_DISABLE is 1".into());
    }
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let folder = match (set("CUDA_CACHE_PATH"), set("HOME")) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(home)) => Path::new(&home).join(".nv/ComputeCache"),
        (None, None) => return Some("neither CUDA_CACHE_PATH nor HOME is set".into()),
    };
    // It is made when it is first needed.
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable = there.is_dir() && access(there, AccessFlags::W_OK).is_ok();
    (!writable).then(|| format!("{} cannot be written", folder.display()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let home = std::env::temp_dir();
        let why = |settings: &[(&str, &OsStr)]| {
            why_never_kept(|name| settings.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        let home = home.as_os_str();
        assert_eq!(why(&[("HOME", home)]), None);
        assert_eq!(why(&[("HOME", OsStr::new("/dev/null")), ("CUDA_CACHE_PATH", home)]), None);
        assert_eq!(why(&[("HOME", OsStr::new("/dev/null"))]).unwrap(), "/dev/null/.nv/ComputeCache cannot be written");
        let named = why(&[("HOME", home), ("CUDA_CACHE_PATH", OsStr::new("/dev/null"))]);
        assert_eq!(named.unwrap(), "/dev/null cannot be written");
        let disabled = why(&[("HOME", home), ("CUDA_CACHE_DISABLE", OsStr::new("1"))]);
        assert_eq!(disabled.unwrap(), "CUDA_CACHE_DISABLE is 1");
        assert!(why(&[("CUDA_CACHE_PATH", OsStr::new(""))]).unwrap().contains("HOME"));
    }
}
