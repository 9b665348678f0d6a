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
}
