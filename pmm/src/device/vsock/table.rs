//! What the device knows of each connection, and whose turn it is.

use hvl_shared_abi::wire::vsock::{Credit, Shutdown};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    #[default]
    Free,
    /// A client waits for the guest's answer.
    Asked,
    /// Bytes pass.
    Open,
    /// The host's side has ended both directions, and waits for the guest to confirm it.
    Goodbye,
    /// It is over but for the reset that tells the guest.
    Ended,
}

/// What is to be sent, one bit each.
pub(super) struct Owed;

impl Owed {
    pub const REQUEST: u8 = 1;
    pub const RESPONSE: u8 = 2;
    pub const SHUTDOWN: u8 = 4;
    pub const UPDATE: u8 = 8;
}

/// One connection: a place in the table that a device is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    pub(super) state: State,
    /// Bits of [`Owed`].
    owes: u8,
    /// The socket may have bytes.
    pub readable: bool,
    queued: bool,
    dirty: bool,
    /// The next of the same list, and one.
    next: u16,
    next_dirty: u16,
    pub(super) guest: u32,
    pub(super) host: u32,
    pub(super) credit: Credit,
    /// What the guest has ended.
    pub(super) guest_ends: Shutdown,
    /// What the host's side has ended.
    pub(super) host_ends: Shutdown,
}

impl Connection {
    /// A place that no connection uses yet.
    pub const NEW: Connection = Connection {
        state: State::Free,
        owes: 0,
        readable: false,
        queued: false,
        dirty: false,
        next: 0,
        next_dirty: 0,
        guest: 0,
        host: 0,
        credit: Credit::new(0),
        guest_ends: Shutdown { receive: false, send: false },
        host_ends: Shutdown { receive: false, send: false },
    };

    /// A connection that begins in the place of another, which may still stand in a list.
    pub(super) const fn new(
        state: State,
        guest: u32,
        host: u32,
        credit: Credit,
        place: Connection,
    ) -> Connection {
        let Connection { queued, dirty, next, next_dirty, .. } = place;
        Connection { state, guest, host, credit, queued, dirty, next, next_dirty, ..Connection::NEW }
    }

    pub(super) const fn owe(&mut self, what: u8) {
        self.owes |= what;
    }
    /// Whether this was owed; it is no longer.
    pub(super) const fn pay(&mut self, what: u8) -> bool {
        let owed = self.owes & what != 0;
        self.owes &= !what;
        owed
    }
    /// A packet has told the credit.
    pub(super) const fn told(&mut self) {
        self.owes &= !Owed::UPDATE;
    }
    /// Bytes went to the socket.
    pub(super) const fn drained(&mut self, bytes: u32) {
        self.credit.note_taken(bytes);
        if self.credit.is_news() {
            self.owes |= Owed::UPDATE;
        }
    }
    /// The guest has ended these directions.
    pub(super) fn guest_ended(&mut self, ends: Shutdown) {
        self.guest_ends = self.guest_ends.and(ends);
        self.host_ended(self.host_ends);
    }
    /// The host's side has ended these directions.
    pub(super) fn host_ended(&mut self, ends: Shutdown) {
        let mut ends = self.host_ends.and(ends);
        // With nobody to read on either side, nothing will ever pass.
        ends.send |= ends.receive && self.guest_ends.receive;
        if ends != self.host_ends {
            self.host_ends = ends;
            self.owes |= Owed::SHUTDOWN;
        }
    }
    /// It is over. `false`: it was already.
    pub(super) const fn end(&mut self) -> bool {
        let was = matches!(self.state, State::Asked | State::Open | State::Goodbye);
        if was {
            self.state = State::Ended;
        }
        was
    }
    /// Whether bytes of the socket are wanted.
    pub(super) const fn may_read(&self) -> bool {
        matches!(self.state, State::Open)
            && self.readable
            && !self.host_ends.send
            && !self.guest_ends.receive
            && self.credit.may_send() != 0
    }
    /// Whether there is something to send.
    const fn has_turn(&self) -> bool {
        match self.state {
            State::Free => false,
            State::Ended => true,
            State::Asked | State::Open | State::Goodbye => self.owes != 0 || self.may_read(),
        }
    }
}

/// All connections, and two lists of them: those with something to send, in turn, and those whose socket has not been
/// given what was put.
pub(super) struct Table<T> {
    all: T,
    first: u16,
    last: u16,
    first_dirty: u16,
    /// Places from here on were never used.
    used: usize,
    /// The one that was found last.
    recent: usize,
}

impl<T: AsMut<[Connection]>> Table<T> {
    pub fn new(all: T) -> Table<T> {
        let mut table = Table { all, first: 0, last: 0, first_dirty: 0, used: usize::MAX, recent: 0 };
        table.clear();
        table
    }

    pub fn clear(&mut self) {
        for connection in self.all.as_mut().iter_mut().take(self.used) {
            *connection = Connection::NEW;
        }
        (self.first, self.last, self.first_dirty, self.used, self.recent) = (0, 0, 0, 0, 0);
    }

    /// A place; none beyond what 16 bits can count.
    pub fn get(&mut self, slot: usize) -> Option<&mut Connection> {
        let connection = self.all.as_mut().get_mut(slot).filter(|_| slot < usize::from(u16::MAX))?;
        self.used = self.used.max(slot.saturating_add(1));
        Some(connection)
    }

    pub fn free(&mut self, slot: usize) {
        if let Some(connection) = self.get(slot) {
            *connection = Connection::new(State::Free, 0, 0, Credit::new(0), *connection);
        }
    }

    /// The connection of these ports.
    pub fn find(&mut self, guest: u32, host: u32) -> Option<usize> {
        let is = |one: &Connection| one.state != State::Free && one.guest == guest && one.host == host;
        let all = self.all.as_mut();
        if all.get(self.recent).is_some_and(is) {
            return Some(self.recent);
        }
        let found = all.iter().take(self.used).position(is)?;
        self.recent = found;
        Some(found)
    }

    // --- turns ------------------------------------------------------------------------------------------------------

    /// Whether nobody has a turn.
    pub const fn is_idle(&self) -> bool {
        self.first == 0
    }

    /// Gives a connection a turn behind all others, if it has something to send and none yet.
    pub fn queue(&mut self, slot: usize) {
        let Some(connection) = self.get(slot).filter(|one| !one.queued && one.has_turn()) else { return };
        (connection.queued, connection.next) = (true, 0);
        let link = (slot as u16).saturating_add(1);
        match self.last.checked_sub(1).and_then(|last| self.all.as_mut().get_mut(usize::from(last))) {
            Some(last) => last.next = link,
            None => self.first = link,
        }
        self.last = link;
    }

    /// Whose turn it is.
    pub fn take_turn(&mut self) -> Option<usize> {
        let slot = usize::from(self.first.checked_sub(1)?);
        let connection = self.get(slot)?;
        connection.queued = false;
        self.first = core::mem::take(&mut connection.next);
        if self.first == 0 {
            self.last = 0;
        }
        Some(slot)
    }

    /// Notes that something was put that the socket has not been given.
    pub fn soil(&mut self, slot: usize) {
        let first = self.first_dirty;
        if let Some(connection) = self.get(slot).filter(|one| !one.dirty) {
            (connection.dirty, connection.next_dirty) = (true, first);
            self.first_dirty = (slot as u16).saturating_add(1);
        }
    }

    /// One of those.
    pub fn next_dirty(&mut self) -> Option<usize> {
        let slot = usize::from(self.first_dirty.checked_sub(1)?);
        let connection = self.get(slot)?;
        connection.dirty = false;
        self.first_dirty = core::mem::take(&mut connection.next_dirty);
        Some(slot)
    }
}
