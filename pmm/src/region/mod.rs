//! The memory of a link: got from a provider (`source.rs`), locked, reserved, mapped.
//!
//! Memory that is not there when it is touched would end the process with SIGBUS, and every link with it. So all of a
//! region is reserved before a guest's word is read, and none of it is ever given back; and where it goes in spite of
//! that (a file that is cut short, a file system that writes elsewhere and has no room), the region is *lost*: see
//! [`Mapping::is_lost`].
//!
//! Exactly one PMM serves a region. An open-file-description lock on the region's bytes says so: the kernel drops it
//! when the last descriptor and mapping of its owner are gone, so that holding it proves that no predecessor, however
//! it died, can still write here.
#![allow(unsafe_code)]

mod holder;
mod source;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::Duration;

use hvl_shared_abi::mem::{Mem, Region};
use rustix::mm::{MapFlags, ProtFlags};

use self::source::Source;
use crate::failure::{Failure, refused};
use crate::options::LinkDescription;
use crate::sys::{self, Guarded};

/// How long a predecessor that is dying may take to be gone. Freeing a large process takes some.
const PREDECESSOR: Duration = Duration::from_secs(1);

/// A region that is mapped and locked. It stays mapped until the process ends, because a [`Region`] has no owner;
/// dropping this gives up the lock only.
#[derive(Debug)]
pub struct Mapping {
    fd: OwnedFd,
    offset: u64,
    region: Region,
    guarded: &'static Guarded,
    name: String,
    notes: Vec<String>,
    warnings: Vec<String>,
}

impl Mapping {
    /// Opens, locks and maps the region of a link.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] with a line that names the option: what cannot be opened or mapped, a file that is too
    /// short, a region that another PMM serves (with its process), a file system without room for it.
    ///
    /// `links` are all of this process: a file that is made here is made long enough for each of them that lies in it.
    pub fn open(link: &LinkDescription, links: &[LinkDescription]) -> Result<Mapping, Failure> {
        let mut source = Source::open(link, links)?;
        let len = u64::from(link.size);
        let what = format!("the region of '{}' is served", link.name);
        lock(source.fd.as_fd(), source.offset, u64::from(link.size), &source.name, &what)?;
        source.check_length(len)?;
        source.reserve(len)?;
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
        let guarded = match Guarded::new(base, link.size as usize) {
            Ok(guarded) => guarded,
            Err(error) => {
                return refused(format!("{}: no signal handler to be had for it ({error})", source.name));
            }
        };
        // SAFETY: 1. a mapping starts at a page, is `size` bytes long, readable and writable, and is never unmapped;
        // a page of it that is gone is replaced when it is touched (`Guarded`); 2. it is new, and no reference into it
        // is made anywhere in this program; 3. the provider says what kind of memory it is.
        let region = unsafe { Region::new(base, link.size, source.attribute) };
        let Source { fd, offset, name, notes, warnings, .. } = source;
        Ok(Mapping { fd, offset, region, guarded, name, notes, warnings })
    }

    /// The memory.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Makes the whole region zero. Only when it is known that no guest runs on it.
    ///
    /// Through the mapping, and not by cutting a hole, which would give back what was reserved. A write to the file would be
    /// subject to `ulimit -f`.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the region is lost.
    pub fn zero(&self) -> Result<(), Failure> {
        let zeroes = [0; 4096];
        for at in (0..self.region.len()).step_by(zeroes.len()) {
            let part = zeroes.len().min((self.region.len() - at) as usize);
            self.region.copy_out(at, &zeroes[..part]);
        }
        self.check()
    }

    /// Returns whether part of the region was gone when it was needed. The memory of this process is whole,
    /// with zeroes in that place, and the guest does not see it.
    pub fn is_lost(&self) -> bool {
        self.guarded.is_lost()
    }

    /// Checks that the region is not lost.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] with what may have happened, if it is.
    pub fn check(&self) -> Result<(), Failure> {
        if !self.is_lost() {
            return Ok(());
        }
        refused(format!(
            "{}: part of the region is gone, since the file was cut short or its file system has no room; the link ends, \
             start it again with a file that nobody cuts short, in /dev/shm for instance",
            self.name
        ))
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

    /// Lists what the user most likely did not mean.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The mapping keeps the open file description, and with it the lock, until the process ends.
        let _ = sys::unlock_range(self.fd.as_fd(), self.offset, u64::from(self.region.len()));
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
    use std::fs::File;

    use rustix::io::Errno;

    use super::*;
    use crate::options::{DeviceDescription, Doorbell, Memory, RngDescription};

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

    /// Bytes that the file system keeps for a file.
    fn kept(path: &std::path::Path) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
    }

    #[test]
    fn all_of_a_region_is_reserved_and_stays_so() {
        let path = Gone(temp("sparse"));
        File::create(&path.0).unwrap().set_len(0x100_0000).unwrap();
        assert_eq!(kept(&path.0), 0);
        let one = alone(Memory::File { path: path.0.clone(), offset: 0x10_0000 }).unwrap();
        assert!(
            (0x4000..0x10_0000).contains(&kept(&path.0)),
            "the region, and not the file: {}",
            kept(&path.0)
        );
        one.zero().unwrap();
        assert!(kept(&path.0) >= 0x4000, "{}", kept(&path.0));
    }

    #[test]
    fn a_region_that_is_cut_short_is_lost_and_the_process_is_not() {
        let path = Gone(temp("cut"));
        let other = Gone(temp("whole"));
        let [one, two] =
            [&path, &other].map(|path| alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap());
        one.region().write32(0x1000, 7);
        let file = File::options().write(true).open(&path.0).unwrap();
        file.set_len(0x1000).unwrap();
        one.region().write32(0, 5);
        assert!(one.check().is_ok(), "what is left is used");
        assert_eq!(one.region().read32(0x1004), 0);
        let said = one.check().unwrap_err().to_string();
        assert!(
            said.contains("--shmem-file") && said.contains("cut short") && said.contains("/dev/shm"),
            "{said}"
        );
        // Whatever goes on with it until its link has ended, a copy across many pages too.
        one.region().copy_out(0x800, &[9; 0x3000]);
        one.region().write32(0x3ffc, 3);
        assert_eq!((one.region().read32(0x3000), one.region().read32(0x3ffc)), (0x0909_0909, 3));
        // What the guest still sees.
        assert_eq!(std::fs::read(&path.0).unwrap()[..4], 5u32.to_le_bytes());
        assert!(one.zero().is_err());
        two.region().write32(0x3ffc, 1);
        assert!(!two.is_lost());
    }

    #[test]
    fn a_system_call_that_finds_the_region_cut_short_says_so_too() {
        let path = Gone(temp("fault"));
        let one = alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap();
        let piece = one.region().piece(0x2000, 64).unwrap();
        let from = File::open(std::env::current_exe().unwrap()).unwrap();
        let read = || sys::pieces::read(from.as_fd(), &[piece], 0, sys::pieces::Waiting::Memory);
        assert_eq!(read().unwrap(), 64);
        File::options().write(true).open(&path.0).unwrap().set_len(0).unwrap();
        assert_eq!(read().unwrap_err().raw_os_error(), Some(Errno::FAULT.raw_os_error()));
        assert!(one.is_lost());
    }

    #[test]
    fn a_bus_error_elsewhere_kills_as_ever() {
        let Some(how) = std::env::var_os("PMM_TEST_BUS") else {
            for how in ["sent", "touched"] {
                let output = std::process::Command::new(std::env::current_exe().unwrap())
                    .args(["region::tests::a_bus_error_elsewhere_kills_as_ever", "--exact", "--nocapture"])
                    .env("PMM_TEST_BUS", how)
                    .output()
                    .unwrap();
                let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
                assert_eq!(signal, Some(7), "{how}: {:?}", output.status);
            }
            return;
        };
        let path = Gone(temp("elsewhere"));
        let _one = alone(Memory::Memfd).unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(&path.0).unwrap();
        file.set_len(4096).unwrap();
        // SAFETY: the kernel chooses the address.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap()
        };
        file.set_len(0).unwrap();
        std::fs::remove_file(&path.0).unwrap();
        if how == "sent" {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS).unwrap();
        }
        // SAFETY: the page is mapped; that it cannot be had is what is tested.
        let byte = unsafe { base.cast::<u8>().read_volatile() };
        panic!("lived, and read {byte}");
    }

    #[test]
    fn nothing_is_made_among_the_devices_but_shared_memory() {
        for path in ["/dev/pmm-test-uio0", "/dev/shm/../pmm-test-uio1"] {
            let _gone = Gone(path.into());
            let text = alone(Memory::File { path: path.into(), offset: 0 }).unwrap_err().to_string();
            assert!(text.contains("is not there") && text.contains("/dev/shm"), "{text}");
            assert!(!std::path::Path::new(path).exists());
        }
        let path = Gone(format!("/dev/shm/pmm-test-{}-made", std::process::id()).into());
        alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap();
    }

    #[test]
    fn memory_that_no_board_can_see_is_warned_of() {
        assert!(alone(Memory::Memfd).unwrap().warnings()[0].contains("--shmem-file"));
        let bell = Doorbell::UnixStream { path: "/tmp/bell".into(), listen: false };
        let told = LinkDescription { doorbell: bell, ..link(Memory::Memfd) };
        assert!(Mapping::open(&told, &[]).unwrap().warnings().is_empty());
        let path = Gone(temp("seen"));
        assert!(alone(Memory::File { path: path.0.clone(), offset: 0 }).unwrap().warnings().is_empty());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for path in ["/dev/null", "/tmp", "/nonexistent/x"] {
            let text = alone(Memory::File { path: path.into(), offset: 0 }).unwrap_err().to_string();
            assert!(text.contains(&format!("--shmem-file {path}")), "{text}");
        }
    }

    #[test]
    fn memory_of_huge_pages_is_refused() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
        let Ok(huge) = rustix::fs::memfd_create("pmm-huge", flags) else {
            hvl_test_kit::skipped("memory_of_huge_pages_is_refused needs a kernel that has huge pages");
            return;
        };
        let text = alone(Memory::Fd { fd: huge.as_raw_fd(), offset: 0 }).unwrap_err().to_string();
        assert!(text.contains("huge pages"), "{text}");
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
