//! Memory that may be gone: a mapped file that was cut short, or whose file system cannot give it the page, answers an
//! access with SIGBUS. Where that is a region, the page becomes an anonymous one of zeroes and the region is marked as
//! lost; whoever serves it sees that and ends. A SIGBUS anywhere else kills, as it would have.
//!
//! Rejected: to unwind out of the handler (no Rust code expects that of a load), and to look at the file's length before
//! each access (it can be cut short right after).

use std::io;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A range of mapped memory that this program survives the loss of. It is never unmapped, and this is never freed.
#[derive(Debug)]
pub(crate) struct Guarded {
    start: usize,
    len: usize,
    lost: AtomicBool,
    next: Option<&'static Guarded>,
}

/// The one that was made last; each leads to the one before.
static LAST: AtomicPtr<Guarded> = AtomicPtr::new(std::ptr::null_mut());
/// The size of a page, for a handler that may ask nobody.
static PAGE: AtomicUsize = AtomicUsize::new(0);

impl Guarded {
    /// Guards `len` bytes at `start`, which are a mapping that stays until the process ends.
    ///
    /// # Errors
    ///
    /// If the kernel takes no handler.
    pub(crate) fn new(start: NonNull<u8>, len: usize) -> io::Result<&'static Guarded> {
        install()?;
        let one = Guarded { start: start.addr().get(), len, lost: AtomicBool::new(false), next: None };
        let one = Box::leak(Box::new(one));
        let mut last = LAST.load(Ordering::Acquire);
        loop {
            // SAFETY: 1. what `LAST` holds is null or came from `Box::leak` below, and lives for ever; 2. nobody changes it
            // but through its atomic once it is there.
            one.next = unsafe { last.as_ref() };
            match LAST.compare_exchange(last, one, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(one),
                Err(other) => last = other,
            }
        }
    }

    /// Returns whether a page of it was gone when it was needed.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The one that an address lies in. Takes no lock and allocates nothing.
    fn find(address: usize) -> Option<&'static Guarded> {
        // SAFETY: as in `new`.
        let mut at = unsafe { LAST.load(Ordering::Acquire).as_ref() };
        while let Some(one) = at {
            if address.wrapping_sub(one.start) < one.len {
                return Some(one);
            }
            at = one.next;
        }
        None
    }
}

/// Notes that a system call failed with EFAULT on memory at `address`: to the kernel, what is SIGBUS to a
/// program.
pub(super) fn note_fault(address: NonNull<u8>) {
    if let Some(one) = Guarded::find(address.addr().get()) {
        one.lost.store(true, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: asks the C library for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).unwrap_or(4096), Ordering::Release);
        // SAFETY: `sigaction` is a plain C structure for which all zeroes is a value: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_bus_error as *const () as libc::sighandler_t;
        // On the stack for signals where a thread has one, as the standard library's threads do.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is valid for reads, and its handler calls nothing that is not safe in one.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
            result = Err(io::Error::last_os_error());
        }
    });
    result
}

/// Runs in the thread that touched the memory, in the middle of anything: reads atomics and makes two system calls, no more.
extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid structure, whose address is set for this signal where
    // the code says that the kernel itself sent it.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Sent by a process (not positive) is no fault, whatever stands where an address would.
    if code > 0
        && let Some(one) = Guarded::find(address)
    {
        one.lost.store(true, Ordering::Release);
        if replace_page(address) {
            return;
        }
    }
    // SAFETY: both may be called in a handler. The signal is blocked until this returns, and kills then.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        libc::raise(libc::SIGBUS);
    }
}

/// Puts an anonymous page of zeroes in the place of the one at `address`, which lies in guarded memory. Only that one:
/// what is left of the file tells the guest that there is no PMM any more.
fn replace_page(address: usize) -> bool {
    let page = PAGE.load(Ordering::Acquire);
    let start = address & !page.wrapping_sub(1);
    // SAFETY: the C library's `errno` of this thread, which the call below may change in the middle of anything.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: 1. the page lies in a mapping of a region, because a region starts and ends at pages; 2. it had no bytes that
    // anybody could still read, since to touch it is a fault; 3. it stays readable and writable, as `Region::new` was promised.
    let got = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    got != libc::MAP_FAILED
}
