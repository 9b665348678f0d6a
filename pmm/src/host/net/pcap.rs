//! `--pcap FILE`: what goes through a card's cable, in both directions, as a pcapng file that Wireshark and tcpdump
//! read.
//!
//! A thread writes the file, from a queue with a bound in bytes: a slow or full disk costs packets in the file, which are
//! counted and told, and never holds up the link, not even its end. A file with a bound is turned over when it is full;
//! each of the two is a whole one.

use std::borrow::Cow;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hvl_shared_abi::wire::net::Offload;

use super::super::bounded::{Bounded, Start};
use super::super::{Dropped, EndError, FrameEnd, HostEnd, TerminalNews};
use crate::failure::{Failure, refused};
use crate::sys::Watches;

/// Bytes that wait for the disk at the most.
const QUEUED: usize = 4 << 20;

/// How long the end of a link waits for what is queued: a disk that takes it takes it soon, and a frozen one never.
const END: Duration = Duration::from_secs(1);

/// Types of blocks, and the few options used.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
const OPTION_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
/// Of a packet, seen from the guest's card.
const TO_GUEST: u32 = 1;
const FROM_GUEST: u32 = 2;

/// Shared with the thread.
#[derive(Debug, Default)]
struct Counts {
    queued: AtomicUsize,
    /// Packets that are not in the file.
    missing: AtomicU64,
}

/// An end, and a file that notes what goes through it.
pub(super) struct Captured<E> {
    end: E,
    /// None only while this is dropped.
    packets: Option<Sender<Vec<u8>>>,
    /// Closed by the thread when everything is written.
    written: Receiver<()>,
    counts: Arc<Counts>,
    path: PathBuf,
}

impl<E> Captured<E> {
    /// Makes the file; an old one of that name is replaced. It has at most `max` bytes, and so has its predecessor,
    /// FILE.old.
    pub(super) fn new(end: E, path: &Path, max: Option<u64>, name: &str) -> Result<Captured<E>, Failure> {
        let file = Bounded::open(path, Start::Anew, max, &format!("--pcap {}", path.display()))?;
        let ((packets, queue), (last, written)) = (channel(), channel());
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let (own, head) = (path.to_path_buf(), head(name));
        let writer = std::thread::Builder::new().name("pcap".into()).spawn(move || {
            write(file, &own, &head, &queue, &shared);
            drop::<Sender<()>>(last);
        });
        match writer {
            Ok(_) => Ok(Captured { end, packets: Some(packets), written, counts, path: path.into() }),
            Err(error) => refused(format!("--pcap {}: no thread to be had ({error})", path.display())),
        }
    }

    fn note(&self, frame: &[u8], direction: u32) {
        let block = packet(frame, direction, SystemTime::now());
        let queued = self.counts.queued.fetch_add(block.len(), Ordering::Relaxed);
        let len = block.len();
        let room = queued.saturating_add(len) <= QUEUED;
        if !room || self.packets.as_ref().is_none_or(|packets| packets.send(block).is_err()) {
            self.counts.queued.fetch_sub(len, Ordering::Relaxed);
            self.counts.missing.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<E> Drop for Captured<E> {
    fn drop(&mut self) {
        self.packets = None;
        if self.written.recv_timeout(END) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(
                "--pcap {}: takes nothing any more; what was queued for it is missing there",
                self.path.display()
            );
        }
    }
}

/// Writes what is queued until the other end of the queue is gone. What the disk refuses is counted; the next packet is
/// tried where the last whole one ended.
fn write(file: Bounded, path: &Path, head: &[u8], queue: &Receiver<Vec<u8>>, counts: &Counts) {
    let mut output = Output { file, head: head.to_vec(), waiting: Vec::new(), packets: 0, good: 0 };
    let mut told = false;
    let mut note = |output: &mut Output| match output.flush() {
        Ok(()) => told = false,
        Err((lost, error)) => {
            counts.missing.fetch_add(lost, Ordering::Relaxed);
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    "--pcap {}: cannot be written ({error}); packets are missing in it until it can, the link goes on",
                    path.display()
                );
            }
        }
    };
    note(&mut output);
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(block) = next {
            counts.queued.fetch_sub(block.len(), Ordering::Relaxed);
            output.waiting.extend_from_slice(&block);
            output.packets += 1;
            next = if output.waiting.len() < AT_ONCE { queue.try_recv().ok() } else { None };
        }
        // With nothing more to do, a reader is to see what there is.
        note(&mut output);
    }
}

/// Bytes that are written at a time, about.
const AT_ONCE: usize = 64 << 10;

/// The file, up to the last block that is in it as a whole, and what is to follow.
struct Output {
    file: Bounded,
    /// What stands at the start of a file.
    head: Vec<u8>,
    waiting: Vec<u8>,
    packets: u64,
    good: u64,
}

impl Output {
    /// Writes what waits, or forgets it: how many packets, and why.
    fn flush(&mut self) -> Result<(), (u64, std::io::Error)> {
        let written = self.write();
        let packets = std::mem::take(&mut self.packets);
        self.waiting.clear();
        written.map_err(|error| {
            // Half a block would make the rest unreadable.
            let _ = self.file.file().set_len(self.good);
            let _ = self.file.file().seek(SeekFrom::Start(self.good));
            (packets, error)
        })
    }

    fn write(&mut self) -> std::io::Result<()> {
        if self.file.is_full(self.good, self.waiting.len() as u64) {
            self.file.turn_over()?;
            self.good = 0;
        }
        for part in [self.head.as_slice(), &self.waiting].into_iter().skip(usize::from(self.good != 0)) {
            self.file.file().write_all(part)?;
            self.good += part.len() as u64;
        }
        Ok(())
    }
}

/// A block: type, length, body, options, length.
fn block(kind: u32, body: &[u8], options: &[(u16, &[u8])]) -> Vec<u8> {
    let padded = |bytes: &[u8]| bytes.len().next_multiple_of(4);
    let options_len: usize = options.iter().map(|(_, value)| 4 + padded(value)).sum::<usize>() + 4;
    let len = 12 + padded(body) + options_len;
    let mut out = Vec::with_capacity(len);
    let total = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(kind.to_le_bytes());
    out.extend(total);
    out.extend_from_slice(body);
    out.resize(8 + padded(body), 0);
    for (code, value) in options {
        out.extend(code.to_le_bytes());
        out.extend(u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out.extend([0; 4]);
    out.extend(total);
    out
}

/// The start of a file: one section, one interface of this name.
fn head(name: &str) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend(BYTE_ORDER.to_le_bytes());
    // Version 1.0, of unknown length.
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    let mut out = block(SECTION, &section, &[]);
    let mut interface = Vec::new();
    interface.extend(ETHERNET.to_le_bytes());
    // Reserved, and no limit to a packet's length.
    interface.extend([0; 6]);
    out.extend(block(INTERFACE, &interface, &[(OPTION_NAME, name.as_bytes())]));
    out
}

/// A packet of the first interface, at a time in microseconds.
fn packet(frame: &[u8], direction: u32, at: SystemTime) -> Vec<u8> {
    let micros = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let mut body = Vec::with_capacity(20 + frame.len());
    for word in [0, (micros >> 32) as u32, micros as u32, len, len] {
        body.extend(word.to_le_bytes());
    }
    body.extend_from_slice(frame);
    block(PACKET, &body, &[(OPTION_FLAGS, &direction.to_le_bytes())])
}

impl<E: FrameEnd> FrameEnd for Captured<E> {
    fn features(&self) -> u64 {
        self.end.features()
    }
    fn accept(&mut self, features: u64) {
        self.end.accept(features);
    }
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        self.end.send(offload, frame)?;
        self.note(frame, FROM_GUEST);
        Ok(())
    }
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        let (offload, len) = self.end.receive(into)?;
        self.note(into.get(..len).unwrap_or(&[]), TO_GUEST);
        Ok((offload, len))
    }
    fn dropped(&mut self, why: Dropped) {
        self.end.dropped(why);
    }
}

impl<E: HostEnd> HostEnd for Captured<E> {
    fn watch(&self, watches: &mut Watches) {
        self.end.watch(watches);
    }
    fn progress(&mut self, now_us: u64) {
        self.end.progress(now_us);
    }
    fn deadline_us(&self) -> Option<u64> {
        self.end.deadline_us()
    }
    fn wants_to_end(&self) -> bool {
        self.end.wants_to_end()
    }
    fn state(&self) -> Cow<'static, str> {
        let state = self.end.state();
        match self.counts.missing.load(Ordering::Relaxed) {
            0 => state,
            missing => format!("{state}, {missing} packets missing in {}", self.path.display()).into(),
        }
    }
    fn terminal_news(&mut self, news: TerminalNews) {
        self.end.terminal_news(news);
    }
    fn failure(&self) -> Option<String> {
        self.end.failure()
    }
    fn announcement(&self) -> Option<String> {
        self.end.announcement()
    }
}

#[cfg(test)]
mod tests {
    use super::super::nowhere::Nowhere;
    use super::*;

    /// Type, body and options of each block of a file.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap());
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let len = word(&bytes[4..]) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(&bytes[len - 4..]), len as u32, "a block is framed by its length");
            all.push((word(bytes), bytes[8..len - 4].to_vec()));
            bytes = &bytes[len..];
        }
        all
    }

    #[test]
    fn a_file_holds_every_frame_with_its_direction() {
        let path = std::env::temp_dir().join(format!("pmm-pcap-{}", std::process::id()));
        let mut end = Captured::new(Nowhere::default(), &path, None, "mode=none").unwrap();
        let frames: Vec<Vec<u8>> = [14, 15, 60, 1514].map(|len| vec![len as u8; len]).into();
        for frame in &frames {
            assert_eq!(end.send(&Offload::default(), frame), Ok(()));
        }
        drop(end);
        let all = blocks(&std::fs::read(&path).unwrap());
        assert_eq!(all.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [SECTION, INTERFACE, 6, 6, 6, 6]);
        assert_eq!(all[0].1[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        for ((_, body), frame) in all[2..].iter().zip(&frames) {
            assert_eq!(body[20..20 + frame.len()], **frame);
            let options = &body[20 + frame.len().next_multiple_of(4)..];
            assert_eq!(options, [2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0], "from the guest");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_full_disk_costs_packets_in_the_file_and_nothing_else() {
        let mut end = Captured::new(Nowhere::default(), Path::new("/dev/full"), None, "x").unwrap();
        for _ in 0..100 {
            assert_eq!(end.send(&Offload::default(), &[0; 1514]), Ok(()));
        }
        let counts = end.counts.clone();
        drop(end);
        assert!(counts.missing.load(Ordering::Relaxed) > 0);
        let error = Captured::new(Nowhere::default(), Path::new("/nonexistent/x"), None, "x").err().unwrap();
        assert!(error.to_string().contains("--pcap /nonexistent/x"), "{error}");
    }

    #[test]
    fn a_file_that_holds_a_write_costs_packets_and_not_the_links_end() {
        use rustix::fs::{FileType, Mode, OFlags};
        let path = std::env::temp_dir().join(format!("pmm-pcap-held-{}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        // A FIFO that nobody reads holds a write as a frozen file system does.
        let reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let mut end = Captured::new(Nowhere::default(), &path, None, "x").unwrap();
        let sent = 2 * QUEUED / 1514;
        for _ in 0..sent {
            assert_eq!(end.send(&Offload::default(), &[0; 1514]), Ok(()));
        }
        let (counts, missing) = (end.counts.clone(), end.counts.missing.load(Ordering::Relaxed) as usize);
        assert!((sent / 4..sent).contains(&missing), "{missing} of {sent} are counted as missing");
        assert!(end.state().contains("packets missing in"), "{}", end.state());
        assert!(counts.queued.load(Ordering::Relaxed) <= QUEUED);
        drop(end);
        drop(reader);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_with_a_bound_and_its_predecessor_are_whole_ones_with_the_latest_packets() {
        let dir = std::env::temp_dir().join(format!("pmm-pcap-bounded-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("cap");
        let mut end = Captured::new(Nowhere::default(), &path, Some(256 << 10), "x").unwrap();
        for number in 0..1000u32 {
            let frame = number.to_le_bytes().repeat(375);
            assert_eq!(end.send(&Offload::default(), &frame), Ok(()));
        }
        drop(end);
        let mut last = None;
        for path in [dir.join("cap.old"), path] {
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes.len() <= 256 << 10, "{} bytes", bytes.len());
            let all = blocks(&bytes);
            assert_eq!((all[0].0, all[1].0), (SECTION, INTERFACE), "each begins as a file does");
            for (_, body) in &all[2..] {
                let number = u32::from_le_bytes(*body[20..].first_chunk().unwrap());
                assert!(last.is_none_or(|last| number == last + 1), "none is missing between the two");
                last = Some(number);
            }
        }
        assert_eq!(last, Some(999));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
