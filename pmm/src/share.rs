//! `pmm serve-9p`: the file server of a link, for any client of 9P2000.L on a stream socket. It is the same server, so
//! whatever confines a guest confines these clients, too.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::apart::{self, Tree};
use crate::descriptors;
use crate::failure::Failure;
use crate::host::export::{Connection, Ended, Export, Rules, Stream, THREADS};
use crate::observe::{ClientStatus, Control, Limit, ShareStatus, Waker, limited, log};
use crate::open::no_descriptors;
use crate::options::{Claim, Listen, Part, Share};
use crate::sys::{Signal, Signals, Watches};
use crate::unix::Bound;

/// Most clients of the control socket at a time: they are within the descriptors that a server needs in any case.
const ASKERS: usize = 8;
/// How long a client may take to agree on a version, in microseconds. One that does not is none: whoever can reach the
/// socket could else occupy it with as many as there may be, and say nothing.
const GREETING_US: u64 = 10_000_000;
/// How long a listener that cannot accept is left alone, in microseconds.
const PAUSE_US: u64 = 200_000;
/// How long requests that are under way may take when the program is told to end.
const PATIENCE: Duration = Duration::from_secs(5);

enum Listener {
    Unix(Bound<UnixListener>),
    Tcp(TcpListener),
}

impl Listener {
    fn open(listen: &Listen) -> Result<Listener, Failure> {
        let name = format!("--listen {listen}");
        match listen {
            Listen::Unix(path) => Bound::listen(path, &name).map(Listener::Unix),
            Listen::Tcp(address) => TcpListener::bind(address)
                .and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(Listener::Tcp(listener))
                })
                .map_err(|error| {
                    Failure::Refused(format!(
                        "{name}: cannot listen there ({error}); choose an address of this host and a free port"
                    ))
                }),
        }
    }

    fn fd(&self) -> i32 {
        match self {
            Listener::Unix(bound) => bound.get().as_raw_fd(),
            Listener::Tcp(listener) => listener.as_raw_fd(),
        }
    }

    /// Where it listens, as it is: a port that was left open has a number now.
    fn place(&self) -> String {
        match self {
            Listener::Unix(bound) => format!("unix:{}", bound.path().display()),
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("tcp:{address}"),
                Err(_) => "tcp".into(),
            },
        }
    }

    /// A client that waits, and what to call it.
    fn accept(&self) -> std::io::Result<(Box<dyn Stream>, String)> {
        match self {
            Listener::Unix(bound) => {
                let (stream, _) = bound.get().accept()?;
                let who = match rustix::net::sockopt::socket_peercred(&stream) {
                    Ok(peer) => format!("process {}", peer.pid.as_raw_nonzero()),
                    Err(_) => "a process".into(),
                };
                Ok((Box::new(stream), who))
            }
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nodelay(true)?;
                // A client whose machine is gone does not keep its place for ever.
                rustix::net::sockopt::set_socket_keepalive(stream.as_fd(), true)?;
                Ok((Box::new(stream), address.to_string()))
            }
        }
    }
}

/// What is said of clients. They decide how often, so each kind has its limit.
#[derive(Default)]
struct Said {
    came: Limit,
    left: Limit,
    away: Limit,
}

/// One of them.
struct Client {
    who: String,
    connection: Arc<Connection>,
    since_us: u64,
    /// It was hung up on, and its threads are about to end: its place is another's.
    leaving: bool,
}

/// The clients that are connected.
struct Clients {
    /// By their numbers, which only grow.
    live: Mutex<BTreeMap<u64, Client>>,
    gone: Condvar,
    said: Mutex<Said>,
    start: Instant,
    most: usize,
    /// Wakes the loop, which tells whoever follows that a client has gone.
    waker: Waker,
    connects: AtomicU64,
    sent_away: AtomicU64,
}

impl Clients {
    fn new(most: usize) -> std::io::Result<Clients> {
        Ok(Clients {
            live: Mutex::default(),
            gone: Condvar::new(),
            said: Mutex::default(),
            start: Instant::now(),
            most,
            waker: Waker::new()?,
            connects: AtomicU64::new(0),
            sent_away: AtomicU64::new(0),
        })
    }

    /// Returns what the control socket tells.
    fn status(&self, share: &Share, listen: &str) -> ShareStatus {
        let client = |Client { who, connection, .. }: &Client| {
            let (fids, requests) = connection.counts();
            ClientStatus { name: who.clone(), fids, requests }
        };
        let clients: Vec<_> = self.live().values().map(client).collect();
        ShareStatus {
            name: share.name.clone(),
            directory: share.directory.display().to_string(),
            listen: listen.into(),
            read_only: share.read_only,
            msize: share.msize,
            max_clients: self.most,
            max_fids: share.fids,
            connected: clients.len(),
            connects: self.connects.load(Ordering::Relaxed),
            sent_away: self.sent_away.load(Ordering::Relaxed),
            clients,
        }
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Client>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Returns whether one more may come. If there are as many as there may be, the first that says or holds
    /// nothing goes.
    fn has_room(&self) -> bool {
        let mut live = self.live();
        if live.values().filter(|client| !client.leaving).count() < self.most {
            return true;
        }
        match live.values_mut().find(|client| !client.leaving && client.connection.is_idle()) {
            Some(idle) => {
                idle.leaving = true;
                idle.connection.hang_up();
                true
            }
            None => false,
        }
    }

    /// Hangs up on those who take too long to say anything; when the next one will.
    fn expire(&self, now_us: u64) -> Option<u64> {
        let mut next = None;
        for client in self.live().values_mut().filter(|client| !client.leaving) {
            if !client.connection.is_mute() {
                continue;
            }
            let until = client.since_us.saturating_add(GREETING_US);
            if until <= now_us {
                client.leaving = true;
                client.connection.hang_up();
            } else {
                next = Some(next.map_or(until, |next: u64| next.min(until)));
            }
        }
        next
    }

    /// Starts the threads of a client.
    fn start(self: &Arc<Clients>, number: u64, who: String, export: &Arc<Export>, stream: Box<dyn Stream>) {
        let connection = Arc::new(Connection::new(export.clone(), stream));
        let running = Arc::new(AtomicUsize::new(1));
        let since_us = self.now_us();
        let client = Client { who: who.clone(), connection: connection.clone(), since_us, leaving: false };
        self.live().insert(number, client);
        self.connects.fetch_add(1, Ordering::Relaxed);
        limited!(info, self.said().came, since_us, "{who} has connected");
        // This thread holds a share until all are started, so that none of them is the last too early.
        for _ in 0..THREADS {
            running.fetch_add(1, Ordering::SeqCst);
            let (clients, connection, running, who) =
                (self.clone(), connection.clone(), running.clone(), who.clone());
            let (shared, name) = (running.clone(), who.clone());
            let thread = std::thread::Builder::new().name(format!("9p-{number}")).spawn(move || {
                // A client whose thread panics does not keep its place.
                if catch_unwind(AssertUnwindSafe(|| connection.serve())).is_err() {
                    error!("{who} is disconnected: a thread of its panicked; this is a defect of pmm");
                    connection.close();
                }
                clients.left(number, &who, &running);
            });
            if let Err(error) = thread {
                limited!(warn, self.said().away, since_us, "{name} gets fewer threads: {error}");
                shared.fetch_sub(1, Ordering::SeqCst);
                break;
            }
        }
        self.left(number, &who, &running);
    }

    /// One of the client's threads has ended; the last one sees to the rest.
    fn left(&self, number: u64, who: &str, running: &AtomicUsize) {
        if running.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        let Some(Client { connection, leaving, .. }) = self.live().remove(&number) else { return };
        let (now, mut said) = (self.now_us(), self.said());
        match connection.ended() {
            _ if leaving => {
                limited!(warn, said.left, now, "{who} is disconnected: it kept a place and said nothing");
            }
            Some(Ended::Closed) | None => limited!(info, said.left, now, "{who} has disconnected"),
            Some(Ended::Broken(error)) => limited!(info, said.left, now, "{who} has gone: {error}"),
            Some(Ended::Lost(reason)) => {
                limited!(warn, said.left, now, "{who} is disconnected: its message {reason}");
            }
        }
        drop(said);
        connection.close();
        self.gone.notify_all();
        self.waker.wake();
    }
}

/// Serves until a signal comes.
///
/// # Errors
///
/// [`Failure::Refused`] if the directory or the socket cannot be had.
pub fn serve(share: &Share) -> Result<(), Failure> {
    let name = format!("serve-9p {}", share.directory.display());
    let rules = Rules {
        read_only: share.read_only,
        ids: share.ids,
        msize: share.msize,
        fids: share.fids,
        descriptors: descriptors::for_server()?,
    };
    if let Listen::Unix(path) = &share.listen {
        let claim = Claim { path: path.clone(), option: "--listen".into(), part: Part::Own };
        apart::check(&[claim], &[Tree::new(name.clone(), &share.directory, share.read_only)])?;
    }
    let export = Export::open(Path::new(&share.directory), "", rules, &name)?;
    let listener = Listener::open(&share.listen)?;
    let signals = Signals::new().map_err(no_descriptors)?;
    let place = Control::place(share.control.as_deref(), &share.name)?;
    let mut control = Control::open(&place)?;
    control.limit(ASKERS);
    let clients = Arc::new(Clients::new(share.clients).map_err(no_descriptors)?);
    log::start(share.log);
    let only = if share.read_only { ", read-only" } else { "" };
    info!("serving {}{only} at {}", share.directory.display(), listener.place());
    info!("control socket {}; 'pmm status {}' asks there", control.path().display(), share.name);

    let (own, told, place) = (clients.clone(), share.clone(), listener.place());
    control.set_share(Arc::new(move || own.status(&told, &place)));
    let (mut watches, mut number, mut paused) = (Watches::default(), 0, false);
    loop {
        watches.clear();
        watches.add(signals.as_raw_fd(), true, false);
        if !paused {
            watches.add(listener.fd(), true, false);
        }
        watches.add(clients.waker.as_raw_fd(), true, false);
        control.watch(&mut watches);
        let now = clients.now_us();
        let deadlines = [clients.expire(now), control.deadline_us()].into_iter().flatten();
        let due = deadlines.map(|until| until.saturating_sub(now));
        watches.wait(paused.then_some(PAUSE_US).into_iter().chain(due).min());
        paused = false;
        clients.waker.clear();
        // What a terminal does is nothing to a server.
        if let Some(Signal::End(signal)) = signals.take() {
            info!("ending on {signal}");
            break;
        }
        match listener.accept() {
            Ok((_, who)) if !clients.has_room() => {
                let most = share.clients;
                clients.sent_away.fetch_add(1, Ordering::Relaxed);
                limited!(
                    warn,
                    clients.said().away,
                    clients.now_us(),
                    "{who} is sent away: {most} clients are connected, which is the most; --clients allows more"
                );
            }
            Ok((stream, who)) => {
                number += 1;
                clients.start(number, who, &export, stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                limited!(warn, clients.said().away, clients.now_us(), "a client cannot be accepted: {error}");
                paused = true;
            }
        }
        control.progress(clients.now_us());
    }
    end(&clients);
    Ok(())
}

/// Lets what is under way finish. What has been acknowledged is the kernel's, whatever happens to this process.
fn end(clients: &Clients) {
    let live = clients.live();
    for client in live.values() {
        client.connection.stop();
    }
    let (live, waited) = clients
        .gone
        .wait_timeout_while(live, PATIENCE, |live| !live.is_empty())
        .unwrap_or_else(PoisonError::into_inner);
    if waited.timed_out() {
        warn!("{} clients still had requests under way or did not read their answers", live.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvl_shared_abi::wire::p9::{NO_FID, NO_TAG, NO_UID, Request, VERSION};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Clients, at most two, of an export of nothing much.
    struct World {
        clients: Arc<Clients>,
        export: Arc<Export>,
        number: u64,
    }

    impl World {
        fn new() -> World {
            let export = Export::open(&std::env::temp_dir(), "t", Rules::default(), "test").unwrap();
            World { clients: Arc::new(Clients::new(2).unwrap()), export, number: 0 }
        }

        fn connect(&mut self) -> UnixStream {
            let (ours, theirs) = UnixStream::pair().unwrap();
            assert!(self.clients.has_room());
            self.number += 1;
            self.clients.start(self.number, "a test".into(), &self.export, Box::new(theirs));
            ours
        }
    }

    fn ask(stream: &mut UnixStream, tag: u16, request: Request<'_>) {
        let mut bytes = [0; 256];
        let length = request.emit(tag, &[], &mut bytes).unwrap();
        stream.write_all(&bytes[..length]).unwrap();
        stream.read_exact(&mut bytes[..4]).unwrap();
        let size = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        stream.read_exact(&mut bytes[4..size]).unwrap();
    }

    fn greet(stream: &mut UnixStream) {
        ask(stream, NO_TAG, Request::Version { msize: 8192, version: VERSION });
    }

    fn attach(stream: &mut UnixStream) {
        greet(stream);
        ask(stream, 1, Request::Attach { fid: 0, afid: NO_FID, user: b"", tree: b"", uid: NO_UID });
    }

    fn is_over(stream: &mut UnixStream) -> bool {
        stream.read(&mut [0]).unwrap() == 0
    }

    #[test]
    fn a_client_that_says_nothing_is_hung_up_on() {
        let mut world = World::new();
        let (mut mute, mut polite) = (world.connect(), world.connect());
        greet(&mut polite);
        let since = world.clients.live()[&1].since_us;
        assert_eq!(world.clients.expire(since + GREETING_US - 1), Some(since + GREETING_US));
        assert_eq!(world.clients.expire(since + GREETING_US), None);
        assert!(is_over(&mut mute));
        attach(&mut polite);
        assert_eq!(world.clients.expire(u64::MAX), None, "it may be silent for as long as it likes");
        attach(&mut polite);
    }

    #[test]
    fn the_end_of_a_client_wakes_the_server() {
        let mut world = World::new();
        let mut client = world.connect();
        greet(&mut client);
        world.clients.waker.clear();
        drop(client);
        let mut watches = Watches::default();
        watches.add(world.clients.waker.as_raw_fd(), true, false);
        assert_ne!(
            watches.wait(Some(60_000_000)),
            0,
            "whoever follows the status would be told a second late"
        );
    }

    #[test]
    fn clients_that_say_nothing_make_room() {
        let mut world = World::new();
        let (mut mute, mut idle) = (world.connect(), world.connect());
        greet(&mut idle);
        let mut one = world.connect();
        assert!(is_over(&mut mute), "the first of them");
        attach(&mut one);
        let mut two = world.connect();
        assert!(is_over(&mut idle), "one that holds nothing");
        attach(&mut two);
        assert!(!world.clients.has_room(), "those that work stay");
        attach(&mut one);
        attach(&mut two);
    }
}
