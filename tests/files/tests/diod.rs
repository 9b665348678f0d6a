//! The client against a server that somebody else wrote: LLNL's diod, behind our device and workers. What the client says
//! is understood there, and what that answers is understood here.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvl_files::{Guest, Pmm, Wire};
use hvl_frontend::device::p9::{FileError, Options};
use hvl_pmm::host::{Conversation, Conversations};
use hvl_shared_abi::wire::p9::{Errno, Lock, SetAttr, lock, open, setattr};

/// A diod that serves a directory on loopback, and ends with this.
struct Diod {
    root: PathBuf,
    port: u16,
    child: Child,
}

impl Diod {
    /// `None`: there is none here.
    fn start() -> Option<Diod> {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/diod/bin/diod");
        let program = if unpacked.exists() { unpacked } else { "diod".into() };
        let root = std::env::temp_dir().join(format!("hvl-diod-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).unwrap();
        // Free a moment ago; who takes it meanwhile makes this test fail and no other.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap().port();
        let mut command = Command::new(program);
        command.args(["--foreground", "--no-auth", "--no-userdb", "--config-file", "/dev/null"]);
        command.arg("--export").arg(&root).arg("--listen").arg(format!("127.0.0.1:{port}"));
        command
            .args(["--logdest", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().ok()?;
        Some(Diod { root, port, child })
    }

    fn connect(&mut self) -> TcpStream {
        let start = Instant::now();
        loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(stream) => return stream,
                Err(error) => {
                    assert!(self.child.try_wait().unwrap().is_none(), "diod has ended");
                    assert!(
                        start.elapsed() < Duration::from_secs(20),
                        "diod does not listen within 20 s: {error}"
                    );
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl Drop for Diod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Passes messages on, one at a time.
struct Relay(Mutex<TcpStream>);

impl Conversation for Relay {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, _room: usize) {
        let mut stream = self.0.lock().unwrap();
        stream.write_all(request).expect("diod takes a request");
        let mut size = [0; 4];
        stream.read_exact(&mut size).expect("diod answers");
        answer.clear();
        answer.extend_from_slice(&size);
        answer.resize(u32::from_le_bytes(size) as usize, 0);
        stream.read_exact(&mut answer[4..]).expect("diod answers whole");
    }
}

struct Relays(Mutex<Diod>);

impl Conversations for Relays {
    fn begin(&self) -> Arc<dyn Conversation> {
        Arc::new(Relay(Mutex::new(self.0.lock().unwrap().connect())))
    }
    fn state(&self) -> String {
        "diod".into()
    }
}

#[test]
fn diod_and_the_client_understand_each_other() {
    let Some(diod) = Diod::start() else {
        hvl_test_kit::skipped(
            "diod_and_the_client_understand_each_other: no diod; 'cargo xtask setup' gets it",
        );
        return;
    };
    let root = diod.root.clone();
    let tree: &'static [u8] = root.to_str().unwrap().to_string().leak().as_bytes();
    let wire = Wire::new();
    let _pmm = Pmm::start(&wire, Relays(Mutex::new(diod)));
    let mut files =
        Guest::boot_with(&wire, Options { timeout: 20_000_000, tree, ..Options::default() }).files;

    files.mkdir(b"d", 0o755).unwrap();
    let mut file = files.create(b"d/f", open::READ_WRITE, 0o644).unwrap();
    let bytes: Vec<u8> = (0..200_000u32).map(|at| (at ^ at >> 7) as u8).collect();
    let mut done = 0;
    while done < bytes.len() {
        done += files.write(&mut file, done as u64, &bytes[done..]).unwrap();
    }
    assert!(fs::read(root.join("d/f")).unwrap() == bytes, "what diod has written");
    let (mut read, mut got) = (vec![0; bytes.len()], 0);
    while got < read.len() {
        got += files.read(&mut file, got as u64, &mut read[got..]).unwrap();
    }
    assert!(read == bytes, "what diod has read");
    files.sync(&mut file, true).unwrap();
    let range = Lock { kind: lock::WRITE, length: 10, process: 1, client: b"r5", ..Lock::default() };
    assert_eq!(files.lock(&mut file, range), Ok(lock::SUCCESS));
    files.close(file).unwrap();

    assert_eq!(files.stat(b"d/f").map(|attr| attr.size), Ok(200_000));
    files.set(b"d/f", SetAttr { valid: setattr::SIZE, size: 5, ..SetAttr::default() }).unwrap();
    assert_eq!(fs::metadata(root.join("d/f")).unwrap().len(), 5);
    files.symlink(b"d/f", b"s").unwrap();
    let mut target = [0; 32];
    assert_eq!(files.readlink(b"s", &mut target), Ok(&b"d/f"[..]));
    files.hard_link(b"d/f", b"l").unwrap();
    files.rename(b"l", b"d/g").unwrap();
    assert!(files.statfs().is_ok_and(|all| all.blocks != 0));

    let (mut dir, mut names, mut space) = (files.open_dir(b"d").unwrap(), Vec::new(), [0; 400]);
    loop {
        let found: Vec<_> = files.entries(&mut dir, &mut space).unwrap().collect();
        if found.is_empty() {
            break;
        }
        names
            .extend(found.into_iter().map(|entry| String::from_utf8_lossy(entry.unwrap().name).into_owned()));
    }
    files.close(dir.into_file()).unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    assert_eq!(names, ["f", "g"]);

    for name in ["d/f", "d/g", "s"] {
        files.unlink(name.as_bytes()).unwrap();
    }
    files.rmdir(b"d").unwrap();
    assert_eq!(files.stat(b"d").map(|_| ()), Err(FileError::Refused(Errno::NOENT)));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}
