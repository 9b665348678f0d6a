//! Where cases run: a local file system, and mounts with each of Linux's cache modes.

use anyhow::{Context, Result, bail};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};
use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The emulator's name for the machine that it runs on.
const HOST: &str = "10.0.2.2";

/// The modes of 6.4 and newer kernels that need no program beside them; `fscache` is `loose` with one.
const MODES: [&str; 4] = ["none", "readahead", "mmap", "loose"];

/// A file system, and a directory in it.
#[derive(Clone, Debug)]
pub struct Place {
    /// "local", or the cache mode.
    pub name: &'static str,
    /// Where its file system is mounted.
    pub root: PathBuf,
    /// Where the case works.
    pub folder: PathBuf,
}

/// How to reach the server.
pub struct Client {
    /// On [`HOST`].
    pub port: u16,
}

impl Client {
    /// Mounts it once more, in that cache mode. None: this kernel has no such mode.
    pub fn mount(&self, mode: &str, root: &Path) -> Result<Option<()>> {
        fs::create_dir_all(root)?;
        let options = format!("trans=tcp,port={},version=9p2000.L,msize=1048576,cache={mode}", self.port);
        match mount(HOST, root, "9p", MountFlags::empty(), &*CString::new(options)?) {
            Ok(()) => Ok(Some(())),
            Err(Errno::INVAL) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("mounting with cache={mode}")),
        }
    }
}

impl Place {
    /// All of them, the local one first.
    pub fn all(client: &Client) -> Result<Vec<Self>> {
        let local = PathBuf::from("/tmp/local");
        fs::create_dir_all(&local)?;
        let mut places = vec![Self { name: "local", folder: local.clone(), root: local }];
        for mode in MODES {
            let root = Path::new("/mnt").join(mode);
            match client.mount(mode, &root)? {
                Some(()) => {
                    // A second client of the server, for what two see of each other.
                    let second = second(&root);
                    client.mount(mode, &second)?;
                    places.push(Self { name: mode, folder: root.clone(), root });
                }
                None => println!("SKIPPED: this kernel has no cache={mode}"),
            }
        }
        Ok(places)
    }

    /// An empty directory for that case.
    pub fn within(&self, case: &str) -> Result<Self> {
        let folder = self.root.join(format!("{case}-{}", self.name));
        fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(Self { folder, ..self.clone() })
    }

    pub fn is_local(&self) -> bool {
        self.name == "local"
    }

    /// The same directory as another client sees it: another mount, with a connection of its own. Locally there is only
    /// one.
    pub fn elsewhere(&self) -> PathBuf {
        match self.folder.strip_prefix(&self.root) {
            Ok(within) if !self.is_local() => second(&self.root).join(within),
            _ => self.folder.clone(),
        }
    }

    /// Whether a file can be mapped shared and writable. Linux refuses it with EINVAL where it does not keep what is
    /// written (`Documentation/filesystems/9p.rst`).
    pub fn maps_writable(&self) -> bool {
        matches!(self.name, "local" | "mmap" | "loose")
    }

    /// Whether what is appended (O_APPEND) is seen where the end of the file was read before. With `readahead`, Linux
    /// 6.12 forgets the pages at the descriptor's position instead of those at the end, and a reader of the last one goes
    /// on seeing zeros: nothing that a server could do about.
    pub fn appends_to_its_cache(&self) -> bool {
        self.name != "readahead"
    }

    /// A program that works in this directory: its output. It must succeed.
    pub fn call(&self, program: &str, arguments: &[&str]) -> Result<String> {
        call(&self.folder, program, arguments)
    }
}

fn second(root: &Path) -> PathBuf {
    root.with_extension("second")
}

/// A program that works in `folder`: its output. It must succeed.
pub fn call(folder: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}: {said}{complaint}", arguments.join(" "), output.status);
    }
    Ok(said)
}
