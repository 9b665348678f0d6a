//! Trees of files that tar and rsync carry to a place and back, with all that they know of a file.

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, getxattr, listxattr, setxattr, utimensat};
use std::{
    collections::HashMap,
    fs::{self, File},
    hash::{DefaultHasher, Hasher},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use crate::{
    Told,
    place::{Place, call},
};

/// Where the original is: local, and made anew for each place.
const SOURCE: &str = "/tmp/source";

/// Makes a tree with one of each kind that a user has: long and odd names, links of both kinds, holes, modes, times, attributes, and many small files.
fn make() -> Result<PathBuf> {
    let root = PathBuf::from(SOURCE);
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let mut seconds = 1_000_000_000;
    let mut dated = |path: &Path| -> Result<()> {
        seconds += 12_345;
        // Linux's client sets times in whole seconds.
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    };
    let mut folders = vec![root.join("deep")];
    for depth in 0..8 {
        folders.push(folders[depth].join(format!("level {depth}")));
    }
    folders.push(root.join("empty"));
    for folder in &folders {
        fs::create_dir_all(folder)?;
    }
    for (number, folder) in folders.iter().enumerate() {
        for file in 0..6 {
            let path = folder.join(format!("file {file}"));
            if folder.ends_with("empty") {
                continue;
            }
            let bytes: Vec<u8> = (0..number * 999 + file * 100).map(|_| fastrand::u8(..)).collect();
            fs::write(&path, bytes)?;
            fs::set_permissions(
                &path,
                fs::Permissions::from_mode([0o644, 0o600, 0o755, 0o444, 0o000, 0o666][file]),
            )?;
            dated(&path)?;
        }
    }
    let large: Vec<u8> = (0..2 << 20).map(|_| fastrand::u8(..)).collect();
    fs::write(root.join("large"), large)?;
    let holes = File::create(root.join("holes"))?;
    holes.write_all_at(b"begin", 0)?;
    holes.write_all_at(b"middle", 1 << 20)?;
    holes.set_len(3 << 20)?;
    fs::write(root.join("n".repeat(255)), "long")?;
    fs::write(root.join("caf\u{e9} \u{1f980}\nline"), "odd")?;
    fs::hard_link(root.join("large"), root.join("deep/twin"))?;
    symlink("large", root.join("link"))?;
    symlink("t".repeat(200), root.join("far"))?;
    for (name, value) in
        [("user.word", &b"value"[..]), ("user.empty", b""), ("user.bytes", &[0, 1, 254, 255])]
    {
        setxattr(root.join("large"), name, value, XattrFlags::empty())?;
        setxattr(root.join("deep"), name, value, XattrFlags::empty())?;
    }
    for name in ["large", "holes", "link", "far", "n", "caf"] {
        for entry in fs::read_dir(&root)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name)) {
                dated(&path)?;
            }
        }
    }
    // Inner ones first: what is made in a directory changes its time.
    for folder in folders.iter().rev() {
        dated(folder)?;
    }
    dated(&root)?;
    Ok(root)
}

/// One line for each file of a tree, with everything that is to survive a copy.
fn manifest(root: &Path) -> Result<Vec<String>> {
    let (mut lines, mut twins) = (Vec::new(), HashMap::new());
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).with_context(|| format!("{path:?} is gone"))?;
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        let mut line = format!(
            "{name:?} mode {:o} owner {}:{} time {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime()
        );
        if meta.is_dir() {
            let mut inside =
                fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
            inside.sort_unstable();
            waiting.extend(inside.into_iter().rev());
        } else if meta.is_symlink() {
            line += &format!(" to {:?}", fs::read_link(&path)?);
        } else {
            let mut hasher = DefaultHasher::new();
            let data = fs::read(&path).with_context(|| format!("{path:?} cannot be read"))?;
            hasher.write(&data);
            line += &format!(" {} bytes {:016x} names {}", data.len(), hasher.finish(), meta.nlink());
            let first = twins.entry(meta.ino()).or_insert_with(|| name.clone());
            line += &format!(" first {first:?}");
        }
        if !meta.is_symlink() {
            line += &attributes(&path)?;
        }
        lines.push(line);
    }
    Ok(lines)
}

fn attributes(path: &Path) -> Result<String> {
    let mut names = vec![0_u8; 4096];
    let length = listxattr(path, names.as_mut_slice()).with_context(|| format!("attributes of {path:?}"))?;
    let mut said = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0_u8; 4096];
        let length = getxattr(path, name, value.as_mut_slice())?;
        said.push(format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]));
    }
    said.sort_unstable();
    Ok(said.concat())
}

fn same_as(expected: &[String], root: &Path, what: &str) -> Result<()> {
    crate::compare(expected, &manifest(root)?).with_context(|| what.to_owned())
}

/// An archive is written and unpacked there, with and without its holes.
pub fn tar(place: &Place, told: &mut Told) -> Result<()> {
    let source = make()?;
    let original = manifest(&source)?;
    told.same.extend(original.iter().cloned());
    place.call(
        "tar",
        &["--create", "--xattrs", "--sparse", "--format=posix", "--file=archive", "-C", SOURCE, "."],
    )?;
    fs::create_dir(place.folder.join("out"))?;
    place.call(
        "tar",
        &["--extract", "--xattrs", "--same-owner", "--preserve-permissions", "--file=archive", "-C", "out"],
    )?;
    same_as(&original, &place.folder.join("out"), "unpacked")?;
    // Back into an archive, which says what this place says of the files.
    let said = place.call("tar", &["--compare", "--xattrs", "--file=archive", "-C", "out"])?;
    ensure!(said.is_empty(), "tar finds differences: {said}");
    told.done = format!("{} files packed, unpacked and compared", original.len());
    Ok(())
}

/// There, there again after changes, and back.
pub fn rsync(place: &Place, told: &mut Told) -> Result<()> {
    let source = make()?;
    let there = place.folder.join("there");
    let there = there.to_str().context("a name that is text")?;
    let from = format!("{SOURCE}/");
    let arguments = ["-aHAX", "--delete", "--sparse"];
    let sync = |from: &str, to: &str, more: &[&str]| {
        call(&place.folder, "rsync", &[&arguments[..], more, &[from, to]].concat())
    };
    sync(&from, there, &[])?;
    same_as(&manifest(&source)?, Path::new(there), "after the first")?;

    fs::remove_dir_all(source.join("deep/level 0/level 1/level 2"))?;
    fs::write(source.join("deep/file 5"), "written anew")?;
    fs::rename(source.join("link"), source.join("renamed link"))?;
    File::options().write(true).open(source.join("large"))?.write_all_at(b"changed", 1_000_000)?;
    setxattr(source.join("holes"), "user.late", b"", XattrFlags::CREATE)?;
    fs::set_permissions(source.join("holes"), fs::Permissions::from_mode(0o640))?;
    // Twins that are written in place stay twins.
    sync(&from, there, &["--inplace", "--no-sparse"])?;
    let changed = manifest(&source)?;
    same_as(&changed, Path::new(there), "after changes")?;
    told.same(format!(
        "nothing is left to do: {:?}",
        sync(&from, there, &["--itemize-changes", "--dry-run"])?
    ));
    told.same(format!(
        "nor with sums: {:?}",
        sync(&from, there, &["--itemize-changes", "--dry-run", "--checksum"])?
    ));

    let back = Path::new("/tmp/back");
    sync(&format!("{there}/"), "/tmp/back/", &[])?;
    same_as(&changed, back, "back again")?;
    fs::remove_dir_all(back)?;
    told.done = format!("{} files there, again after changes, and back", changed.len());
    Ok(())
}
