//! Random bytes from the kernel's generator, which never runs dry once it is seeded and needs no descriptor.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{EndError, Entropy, HostEnd};

/// The system call `getrandom`, without waiting.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        loop {
            return match getrandom(&mut *into, GetRandomFlags::NONBLOCK) {
                Ok(got) => Ok(got),
                Err(Errno::INTR) => continue,
                // Nothing else can come back from valid memory; not yet seeded is the one that passes.
                Err(_) => Err(EndError::WouldBlock),
            };
        }
    }
}

impl HostEnd for SystemEntropy {
    fn state(&self) -> std::borrow::Cow<'static, str> {
        "the kernel's generator".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ() {
        let (mut one, mut two) = ([0; 32], [0; 32]);
        assert_eq!(SystemEntropy.fill(&mut one), Ok(32));
        assert_eq!(SystemEntropy.fill(&mut two), Ok(32));
        assert_ne!(one, two);
        assert_eq!(SystemEntropy.fill(&mut []), Ok(0));
    }
    /// Whoever made bytes by itself would still have some.
    #[test]
    #[allow(unsafe_code)]
    fn a_kernel_that_gives_nothing_leaves_nothing_to_give() {
        let refused = std::thread::spawn(|| {
            let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
            let mut filter = [
                // The number of the call stands first; what is not `getrandom` passes.
                step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
                step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_getrandom as u32, 0, 1),
                step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
                step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
            ];
            let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
            // SAFETY: 1. both calls concern this thread alone, which ends with the test; 2. the program and its four
            // steps outlive the call that copies them.
            let set = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
            };
            set.then(|| SystemEntropy.fill(&mut [0; 32]))
        });
        match refused.join().unwrap() {
            Some(answer) => assert_eq!(answer, Err(EndError::WouldBlock)),
            None => hvl_test_kit::skipped("this machine lets no thread refuse itself system calls"),
        }
    }
}
