//! Where a path leads on this machine: every name that is looked up on the way, and where those lie in their file
//! systems. A path that ends in a safe place is not safe itself: whoever may change a symbolic link on its way, or the
//! same directory by another mount, decides where it ends tomorrow.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Symbolic links that are followed, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// The way of a path.
#[derive(Debug)]
pub(crate) struct Way {
    /// Every name that is looked up, in its order, without symbolic links, `.` or `..` before it; the last one is where
    /// the path ends.
    pub names: Vec<PathBuf>,
}

impl Way {
    /// Follows a path. What does not exist, or cannot be looked at, is taken as it is written.
    pub(crate) fn of(path: &Path) -> Way {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
        let mut todo: VecDeque<OsString> = VecDeque::new();
        push(&mut todo, &whole);
        let (mut names, mut at, mut links) = (Vec::new(), PathBuf::from("/"), 0);
        while let Some(step) = todo.pop_front() {
            if step == ".." {
                at.pop();
                continue;
            }
            let name = at.join(&step);
            names.push(name.clone());
            match std::fs::read_link(&name) {
                Ok(to) if links < MAX_LINKS => {
                    links += 1;
                    if to.is_absolute() {
                        at = "/".into();
                    }
                    push(&mut todo, &to);
                }
                _ => at = name,
            }
        }
        if names.last() != Some(&at) {
            // A path that ends in `..`.
            names.push(at);
        }
        Way { names }
    }

    /// Where it ends.
    pub(crate) fn end(&self) -> &Path {
        self.names.last().map_or(Path::new("/"), PathBuf::as_path)
    }
}

/// Returns whether a path leads into `/dev`, by symbolic links, too, where a name that is not there is that
/// of a device, except for shared memory: nothing is made there.
pub(crate) fn is_among_devices(path: &Path) -> bool {
    let way = Way::of(path);
    way.end().starts_with("/dev") && !way.end().starts_with("/dev/shm")
}

/// Puts the steps of a path before those that are left.
fn push(todo: &mut VecDeque<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => todo.push_front(name.into()),
            Component::ParentDir => todo.push_front("..".into()),
            _ => {}
        }
    }
}

/// A name in its file system, whatever it is mounted as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file system, as the kernel numbers it.
    device: String,
    /// The path from the root of that file system.
    path: PathBuf,
}

impl Place {
    /// Returns whether it lies below another one.
    pub(crate) fn is_below(&self, other: &Place) -> bool {
        self.device == other.device && self.path != other.path && self.path.starts_with(&other.path)
    }

    /// Returns whether both are in one file system, so that one file may have a name in each place.
    pub(crate) fn shares_device(&self, other: &Place) -> bool {
        self.device == other.device
    }
}

/// What is mounted where.
#[derive(Debug, Default)]
pub(crate) struct Mounts(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    id: u64,
    device: String,
    root: PathBuf,
    point: PathBuf,
}

impl Mounts {
    /// Asks the kernel. Without `/proc`, nothing is known.
    pub(crate) fn read() -> Mounts {
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        Mounts(text.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// The place of a name as [`Way`] has it: with no symbolic link before it. It need not exist.
    pub(crate) fn place(&self, name: &Path) -> Option<Place> {
        let id = name.ancestors().find_map(|path| {
            let found =
                statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID);
            found
                .ok()
                .filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0)
                .map(|found| found.stx_mnt_id)
        });
        let mount = self.0.iter().find(|mount| Some(mount.id) == id)?;
        Some(mount.place(name.strip_prefix(&mount.point).ok()?))
    }

    /// Lists the places of a directory and of all that is mounted below it.
    pub(crate) fn tree(&self, directory: &Path) -> Vec<Place> {
        let below = self.0.iter().filter(|mount| mount.point.starts_with(directory));
        self.place(directory).into_iter().chain(below.map(|mount| mount.place(Path::new("")))).collect()
    }
}

impl Mount {
    fn place(&self, rest: &Path) -> Place {
        let path = if rest.as_os_str().is_empty() { self.root.clone() } else { self.root.join(rest) };
        Place { device: self.device.clone(), path }
    }
}

/// Reads a line like `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8(words.nth(1)?.into()).ok()?;
    let (root, point) = (plain(words.next()?), plain(words.next()?));
    Some(Mount { id, device, root, point })
}

/// A path of `mountinfo`: blanks and backslashes are written as three octal digits.
fn plain(word: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::with_capacity(word.len()), word);
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let number = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(number.unwrap_or(byte));
        rest = if number.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_on_the_way_is_named() {
        let dir =
            std::env::temp_dir().canonicalize().unwrap().join(format!("pmm-place-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a")).unwrap();
        std::os::unix::fs::symlink("a/../b", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        let way = Way::of(&dir.join("./link//c/"));
        let tail: Vec<_> = way.names.iter().filter_map(|name| name.strip_prefix(&dir).ok()).collect();
        assert_eq!(tail, ["", "link", "a", "b", "b/c"].map(Path::new));
        assert_eq!(Way::of(&dir.join("a/..")).end(), dir);
        assert_eq!(Way::of(Path::new("/")).end(), Path::new("/"));
        assert!(Way::of(&dir.join("loop")).names.len() < 100, "it ends");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_has_one_place_however_it_is_mounted() {
        let lines = [
            r"20 1 8:1 / / rw - ext4 /dev/sda1 rw",
            r"21 20 8:1 /srv/a\040b /mnt/bind rw shared:1 - ext4 /dev/sda1 rw",
            r"22 21 8:2 / /mnt/bind/deep rw - ext4 /dev/sda2 rw",
            r"nonsense",
            r"",
        ];
        let mounts = Mounts(lines.iter().filter_map(|line| mount(line.as_bytes())).collect());
        assert_eq!(mounts.0.len(), 3);
        let [root, bind, deep] = &mounts.0[..] else { panic!() };
        let inside = bind.place(Path::new("x"));
        assert_eq!(inside, root.place(Path::new("srv/a b/x")));
        assert!(inside.is_below(&root.place(Path::new("srv"))) && !inside.is_below(&inside));
        assert!(!deep.place(Path::new("x")).is_below(&root.place(Path::new(""))));
        // What is mounted now is found by the kernel's own number.
        let temp = std::env::temp_dir().canonicalize().unwrap();
        let place = Mounts::read().place(&temp.join("there is no such file")).expect("a place");
        assert_eq!(Mounts::read().place(&temp).map(|temp| place.is_below(&temp)), Some(true));
    }
}
