//! Messages that a guest can cause are counted, not trusted: each kind gets a few at once and one a second after that,
//! and the next one that is shown tells how many were not.

/// Messages of one kind that may come at once.
const BURST: u32 = 5;
/// After that, one in this time, in microseconds.
const REFILL_US: u64 = 1_000_000;

/// The limit of one kind of message.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    left: u32,
    refilled_us: u64,
    suppressed: u64,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { left: BURST, refilled_us: 0, suppressed: 0 }
    }
}

impl Limit {
    /// Whether a message may be shown now, and how many before it were not.
    pub fn admit(&mut self, now_us: u64) -> Option<u64> {
        let refill = now_us.saturating_sub(self.refilled_us) / REFILL_US;
        if refill > 0 {
            self.left = self.left.saturating_add(refill.try_into().unwrap_or(BURST)).min(BURST);
            self.refilled_us = now_us;
        }
        if self.left == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Logs at a level through a [`Limit`], with the number of messages that were not shown.
macro_rules! limited {
    ($level:ident, $limit:expr, $now_us:expr, $($message:tt)+) => {
        match $limit.admit($now_us) {
            Some(0) => tracing::$level!($($message)+),
            Some(more) => tracing::$level!("{} ({more} more suppressed)", format_args!($($message)+)),
            None => {}
        }
    };
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_thinned_and_counted() {
        let mut limit = Limit::default();
        let shown = |limit: &mut Limit, now| (0..100).filter_map(|_| limit.admit(now)).collect::<Vec<_>>();
        assert_eq!(shown(&mut limit, 0), [0; 5]);
        assert!(shown(&mut limit, 999_999).is_empty());
        assert_eq!(shown(&mut limit, 1_000_000), [195]);
        assert_eq!(shown(&mut limit, 3_000_000), [99, 0]);
        assert_eq!(shown(&mut limit, 600_000_000), [98, 0, 0, 0, 0]);
    }
}
