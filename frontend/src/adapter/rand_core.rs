//! Entropy as `rand_core` knows it, to seed a generator with. It is not marked as cryptographic: the PMM knows every
//! byte, and whether that matters is for the firmware to say.

use rand_core::TryRng;

use crate::adapter::Timeout;
use crate::device::rng::{FillError, Rng};
use crate::platform::{Instant, Wait, earlier};

/// A source of random bytes whose calls wait, up to a time.
#[derive(Debug)]
pub struct Entropy<'r, 's, B> {
    rng: &'r mut Rng<'s, B>,
    timeout: Timeout,
}

impl<'r, 's, B: Wait> Entropy<'r, 's, B> {
    /// A source; each call waits for `timeout` at most.
    pub fn new(rng: &'r mut Rng<'s, B>, timeout: Timeout) -> Entropy<'r, 's, B> {
        Entropy { rng, timeout }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FillError> {
        let mut bytes = [0; N];
        self.try_fill_bytes(&mut bytes)?;
        Ok(bytes)
    }
}

impl<B: Wait> TryRng for Entropy<'_, '_, B> {
    type Error = FillError;

    fn try_next_u32(&mut self) -> Result<u32, FillError> {
        self.bytes().map(u32::from_le_bytes)
    }
    fn try_next_u64(&mut self) -> Result<u64, FillError> {
        self.bytes().map(u64::from_le_bytes)
    }
    /// Fills all of `into`, or says why not; then `into` holds nothing but zeroes.
    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), FillError> {
        let board = self.rng.link().board().clone();
        let until = self.timeout.from(board.now());
        let mut done = 0usize;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let error = match self.rng.fill(rest) {
                Ok(n) => {
                    done = done.saturating_add(n);
                    continue;
                }
                Err(error) => error,
            };
            if until.is_none_or(|until| board.now() >= until) {
                into.fill(0);
                return Err(error);
            }
            match self.rng.next_deadline() {
                Some(Instant::UNKNOWN) => {}
                next => board.wait_for_doorbell(earlier(next, until)),
            }
        }
        Ok(())
    }
}
