//! `--state FILE`: a small record that outlives this process, for a guest that cannot tell one PMM from the next.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::bounded::{NO_DEVICE, PRIVATE};
use crate::failure::{Failure, refused};
use crate::place::is_among_devices;
use crate::region::lock;

/// Bytes of one of the two slots that are written in turn; a power failure spoils at most one.
const SLOT: u64 = 4096;
/// Magic, length, sequence number and hash.
const HEAD: usize = 24;
const MAGIC: u32 = u32::from_le_bytes(*b"HVLs");

/// A file that holds the latest of a sequence of records. A record that [`store`](Self::store) returned from survives
/// the death of this process (not of the machine: the guest would not either). It is locked while it is open: two
/// writers would hand each other's guest to their successors.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    sequence: u64,
    latest: Option<Vec<u8>>,
}

impl StateFile {
    /// Largest record, in bytes.
    pub const MAX: usize = SLOT as usize - HEAD;

    /// Opens or makes the file and reads the latest record.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if it cannot be opened, another process has it, or it holds something else.
    pub fn open(path: &Path) -> Result<StateFile, Failure> {
        let name = format!("--state {}", path.display());
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let is_device = is_among_devices(path);
        let flags = if is_device { flags } else { flags | OFlags::CREATE };
        let file = match rustix::fs::open(path, flags, PRIVATE) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) if is_device => return refused(format!("{name}: {NO_DEVICE}")),
            Err(Errno::LOOP) => {
                return refused(format!(
                    "{name}: is a symbolic link, which somebody else could turn; name the file that it leads to"
                ));
            }
            Err(error) => {
                return refused(format!(
                    "{name}: cannot be opened for reading and writing ({error}); check path and permissions"
                ));
            }
        };
        // The whole file, and whatever it may become.
        lock(file.as_fd(), 0, 0, &name, "this state is kept")?;
        let (mut slots, mut empty) = (Vec::new(), true);
        for at in [0, SLOT] {
            let mut bytes = vec![0; SLOT as usize];
            let got = file.read_at(&mut bytes, at);
            let got = got.map_err(|error| Failure::Refused(format!("{name}: cannot be read ({error})")))?;
            empty &= bytes.iter().all(|byte| *byte == 0);
            slots.extend(decode(&bytes[..got]));
        }
        if slots.is_empty() && !empty {
            return refused(format!(
                "{name}: holds something else than the state of a pmm; choose another path"
            ));
        }
        // The space is taken now, so that a full disk cannot refuse a record later.
        if let Err(error) = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 * SLOT)
            && !matches!(error, rustix::io::Errno::OPNOTSUPP)
        {
            return refused(format!("{name}: no space for {} bytes ({error})", 2 * SLOT));
        }
        let newest = slots.into_iter().max_by_key(|(sequence, _)| *sequence);
        let (sequence, latest) = newest.map_or((0, None), |(sequence, record)| (sequence, Some(record)));
        Ok(StateFile { file, sequence, latest })
    }

    /// The latest record, if there is one.
    pub fn latest(&self) -> Option<&[u8]> {
        self.latest.as_deref()
    }

    /// Writes a record of at most [`MAX`](Self::MAX) bytes.
    ///
    /// # Errors
    ///
    /// That of the file system; the previous record is still there then. `InvalidInput` for one that is too long.
    pub fn store(&mut self, record: &[u8]) -> std::io::Result<()> {
        if record.len() > Self::MAX {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let sequence = self.sequence + 1;
        let mut bytes = Vec::with_capacity(HEAD + record.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&hash(sequence, record).to_le_bytes());
        bytes.extend_from_slice(record);
        self.file.write_all_at(&bytes, (sequence % 2) * SLOT)?;
        self.sequence = sequence;
        self.latest = Some(record.to_vec());
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let record = rest.get(..word(4) as usize)?;
    (word(0) == MAGIC && long(16) == hash(long(8), record)).then(|| (long(8), record.to_vec()))
}

/// FNV-1a: against torn writes, not against anybody.
fn hash(sequence: u64, record: &[u8]) -> u64 {
    let all = sequence.to_le_bytes().into_iter().chain(record.iter().copied());
    all.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_output_is_made_among_the_devices() {
        use super::super::bounded::{Bounded, Start};
        for path in ["/dev/pmm-test-log0", "/dev/shm/../pmm-test-log1"].map(Path::new) {
            let console = Bounded::open(path, Start::Append, None, "--console x").map(drop);
            let capture = Bounded::open(path, Start::Anew, None, "--pcap x").map(drop);
            let made = path.exists();
            let state = StateFile::open(path).map(drop);
            let made = made || path.exists();
            let _ = std::fs::remove_file(path);
            for refused in [console, capture, state] {
                let text = refused.unwrap_err().to_string();
                assert!(text.contains("makes no file in /dev"), "{text}");
            }
            assert!(!made);
        }
        let path = format!("/dev/shm/pmm-test-{}-log", std::process::id());
        Bounded::open(Path::new(&path), Start::Append, Some(8), "--console x").unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_latest_whole_record_is_found() {
        let path = std::env::temp_dir().join(format!("pmm-state-{}", std::process::id()));
        let mut state = StateFile::open(&path).unwrap();
        assert_eq!(state.latest(), None);
        for record in [&b"one"[..], b"", b"three and longer"] {
            state.store(record).unwrap();
            drop(state);
            state = StateFile::open(&path).unwrap();
            assert_eq!(state.latest(), Some(record));
        }
        assert!(state.store(&[0; StateFile::MAX + 1]).is_err());
        let text = StateFile::open(&path).unwrap_err().to_string();
        let own = format!("this state is kept by process {} ", std::process::id());
        assert!(text.contains("--state ") && text.contains(&own), "{text}");
        drop(state);
        // The newest is torn: the one before it counts.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"X", SLOT + HEAD as u64).unwrap();
        assert_eq!(StateFile::open(&path).unwrap().latest(), Some(&b""[..]));
        // Both are spoilt: it is not ours to overwrite.
        file.write_all_at(b"X", 0).unwrap();
        assert!(StateFile::open(&path).is_err());
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "nobody else's business");
        let link = path.with_extension("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let text = StateFile::open(&link).unwrap_err().to_string();
        assert!(text.contains("is a symbolic link"), "{text}");
        std::fs::remove_file(&link).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
