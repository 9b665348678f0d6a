//! What the shell does with files: one operation of the file client a step, so that the console is looked after in
//! between. An operation waits for its answer, for as long as the client was told at the most.

use core::fmt;

use hvl_frontend::device::p9::{Dir, File, FileError, Files};
use hvl_shared_abi::wire::p9::{Entries, Errno, entry_kind, is_name, mode, open};

use crate::Machine;
use crate::pattern::{self, Sum};
use crate::text::Text;

/// Permissions of what the shell makes.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// Bytes of the longest path that the shell takes.
pub const PATH: usize = 160;

/// What to do with files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what the lines above them name
pub enum Task<'l> {
    /// Prints the names in a directory, or with `long` what each is.
    List { path: &'l str, long: bool },
    /// Prints a file.
    Cat(&'l str),
    /// Writes a line of text.
    Write { path: &'l str, text: &'l str },
    /// Writes this many bytes of [`pattern`].
    Fill { path: &'l str, len: u32 },
    /// Reads a file, and prints its length and checksum.
    Sum(&'l str),
    /// Copies a file.
    Copy { from: &'l str, to: &'l str },
    /// Makes a directory.
    MakeDirectory(&'l str),
    /// Removes a file or an empty directory.
    Remove(&'l str),
    /// What a file is.
    Stat(&'l str),
    /// How full the file system is.
    Free,
}

/// A task under way. There is one at a time, in the shell's own storage: no heap takes the larger ones out of it.
#[allow(missing_docs, clippy::large_enum_variant)] // as above
pub enum FileJob {
    /// Printing entries: those in the work buffer from `at` to `end` come next.
    List { dir: Option<Dir>, path: Text<PATH>, long: bool, at: usize, end: usize, count: u32 },
    /// Printing what is in the work buffer, then reading on.
    Cat { file: Option<File>, offset: u64, at: usize, end: usize },
    /// Writing the pattern.
    Fill { file: Option<File>, at: u32, len: u32, sum: Sum },
    /// Reading.
    Sum { file: Option<File>, offset: u64, sum: Sum },
    /// Reading and writing.
    Copy { from: Option<File>, to: Option<Replacement>, offset: u64 },
}

/// How far a step came.
pub enum FileStep {
    /// There is more to do.
    On,
    /// Done.
    Done,
}

/// Begins a task: what is done with one operation or two is done at once.
pub fn begin<'s, B: Machine, const N: usize>(
    task: Task<'_>,
    files: &mut Files<'s, B>,
    out: &mut Text<N>,
) -> Result<Option<FileJob>, FileError> {
    let bytes = |path: &'_ str| -> Result<(), FileError> {
        if path.len() > PATH { Err(FileError::TooLong) } else { Ok(()) }
    };
    Ok(Some(match task {
        Task::List { path, long } => {
            bytes(path)?;
            let dir = files.open_dir(path.as_bytes())?;
            let mut of = Text::NEW;
            of.push(path.as_bytes());
            FileJob::List { dir: Some(dir), path: of, long, at: 0, end: 0, count: 0 }
        }
        Task::Cat(path) => FileJob::Cat {
            file: Some(files.open_file(path.as_bytes(), open::READ_ONLY)?),
            offset: 0,
            at: 0,
            end: 0,
        },
        Task::Write { path, text } => {
            let mut file = files.create(path.as_bytes(), open::WRITE_ONLY | open::TRUNCATE, FILE_MODE)?;
            let mut line = Text::<{ PATH + 1 }>::NEW;
            line.push(text.as_bytes());
            line.push(b"\n");
            let written = write_all(files, &mut file, 0, line.as_bytes());
            files.close(file)?;
            written?;
            return Ok(None);
        }
        Task::Fill { path, len } => {
            let file = files.create(path.as_bytes(), open::WRITE_ONLY | open::TRUNCATE, FILE_MODE)?;
            FileJob::Fill { file: Some(file), at: 0, len, sum: pattern::sum() }
        }
        Task::Sum(path) => {
            let file = files.open_file(path.as_bytes(), open::READ_ONLY)?;
            FileJob::Sum { file: Some(file), offset: 0, sum: pattern::sum() }
        }
        Task::Copy { from, to } => {
            let from = files.open_file(from.as_bytes(), open::READ_ONLY)?;
            match Replacement::create(files, to) {
                Ok(to) => FileJob::Copy { from: Some(from), to: Some(to), offset: 0 },
                Err(error) => {
                    files.close(from)?;
                    return Err(error);
                }
            }
        }
        Task::MakeDirectory(path) => {
            files.mkdir(path.as_bytes(), DIRECTORY_MODE)?;
            return Ok(None);
        }
        Task::Remove(path) => {
            match files.unlink(path.as_bytes()) {
                Err(FileError::Refused(Errno::ISDIR)) => files.rmdir(path.as_bytes())?,
                other => other?,
            }
            return Ok(None);
        }
        Task::Stat(path) => {
            let attr = files.stat(path.as_bytes())?;
            out.print(format_args!(
                "{} {} links, owner {}:{}, {} bytes in {} blocks, changed at {}\n",
                Mode(attr.mode),
                attr.links,
                attr.uid,
                attr.gid,
                attr.size,
                attr.blocks,
                attr.modified.seconds
            ));
            return Ok(None);
        }
        Task::Free => {
            let all = files.statfs()?;
            let bytes = |blocks: u64| blocks.saturating_mul(all.block_size.into()) >> 10;
            out.print(format_args!(
                "{} KiB, {} free, {} available; {} files free\n",
                bytes(all.blocks),
                bytes(all.free),
                bytes(all.available),
                all.free_files
            ));
            return Ok(None);
        }
    }))
}

/// Goes on with a job. `out` is empty, and gets less than it holds.
pub fn step<'s, B: Machine, const N: usize>(
    job: &mut FileJob,
    files: &mut Files<'s, B>,
    work: &mut [u8],
    out: &mut Text<N>,
) -> Result<FileStep, FileError> {
    match job {
        FileJob::List { dir, path, long, at, end, count } => {
            let Some(open) = dir else { return Ok(FileStep::Done) };
            if at == end {
                let len = again(|| files.entries(open, work).map(|entries| entries.rest().len()))?;
                (*at, *end) = (0, len);
                if *end == 0 {
                    close(files, dir.take().map(Dir::into_file))?;
                    out.print(format_args!("{count} entries\n"));
                    return Ok(FileStep::Done);
                }
            }
            let mut entries = Entries::new(work.get(*at..*end).unwrap_or(&[]));
            let Some(Ok(entry)) = entries.next() else {
                *at = *end;
                return Ok(FileStep::On);
            };
            *at = end.saturating_sub(entries.rest().len());
            if !is_name(entry.name) {
                // The directory itself and its parent.
                return Ok(FileStep::On);
            }
            *count = count.saturating_add(1);
            if *long {
                let mut full = Text::<{ 2 * PATH + 256 }>::NEW;
                full.push(path.as_bytes());
                full.push(b"/");
                full.push(entry.name);
                // It may have gone since its name was read.
                let attr = files.stat(full.as_bytes()).unwrap_or_default();
                out.print(format_args!("{} {:>12} ", Mode(attr.mode), attr.size));
            }
            for &byte in entry.name {
                let shown = if byte.is_ascii_control() { b'?' } else { byte };
                out.push(&[shown]);
            }
            out.push(if entry.kind == entry_kind::DIRECTORY { b"/\n" } else { b"\n" });
            Ok(FileStep::On)
        }
        FileJob::Cat { file, offset, at, end } => {
            let Some(open) = file else { return Ok(FileStep::Done) };
            if at == end {
                let read = again(|| files.read(open, *offset, work))?;
                (*at, *end) = (0, read);
                *offset = offset.saturating_add(read as u64);
                if read == 0 {
                    close(files, file.take())?;
                    return Ok(FileStep::Done);
                }
            }
            let rest = work.get(*at..*end).unwrap_or(&[]);
            let some = rest.get(..rest.len().min(N >> 1)).unwrap_or(&[]);
            out.push(some);
            *at = at.saturating_add(some.len());
            Ok(FileStep::On)
        }
        FileJob::Fill { file, at, len, sum } => {
            let Some(open) = file else { return Ok(FileStep::Done) };
            let most = work.len().min(len.saturating_sub(*at) as usize);
            let part = work.get_mut(..most).unwrap_or(&mut []);
            if part.is_empty() {
                close(files, file.take())?;
                let sum = core::mem::replace(sum, pattern::sum()).finalize();
                out.print(format_args!("wrote {len} bytes, CRC-32 {sum:08x}\n"));
                return Ok(FileStep::Done);
            }
            for (byte, position) in part.iter_mut().zip(*at..) {
                *byte = pattern::byte(position);
            }
            let done = again(|| files.write(open, u64::from(*at), part))?;
            sum.update(part.get(..done).unwrap_or(&[]));
            *at = at.saturating_add(done as u32);
            Ok(FileStep::On)
        }
        FileJob::Sum { file, offset, sum } => {
            let Some(open) = file else { return Ok(FileStep::Done) };
            let read = again(|| files.read(open, *offset, work))?;
            sum.update(work.get(..read).unwrap_or(&[]));
            *offset = offset.saturating_add(read as u64);
            if read != 0 {
                return Ok(FileStep::On);
            }
            close(files, file.take())?;
            let sum = core::mem::replace(sum, pattern::sum()).finalize();
            out.print(format_args!("read {offset} bytes, CRC-32 {sum:08x}\n"));
            Ok(FileStep::Done)
        }
        FileJob::Copy { from, to, offset } => {
            let (Some(source), Some(target)) = (&mut *from, &mut *to) else { return Ok(FileStep::Done) };
            let read = again(|| files.read(source, *offset, work))?;
            if read == 0 {
                let first = close(files, from.take());
                to.take().map_or(Ok(()), |to| to.commit(files))?;
                first?;
                out.print(format_args!("copied {offset} bytes\n"));
                return Ok(FileStep::Done);
            }
            write_all(files, &mut target.file, *offset, work.get(..read).unwrap_or(&[]))?;
            *offset = offset.saturating_add(read as u64);
            Ok(FileStep::On)
        }
    }
}

/// Closes what a job has open, after an error or Ctrl-C.
pub fn end<B: Machine>(job: FileJob, files: &mut Files<'_, B>) {
    let file = match job {
        FileJob::List { dir, .. } => dir.map(Dir::into_file),
        FileJob::Cat { file, .. } | FileJob::Fill { file, .. } | FileJob::Sum { file, .. } => file,
        FileJob::Copy { from, to, .. } => {
            if let Some(to) = to {
                to.abandon(files);
            }
            from
        }
    };
    let _ = close(files, file);
}

fn close<B: Machine>(files: &mut Files<'_, B>, file: Option<File>) -> Result<(), FileError> {
    file.map_or(Ok(()), |file| files.close(file))
}

/// What is told once after a restart of the PMM is no reason to give up: here every step names its place in the file,
/// and may be taken twice.
pub(crate) fn again<T>(mut step: impl FnMut() -> Result<T, FileError>) -> Result<T, FileError> {
    match step() {
        Err(FileError::Stale) => step(),
        other => other,
    }
}

/// Writes all bytes at `offset`.
pub fn write_all<B: Machine>(
    files: &mut Files<'_, B>,
    file: &mut File,
    offset: u64,
    bytes: &[u8],
) -> Result<(), FileError> {
    let mut done = 0usize;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(done as u64);
        match again(|| files.write(file, at, rest))? {
            0 => return Err(FileError::Malformed),
            count => done = done.saturating_add(count),
        }
    }
    Ok(())
}

/// A file that is to take the place of another, or of none, once all of it is there. Until then it has a name of its
/// own beside it, so that what fails half-way leaves the old file as it was, and a file can be copied onto itself.
pub struct Replacement {
    /// Where the bytes go.
    pub file: File,
    /// What it is called meanwhile: its name and [`PART`].
    part: Text<PATH>,
}

/// What is added to the name meanwhile.
const PART: &[u8] = b".part";

impl Replacement {
    /// Begins a file that will be called `name`.
    pub fn create<B: Machine>(files: &mut Files<'_, B>, name: &str) -> Result<Replacement, FileError> {
        let mut part = Text::NEW;
        if !(part.push(name.as_bytes()) && part.push(PART)) {
            return Err(FileError::TooLong);
        }
        let file = files.create(part.as_bytes(), open::WRITE_ONLY | open::TRUNCATE, FILE_MODE)?;
        Ok(Replacement { file, part })
    }

    /// It is whole: gives it its name.
    pub fn commit<B: Machine>(self, files: &mut Files<'_, B>) -> Result<(), FileError> {
        let Replacement { file, part } = self;
        let name = part.as_bytes().strip_suffix(PART).unwrap_or(part.as_bytes());
        let done = files.close(file).and_then(|()| {
            match files.rename(part.as_bytes(), name) {
                // A PMM that died meanwhile may have renamed it, and then there is no part any more.
                Err(FileError::Indeterminate) => match files.rename(part.as_bytes(), name) {
                    Err(FileError::Refused(Errno::NOENT)) => Ok(()),
                    other => other,
                },
                other => other,
            }
        });
        if done.is_err() {
            let _ = files.unlink(part.as_bytes());
        }
        done
    }

    /// It will not become whole: nothing of it is left.
    pub fn abandon<B: Machine>(self, files: &mut Files<'_, B>) {
        let Replacement { file, part } = self;
        let _ = files.close(file);
        let _ = files.unlink(part.as_bytes());
    }
}

/// A mode as `ls` shows it.
struct Mode(u32);

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 & mode::KIND {
            mode::DIRECTORY => "d",
            mode::FILE => "-",
            mode::SYMLINK => "l",
            _ => "?",
        })?;
        for shift in [6, 3, 0] {
            let bits = self.0 >> shift;
            for (bit, sign) in [(4, "r"), (2, "w"), (1, "x")] {
                f.write_str(if bits & bit != 0 { sign } else { "-" })?;
            }
        }
        Ok(())
    }
}
