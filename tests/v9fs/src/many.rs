//! More files than a server may want to keep open for one client. The host makes them: this is about finding them.

use anyhow::{Context, Result, ensure};
use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use crate::{Told, place::Place};

const FOLDERS: usize = 9;
const FILES: usize = 1000;
/// Every so many are read.
const READ: usize = 30;
/// As many are open at once; locally, too.
const OPEN: usize = 2500;
/// In the directory that is served.
const NAME: &str = "many";

/// Makes the files in `folder`.
pub fn make(folder: &Path) -> Result<()> {
    for number in 0..FOLDERS {
        let folder = folder.join(NAME).join(number.to_string());
        fs::create_dir_all(&folder)?;
        for number in 0..FILES {
            fs::write(folder.join(number.to_string()), "x".repeat(number))?;
        }
    }
    Ok(())
}

pub fn run(place: &Place, told: &mut Told) -> Result<()> {
    if place.is_local() {
        make(&place.root)?;
    }
    let root = place.root.join(NAME);
    // Twice: the second time the names may be known.
    for _ in 0..2 {
        let (mut count, mut bytes, mut read) = (0, 0, 0);
        for number in 0..FOLDERS {
            let folder = root.join(number.to_string());
            for entry in fs::read_dir(&folder).with_context(|| format!("{} of {FOLDERS}", number + 1))? {
                let entry = entry?;
                let length = entry.metadata().with_context(|| format!("after {count} files"))?.len();
                bytes += length;
                if count % READ == 0 {
                    let text = fs::read(entry.path()).with_context(|| format!("after {count} files"))?;
                    ensure!(text.len() as u64 == length, "{:?} is not whole", entry.path());
                    read += 1;
                }
                count += 1;
            }
        }
        told.same(format!("{count} files of {bytes} bytes, {read} read"));
    }
    let mut open = Vec::new();
    for number in 0..OPEN {
        let path = root.join((number % FOLDERS).to_string()).join((number / FOLDERS).to_string());
        let file =
            File::open(&path).with_context(|| format!("opening {} with {number} open", path.display()))?;
        open.push((number / FOLDERS, file));
    }
    let mut text = Vec::new();
    for (length, file) in &mut open {
        text.clear();
        file.read_to_end(&mut text)?;
        ensure!(text.len() == *length, "one of {OPEN} open files has {} bytes, not {length}", text.len());
    }
    told.same(format!("{} open at once", open.len()));
    told.done = format!("{} files found twice, {OPEN} open at once", FOLDERS * FILES);
    if place.is_local() {
        fs::remove_dir_all(root)?;
    }
    Ok(())
}
