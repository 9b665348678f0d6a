//! Where the memory of a link comes from: part of a file, a POSIX shared memory object, an inherited descriptor, or a
//! new memfd. All of it is ordinary memory of this host, hence coherent; a board's memory (UIO) will be one more
//! provider.
//!
//! Exactly one PMM serves a region. An open-file-description lock on the region's bytes says so: the kernel drops it
//! when the last descriptor and mapping of its owner are gone, so that holding it proves that no predecessor, however
//! it died, can still write here.
#![allow(unsafe_code)]

mod holder;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::Duration;

use hvl_shared_abi::mem::{Attribute, Mem, Region};
use rustix::fs::{FallocateFlags, FileType, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::failure::{Failure, refused};
use crate::options::{LinkDescription, Memory};
use crate::sys;

/// How long a predecessor that is dying may take to be gone. Freeing a large process takes some.
const PREDECESSOR: Duration = Duration::from_secs(1);

/// A region that is mapped and locked. It stays mapped until the process ends, because a [`Region`] has no owner;
/// dropping this gives up the lock only.
#[derive(Debug)]
pub struct Mapping {
    fd: OwnedFd,
    offset: u64,
    region: Region,
    name: String,
    notes: Vec<String>,
}

impl Mapping {
    /// Opens, locks and maps the region of a link.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] with a line that names the option: what cannot be opened or mapped, a file that is too
    /// short, a region that another PMM serves (with its process).
    ///
    /// `links` are all of this process: a file that is made here is made long enough for each of them that lies in it.
    pub fn open(link: &LinkDescription, links: &[LinkDescription]) -> Result<Mapping, Failure> {
        let source = Source::open(link, links)?;
        let len = u64::from(link.size);
        let what = format!("the region of '{}' is served", link.name);
        lock(source.fd.as_fd(), source.offset, u64::from(link.size), &source.name, &what)?;
        source.check_length(len)?;
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                link.size as usize,
                flags,
                MapFlags::SHARED,
                &source.fd,
                source.offset,
            )
        };
        let base = match base.map(|base| NonNull::new(base.cast::<u8>())) {
            Ok(Some(base)) => base,
            Ok(None) => {
                return refused(format!("{}: was mapped at address 0; this cannot be used", source.name));
            }
            Err(error) => {
                return refused(format!("{}: cannot be mapped ({error}); use a file in memory", source.name));
            }
        };
        // SAFETY: 1. a mapping starts at a page, is `size` bytes long, readable and writable, and is never unmapped;
        // 2. it is new, and no reference into it is made anywhere in this program; 3. page cache shared between
        // processes of one machine is coherent.
        let region = unsafe { Region::new(base, link.size, Attribute::Coherent) };
        let Source { fd, offset, name, notes } = source;
        Ok(Mapping { fd, offset, region, name, notes })
    }

    /// The memory.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Makes the whole region zero. Only when it is known that no guest runs on it.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the file cannot be written, which its mapping makes unlikely.
    pub fn zero(&self) -> Result<(), Failure> {
        let len = u64::from(self.region.len());
        // A hole is zero and takes no memory; what is mapped sees it at once.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.fd, hole, self.offset, len).is_ok() {
            return Ok(());
        }
        let zeroes = vec![0; 1 << 16];
        let mut done = 0;
        while done < len {
            let part = zeroes.len().min((len - done) as usize);
            match rustix::io::pwrite(&self.fd, &zeroes[..part], self.offset + done) {
                Ok(wrote @ 1..) => done += wrote as u64,
                Err(rustix::io::Errno::INTR) => {}
                other => return refused(format!("{}: cannot be zeroed ({other:?})", self.name)),
            }
        }
        Ok(())
    }

    /// Where another process of this machine finds the same memory, at [`offset`](Self::offset).
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Where in the file the region starts, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The option and its value, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the user should know of how it was opened.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The mapping keeps the open file description, and with it the lock, until the process ends.
        let _ = sys::unlock_range(self.fd.as_fd(), self.offset, u64::from(self.region.len()));
    }
}

/// An open file that holds the region.
struct Source {
    fd: OwnedFd,
    offset: u64,
    name: String,
    notes: Vec<String>,
}

impl Source {
    fn open(link: &LinkDescription, links: &[LinkDescription]) -> Result<Source, Failure> {
        let len = u64::from(link.size);
        let name = link.memory.to_string();
        let source = match &link.memory {
            Memory::Memfd => {
                let name = format!("the memfd of '{}'", link.name);
                let made = rustix::fs::memfd_create(
                    &*format!("pmm-{}", link.name),
                    MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
                )
                .and_then(|fd| {
                    rustix::fs::ftruncate(&fd, len)?;
                    // Whoever shares it must not be able to cut it short under our feet.
                    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
                    Ok(fd)
                });
                match made {
                    Ok(fd) => Source { fd, offset: 0, name, notes: Vec::new() },
                    Err(error) => {
                        return refused(format!("{name}: {len:#x} bytes of memory cannot be had ({error})"));
                    }
                }
            }
            Memory::File { path, offset } => {
                let opened = rustix::fs::open(
                    path,
                    OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK,
                    Mode::RUSR | Mode::WUSR,
                );
                let ends = links.iter().filter_map(|other| match &other.memory {
                    Memory::File { path: its, offset } if its == path => Some(offset + u64::from(other.size)),
                    _ => None,
                });
                Source::with_length(opened, *offset, ends.fold(offset + len, u64::max), name)?
            }
            Memory::Posix(object) => {
                let opened = rustix::shm::open(
                    &*format!("/{object}"),
                    rustix::shm::OFlags::RDWR | rustix::shm::OFlags::CREATE,
                    Mode::RUSR | Mode::WUSR,
                );
                Source::with_length(opened, 0, len, name)?
            }
            Memory::Fd { fd, offset } => {
                // Opened again: a lock on the inherited descriptor would be shared with whoever it was inherited from.
                match File::options().read(true).write(true).open(format!("/proc/self/fd/{fd}")) {
                    Ok(file) => Source { fd: file.into(), offset: *offset, name, notes: Vec::new() },
                    Err(error) => {
                        return refused(format!(
                            "{name}: cannot be opened again for reading and writing ({error}); pass a memfd or a file of this user"
                        ));
                    }
                }
            }
        };
        source.check_kind()?;
        Ok(source)
    }

    /// A file that was just made, or is still empty, is made `end` bytes long.
    fn with_length(
        opened: rustix::io::Result<OwnedFd>,
        offset: u64,
        end: u64,
        name: String,
    ) -> Result<Source, Failure> {
        let fd = match opened {
            Ok(fd) => fd,
            Err(error) => {
                return refused(format!(
                    "{name}: cannot be opened for reading and writing ({error}); check path and permissions"
                ));
            }
        };
        let mut source = Source { fd, offset, name, notes: Vec::new() };
        source.check_kind()?;
        if source.length()? == 0 {
            if let Err(error) = rustix::fs::ftruncate(&source.fd, end) {
                return refused(format!(
                    "{}: cannot be made {end:#x} bytes long ({error}); check the space left",
                    source.name
                ));
            }
            source.notes.push(format!(
                "{} was empty and is now {end:#x} bytes long; an emulator whose memory is larger must be given a file of its size",
                source.name
            ));
        }
        Ok(source)
    }

    fn stat(&self) -> Result<rustix::fs::Stat, Failure> {
        rustix::fs::fstat(&self.fd)
            .map_err(|error| Failure::Refused(format!("{}: cannot be looked at ({error})", self.name)))
    }

    fn length(&self) -> Result<u64, Failure> {
        Ok(self.stat()?.st_size as u64)
    }

    fn check_kind(&self) -> Result<(), Failure> {
        match FileType::from_raw_mode(self.stat()?.st_mode) {
            FileType::RegularFile => Ok(()),
            _ => refused(format!(
                "{}: is not a regular file, and the memory of a device is mapped in a later version; name a file, as in /dev/shm",
                self.name
            )),
        }
    }

    /// A page past the end of a file would kill the process that touches it.
    fn check_length(&self, len: u64) -> Result<(), Failure> {
        let (has, needs) = (self.length()?, self.offset + len);
        if has < needs {
            return refused(format!(
                "{}: has {has:#x} bytes, and the region ends at {needs:#x}; make it longer ('truncate -s {needs}') or the region smaller",
                self.name
            ));
        }
        Ok(())
    }
}

/// Locks `len` bytes of a file (0: all of it) from `start` for this process, waiting a moment for a holder that is about
/// to end. `name` is the option that the file comes from, and `what` says what a holder does with it.
///
/// # Errors
///
/// [`Failure::Refused`] with the process that has the lock.
pub(crate) fn lock(fd: BorrowedFd<'_>, start: u64, len: u64, name: &str, what: &str) -> Result<(), Failure> {
    let locked = sys::lock_range(fd, start, len).and_then(|locked| Ok(locked || soon(fd, start, len)?));
    match locked {
        Ok(true) => Ok(()),
        Ok(false) => {
            let holder = holder::find(fd, start, if len == 0 { u64::MAX } else { len });
            let by =
                holder.map_or("a process that this user cannot see".to_string(), |holder| holder.to_string());
            refused(format!("{name}: {what} by {by} already; end that one first"))
        }
        Err(error) => {
            refused(format!("{name}: cannot be locked ({error}); use a file system that has locks"))
        }
    }
}

/// Waits a moment for the holder to be gone. `false`: it is still there.
///
/// The kernel's own wait has no end, so a thread does it; one that comes too late gives the lock up with its descriptor. A
/// holder that is found in `/proc` could be waited for by itself, but a killed one is no longer to be found there when
/// the kernel comes to close its descriptors.
fn soon(fd: BorrowedFd<'_>, start: u64, len: u64) -> std::io::Result<bool> {
    let fd = fd.try_clone_to_owned()?;
    let (done, answer) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("lock".into()).spawn(move || {
        let _ = done.send(sys::await_range(fd.as_fd(), start, len));
    })?;
    answer.recv_timeout(PREDECESSOR).map_or(Ok(false), |locked| locked.map(|()| true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{DeviceDescription, Doorbell, RngDescription};

    fn link(memory: Memory) -> LinkDescription {
        LinkDescription {
            name: "test".into(),
            base: 0x1000_0000,
            size: 0x4000,
            memory,
            doorbell: Doorbell::Poll { micros: 1000 },
            devices: vec![DeviceDescription::Rng(RngDescription { queue: 8, pool: 2048 })],
            fresh: false,
            state: None,
            gone_after: None,
        }
    }

    fn alone(memory: Memory) -> Result<Mapping, Failure> {
        Mapping::open(&link(memory), &[])
    }

    fn temp(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pmm-region-{}-{name}", std::process::id()))
    }

    /// Removes a file when a test ends.
    struct Gone(PathBuf);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_is_made_shared_and_locked() {
        let path = Gone(temp("file"));
        let one = alone(Memory::File { path: path.0.clone(), offset: 0x2000 }).unwrap();
        assert_eq!(one.notes().len(), 1);
        assert_eq!(std::fs::metadata(&path.0).unwrap().len(), 0x6000);
        one.region().write32(0, 0x1234_5678);
        assert_eq!(std::fs::read(&path.0).unwrap()[0x2000..0x2004], 0x1234_5678u32.to_le_bytes());

        // Overlapping by a page, by another name.
        let text = alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap_err().to_string();
        let me = format!("process {} (", std::process::id());
        assert!(text.contains(&me) && text.contains("--shmem-file"), "{text}");
        drop(one);
        alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap();
    }

    #[test]
    fn a_new_file_is_long_enough_for_every_link_in_it() {
        let path = Gone(temp("two"));
        let links = [0, 0x4000].map(|offset| link(Memory::File { path: path.0.clone(), offset }));
        let open: Vec<Mapping> = links.iter().map(|one| Mapping::open(one, &links).unwrap()).collect();
        assert_eq!(std::fs::metadata(&path.0).unwrap().len(), 0x8000);
        open[1].region().write32(0, 7);
        assert_eq!(open[0].region().read32(0), 0);
    }

    #[test]
    fn zeroing_stays_inside_the_region() {
        let path = Gone(temp("zero"));
        std::fs::write(&path.0, vec![0xff; 0x8000]).unwrap();
        let one = alone(Memory::File { path: path.0.clone(), offset: 0x1000 }).unwrap();
        assert_eq!(one.region().read32(0), u32::MAX);
        one.zero().unwrap();
        assert_eq!(one.region().read32(0x3ffc), 0);
        let bytes = std::fs::read(&path.0).unwrap();
        assert!(bytes.iter().enumerate().all(|(at, byte)| (*byte == 0) == (0x1000..0x5000).contains(&at)));
    }

    #[test]
    fn two_regions_in_one_file() {
        let path = Gone(temp("two"));
        std::fs::File::create(&path.0).unwrap().set_len(0x8000).unwrap();
        let at = |offset| alone(Memory::File { path: path.0.clone(), offset });
        let (one, two) = (at(0).unwrap(), at(0x4000).unwrap());
        one.region().write32(0x3ffc, 7);
        assert_eq!(two.region().read32(0), 0);
        let text = at(0x5000).unwrap_err().to_string();
        assert!(text.contains("served by"), "{text}");
    }

    #[test]
    fn a_short_file_is_refused_with_the_length_it_needs() {
        let path = Gone(temp("short"));
        std::fs::File::create(&path.0).unwrap().set_len(0x1000).unwrap();
        let text = alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap_err().to_string();
        assert!(text.contains("0x1000 bytes") && text.contains("truncate -s 16384"), "{text}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for path in ["/dev/null", "/tmp", "/nonexistent/x"] {
            let text = alone(Memory::File { path: path.into(), offset: 0 }).unwrap_err().to_string();
            assert!(text.contains(&format!("--shmem-file {path}")), "{text}");
        }
    }

    #[test]
    fn a_memfd_travels_by_its_path_and_by_inheritance() {
        let one = alone(Memory::Memfd).unwrap();
        one.region().write32(64, 0xabcd);
        let file = File::options().read(true).write(true).open(one.path()).unwrap();
        assert!(file.set_len(0x1000).is_err(), "a guest could cut the region short");
        let fd = file.as_raw_fd();
        assert!(alone(Memory::Fd { fd, offset: 0 }).is_err(), "locked by the first");
        drop(one);
        let two = alone(Memory::Fd { fd, offset: 0 }).unwrap();
        assert_eq!(two.region().read32(64), 0xabcd);
        let text = alone(Memory::Fd { fd, offset: 0 }).unwrap_err().to_string();
        assert!(text.contains("served by"), "an inherited descriptor must not share the lock: {text}");
        assert!(alone(Memory::Fd { fd: 987_654, offset: 0 }).is_err());
    }

    #[test]
    fn a_posix_object() {
        let name = format!("pmm-test-{}", std::process::id());
        let _gone = Gone(format!("/dev/shm/{name}").into());
        let one = alone(Memory::Posix(name.clone())).unwrap();
        one.region().write32(0, 5);
        drop(one);
        assert_eq!(alone(Memory::Posix(name)).unwrap().region().read32(0), 5);
    }

    #[test]
    fn a_killed_holder_is_waited_for() {
        // `flock` of util-linux cannot lock a range, so the holder is this test run again as a child.
        let path = Gone(temp("killed"));
        if let Some(path) = std::env::var_os("PMM_TEST_HOLD") {
            let _held = alone(Memory::File { path: path.into(), offset: 0 }).unwrap();
            println!("holding");
            std::io::Read::read(&mut std::io::stdin(), &mut [0]).unwrap();
            return;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["region::tests::a_killed_holder_is_waited_for", "--exact", "--nocapture"])
            .env("PMM_TEST_HOLD", &path.0)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        assert!(std::io::BufRead::lines(out).any(|line| line.unwrap().contains("holding")));
        let again = || alone(Memory::File { path: path.0.clone(), offset: 0 });
        let text = again().unwrap_err().to_string();
        assert!(text.contains(&format!("process {} (", child.id())), "{text}");
        child.kill().unwrap();
        again().unwrap();
        child.wait().unwrap();
    }
}
