//! The directory of this user's sockets: where a `pmm` puts those that were given no path, and where `pmm status` looks.
//!
//! Whoever can write there can be taken for a `pmm`, or for its guest. So it belongs to this user, nobody else may write
//! to it, and that is looked at on the open directory, before anything in it is believed. It is in
//! `$XDG_RUNTIME_DIR`, or where that is on most machines; in `/tmp` only where there is none. A name in `/tmp` can be
//! taken by anybody first: then another one is, which cannot be guessed, and the stranger's is not looked at again.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, CWD, Mode, OFlags};

use crate::failure::{Failure, refused};
use crate::host::{Entropy, SystemEntropy};

/// Longest path that a socket address holds: 108 bytes with the final zero.
pub(crate) const SOCKET_PATH: usize = 107;

/// Returns where sockets of this user are by default. The same in all of a process.
pub(crate) fn directory() -> PathBuf {
    static CHOSEN: OnceLock<PathBuf> = OnceLock::new();
    CHOSEN.get_or_init(|| runtime().unwrap_or_else(|| chosen(Path::new("/tmp")))).clone()
}

/// Lists every directory that may be such a one and belongs to this user.
pub(super) fn directories() -> Vec<PathBuf> {
    match runtime() {
        Some(dir) => vec![dir],
        None => candidates(Path::new("/tmp")),
    }
}

/// The directory below the one that is this user's until the machine goes down, if there is one.
fn runtime() -> Option<PathBuf> {
    let own = rustix::process::geteuid();
    let usual = if own.is_root() { "/run".into() } else { format!("/run/user/{}", own.as_raw()).into() };
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dirs = named.into_iter().chain([usual]);
    let fits = |dir: &PathBuf| {
        dir.metadata().is_ok_and(|meta| meta.is_dir() && is_private(meta.uid(), meta.permissions().mode()))
            && rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    };
    dirs.filter(fits).map(|dir| dir.join("pmm")).next()
}

/// The directory in one that is everybody's: one that is there already, or a name that nobody has.
fn chosen(everybodys: &Path) -> PathBuf {
    if let Some(found) = candidates(everybodys).into_iter().next() {
        return found;
    }
    let plain = everybodys.join(prefix());
    if plain.symlink_metadata().is_err() {
        return plain;
    }
    let mut bytes = [0; 8];
    let _ = SystemEntropy.fill(&mut bytes);
    everybodys.join(format!("{}.{:016x}", prefix(), u64::from_ne_bytes(bytes)))
}

/// Directories of this user's that have such a name, in order.
fn candidates(everybodys: &Path) -> Vec<PathBuf> {
    let prefix = prefix();
    let entries = std::fs::read_dir(everybodys).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
        .map(|entry| entry.path())
        .filter(|path| open(path).is_some())
        .collect();
    found.sort_unstable();
    found
}

fn prefix() -> String {
    format!("pmm-{}", rustix::process::geteuid().as_raw())
}

/// Returns whether something of this owner and mode can be changed by nobody but this user.
fn is_private(owner: u32, mode: u32) -> bool {
    owner == rustix::process::geteuid().as_raw() && mode & 0o022 == 0
}

/// Opens a directory that only this user can write to.
pub(super) fn open(path: &Path) -> Option<OwnedFd> {
    open_in(CWD, path).ok().filter(is_own)
}

fn open_in(at: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn is_own(directory: &OwnedFd) -> bool {
    rustix::fs::fstat(directory).is_ok_and(|stat| is_private(stat.st_uid, stat.st_mode))
}

/// Makes the default directory and the `folders` one in another below it, each for this user alone. `name` is what needs
/// it, and `option` the way out.
pub(crate) fn make(folders: &[&str], name: &str, option: &str) -> Result<(), Failure> {
    let mut path = directory();
    let mut at = own(CWD, &path, &path, name, option)?;
    for folder in folders {
        path.push(folder);
        at = own(&at, Path::new(folder), &path, name, option)?;
    }
    Ok(())
}

fn own(at: impl AsFd, folder: &Path, path: &Path, name: &str, option: &str) -> Result<OwnedFd, Failure> {
    let path = path.display();
    let made = match rustix::fs::mkdirat(&at, folder, Mode::RWXU) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    };
    match made.and_then(|()| open_in(&at, folder)) {
        Ok(opened) if is_own(&opened) => {
            // Neither an older one nor a umask makes a difference.
            let _ = rustix::fs::fchmod(&opened, Mode::RWXU);
            Ok(opened)
        }
        Ok(_) => refused(format!("{name}: its directory {path} can be written by others; use {option}")),
        Err(error) => refused(format!("{name}: its directory {path} cannot be made ({error}); use {option}")),
    }
}

/// Says why no socket can have a default path, and blames what made it so long; `None` if one can.
pub(crate) fn too_long(path: &Path, spare: usize, what: &str, option: &str) -> Option<String> {
    let (long, most) = (path.as_os_str().len(), SOCKET_PATH - spare);
    let dir = directory();
    let parent = dir.parent().unwrap_or(Path::new("/")).display();
    (long > most).then(|| {
        format!(
            "XDG_RUNTIME_DIR={parent}: {what} in it would have a path of {long} bytes, and it may have {most}; set a shorter one, or use {option}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions};

    #[test]
    fn a_strangers_directory_is_passed_by() {
        let everybodys = std::env::temp_dir().join(format!("pmm-everybodys-{}", std::process::id()));
        let plain = everybodys.join(prefix());
        let mode = |mode| set_permissions(&plain, Permissions::from_mode(mode)).unwrap();
        create_dir(&everybodys).unwrap();
        assert_eq!(chosen(&everybodys), plain);
        create_dir(&plain).unwrap();
        mode(0o700);
        assert_eq!(chosen(&everybodys), plain, "one's own is used again");
        // What others may write to is as good as theirs.
        mode(0o777);
        let other = chosen(&everybodys);
        assert!(other != plain && candidates(&everybodys).is_empty(), "{}", other.display());
        create_dir(&other).unwrap();
        set_permissions(&other, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(chosen(&everybodys), other, "the next pmm finds the same one");
        // Nor is a link followed, wherever it leads.
        std::fs::remove_dir(&plain).unwrap();
        std::os::unix::fs::symlink(&other, &plain).unwrap();
        assert_eq!(candidates(&everybodys), [other]);
        std::fs::remove_dir_all(&everybodys).unwrap();
    }
}
