//! `pmm serve-9p`: a directory for any client of 9P2000.L.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use hvl_shared_abi::wire::p9::{MAX_MSIZE, MIN_MSIZE};

use super::cli::{LogLevel, LogOptions};
use super::refusals::{Given, Refusals};
use super::value::{BadValue, NAME, Number, Owners, fids, is_name, socket_path};
use crate::failure::Failure;
use crate::host::export::{DEFAULT_FIDS, Ids};

/// `pmm serve-9p`, checked.
#[derive(Clone, Debug)]
pub struct Share {
    /// The directory.
    pub directory: PathBuf,
    /// Where clients connect.
    pub listen: Listen,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Largest message in bytes.
    pub msize: u32,
    /// Most clients at a time.
    pub clients: usize,
    /// Most fids of a client.
    pub fids: usize,
    /// Whose files are whose.
    pub ids: Ids,
    /// What messages and the status call it.
    pub name: String,
    /// Where the control socket is to be; a default from the name and the process id if not given.
    pub control: Option<PathBuf>,
    /// What is logged, and how.
    pub log: LogOptions,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Listen, BadValue> {
        match text.split_once(':') {
            Some(("unix", path)) => Ok(Listen::Unix(socket_path(path)?)),
            Some(("tcp", address)) => address.parse().map(Listen::Tcp).map_err(|_| {
                BadValue(
                    "write tcp:ADDRESS:PORT with a number each, as tcp:127.0.0.1:5640 or tcp:[::1]:5640"
                        .into(),
                )
            }),
            _ => Err(BadValue("write unix:PATH or tcp:ADDRESS:PORT".into())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

pub(super) const SHARE_HELP: &str = "\
No name, symbolic link or race leads a client out of DIR; it opens nothing but regular files and directories, and gives
no file the rights of its owner. 9P knows no passwords: whoever reaches the socket has what this user has in DIR.

Examples:
  pmm serve-9p /srv/files --listen unix:/run/user/1000/files
  mount -t 9p -o trans=unix,version=9p2000.L,msize=1048576 /run/user/1000/files /mnt
  pmm serve-9p /srv/files --listen tcp:127.0.0.1:5640 --ro
  mount -t 9p -o trans=tcp,port=5640,version=9p2000.L 127.0.0.1 /mnt";

/// The same in words.
#[derive(Args, Debug)]
pub(super) struct ShareArgs {
    /// The directory that clients see
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where clients connect: unix:PATH (a socket in the file system) or tcp:ADDRESS:PORT (port 0: any that is free,
    /// printed at the start)
    #[arg(long, value_name = "WHERE")]
    listen: Listen,
    /// Nothing can be changed
    #[arg(long)]
    ro: bool,
    /// Largest message in bytes, 4096 to 1M; a client may ask for less
    #[arg(long, value_name = "N", default_value = "1M")]
    msize: Number,
    /// Most clients at a time, 1 to 1024
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Most fids of a client, 64 to 1M: Linux holds one for each name that it caches [default: 64K]
    #[arg(long, value_name = "N", value_parser = |text: &str| fids("--fids", text))]
    fids: Option<usize>,
    /// Show every file as UID's and GID's, by default this user's; what clients make is this user's, and owners stay
    /// [default: owners are shown as they are and changed as far as this user may]
    #[arg(long, value_name = "UID:GID", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = |text: &str| Owners::squash("--", text))]
    squash: Option<Owners>,
    /// Clients' users and groups from CLIENT on are this host's from HOST on, COUNT of them; others are nobody's
    #[arg(long, value_name = "CLIENT:HOST:COUNT", value_parser = |text: &str| Owners::map("--", text), conflicts_with = "squash")]
    map: Option<Owners>,
    /// What 'pmm list' and 'pmm status' call it [default: the directory's own name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where 'pmm status' asks [default: in $XDG_RUNTIME_DIR/pmm, /run/user/UID/pmm (root: /run/pmm) or
    /// /tmp/pmm-UID, printed at the start]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The least severe message that is logged [default: info]
    #[arg(long, value_name = "LEVEL", value_enum)]
    log_level: Option<LogLevel>,
    /// Log one JSON object a line
    #[arg(long)]
    log_json: bool,
}

impl ShareArgs {
    pub(super) fn check(self, given: &Given, mut refusals: Refusals) -> Result<Share, Failure> {
        let fits = |msize: &u32| (MIN_MSIZE..=MAX_MSIZE).contains(msize);
        let msize = u32::try_from(self.msize.0).ok().filter(fits);
        if msize.is_none() {
            let text = format!(
                "--msize {}: a message has {MIN_MSIZE} to {MAX_MSIZE} bytes; choose one between",
                self.msize
            );
            refusals.add(given.place("msize"), text);
        }
        if let Some(name) = self.name.as_deref().filter(|name| !is_name(name)) {
            refusals.add(given.place("name"), format!("--name '{name}': {NAME}"));
        }
        if let Some(path) = &self.control
            && let Err(bad) = socket_path(&path.to_string_lossy())
        {
            refusals.add(given.place("control"), format!("--control {}: {bad}", path.display()));
        }
        if let Some(failure) = refusals.failure() {
            return Err(failure);
        }
        let own = self.directory.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Share {
            name: self.name.or(own.filter(|name| is_name(name))).unwrap_or_else(|| "serve-9p".into()),
            control: self.control,
            directory: self.directory,
            listen: self.listen,
            read_only: self.ro,
            msize: msize.unwrap_or(MAX_MSIZE),
            clients: self.clients.into(),
            fids: self.fids.unwrap_or(DEFAULT_FIDS),
            ids: self.squash.or(self.map).unwrap_or_default().ids(),
            log: LogOptions { level: self.log_level.unwrap_or_default(), json: self.log_json },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Command, parse};

    fn share(line: &str) -> Result<Share, String> {
        match parse(format!("pmm serve-9p {line}").split_whitespace().map(Into::into)) {
            Ok(Command::Share(share)) => Ok(share),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => {
                assert_eq!(failure.exit_code(), 2);
                Err(failure.to_string())
            }
        }
    }

    #[test]
    fn what_is_said_is_understood() {
        let plain = share("/srv --listen unix:/tmp/s").unwrap();
        assert_eq!((plain.directory.to_str(), plain.listen), (Some("/srv"), Listen::Unix("/tmp/s".into())));
        assert_eq!((plain.read_only, plain.msize, plain.ids), (false, 1 << 20, Ids::Pass));
        let all = share("--squash=7:8 --msize 64K --ro --listen tcp:[::1]:0 d").unwrap();
        assert_eq!((all.read_only, all.msize, all.ids), (true, 65_536, Ids::Squash { uid: 7, gid: 8 }));
        assert_eq!(all.listen.to_string(), "tcp:[::1]:0");
        assert_eq!((all.fids, share("d --fids 100K --listen unix:x").unwrap().fids), (65_536, 102_400));
        assert_eq!(share("--listen unix:x --squash d").unwrap().ids, Ids::squash());
        let map = Ids::Map { inside: 0, outside: 100_000, count: 65_536 };
        assert_eq!(share("--listen unix:x --map 0:100000:65536 d").unwrap().ids, map);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, part) in [
            ("", "DIR"),
            ("d", "--listen"),
            ("d --listen x", "unix:PATH"),
            ("d --listen unix:", "a path is missing"),
            ("d --listen tcp:localhost:1", "tcp:127.0.0.1:5640"),
            ("d --listen tcp:127.0.0.1", "ADDRESS:PORT"),
            ("d --listen unix:x --msize 4095", "4096 to 1048576"),
            ("d --listen unix:x --msize 2M", "4096 to 1048576"),
            ("d --listen unix:x --fids 63", "64 to 1048576"),
            ("d --listen unix:x --squash=me", "--squash=0:0"),
            ("d --listen unix:x --squash=1:4294967295", "--squash=0:0"),
            ("d --listen unix:x --map 0:1", "--map=0:100000:65536"),
            ("d --listen unix:x --map 0:1:1 --squash", "--squash"),
        ] {
            let text = share(line).unwrap_err();
            assert!(text.contains(part) && !text.contains('\n'), "{line}: {text}");
        }
    }
}
