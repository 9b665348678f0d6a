//! Pages from the PMM's disk: a server of HTTP/1.0 whose files are those of the file client, so that what a browser on
//! the host fetches has been on the host's disk, through the board. GET and HEAD; one request a connection.

use core::fmt::{self, Write};

use hvl_frontend::device::p9::{Dir, File, FileError, Files};
use hvl_shared_abi::wire::p9::{Entries, Errno, entry_kind, is_name, mode, open};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

use crate::Machine;
use crate::files::PATH;
use crate::text::Text;

/// Connections that are served at a time; another waits until one has ended.
pub const CONNECTIONS: usize = 2;
/// Bytes that are read from a file at a time.
pub const PAGE: usize = 8 << 10;
/// Bytes of the longest request, and of the longest head of an answer.
const HEAD: usize = 1024;
/// Steps of one connection in one call.
const STEPS: usize = 8;

/// What is answered on a connection.
enum State {
    /// Waiting for the end of a request's head.
    Reading,
    /// Sending a file, behind the head.
    File { file: File, offset: u64, size: u64 },
    /// Sending the names of a directory, behind the head.
    List { dir: Dir },
    /// Sending the head alone, and then the end.
    Ending,
}

struct Connection {
    socket: SocketHandle,
    state: State,
    head: Text<HEAD>,
}

/// The server.
pub struct Server {
    /// It listens here, while it is on.
    port: Option<u16>,
    root: Text<PATH>,
    connections: [Connection; CONNECTIONS],
    page: &'static mut [u8; PAGE],
    served: u32,
}

impl Server {
    /// A server that is off.
    pub fn new(sockets: [SocketHandle; CONNECTIONS], page: &'static mut [u8; PAGE]) -> Server {
        let connection = |socket| Connection { socket, state: State::Reading, head: Text::NEW };
        Server { port: None, root: Text::NEW, connections: sockets.map(connection), page, served: 0 }
    }

    /// Serves the directory `root` at `port` from now on.
    pub fn start(&mut self, port: u16, root: &str) {
        self.port = Some(port);
        self.root.clear();
        self.root.push(root.trim_end_matches('/').as_bytes());
    }

    /// Serves nothing any more; what is under way is cut off.
    pub fn stop<B: Machine>(&mut self, sockets: &mut SocketSet<'_>, files: &mut Files<'_, B>) {
        self.port = None;
        for connection in &mut self.connections {
            sockets.get_mut::<tcp::Socket>(connection.socket).abort();
            connection.end(files);
        }
    }

    /// A line for `ip`.
    pub fn report(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.port {
            Some(port) => {
                let root = core::str::from_utf8(self.root.as_bytes()).unwrap_or("?");
                writeln!(out, "httpd      port {port}, directory '{root}', {} requests", self.served)
            }
            None => out.write_str("httpd      off\n"),
        }
    }

    /// Whether an answer is under way that could go on at once.
    pub fn is_busy(&self, sockets: &SocketSet<'_>) -> bool {
        self.connections.iter().any(|connection| {
            !matches!(connection.state, State::Reading)
                && sockets.get::<tcp::Socket>(connection.socket).can_send()
        })
    }

    /// Goes on with every connection, as far as there is room.
    pub fn step<B: Machine>(&mut self, sockets: &mut SocketSet<'_>, files: &mut Files<'_, B>) {
        let Some(port) = self.port else { return };
        for connection in &mut self.connections {
            let socket = sockets.get_mut::<tcp::Socket>(connection.socket);
            if !socket.is_open() {
                connection.end(files);
                socket.set_timeout(Some(smoltcp::time::Duration::from_secs(30)));
                let _ = socket.listen(port);
                continue;
            }
            for _ in 0..STEPS {
                if !connection.step(socket, files, self.root.as_bytes(), self.page, &mut self.served) {
                    break;
                }
            }
        }
    }
}

impl Connection {
    /// Forgets what was under way.
    fn end<B: Machine>(&mut self, files: &mut Files<'_, B>) {
        let open = match core::mem::replace(&mut self.state, State::Reading) {
            State::File { file, .. } => Some(file),
            State::List { dir } => Some(dir.into_file()),
            State::Reading | State::Ending => None,
        };
        let _ = open.map(|file| files.close(file));
        self.head.clear();
    }

    /// One step. `true`: there may be another.
    fn step<B: Machine>(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        files: &mut Files<'_, B>,
        root: &[u8],
        page: &mut [u8],
        served: &mut u32,
    ) -> bool {
        if let State::Reading = self.state {
            let room = HEAD.saturating_sub(self.head.len());
            let mut bytes = [0; 256];
            let most = room.min(bytes.len());
            let Some(into) = bytes.get_mut(..most) else { return false };
            let got = socket.recv_slice(into).unwrap_or(0);
            self.head.push(into.get(..got).unwrap_or(&[]));
            let whole = self.head.as_bytes().windows(4).any(|end| end == b"\r\n\r\n");
            if !whole && self.head.len() < HEAD {
                if !socket.may_recv() && got == 0 && socket.may_send() {
                    // It said no more, and not enough.
                    socket.close();
                }
                return got != 0;
            }
            *served = served.wrapping_add(1);
            self.answer(files, root);
            return true;
        }
        if !self.head.is_empty() {
            let Ok(sent) = socket.send_slice(self.head.as_bytes()) else { return false };
            self.head.consume(sent);
            return sent != 0;
        }
        let room = socket.send_capacity().saturating_sub(socket.send_queue()).min(page.len());
        if !socket.may_send() || room == 0 {
            return false;
        }
        let page = page.get_mut(..room).unwrap_or(&mut []);
        match &mut self.state {
            State::File { file, offset, size } => {
                let read = match files.read(file, *offset, page) {
                    Err(FileError::Stale) => files.read(file, *offset, page),
                    other => other,
                };
                match read {
                    // Shorter than was said, or gone: the other side sees that the end is missing.
                    Ok(0) | Err(_) if *offset < *size => {
                        socket.abort();
                        self.end(files);
                        return false;
                    }
                    Ok(0) | Err(_) => {}
                    Ok(count) => {
                        let left = usize::try_from(size.saturating_sub(*offset)).unwrap_or(usize::MAX);
                        let sent = socket.send_slice(page.get(..count.min(left)).unwrap_or(&[])).unwrap_or(0);
                        *offset = offset.saturating_add(sent as u64);
                        if *offset < *size {
                            return sent != 0;
                        }
                    }
                }
                socket.close();
                self.end(files);
                // What is left is to be sent, by the network.
                self.state = State::Ending;
                false
            }
            State::List { dir } => {
                // Each name takes more room as a line than as an entry; a third is enough for what is read.
                let (entries, out) = page.split_at_mut_checked(room / 3).unwrap_or((&mut [], &mut []));
                if entries.len() < 300 {
                    return false;
                }
                let len = match files.entries(dir, entries) {
                    Ok(found) => found.rest().len(),
                    Err(_) => 0,
                };
                if len == 0 {
                    socket.close();
                    self.end(files);
                    self.state = State::Ending;
                    return false;
                }
                let mut used = 0usize;
                for entry in Entries::new(entries.get(..len).unwrap_or(&[])).flatten() {
                    let end: &[u8] = if entry.kind == entry_kind::DIRECTORY { b"/\n" } else { b"\n" };
                    if !is_name(entry.name) {
                        continue;
                    }
                    for part in [entry.name, end] {
                        let stop = used.saturating_add(part.len());
                        if let Some(place) = out.get_mut(used..stop) {
                            place.copy_from_slice(part);
                            used = stop;
                        }
                    }
                }
                socket.send_slice(out.get(..used).unwrap_or(&[])).is_ok()
            }
            State::Ending => {
                socket.close();
                false
            }
            State::Reading => false,
        }
    }

    /// Reads the request in `head`, and puts the head of its answer there.
    fn answer<B: Machine>(&mut self, files: &mut Files<'_, B>, root: &[u8]) {
        let request = core::mem::take(&mut self.head);
        let line = request.as_bytes().split(|&byte| byte == b'\r').next().unwrap_or(&[]);
        let mut words = line.split(|&byte| byte == b' ');
        let (method, target) = (words.next().unwrap_or(&[]), words.next().unwrap_or(&[]));
        let body = match method {
            b"GET" => true,
            b"HEAD" => false,
            _ => return self.refuse("501 Not Implemented"),
        };
        let mut path = Text::<{ 2 * PATH }>::NEW;
        path.push(root);
        if !decode(target, &mut path) {
            return self.refuse("400 Bad Request");
        }
        let found = files.stat(path.as_bytes());
        let result = match found {
            Ok(attr) if attr.mode & mode::KIND == mode::DIRECTORY => {
                self.head.print(format_args!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"));
                files.open_dir(path.as_bytes()).map(|dir| State::List { dir })
            }
            Ok(attr) => {
                self.head.print(format_args!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", attr.size));
                let file = files.open_file(path.as_bytes(), open::READ_ONLY);
                file.map(|file| State::File { file, offset: 0, size: attr.size })
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(state) => {
                self.state = state;
                if !body {
                    let head = core::mem::take(&mut self.head);
                    self.end(files);
                    self.head = head;
                    self.state = State::Ending;
                }
            }
            Err(FileError::Refused(Errno::NOENT | Errno::NOTDIR)) => self.refuse("404 Not Found"),
            Err(FileError::Refused(_) | FileError::TooLong) => self.refuse("403 Forbidden"),
            Err(error) => {
                let mut why = Text::<160>::NEW;
                let _ = write!(why, "503 Service Unavailable\r\nX-Reason: {error}");
                self.refuse(core::str::from_utf8(why.as_bytes()).unwrap_or("503 Service Unavailable"));
            }
        }
    }

    fn refuse(&mut self, status: &str) {
        self.head.clear();
        self.head.print(format_args!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n"));
        self.state = State::Ending;
    }
}

/// The path of a target: without its query, with `%20` and the like as bytes. `false`: it is none.
fn decode<const N: usize>(target: &[u8], path: &mut Text<N>) -> bool {
    let target = target.split(|&byte| byte == b'?').next().unwrap_or(&[]);
    let mut bytes = target.iter();
    if target.first() != Some(&b'/') {
        return false;
    }
    while let Some(&byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) => (high << 4 | low) as u8,
                    _ => return false,
                }
            }
            byte => byte,
        };
        if byte == 0 || !path.push(&[byte]) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (target, path) in
            [("/", Some("/")), ("/a%20b?x=1", Some("/a b")), ("a", None), ("/%2", None), ("/%00", None)]
        {
            let mut decoded = Text::<64>::NEW;
            let good = decode(target.as_bytes(), &mut decoded);
            assert_eq!(good.then_some(decoded.as_bytes()), path.map(str::as_bytes), "{target}");
        }
    }
}
