//! The server, driven through the codec on a directory of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hvl_shared_abi::wire::p9::{
    Attr, Errno, GetLock, MAX_MSIZE, NO_FID, NO_TAG, NO_UID, Names, Qid, Reply, Request, VERSION, getattr,
    open,
};

use super::*;

mod at_once;
mod attributes;
mod bounds;
mod conformance;
mod escapes;
mod fuzz;
mod mapped;

/// A directory that is removed at the end.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Folder {
        Folder::within(&std::env::temp_dir())
    }

    pub(super) fn within(place: &Path) -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("pmm-export-{}-{number}", std::process::id()));
        std::fs::create_dir_all(path.join("tree")).unwrap();
        Folder(path)
    }

    /// The exported directory. Beside it there is room for what must not be reached.
    pub(super) fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }

    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn read(&self, name: &str) -> String {
        String::from_utf8(std::fs::read(self.0.join(name)).unwrap()).unwrap()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.join(name).symlink_metadata().is_ok()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A client that speaks to a session through bytes alone.
pub(super) struct Client {
    pub(super) session: Session,
    tag: u16,
}

/// An answer, with what it borrowed.
#[derive(Debug)]
pub(super) struct Answer {
    bytes: Vec<u8>,
}

impl Answer {
    pub(super) fn get(&self) -> Reply<'_> {
        Reply::parse(&self.bytes).unwrap().message
    }

    pub(super) fn payload(&self) -> &[u8] {
        Reply::parse(&self.bytes).unwrap().payload
    }

    #[track_caller]
    pub(super) fn errno(&self) -> Errno {
        match self.get() {
            Reply::Error { errno } => errno,
            other => panic!("an error was expected: {other:?}"),
        }
    }

    #[track_caller]
    pub(super) fn ok(&self) {
        if let Reply::Error { errno } = self.get() {
            panic!("{errno:?}");
        }
    }
}

/// The root of a [`Client`] that [`Client::attached`] made.
pub(super) const ROOT: u32 = 0;

impl Client {
    pub(super) fn new(export: &Arc<Export>) -> Client {
        Client { session: Session::new(export.clone()), tag: 0 }
    }

    /// A client that has agreed on the largest messages and whose fid [`ROOT`] is the root.
    pub(super) fn attached(export: &Arc<Export>) -> Client {
        let mut client = Client::new(export);
        client.ask(Request::Version { msize: MAX_MSIZE, version: VERSION }).ok();
        client.attach(ROOT).ok();
        client
    }

    /// On a new export with these rules.
    pub(super) fn with(folder: &Folder, rules: Rules) -> Client {
        Client::attached(&Export::open(&folder.tree(), "tag", rules, "test").unwrap())
    }

    pub(super) fn on(folder: &Folder) -> Client {
        Client::with(folder, Rules::default())
    }

    pub(super) fn attach(&mut self, fid: u32) -> Answer {
        self.ask(Request::Attach { fid, afid: NO_FID, user: b"me", tree: b"", uid: NO_UID })
    }

    pub(super) fn ask(&mut self, request: Request<'_>) -> Answer {
        self.ask_with(request, &[])
    }

    pub(super) fn ask_with(&mut self, request: Request<'_>, payload: &[u8]) -> Answer {
        self.tag =
            if matches!(request, Request::Version { .. }) { NO_TAG } else { self.tag.wrapping_add(1) % 999 };
        let mut bytes = vec![0; 2 * MAX_MSIZE as usize];
        let length = request.emit(self.tag, payload, &mut bytes).unwrap();
        let mut reply = Vec::new();
        let handled = self.session.reply_to(&bytes[..length], &mut reply, usize::MAX);
        assert_eq!((handled.length, handled.malformed), (reply.len(), None));
        assert!(reply.len() <= self.session.msize() as usize);
        let parsed = Reply::parse(&reply).unwrap();
        assert_eq!(parsed.tag, self.tag);
        let kind = parsed.message.kind();
        assert!(
            kind == request.kind() + 1 || kind == 7,
            "{request:?} was answered with {:?}",
            parsed.message
        );
        Answer { bytes: reply }
    }

    /// Walks from the root; how many names were passed.
    #[track_caller]
    pub(super) fn walk(&mut self, fid: u32, path: &str) -> Result<usize, Errno> {
        self.walk_from(ROOT, fid, path)
    }

    pub(super) fn walk_from(&mut self, from: u32, fid: u32, path: &str) -> Result<usize, Errno> {
        let (names, rest) = Names::of_path(path.as_bytes());
        assert!(rest.is_empty());
        match self.ask(Request::Walk { fid: from, new_fid: fid, names }).get() {
            Reply::Walk { qids } => Ok(qids.len()),
            Reply::Error { errno } => Err(errno),
            other => panic!("{other:?}"),
        }
    }

    /// Makes `fid` stand for `path`.
    #[track_caller]
    pub(super) fn reach(&mut self, fid: u32, path: &str) {
        let count = path.split('/').filter(|name| !name.is_empty()).count();
        assert_eq!(self.walk(fid, path), Ok(count), "{path}");
    }

    /// The same, open.
    #[track_caller]
    pub(super) fn reach_open(&mut self, fid: u32, path: &str, flags: u32) {
        self.reach(fid, path);
        self.ask(Request::Lopen { fid, flags }).ok();
    }

    pub(super) fn clunk(&mut self, fid: u32) -> Answer {
        self.ask(Request::Clunk { fid })
    }

    pub(super) fn read(&mut self, fid: u32, offset: u64, count: u32) -> Answer {
        self.ask(Request::Read { fid, offset, count })
    }

    pub(super) fn write(&mut self, fid: u32, offset: u64, bytes: &[u8]) -> Answer {
        let count = hvl_shared_abi::wire::p9::Payload(bytes.len() as u32);
        self.ask_with(Request::Write { fid, offset, count }, bytes)
    }

    /// What a file holds, by a walk, an opening, a read.
    pub(super) fn content(&mut self, path: &str) -> Result<Vec<u8>, Errno> {
        const FID: u32 = 0x7fff_0000;
        let count = path.split('/').filter(|name| !name.is_empty()).count();
        if self.walk(FID, path)? != count {
            return Err(Errno::NOENT);
        }
        let opened = self.ask(Request::Lopen { fid: FID, flags: open::READ_ONLY });
        let content = match opened.get() {
            Reply::Error { errno } => Err(errno),
            _ => Ok(self.read(FID, 0, 4096).payload().to_vec()),
        };
        self.clunk(FID).ok();
        content
    }

    /// The lock in the way of one through fid 1.
    pub(super) fn getlock(&mut self, asked: GetLock<'_>) -> GetLock<'static> {
        match self.ask(Request::Getlock { fid: 1, lock: asked }).get() {
            Reply::Getlock { lock } => GetLock { client: lock.client.to_vec().leak(), ..lock },
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn attr(&mut self, fid: u32) -> Attr {
        match self.ask(Request::Getattr { fid, mask: getattr::ALL }).get() {
            Reply::Getattr { attr } => attr,
            other => panic!("{other:?}"),
        }
    }
}

/// An export whose resolver is confined like this, perhaps not as it should be, and into which a test can reach.
pub(super) fn planted(folder: &Folder, rules: Rules, confined: resolve::Confined) -> Export {
    let tree = folder.tree();
    let directory = resolve::open_directory(&tree).unwrap();
    Arc::into_inner(Export::of(directory, &tree, "tag", rules, confined).unwrap()).unwrap()
}

/// Runs the test of this name once more, as root of a user and mount namespace of its own. `true`: this is that second
/// run, in which the caller may mount. `false`: it is over, or this machine allows no such namespace.
pub(super) fn in_own_namespace(test: &str) -> bool {
    const MARK: &str = "PMM_TEST_IN_NAMESPACE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let unshare = |program: &std::ffi::OsStr| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]).arg(program);
        command
    };
    if !unshare("true".as_ref()).output().is_ok_and(|output| output.status.success()) {
        hvl_test_kit::skipped(format!(
            "{test}: no namespace of its own in which it could mount (is 'unshare' allowed here?)"
        ));
        return false;
    }
    let name = format!("host::export::tests::{test}");
    let output = unshare(std::env::current_exe().unwrap().as_os_str())
        .args(["--exact", &name, "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// In a namespace of one's own: a small file system in memory.
pub(super) fn mount_small(at: &Path) {
    let done =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(at).status();
    assert!(done.is_ok_and(|status| status.success()));
}

/// The number of an inode as the host sees it.
pub(super) fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&path.symlink_metadata().unwrap())
}

#[test]
fn the_codec_and_the_server_meet() {
    let folder = Folder::new();
    folder.write("tree/a/b", "hello");
    let mut client = Client::on(&folder);
    assert_eq!(client.content("a/b"), Ok(b"hello".to_vec()));
    let Reply::Attach { qid: Qid { path, .. } } = client.attach(9).get() else { panic!("no attach") };
    assert_eq!(path, inode(&folder.tree()));
}
