//! Everything that a PMM opens or makes lies apart from everything that a guest may change.
//!
//! A guest that may write to a directory can replace what lies in it: a console's file by a symbolic link, a
//! socket by another one, the memory of a link by a shorter file. The PMM has more rights than its guest, so
//! it would then append, connect or truncate where the guest may not. Refusing such paths at the start is the
//! whole defence for the directories *on the way* to a file; the file itself is checked again when it is
//! opened or connected to.
//!
//! Paths are compared by where they lead on this machine: through symbolic links, each of which must lie
//! apart too, through mounts of the same directory elsewhere, and by other names (hard links) of the same
//! file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, refused};
use crate::options::{Claim, DeviceDescription, Part, told};
use crate::place::{Mounts, Place, Way};

/// A directory that somebody sees.
pub(crate) struct Tree {
    /// The option and its value.
    name: String,
    path: PathBuf,
    /// Whoever sees it can change it.
    is_writable: bool,
}

impl Tree {
    /// A directory that others see; `name` is the option and its value.
    pub(crate) fn new(name: String, path: &Path, read_only: bool) -> Tree {
        Tree { name, path: path.into(), is_writable: !read_only }
    }

    /// The directories among devices.
    pub(crate) fn among<'d>(devices: impl Iterator<Item = &'d DeviceDescription>) -> Vec<Tree> {
        let tree = |device: &DeviceDescription| match device {
            DeviceDescription::Directory(directory) => {
                let shared = &directory.shared;
                Some(Tree::new(format!("--9p {shared}"), &shared.path, shared.read_only))
            }
            _ => None,
        };
        devices.filter_map(tree).collect()
    }
}

/// A tree, as it is on this machine.
struct Found<'t> {
    tree: &'t Tree,
    root: PathBuf,
    /// Of itself and of what is mounted in it.
    places: Vec<Place>,
}

impl Found<'_> {
    /// Returns whether who may write here may change where a name leads.
    fn holds(&self, name: &Path, mounts: &Mounts) -> bool {
        (name != self.root && name.starts_with(&self.root))
            || mounts.place(name).is_some_and(|place| self.places.iter().any(|tree| place.is_below(tree)))
    }
}

/// Checks the paths of a run against the directories that guests may change, and against each other.
///
/// # Errors
///
/// [`Failure::Refused`] with the options that meet, and the way out.
pub(crate) fn check(claims: &[Claim], trees: &[Tree]) -> Result<(), Failure> {
    let mounts = Mounts::read();
    let found = trees.iter().filter(|tree| tree.is_writable).filter_map(|tree| {
        // One that is not there is refused when it is opened.
        let root = tree.path.canonicalize().ok()?;
        let places = mounts.tree(&root);
        Some(Found { tree, root, places })
    });
    let found: Vec<_> = found.collect();
    let ways: Vec<_> = claims.iter().map(|claim| (claim, Way::of(&claim.path))).collect();
    for found in &found {
        let name = &found.tree.name;
        for (claim, way) in &ways {
            if let Some(inside) = way.names.iter().find(|name| found.holds(name, &mounts)) {
                let through = if inside == way.end() {
                    String::new()
                } else {
                    format!(" by way of {}", inside.display())
                };
                return refused(format!(
                    "{name}: {} lies in it{through}, where a guest could replace it; keep it elsewhere, or share the directory read-only",
                    shown(claim)
                ));
            }
            if has_other_names(claim, way.end()) && shares_a_device(way.end(), found, &mounts) {
                return refused(format!(
                    "{name}: {} has more than one name (hard links), and the others may lie in it, where a guest could change it; copy it to a file of its own, or share the directory read-only",
                    shown(claim)
                ));
            }
        }
        for other in trees {
            let way = Way::of(&other.path);
            if way.names.iter().any(|name| found.holds(name, &mounts)) {
                return refused(format!(
                    "{name}: the directory of {} lies in it, where a guest could put a link to any other in its place; share directories that lie apart, or share the directory read-only",
                    other.name
                ));
            }
        }
    }
    for (index, (one, way)) in ways.iter().enumerate() {
        for (other, its) in &ways[..index] {
            if one.clashes(way.end(), other, its.end()) {
                return refused(told(one, way.end(), other, its.end()));
            }
            // Nothing is excluded by its inode that is not excluded by its path.
            if one.clashes(way.end(), other, way.end()) && is_one_file(way.end(), its.end()) {
                return refused(format!(
                    "{} and {} are one file, {} and {}: each needs its own; change one",
                    one.option,
                    other.option,
                    way.end().display(),
                    its.end().display()
                ));
            }
        }
    }
    Ok(())
}

/// A claim, for a message: memory as the user knows it, anything else by its option.
fn shown(claim: &Claim) -> String {
    let (option, path) = (&claim.option, claim.path.display());
    match (claim.part, option.split_once(" of ")) {
        (Part::Region, Some((option, whose))) => format!("the memory of {whose} ({option} {path})"),
        _ => format!("{option} ({path})"),
    }
}

/// Returns whether a file has hard links. What is only read or run may: a package manager makes some.
fn has_other_names(claim: &Claim, path: &Path) -> bool {
    let has = || std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir() && meta.nlink() > 1);
    claim.part != Part::Input && has()
}

fn shares_a_device(path: &Path, found: &Found, mounts: &Mounts) -> bool {
    mounts.place(path).is_some_and(|place| found.places.iter().any(|tree| place.shares_device(tree)))
}

fn is_one_file(one: &Path, other: &Path) -> bool {
    let id = |path| std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let (one, other) = (id(one), id(other));
    one.is_some() && one == other
}
