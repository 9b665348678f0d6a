//! A peer that is not there: said once, tried again on a timer that slows down.

/// The first retry comes soon, as after a restart; in microseconds.
const FIRST_US: u64 = 10_000;
/// The slowest: what an absent peer may cost while idle.
const SLOWEST_US: u64 = 1_000_000;

/// A peer that stays for less than this, in microseconds, has not really come: the timer goes on slowing down.
const STAYED_US: u64 = 1_000_000;

/// Whether the peer is there, and when to try again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Absence {
    since_us: Option<u64>,
    next_us: u64,
    delay_us: u64,
    came_us: u64,
}

impl Absence {
    /// A try failed. True if this is the news that the peer is absent.
    pub(super) fn failed(&mut self, now_us: u64) -> bool {
        let news = self.since_us.is_none();
        self.delay_us = if news {
            FIRST_US.max(self.delay_us)
        } else {
            self.delay_us.saturating_mul(2).clamp(FIRST_US, SLOWEST_US)
        };
        self.since_us.get_or_insert(now_us);
        self.next_us = now_us.saturating_add(self.delay_us);
        news
    }

    /// The peer is there.
    pub(super) fn over(&mut self, now_us: u64) {
        *self = Absence { delay_us: self.delay_us, came_us: now_us, ..Absence::default() };
    }

    /// The peer that was there has gone. True if it had stayed; then it may be back at once, as after a restart.
    pub(super) fn gone(&mut self, now_us: u64) -> bool {
        let stayed = now_us.saturating_sub(self.came_us) >= STAYED_US;
        if stayed {
            self.delay_us = 0;
        } else {
            self.since_us = Some(now_us);
            self.failed(now_us);
        }
        stayed
    }

    /// Whether the last peers came and went.
    pub(super) fn is_slow(&self) -> bool {
        self.came_us != 0 && self.delay_us > FIRST_US
    }

    pub(super) fn is_due(&self, now_us: u64) -> bool {
        self.since_us.is_none() || now_us >= self.next_us
    }

    pub(super) fn since_us(&self) -> Option<u64> {
        self.since_us
    }

    pub(super) fn next_us(&self) -> Option<u64> {
        self.since_us.map(|_| self.next_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_one_a_second() {
        let mut absence = Absence::default();
        assert!(absence.is_due(0));
        let mut now = 5;
        let mut delays = Vec::new();
        for round in 0..10 {
            assert_eq!(absence.failed(now), round == 0);
            let next = absence.next_us().unwrap();
            assert!(!absence.is_due(next - 1) && absence.is_due(next));
            delays.push((next - now) / 1000);
            now = next;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert_eq!(absence.since_us(), Some(5));
        absence.over(now);
        assert_eq!((absence.since_us(), absence.next_us()), (None, None));
        assert!(
            absence.gone(now + STAYED_US) && absence.is_due(now + STAYED_US),
            "a restart is followed at once"
        );
    }

    #[test]
    fn a_peer_that_comes_and_goes_is_followed_ever_more_slowly() {
        let mut absence = Absence::default();
        let mut now = 0;
        let mut delays = Vec::new();
        for _ in 0..9 {
            absence.over(now);
            assert!(!absence.gone(now + 1));
            let next = absence.next_us().unwrap();
            delays.push((next - now) / 1000);
            now = next;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
