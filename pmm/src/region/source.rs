//! The providers of memory: part of a file, a POSIX shared memory object, an inherited descriptor, or a new memfd. Each
//! says where the region lies behind a descriptor, what kind of memory that is, and how it is reserved. All of these are
//! page cache of this host, hence coherent; a board's memory will be one more provider.

use std::fs::File;
use std::os::fd::OwnedFd;

use hvl_shared_abi::mem::Attribute;
use rustix::fs::{FallocateFlags, FileType, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::failure::{Failure, refused};
use crate::options::{Doorbell, LinkDescription, Memory};
use crate::place::is_among_devices;

/// The number by which Linux knows a file system of huge pages (`HUGETLBFS_MAGIC`).
const HUGETLBFS: rustix::fs::FsWord = 0x9584_58f6;

/// An open file that holds the region.
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) offset: u64,
    pub(super) attribute: Attribute,
    pub(super) name: String,
    pub(super) notes: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// It had no bytes before this process gave it some.
    is_new: bool,
}

impl Source {
    fn new(fd: OwnedFd, offset: u64, name: String) -> Source {
        let (notes, warnings) = (Vec::new(), Vec::new());
        Source { fd, offset, attribute: Attribute::Coherent, name, notes, warnings, is_new: false }
    }

    /// Opens what the description names, and makes it long enough if it is new.
    pub(super) fn open(link: &LinkDescription, links: &[LinkDescription]) -> Result<Source, Failure> {
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
                    Ok(fd) => {
                        let mut source = Source::new(fd, 0, name);
                        source.is_new = true;
                        if matches!(link.doorbell, Doorbell::Poll { .. }) {
                            source.warnings.push(format!(
                                "'{}' has neither memory that a board can see nor a doorbell: name a file (--shmem-file) or an \
                                 object (--shmem-posix) that the guest's memory is, and a --doorbell",
                                link.name
                            ));
                        }
                        source
                    }
                    Err(error) => {
                        return refused(format!("{name}: {len:#x} bytes of memory cannot be had ({error})"));
                    }
                }
            }
            Memory::File { path, offset } => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let is_device = is_among_devices(path);
                let make = if is_device { OFlags::empty() } else { OFlags::CREATE };
                let opened = rustix::fs::open(path, flags | make, Mode::RUSR | Mode::WUSR);
                if is_device && matches!(opened, Err(Errno::NOENT)) {
                    return refused(format!(
                        "{name}: is not there, and pmm makes no file in /dev; load the driver that makes this device, or name a \
                         file, as in /dev/shm"
                    ));
                }
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
                    Ok(file) => Source::new(file.into(), *offset, name),
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
        let mut source = Source::new(fd, offset, name);
        source.check_kind()?;
        if source.length()? == 0 {
            source.is_new = true;
            if let Err(error) = rustix::fs::ftruncate(&source.fd, end) {
                return refused(format!(
                    "{}: cannot be made {end:#x} bytes long ({error}); check the space left, and 'ulimit -f'",
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

    /// Whether the file lies on hugetlbfs.
    fn has_huge_pages(&self) -> bool {
        rustix::fs::fstatfs(&self.fd).is_ok_and(|system| system.f_type == HUGETLBFS)
    }

    fn check_kind(&self) -> Result<(), Failure> {
        match FileType::from_raw_mode(self.stat()?.st_mode) {
            // Where a file was cut short, the 4 KiB that a link touches are replaced by other memory, and only that link
            // ends. Linux replaces no part of a huge page: the process would end, and with it every link.
            FileType::RegularFile if self.has_huge_pages() => refused(format!(
                "{}: is on huge pages (hugetlbfs), and cutting such a file short would end every link of this process; name a file on tmpfs, as in /dev/shm",
                self.name
            )),
            FileType::RegularFile => Ok(()),
            _ => refused(format!(
                "{}: is not a regular file, and the memory of a device is mapped in a later version; name a file, as in /dev/shm",
                self.name
            )),
        }
    }

    /// Takes the memory, or the room on the file system, that the region needs, so that no page of it can be missing later.
    /// What lies there stays.
    pub(super) fn reserve(&mut self, len: u64) -> Result<(), Failure> {
        let error = match retry_on_intr(|| {
            rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), self.offset, len)
        }) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.notes.push(format!(
                    "{}: its file system cannot reserve room; when it is full, the link ends",
                    self.name
                ));
                return Ok(());
            }
            Err(error) => error,
        };
        if self.is_new {
            // What it did take is not kept from others.
            let _ = rustix::fs::ftruncate(&self.fd, 0);
        }
        refused(format!(
            "{}: there is no room for the {len:#x} bytes of the region ({error}); free some, or make the region smaller",
            self.name
        ))
    }

    /// A page past the end of a file would be lost when it is touched.
    pub(super) fn check_length(&self, len: u64) -> Result<(), Failure> {
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
