//! A set of open devices that tasks share, and the interrupt handler too: a bit for each.

use core::sync::atomic::{AtomicU32, Ordering};

/// The set. Members are 0 to 31; other numbers are in no set.
#[derive(Debug)]
pub(super) struct DeviceSet(AtomicU32);

impl DeviceSet {
    // Each use of the constant is another set, which is what is meant.
    #[allow(clippy::declare_interior_mutable_const)]
    pub const EMPTY: DeviceSet = DeviceSet(AtomicU32::new(0));

    /// Everything is in it from now on; the only call that an interrupt handler makes.
    pub fn fill(&self) {
        self.0.store(u32::MAX, Ordering::Release);
    }
    // These two order nothing: whoever acts on the answer takes the device's lock or looks at everything first.
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
    pub fn has(&self, index: usize) -> bool {
        self.0.load(Ordering::Relaxed) & bit(index) != 0
    }
    // Neither of these two is inlined: each is a loop with two barriers, and firmware counts its bytes.
    #[inline(never)]
    pub fn insert(&self, index: usize) {
        self.0.fetch_or(bit(index), Ordering::AcqRel);
    }
    /// Takes it out; whether it was in.
    #[inline(never)]
    pub fn remove(&self, index: usize) -> bool {
        self.0.fetch_and(!bit(index), Ordering::AcqRel) & bit(index) != 0
    }
    /// Its members as of now.
    pub fn iter(&self) -> Members {
        Members(self.0.load(Ordering::Acquire))
    }
}

/// Some devices, in order.
pub(super) struct Members(u32);

impl Members {
    pub fn only(index: usize) -> Members {
        Members(bit(index))
    }
}

impl Iterator for Members {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        let lowest = self.0.trailing_zeros();
        self.0 &= self.0.checked_sub(1)?;
        Some(lowest as usize)
    }
}

fn bit(index: usize) -> u32 {
    1u32.checked_shl(index as u32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_in_order_and_what_is_no_device_is_never_in() {
        let set = DeviceSet::EMPTY;
        assert!(set.is_empty() && !set.has(0) && !set.remove(0));
        for index in [31, 3, 0, 32, usize::MAX] {
            set.insert(index);
        }
        assert!(set.iter().eq([0, 3, 31]));
        assert!(set.remove(3) && !set.remove(3) && !set.has(3) && !set.has(32));
        set.fill();
        assert_eq!(set.iter().count(), 32);
    }
}
