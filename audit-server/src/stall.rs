//! Connections whose peer stops reading, or never finishes the head of a request, end.
//!
//! A response waits in memory, and an export holds a snapshot, for as long as its connection takes
//! nothing; a connection that only ever begins a request is held for nothing. Neither poem nor hyper
//! as poem sets it up ends such a connection, so the socket itself does. The body of a request is
//! timed where it is read.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::problem::{MEDIA_TYPE, Problem, ProblemKind};

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// To take something of what is written.
    pub(crate) write: Duration,
    /// From the first byte of a request's head to its last; on a new connection from its begin.
    pub(crate) head: Duration,
}

/// An acceptor whose connections end when their peers take longer.
pub(crate) struct Unstalled<A> {
    inner: A,
    patience: Patience,
}

impl<A> Unstalled<A> {
    pub(crate) fn new(inner: A, patience: Patience) -> Self {
        Self { inner, patience }
    }
}

impl<A: Acceptor> Acceptor for Unstalled<A> {
    type Io = Connection<A::Io>;

    fn local_addr(&self) -> Vec<LocalAddr> {
        self.inner.local_addr()
    }

    async fn accept(&mut self) -> io::Result<(Self::Io, LocalAddr, RemoteAddr, Scheme)> {
        let (io, local, remote, scheme) = self.inner.accept().await?;
        let connection = Connection {
            io,
            patience: self.patience,
            stalled: None,
            phase: Phase::Head(Head::opened()),
            late: None,
        };
        Ok((connection, local, remote, scheme))
    }
}

/// What a connection of HTTP/1 is about, as far as its bytes tell.
#[derive(Debug)]
enum Phase {
    /// Between requests, or within the head of one.
    Head(Head),
    /// The head is complete, and nothing of the response was written.
    Handling,
    /// A WebSocket or HTTP/2, which have heads of their own.
    Other,
}

/// How far a head has come. It ends with an empty line (RFC 9112 §2.1).
#[derive(Debug)]
struct Head {
    /// When it began; none between requests.
    since: Option<Instant>,
    /// Whether it has anything but line ends, which may stand before it (RFC 9112 §2.2).
    any: bool,
    /// Whether the bytes so far end with a line end, and perhaps a CR.
    line_ended: bool,
}

impl Head {
    /// Of a connection on which nothing has come yet.
    fn opened() -> Self {
        Self {
            since: Some(Instant::now()),
            ..Self::awaited()
        }
    }

    /// Of the next request.
    fn awaited() -> Self {
        Self {
            since: None,
            any: false,
            line_ended: false,
        }
    }

    /// Takes bytes; whether the head is complete with them.
    fn take(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match byte {
                b'\n' if self.line_ended && self.any => return true,
                b'\n' => self.line_ended = true,
                b'\r' => {}
                _ => {
                    self.any = true;
                    self.line_ended = false;
                }
            }
        }
        if !bytes.is_empty() && self.since.is_none() {
            self.since = Some(Instant::now());
        }
        false
    }
}

/// What a head that took too long is answered with; nothing of another response is on its way then.
static TOO_LATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut body = String::new();
    Problem::new(
        ProblemKind::TooSlow,
        "the head of the request was not complete in time",
    )
    .write_json(&mut body);
    let status = ProblemKind::TooSlow.status();
    format!(
        "HTTP/1.1 {status} Request Timeout\r\nConnection: close\r\nContent-Type: {MEDIA_TYPE}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
});

/// A connection that fails when its peer takes too long.
pub(crate) struct Connection<T> {
    io: T,
    patience: Patience,
    /// Set while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    phase: Phase,
    /// Set while a head is not complete.
    late: Option<Pin<Box<Sleep>>>,
}

impl<T> Connection<T> {
    fn watch<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.patience.write;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Notes the begin of a response.
    fn answers(&mut self, bytes: &[u8]) {
        if !matches!(self.phase, Phase::Handling) {
            return;
        }
        self.phase = match bytes.strip_prefix(b"HTTP/1.") {
            // 101 makes another protocol of it; the other interim ones leave the response to come.
            Some(rest) if rest.get(1..5) == Some(b" 101") => Phase::Other,
            Some(rest) if rest.get(1..3) == Some(b" 1") => Phase::Handling,
            Some(_) => Phase::Head(Head::awaited()),
            None => Phase::Other,
        };
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let Phase::Head(head) = &mut this.phase else {
            return read;
        };
        if read.is_ready() {
            if head.take(&buf.filled()[before..]) {
                this.phase = Phase::Handling;
                this.late = None;
            }
            return read;
        }
        let Some(since) = head.since else { return read };
        let until = since + this.patience.head;
        let late = this
            .late
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(late.as_mut().poll(cx));
        if head.any {
            // What doesn't fit into the socket's buffer is not worth waiting for.
            let _told = Pin::new(&mut this.io).poll_write(cx, &TOO_LATE);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answers(buf);
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.answers(bufs.first().map_or(&[], |first| &**first));
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line_and_not_with_those_before_it() {
        for (pieces, complete) in [
            (&["GET / HTTP/1.1\r\nHost: t\r\n\r\n"][..], true),
            (&["GET / HTTP/1.1\r\nHost: t\r\n\r", "\n"], true),
            (&["GET / HTTP/1.1\nHost: t\n\n"], true),
            (&["\r\n\r\n"], false),
            (&["\r\n\r\n", "GET / HTTP/1.1\r\n", "\r\n"], true),
            (&["GET / HTTP/1.1\r\nHost: t\r\n"], false),
            (&["G", "E", "T"], false),
        ] {
            let mut head = Head::awaited();
            let ends = pieces.iter().any(|piece| head.take(piece.as_bytes()));
            assert_eq!(ends, complete, "{pieces:?}");
        }
    }
}
