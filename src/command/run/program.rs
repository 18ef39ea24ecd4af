//! Which program is meant.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The program's path, or why there is none, with the exit status that a shell would give.
pub(super) fn find(name: &OsStr) -> std::result::Result<PathBuf, (String, u8)> {
    let path = Path::new(name);
    let runs = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    let shown = path.display();
    if path.components().count() > 1 || path.is_absolute() {
        return match () {
            () if runs(path) => Ok(path.to_path_buf()),
            () if path.is_dir() => Err((format!("{shown} is a directory, not a program"), 126)),
            () if path.exists() => {
                Err((format!("{shown} is not executable; chmod +x it, or name its interpreter first"), 126))
            }
            () => Err((format!("there is no program {shown}"), 127)),
        };
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|directory| directory.join(path)).find(|path| runs(path));
    found.ok_or_else(|| {
        let hint =
            if path.exists() { format!("; for the one in this directory write ./{shown}") } else { String::new() };
        (format!("there is no program {shown} in PATH{hint}"), 127)
    })
}
