//! Frames in a stream: each behind its length, four bytes with the highest first. QEMU's `-netdev stream` speaks it, and
//! so does `passt`.

use std::os::fd::OwnedFd;

use hvl_shared_abi::wire::net::{MAX_FRAME, MIN_FRAME};

use super::super::EndError;
use super::super::nonblocking::NonBlocking;
use crate::sys::Watches;

/// Bytes that stand before each frame.
const LENGTH: usize = 4;
/// Bytes that are read at a time: two of the longest frames, or some eighty ordinary ones.
const BUFFER: usize = 2 * (LENGTH + MAX_FRAME);

/// Both directions of a stream.
#[derive(Debug)]
pub(super) struct FrameStream {
    fd: NonBlocking,
    input: Vec<u8>,
    /// What of the input is there and not yet taken.
    at: usize,
    end: usize,
    output: Vec<u8>,
    /// How much of the output is written.
    written: usize,
    /// The peer does not keep to the framing.
    nonsense: bool,
    ended: bool,
}

impl FrameStream {
    pub(super) fn new(fd: OwnedFd) -> std::io::Result<FrameStream> {
        let mut fd = NonBlocking::own(fd)?;
        // A peer that leaves is to be noticed also while the guest asks for nothing.
        fd.expect_input();
        let output = Vec::with_capacity(LENGTH + MAX_FRAME);
        let input = vec![0; BUFFER];
        Ok(FrameStream { fd, input, at: 0, end: 0, output, written: 0, nonsense: false, ended: false })
    }

    /// Takes a frame: written, or to be written as soon as there is room. One at a time.
    pub(super) fn send(&mut self, frame: &[u8]) -> Result<(), EndError> {
        self.flush()?;
        self.output.clear();
        self.written = 0;
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.output.extend_from_slice(&len.to_be_bytes());
        self.output.extend_from_slice(frame);
        match self.flush() {
            Err(EndError::WouldBlock) => Ok(()),
            other => other,
        }
    }

    /// Writes what is left of the last frame.
    pub(super) fn flush(&mut self) -> Result<(), EndError> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            self.written += self.fd.write(rest)?;
        }
        Ok(())
    }

    /// The next frame. A length that cannot be ends the stream: nobody could say where the next frame begins.
    pub(super) fn receive(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        loop {
            let ready = self.input.get(self.at..self.end).unwrap_or(&[]);
            if let Some((length, rest)) = ready.split_first_chunk() {
                let len = u32::from_be_bytes(*length) as usize;
                if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
                    self.nonsense = true;
                    return Err(EndError::Closed);
                }
                if let Some(frame) = rest.get(..len) {
                    self.at += LENGTH + len;
                    let Some(room) = into.get_mut(..len) else { continue };
                    room.copy_from_slice(frame);
                    return Ok(len);
                }
            }
            self.input.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
            let room = self.input.get_mut(self.end..).unwrap_or(&mut []);
            self.end += self.fd.read(room)?;
        }
    }

    /// Whether the other side has left, or might as well have.
    pub(super) fn is_over(&self) -> bool {
        self.fd.input_closed() || self.fd.output_closed() || self.nonsense || self.ended
    }

    /// The other side is known to be gone.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether it is over because of what the other side wrote.
    pub(super) fn is_nonsense(&self) -> bool {
        self.nonsense
    }

    pub(super) fn watch(&self, watches: &mut Watches) {
        self.fd.watch(watches);
    }

    /// Something happened: what waited is tried again.
    pub(super) fn progress(&mut self) {
        self.fd.forget();
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (FrameStream, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        (FrameStream::new(one.into()).unwrap(), two)
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let (mut stream, mut peer) = pair();
        let frames: Vec<Vec<u8>> = [14, 60, 1514, MAX_FRAME, 15].map(|len| vec![len as u8; len]).into();
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend((frame.len() as u32).to_be_bytes());
            bytes.extend(frame);
        }
        let mut into = vec![0; MAX_FRAME];
        let mut got = Vec::new();
        for part in bytes.chunks(1009) {
            peer.write_all(part).unwrap();
            loop {
                match stream.receive(&mut into) {
                    Ok(len) => got.push(into[..len].to_vec()),
                    Err(error) => {
                        assert_eq!(error, EndError::WouldBlock);
                        break;
                    }
                }
            }
        }
        assert!(got == frames);
        drop(peer);
        assert_eq!(stream.receive(&mut into), Err(EndError::Closed));
        assert!(stream.is_over() && !stream.is_nonsense());
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_stream() {
        for len in [0, 13, MAX_FRAME as u32 + 1, u32::MAX] {
            let (mut stream, mut peer) = pair();
            peer.write_all(&len.to_be_bytes()).unwrap();
            assert_eq!(stream.receive(&mut [0; 100]), Err(EndError::Closed), "{len}");
            assert!(stream.is_over() && stream.is_nonsense());
        }
    }

    #[test]
    fn a_peer_that_does_not_read_holds_one_frame_and_gets_it_whole() {
        let (mut stream, mut peer) = pair();
        let frame = vec![7; 60_000];
        let mut taken = 0;
        while stream.send(&frame).is_ok() {
            taken += 1;
            assert!(taken < 1000, "a socket without an end");
        }
        let mut watches = Watches::default();
        stream.watch(&mut watches);
        assert!(!watches.is_empty(), "room is waited for");
        let mut got = vec![0; taken * (frame.len() + LENGTH)];
        let reader = std::thread::spawn(move || {
            peer.read_exact(&mut got).unwrap();
            got
        });
        while stream.flush().is_err() {
            let mut watches = Watches::default();
            stream.watch(&mut watches);
            assert!(watches.wait(Some(10_000_000)) > 0, "no room in 10 s");
            stream.progress();
        }
        let got = reader.join().unwrap();
        assert!(got.chunks(frame.len() + LENGTH).all(|part| part[LENGTH..] == frame));
    }
}
