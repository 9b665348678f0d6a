//! Which requests are under way, so that a Tflush is answered after the request that it is about and never before.
//!
//! Nothing is cancelled: a file operation that has begun cannot be. It is waited for, without holding a thread: whoever
//! finishes the old request answers the flushes that wait for it.

/// One request under way.
#[derive(Debug)]
struct Begun {
    tag: u16,
    /// Flushes to answer when it has been.
    flushes: Vec<u16>,
}

/// The requests of one client that have begun and were not answered.
#[derive(Debug, Default)]
pub struct InFlight {
    begun: Vec<Begun>,
}

impl InFlight {
    /// A request other than Tflush begins. `false`: its tag is in use, and the request is not to be carried out.
    pub fn begin(&mut self, tag: u16) -> bool {
        let free = !self.begun.iter().any(|one| one.tag == tag || one.flushes.contains(&tag));
        if free {
            self.begun.push(Begun { tag, flushes: Vec::new() });
        }
        free
    }

    /// A Tflush of `old` comes with `tag`. `true`: answer it now. `false`: [`end`](Self::end) will say when.
    ///
    /// The caller bounds how many requests it takes before it answers any; so many wait here at most.
    pub fn flush(&mut self, tag: u16, old: u16) -> bool {
        match self.begun.iter_mut().find(|one| one.tag == old || one.flushes.contains(&old)) {
            Some(one) if tag != old => {
                one.flushes.push(tag);
                false
            }
            _ => true,
        }
    }

    /// A request was answered. The flushes to answer now, in this order.
    pub fn end(&mut self, tag: u16) -> Vec<u16> {
        match self.begun.iter().position(|one| one.tag == tag) {
            Some(at) => self.begun.swap_remove(at).flushes,
            None => Vec::new(),
        }
    }

    /// How many requests and flushes are under way.
    pub fn len(&self) -> usize {
        self.begun.iter().map(|one| 1 + one.flushes.len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_answered_after_what_it_flushes() {
        let mut flight = InFlight::default();
        assert!(flight.begin(1) && flight.begin(2));
        assert!(!flight.flush(3, 1));
        assert!(!flight.flush(4, 3), "a flush of a flush waits, too");
        assert_eq!(flight.len(), 4);
        assert!(flight.end(2).is_empty());
        assert_eq!(flight.end(1), [3, 4]);
        assert!(flight.is_empty() && flight.begin(1));
    }

    #[test]
    fn a_flush_of_nothing_or_of_itself_is_answered_at_once() {
        let mut flight = InFlight::default();
        assert!(flight.flush(1, 7));
        assert!(flight.flush(1, 1));
        assert!(flight.is_empty());
        assert!(flight.begin(5));
        assert!(flight.flush(5, 5));
    }

    #[test]
    fn a_tag_is_used_once_at_a_time() {
        let mut flight = InFlight::default();
        assert!(flight.begin(1) && !flight.begin(1));
        assert!(!flight.flush(2, 1) && !flight.begin(2));
        flight.end(1);
        assert!(flight.begin(1) && flight.begin(2));
        assert!(flight.end(9).is_empty());
    }
}
