//! Who holds the lock on a region. The kernel does not say (`F_OFD_GETLK` answers -1, because an open file
//! description can be in several processes), but it lists the locks of each descriptor in `/proc/PID/fdinfo`.

use std::fmt;
use std::os::fd::BorrowedFd;

/// A process that has a descriptor with a lock that is in the way.
#[derive(Debug)]
pub(super) struct Holder {
    pid: i32,
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Looks through the processes that this user may see.
pub(super) fn find(fd: BorrowedFd<'_>, start: u64, len: u64) -> Option<Holder> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find_map(|pid| {
        let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten();
        let holds = infos
            .filter_map(|info| std::fs::read_to_string(info.path()).ok())
            .any(|text| text.lines().any(|line| is_in_the_way(line, &file, start, len)));
        if !holds {
            return None;
        }
        let name =
            std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string();
        Some(Holder { pid, name })
    })
}

/// Reads a line like `lock: 1: OFDLCK ADVISORY WRITE -1 00:01:1067 0 4095` (with tabs); the end may be `EOF`.
fn is_in_the_way(line: &str, file: &str, start: u64, len: u64) -> bool {
    let Some(rest) = line.strip_prefix("lock:") else { return false };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [_, "OFDLCK", _, _, _, whose, from, to] = words[..] else { return false };
    let (Ok(from), to) = (from.parse::<u64>(), to.parse::<u64>().unwrap_or(u64::MAX)) else { return false };
    whose == file && from < start.saturating_add(len) && start <= to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo() {
        let line = "lock:\t1: OFDLCK  ADVISORY  WRITE -1 00:01:1067 4096 8191";
        assert!(is_in_the_way(line, "00:01:1067", 0, 4097));
        assert!(is_in_the_way(line, "00:01:1067", 8191, 1));
        assert!(!is_in_the_way(line, "00:01:1067", 0, 4096));
        assert!(!is_in_the_way(line, "00:01:1067", 8192, 1));
        assert!(!is_in_the_way(line, "00:01:1068", 4096, 1));
        assert!(is_in_the_way("lock:\t2: OFDLCK  ADVISORY  WRITE -1 fe:00:7 0 EOF", "fe:00:7", 1 << 40, 1));
        for line in ["pos:\t0", "lock:\t1: POSIX  ADVISORY  WRITE 12 00:01:1067 0 EOF", "lock:"] {
            assert!(!is_in_the_way(line, "00:01:1067", 0, 1), "{line}");
        }
    }
}
