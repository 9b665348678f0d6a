//! Socket streams behind `embedded-io` and `embedded-io-async`: a connection of a [`Vsock`] that several streams share,
//! in a `RefCell` that is borrowed for the length of one call and never across a wait.
//!
//! A stream does not outlive its session: after a restart of the PMM its next call says
//! [`SocketError::Reset`]. Dropping a stream does not close the connection; `close` does.

use core::cell::RefCell;

#[cfg(feature = "embedded-io")]
use embedded_io as io;
#[cfg(not(feature = "embedded-io"))]
use embedded_io_async as io;
use io::ErrorKind;

use crate::device::vsock::{End, Socket, SocketError, Vsock};

impl io::Error for SocketError {
    fn kind(&self) -> ErrorKind {
        match self {
            SocketError::LinkDown | SocketError::Closed => ErrorKind::NotConnected,
            SocketError::WouldBlock | SocketError::TimedOut => ErrorKind::TimedOut,
            SocketError::Reset => ErrorKind::ConnectionReset,
            SocketError::Refused => ErrorKind::ConnectionRefused,
            SocketError::Full => ErrorKind::OutOfMemory,
            SocketError::InUse => ErrorKind::AddrInUse,
        }
    }
}

#[cfg(feature = "embedded-io")]
pub use blocking::Stream;
#[cfg(feature = "embedded-io")]
mod blocking {
    use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};

    use super::{End, RefCell, Socket, SocketError, Vsock};
    use crate::adapter::Timeout;
    use crate::platform::{Instant, Wait, earlier};

    /// A connection whose calls wait, up to a time; then they say [`SocketError::TimedOut`].
    #[derive(Debug)]
    pub struct Stream<'c, 's, B> {
        vsock: &'c RefCell<Vsock<'s, B>>,
        socket: Socket,
        timeout: Timeout,
    }

    /// Repeats a call that cannot be answered yet, asleep in between.
    fn wait<'s, B: Wait, T>(
        vsock: &RefCell<Vsock<'s, B>>,
        timeout: Timeout,
        mut call: impl FnMut(&mut Vsock<'s, B>) -> Result<T, SocketError>,
    ) -> Result<T, SocketError> {
        let mut deadline: Option<Instant> = None;
        loop {
            let (board, next) = {
                let Ok(mut vsock) = vsock.try_borrow_mut() else { return Err(SocketError::WouldBlock) };
                match call(&mut vsock) {
                    Err(SocketError::WouldBlock) => {}
                    done => return done,
                }
                (vsock.link().board().clone(), vsock.next_deadline())
            };
            let now = board.now();
            let until = match deadline.or_else(|| timeout.from(now)) {
                Some(until) if now < until => until,
                _ => return Err(SocketError::TimedOut),
            };
            deadline = Some(until);
            if next != Some(Instant::UNKNOWN) {
                board.wait_for_doorbell(earlier(next, Some(until)));
            }
        }
    }

    impl<'c, 's, B: Wait> Stream<'c, 's, B> {
        /// A stream over a connection; each call waits for `timeout` at most.
        pub fn new(vsock: &'c RefCell<Vsock<'s, B>>, socket: Socket, timeout: Timeout) -> Stream<'c, 's, B> {
            Stream { vsock, socket, timeout }
        }
        /// Calls a port of the host, and waits until it is granted.
        ///
        /// # Errors
        ///
        /// What [`Vsock::connect`] and [`Vsock::is_open`] say; after [`SocketError::TimedOut`] the call was given up.
        pub fn connect(
            vsock: &'c RefCell<Vsock<'s, B>>,
            port: u32,
            timeout: Timeout,
        ) -> Result<Stream<'c, 's, B>, SocketError> {
            let socket = wait(vsock, timeout, |vsock| vsock.connect(port))?;
            let stream = Stream { vsock, socket, timeout };
            match wait(vsock, timeout, |vsock| vsock.is_open(socket)) {
                Ok(()) => Ok(stream),
                Err(error) => {
                    stream.close();
                    Err(error)
                }
            }
        }
        /// Waits for the next connection to a port that is listened at.
        ///
        /// # Errors
        ///
        /// What [`Vsock::accept`] says, and [`SocketError::TimedOut`].
        pub fn accept(
            vsock: &'c RefCell<Vsock<'s, B>>,
            port: u32,
            timeout: Timeout,
        ) -> Result<Stream<'c, 's, B>, SocketError> {
            let (socket, _) = wait(vsock, timeout, |vsock| vsock.accept(port))?;
            Ok(Stream { vsock, socket, timeout })
        }
        /// The connection.
        pub fn socket(&self) -> Socket {
            self.socket
        }
        /// Ends one direction.
        ///
        /// # Errors
        ///
        /// As [`Vsock::shut_down`].
        pub fn shut_down(&mut self, end: End) -> Result<(), SocketError> {
            wait(self.vsock, self.timeout, |vsock| vsock.shut_down(self.socket, end))
        }
        /// Ends both directions and gives the connection back.
        pub fn close(self) {
            if let Ok(mut vsock) = self.vsock.try_borrow_mut() {
                vsock.close(self.socket);
            }
        }
    }

    impl<B> ErrorType for Stream<'_, '_, B> {
        type Error = SocketError;
    }
    impl<B: Wait> Read for Stream<'_, '_, B> {
        fn read(&mut self, buf: &mut [u8]) -> Result<usize, SocketError> {
            wait(self.vsock, self.timeout, |vsock| vsock.read(self.socket, buf))
        }
    }
    impl<B: Wait> Write for Stream<'_, '_, B> {
        fn write(&mut self, buf: &[u8]) -> Result<usize, SocketError> {
            wait(self.vsock, self.timeout, |vsock| vsock.write(self.socket, buf))
        }
        /// Nothing waits here: what was written was handed to the PMM.
        fn flush(&mut self) -> Result<(), SocketError> {
            Ok(())
        }
    }
    impl<B: Wait> ReadReady for Stream<'_, '_, B> {
        fn read_ready(&mut self) -> Result<bool, SocketError> {
            let vsock = self.vsock.try_borrow_mut();
            Ok(vsock.is_ok_and(|mut vsock| vsock.read_ready(self.socket).unwrap_or(false)))
        }
    }
    impl<B: Wait> WriteReady for Stream<'_, '_, B> {
        fn write_ready(&mut self) -> Result<bool, SocketError> {
            let vsock = self.vsock.try_borrow_mut();
            Ok(vsock.is_ok_and(|mut vsock| vsock.write_ready(self.socket).unwrap_or(false)))
        }
    }
}

#[cfg(feature = "embedded-io-async")]
pub use waking::AsyncStream;
#[cfg(feature = "embedded-io-async")]
mod waking {
    use embedded_io_async::{ErrorType, Read, Write};

    use super::{End, RefCell, Socket, SocketError, Vsock};
    use crate::adapter::embedded_io_async::{AsyncBoard, sleep, yield_now};

    /// A connection for an async executor. Its futures wait for as long as they are polled; dropping one loses no byte.
    #[derive(Debug)]
    pub struct AsyncStream<'c, 's, B> {
        vsock: &'c RefCell<Vsock<'s, B>>,
        socket: Socket,
    }

    async fn wait<'s, B: AsyncBoard, T>(
        vsock: &RefCell<Vsock<'s, B>>,
        mut call: impl FnMut(&mut Vsock<'s, B>) -> Result<T, SocketError>,
    ) -> Result<T, SocketError> {
        loop {
            let next = match vsock.try_borrow_mut() {
                Ok(mut vsock) => match call(&mut vsock) {
                    Err(SocketError::WouldBlock) => {
                        Some((vsock.link().board().clone(), vsock.next_deadline()))
                    }
                    done => return done,
                },
                Err(_) => None,
            };
            match next {
                Some((board, deadline)) => sleep(board, deadline).await,
                None => yield_now().await,
            }
        }
    }

    impl<'c, 's, B: AsyncBoard> AsyncStream<'c, 's, B> {
        /// A stream over a connection.
        pub fn new(vsock: &'c RefCell<Vsock<'s, B>>, socket: Socket) -> AsyncStream<'c, 's, B> {
            AsyncStream { vsock, socket }
        }
        /// Calls a port of the host, and waits until it is granted.
        ///
        /// # Errors
        ///
        /// What [`Vsock::connect`] and [`Vsock::is_open`] say.
        pub async fn connect(
            vsock: &'c RefCell<Vsock<'s, B>>,
            port: u32,
        ) -> Result<AsyncStream<'c, 's, B>, SocketError> {
            let socket = wait(vsock, |vsock| vsock.connect(port)).await?;
            wait(vsock, |vsock| vsock.is_open(socket)).await?;
            Ok(AsyncStream { vsock, socket })
        }
        /// Waits for the next connection to a port that is listened at.
        ///
        /// # Errors
        ///
        /// What [`Vsock::accept`] says.
        pub async fn accept(
            vsock: &'c RefCell<Vsock<'s, B>>,
            port: u32,
        ) -> Result<AsyncStream<'c, 's, B>, SocketError> {
            let (socket, _) = wait(vsock, |vsock| vsock.accept(port)).await?;
            Ok(AsyncStream { vsock, socket })
        }
        /// The connection.
        pub fn socket(&self) -> Socket {
            self.socket
        }
        /// Ends one direction.
        ///
        /// # Errors
        ///
        /// As [`Vsock::shut_down`].
        pub async fn shut_down(&mut self, end: End) -> Result<(), SocketError> {
            wait(self.vsock, |vsock| vsock.shut_down(self.socket, end)).await
        }
        /// Ends both directions and gives the connection back.
        pub fn close(self) {
            if let Ok(mut vsock) = self.vsock.try_borrow_mut() {
                vsock.close(self.socket);
            }
        }
    }

    impl<B> ErrorType for AsyncStream<'_, '_, B> {
        type Error = SocketError;
    }
    impl<B: AsyncBoard> Read for AsyncStream<'_, '_, B> {
        async fn read(&mut self, buf: &mut [u8]) -> Result<usize, SocketError> {
            wait(self.vsock, |vsock| vsock.read(self.socket, buf)).await
        }
    }
    impl<B: AsyncBoard> Write for AsyncStream<'_, '_, B> {
        async fn write(&mut self, buf: &[u8]) -> Result<usize, SocketError> {
            wait(self.vsock, |vsock| vsock.write(self.socket, buf)).await
        }
        /// Nothing waits here: what was written was handed to the PMM.
        async fn flush(&mut self) -> Result<(), SocketError> {
            Ok(())
        }
    }
}
