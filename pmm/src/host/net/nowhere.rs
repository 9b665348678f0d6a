//! `mode=none`: a card whose cable is not plugged in anywhere. What is sent is lost, and nothing comes.

use std::borrow::Cow;

use hvl_shared_abi::wire::net::Offload;

use super::super::{EndError, FrameEnd, HostEnd};
use super::Losses;

/// No end.
#[derive(Debug, Default)]
pub(super) struct Nowhere(Losses);

impl FrameEnd for Nowhere {
    fn send(&mut self, _offload: &Offload, _frame: &[u8]) -> Result<(), EndError> {
        self.0.sent = self.0.sent.wrapping_add(1);
        Ok(())
    }
    fn receive(&mut self, _into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        Err(EndError::Closed)
    }
}

impl HostEnd for Nowhere {
    fn state(&self) -> Cow<'static, str> {
        self.0.after("no cable")
    }
}
