//! A connection to a Unix socket that passes open files along with the first bytes
//! that it sends: SCM_RIGHTS, unix(7).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// As many files.
const MOST: usize = 2;

/// The connection.
#[derive(Debug)]
pub(super) struct Passing {
    stream: UnixStream,
    /// What is still to be passed.
    files: Vec<OwnedFd>,
}

impl Passing {
    /// Connects. At most two files can be passed.
    pub(super) async fn connect(socket: &Path, files: Vec<OwnedFd>) -> io::Result<Self> {
        if files.len() > MOST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let stream = UnixStream::connect(socket).await?;
        Ok(Self { stream, files })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let files: Vec<BorrowedFd<'_>> = self.files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = [IoSlice::new(bytes)];
        Ok(sendmsg(
            &self.stream,
            &bytes,
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?)
    }
}

impl AsyncRead for Passing {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Passing {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while !this.files.is_empty() {
            ready!(this.stream.poll_write_ready(cx))?;
            match this.stream.try_io(Interest::WRITABLE, || this.send(buf)) {
                // They went with the first byte.
                Ok(sent) => {
                    this.files.clear();
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
