//! Random operations on files, each checked against what a plain vector of bytes would hold: positioned reads and writes,
//! appends, holes, truncation both ways, reads and writes through mappings, files that are replaced or removed while they
//! are open. In the manner of Apple's fsx; the seed that the run prints makes the same one again.

use anyhow::{Context, Result, bail, ensure};
use memmap2::{MmapMut, MmapOptions};
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{Told, place::Place};

const FILES: usize = 3;
const OPERATIONS: usize = 1000;
/// A file's size, in bytes, is at most this: several pages, and several of the largest reads in a message of 128 KiB.
const SIZE: usize = 300_000;
/// Most bytes of one operation, mostly; some are as large as the file.
const USUAL: usize = 20_000;
/// As many operations are told of when one went wrong.
const REMEMBERED: usize = 30;

/// A file and what it should hold.
struct Subject {
    path: PathBuf,
    file: File,
    appending: File,
    expected: Vec<u8>,
}

impl Subject {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let appending = File::options().append(true).open(&path)?;
        Ok(Self { path, file, appending, expected: Vec::new() })
    }

    /// Where and how much.
    fn range(&self, end: usize) -> (usize, usize) {
        let at = fastrand::usize(..end.max(1));
        let most = if fastrand::u8(..10) == 0 { SIZE } else { USUAL };
        (at, fastrand::usize(..=most).min(end - at))
    }

    fn write(&mut self) -> Result<String> {
        let (at, length) = self.range(SIZE);
        let data = bytes(length);
        self.file.write_all_at(&data, at as u64)?;
        self.put(at, &data);
        Ok(format!("write {length} at {at}"))
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = at + data.len();
        // What lies between the old end and a write is a hole, which reads as zeros.
        self.expected.resize(self.expected.len().max(end), 0);
        self.expected[at..end].copy_from_slice(data);
    }

    fn append(&mut self, place: &Place) -> Result<String> {
        let room = SIZE.saturating_sub(self.expected.len());
        let data = bytes(fastrand::usize(..=USUAL).min(room));
        match place.appends_to_its_cache() {
            true => self.appending.write_all(&data)?,
            false => self.file.write_all_at(&data, self.expected.len() as u64)?,
        }
        self.expected.extend(&data);
        Ok(format!("append {}", data.len()))
    }

    fn read(&mut self) -> Result<String> {
        // Also beyond the end.
        let (at, length) = self.range(SIZE);
        let mut data = vec![0xee; length];
        let mut count = 0;
        while count < length {
            match self.file.read_at(&mut data[count..], (at + count) as u64)? {
                0 => break,
                more => count += more,
            }
        }
        let expected = self.expected.get(at..(at + length).min(self.expected.len())).unwrap_or_default();
        same(expected, &data[..count], at)?;
        Ok(format!("read {length} at {at}"))
    }

    fn truncate(&mut self) -> Result<String> {
        let size = if fastrand::u8(..8) == 0 { 0 } else { fastrand::usize(..SIZE) };
        let by_name = fastrand::bool();
        if by_name {
            File::options().write(true).open(&self.path)?.set_len(size as u64)?;
        } else {
            self.file.set_len(size as u64)?;
        }
        self.expected.resize(size, 0);
        Ok(format!("truncate to {size}{}", if by_name { " by name" } else { "" }))
    }

    fn map_read(&mut self) -> Result<String> {
        let (at, length) = self.range(self.expected.len());
        if length == 0 {
            return Ok("map nothing".into());
        }
        // SAFETY: nobody but this thread changes the file while it is mapped.
        #[allow(unsafe_code)]
        let map = unsafe { MmapOptions::new().offset(at as u64).len(length).map_copy_read_only(&self.file)? };
        same(&self.expected[at..at + length], &map, at)?;
        Ok(format!("read {length} at {at} through a mapping"))
    }

    fn map_write(&mut self) -> Result<String> {
        let (at, length) = self.range(self.expected.len());
        if length == 0 {
            return Ok("map nothing".into());
        }
        // SAFETY: nobody but this thread changes the file while it is mapped.
        #[allow(unsafe_code)]
        let mut map: MmapMut =
            unsafe { MmapOptions::new().offset(at as u64).len(length).map_mut(&self.file)? };
        same(&self.expected[at..at + length], &map, at)?;
        let data = bytes(length);
        map.copy_from_slice(&data);
        let flushed = fastrand::bool();
        if flushed {
            map.flush()?;
        }
        self.put(at, &data);
        Ok(format!("write {length} at {at} through a mapping{}", if flushed { ", msync" } else { "" }))
    }

    /// What is open goes on, under no name, while another file has taken its place.
    fn replace(&mut self, how: Replace) -> Result<String> {
        let mut new = match how {
            Replace::Rename => {
                let aside = self.path.with_extension("new");
                let mut new = Self::create(aside.clone())?;
                new.write()?;
                fs::rename(&aside, &self.path)?;
                new.path.clone_from(&self.path);
                new
            }
            Replace::Unlink => {
                fs::remove_file(&self.path)?;
                Self::create(self.path.clone())?
            }
        };
        std::mem::swap(self, &mut new);
        let mut old = new;
        old.whole().context("the old file")?;
        let (at, length) = old.range(SIZE);
        let data = bytes(length);
        old.file.write_all_at(&data, at as u64).context("writing to the old file")?;
        old.put(at, &data);
        old.whole().context("the old file, after a write")?;
        Ok(format!("{how:?}, {length} at {at} to the old file"))
    }

    fn reopen(&mut self) -> Result<String> {
        let emptied = fastrand::u8(..6) == 0;
        self.file = File::options().read(true).write(true).truncate(emptied).open(&self.path)?;
        self.appending = File::options().append(true).open(&self.path)?;
        if emptied {
            self.expected.clear();
        }
        Ok(if emptied { "reopen, truncated" } else { "reopen" }.into())
    }

    fn sync(&mut self) -> Result<String> {
        match fastrand::bool() {
            true => self.file.sync_all()?,
            false => self.file.sync_data()?,
        }
        Ok("sync".into())
    }

    /// Everything, through the open file.
    fn whole(&self) -> Result<()> {
        let mut data = vec![0xee; self.expected.len() + 1];
        let mut count = 0;
        while count < data.len() {
            match self.file.read_at(&mut data[count..], count as u64)? {
                0 => break,
                more => count += more,
            }
        }
        same(&self.expected, &data[..count], 0)
    }

    fn sizes(&self) -> Result<String> {
        let (open, named) = (self.file.metadata()?.size(), fs::metadata(&self.path)?.size());
        let expected = self.expected.len();
        ensure!(
            open == expected as u64 && named == open,
            "size {expected}: {open} of the file, {named} of the name"
        );
        Ok("stat".into())
    }
}

#[derive(Clone, Copy, Debug)]
enum Replace {
    Rename,
    Unlink,
}

fn bytes(length: usize) -> Vec<u8> {
    // None is zero, so that a hole is not taken for data.
    let mut data = vec![0; length];
    fastrand::fill(&mut data);
    data.iter_mut().for_each(|byte| *byte |= 1);
    data
}

fn same(expected: &[u8], found: &[u8], at: usize) -> Result<()> {
    if let Some(first) = expected.iter().zip(found).position(|(expected, found)| expected != found) {
        let wrong = expected.iter().zip(found).filter(|(expected, found)| expected != found).count();
        bail!(
            "{wrong} bytes from {} are wrong: {:#04x}, not {:#04x}",
            at + first,
            found[first],
            expected[first]
        );
    }
    ensure!(expected.len() == found.len(), "{} bytes at {at}, not {}", found.len(), expected.len());
    Ok(())
}

fn step(subject: &mut Subject, place: &Place) -> Result<String> {
    match fastrand::u8(..100) {
        0..25 => subject.write(),
        25..45 => subject.read(),
        45..55 => subject.append(place),
        55..65 => subject.truncate(),
        65..73 => subject.map_read(),
        73..83 => match place.maps_writable() {
            true => subject.map_write(),
            // The same numbers are drawn, so that the run goes on as elsewhere.
            false => subject.refused_map(),
        },
        83..86 => subject.replace(Replace::Rename),
        86..89 => subject.replace(Replace::Unlink),
        89..93 => subject.reopen(),
        93..96 => subject.sync(),
        96..99 => subject.sizes(),
        _ => drop_caches(),
    }
}

impl Subject {
    /// As much as a write through a mapping would do, without one.
    fn refused_map(&mut self) -> Result<String> {
        let (at, length) = self.range(self.expected.len());
        if length == 0 {
            return Ok("map nothing".into());
        }
        // SAFETY: nobody but this thread changes the file while it is mapped.
        #[allow(unsafe_code)]
        let map = unsafe { MmapOptions::new().offset(at as u64).len(length).map_mut(&self.file) };
        match map.map(drop).map_err(|error| error.raw_os_error()) {
            Err(Some(code)) if code == rustix::io::Errno::INVAL.raw_os_error() => {}
            other => bail!("a writable mapping should be refused with EINVAL, and is {other:?}"),
        }
        let data = bytes(length);
        fastrand::bool();
        self.file.write_all_at(&data, at as u64)?;
        self.put(at, &data);
        Ok(format!("write {length} at {at}, since no mapping may"))
    }
}

/// What is clean must come from the server again.
fn drop_caches() -> Result<String> {
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    Ok("drop caches".into())
}

pub fn run(place: &Place, told: &mut Told) -> Result<()> {
    let mut subjects = Vec::new();
    for number in 0..FILES {
        subjects.push(Subject::create(place.folder.join(format!("file{number}")))?);
    }
    let mut last = VecDeque::new();
    for number in 0..OPERATIONS {
        let chosen = fastrand::usize(..FILES);
        match step(&mut subjects[chosen], place) {
            Ok(what) => last.push_back(format!("  {number}: file{chosen}: {what}")),
            Err(error) => {
                let before: Vec<_> = last.into();
                let size = subjects[chosen].expected.len();
                return Err(error).with_context(|| {
                    format!(
                        "operation {number} on file{chosen} of {size} bytes, after\n{}\n ",
                        before.join("\n")
                    )
                });
            }
        }
        if last.len() > REMEMBERED {
            last.pop_front();
        }
    }
    // What another client sees, which is what the server has.
    for subject in subjects {
        subject.whole().context("at the end")?;
        subject.file.sync_all()?;
        let name = subject.path.file_name().map(Path::new).context("a file has a name")?;
        let expected = subject.expected;
        drop((subject.file, subject.appending));
        let found = fs::read(place.elsewhere().join(name))?;
        same(&expected, &found, 0).context("as another client reads it at the end")?;
        told.same(format!("{} bytes", expected.len()));
    }
    told.done = format!("{OPERATIONS} operations on {FILES} files");
    Ok(())
}
