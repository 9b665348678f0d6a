//! What the shell does with sockets: it takes a call or makes one, and gives back every byte that comes, until the other
//! side has said its last.

use hvl_frontend::device::vsock::{End, Socket, SocketError, Vsock};

use crate::Machine;
use crate::pattern::{self, Sum};
use crate::text::Text;

/// What to do with sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Takes one call at this port.
    Listen(u32),
    /// Calls this port of the host.
    Connect(u32),
}

/// A task under way.
#[allow(missing_docs)] // the fields are what the lines above them name
pub enum SocketJob {
    /// Waiting for a call.
    Listening { port: u32 },
    /// Waiting for a call to be granted.
    Calling { socket: Socket },
    /// Giving back what comes: the bytes from `at` to `end` in the work buffer are to be sent.
    Echo { socket: Socket, at: usize, end: usize, got: u64, sum: Sum },
}

/// How far a step came.
pub enum SocketStep {
    /// There is more to do.
    On,
    /// Nothing to do before a doorbell rings, or the sockets' own deadline.
    Wait,
    /// Done.
    Done,
}

/// Begins a task.
pub fn begin<B: Machine>(task: Task, vsock: &mut Vsock<'_, B>) -> Result<SocketJob, SocketError> {
    Ok(match task {
        Task::Listen(port) => {
            vsock.listen(port, 1)?;
            SocketJob::Listening { port }
        }
        Task::Connect(port) => SocketJob::Calling { socket: vsock.connect(port)? },
    })
}

/// Goes on with a job. `out` is empty, and gets less than it holds.
pub fn step<B: Machine, const N: usize>(
    job: &mut SocketJob,
    vsock: &mut Vsock<'_, B>,
    work: &mut [u8],
    out: &mut Text<N>,
) -> Result<SocketStep, SocketError> {
    let echo = |socket| SocketJob::Echo { socket, at: 0, end: 0, got: 0, sum: pattern::sum() };
    let result = match job {
        &mut SocketJob::Listening { port } => vsock.accept(port).map(|(socket, from)| {
            vsock.unlisten(port);
            out.print(format_args!("a call from port {from}\n"));
            *job = echo(socket);
            SocketStep::On
        }),
        &mut SocketJob::Calling { socket } => vsock.is_open(socket).map(|()| {
            out.print(format_args!("connected\n"));
            *job = echo(socket);
            SocketStep::On
        }),
        SocketJob::Echo { socket, at, end, got, sum } => {
            if at < end {
                let rest = work.get(*at..*end).unwrap_or(&[]);
                vsock.write(*socket, rest).map(|sent| {
                    *at = at.saturating_add(sent);
                    SocketStep::On
                })
            } else {
                vsock.read(*socket, work).and_then(|count| {
                    (*at, *end) = (0, count);
                    *got = got.saturating_add(count as u64);
                    sum.update(work.get(..count).unwrap_or(&[]));
                    if count != 0 {
                        return Ok(SocketStep::On);
                    }
                    vsock.shut_down(*socket, End::Write)?;
                    vsock.close(*socket);
                    let sum = core::mem::replace(sum, pattern::sum()).finalize();
                    out.print(format_args!("gave back {got} bytes, CRC-32 {sum:08x}\n"));
                    Ok(SocketStep::Done)
                })
            }
        }
    };
    match result {
        Err(SocketError::WouldBlock | SocketError::LinkDown) => Ok(SocketStep::Wait),
        other => other,
    }
}

/// Ends what is under way, after an error or Ctrl-C.
pub fn end<B: Machine>(job: SocketJob, vsock: &mut Vsock<'_, B>) {
    match job {
        SocketJob::Listening { port } => vsock.unlisten(port),
        SocketJob::Calling { socket } | SocketJob::Echo { socket, .. } => vsock.close(socket),
    }
}
