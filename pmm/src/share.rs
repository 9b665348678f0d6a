//! `pmm serve-9p`: the file server of a link, for any client of 9P2000.L on a stream socket. It is the same server, so
//! whatever confines a guest confines these clients, too.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{error, info, warn};

use crate::apart::{self, Tree};
use crate::descriptors;
use crate::failure::Failure;
use crate::host::export::{Connection, Ended, Export, Rules, Stream, THREADS};
use crate::observe::log;
use crate::open::no_descriptors;
use crate::options::{Claim, Listen, Part, Share};
use crate::sys::{Signal, Signals, Watches};
use crate::unix::Bound;

/// Most clients at a time. Each may hold [`THREADS`] requests and replies of a mebibyte.
const CONNECTIONS: usize = 32;
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

/// The clients that are connected.
#[derive(Default)]
struct Clients {
    live: Mutex<HashMap<u64, Arc<Connection>>>,
    gone: Condvar,
}

impl Clients {
    fn live(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the threads of a client.
    fn start(self: &Arc<Clients>, number: u64, who: String, export: &Arc<Export>, stream: Box<dyn Stream>) {
        let connection = Arc::new(Connection::new(export.clone(), stream));
        let running = Arc::new(AtomicUsize::new(1));
        self.live().insert(number, connection.clone());
        info!("{who} has connected");
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
                warn!("{name} gets fewer threads: {error}");
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
        let Some(connection) = self.live().remove(&number) else { return };
        match connection.ended() {
            Some(Ended::Closed) | None => info!("{who} has disconnected"),
            Some(Ended::Broken(error)) => info!("{who} has gone: {error}"),
            Some(Ended::Lost(reason)) => warn!("{who} is disconnected: its message {reason}"),
        }
        connection.close();
        self.gone.notify_all();
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
    log::start(share.log);
    let only = if share.read_only { ", read-only" } else { "" };
    info!("serving {}{only} at {}", share.directory.display(), listener.place());

    let clients = Arc::new(Clients::default());
    let (mut watches, mut number, mut paused) = (Watches::default(), 0, false);
    loop {
        watches.clear();
        watches.add(signals.as_raw_fd(), true, false);
        if !paused {
            watches.add(listener.fd(), true, false);
        }
        watches.wait(paused.then_some(PAUSE_US));
        paused = false;
        // What a terminal does is nothing to a server.
        if let Some(Signal::End(signal)) = signals.take() {
            info!("ending on {signal}");
            break;
        }
        match listener.accept() {
            Ok((_, who)) if clients.live().len() >= CONNECTIONS => {
                warn!("{who} is sent away: {CONNECTIONS} clients are connected, which is the most");
            }
            Ok((stream, who)) => {
                number += 1;
                clients.start(number, who, &export, stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                warn!("a client cannot be accepted: {error}");
                paused = true;
            }
        }
    }
    end(&clients);
    Ok(())
}

/// Lets what is under way finish. What has been acknowledged is the kernel's, whatever happens to this process.
fn end(clients: &Clients) {
    let live = clients.live();
    for connection in live.values() {
        connection.stop();
    }
    let (live, waited) = clients
        .gone
        .wait_timeout_while(live, PATIENCE, |live| !live.is_empty())
        .unwrap_or_else(PoisonError::into_inner);
    if waited.timed_out() {
        warn!("{} clients still had requests under way or did not read their answers", live.len());
    }
}
