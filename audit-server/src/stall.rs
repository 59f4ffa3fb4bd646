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
            requests: Some(Requests::opened()),
            late: None,
        };
        Ok((connection, local, remote, scheme))
    }
}

/// The requests of a connection of HTTP/1, as far as its bytes tell. Where a body ends they don't tell:
/// what follows a head may be its body, or a request that is sent before this one is answered. So
/// heads are timed only while every one that may be there is answered.
#[derive(Debug)]
struct Requests {
    head: Head,
    /// Heads whose responses haven't begun: at least as many as there are, since an empty line of a
    /// body ends one, too.
    unanswered: usize,
    /// Whether there was any head.
    any: bool,
    /// Whether a response has begun.
    answered: bool,
}

impl Requests {
    /// Of a connection on which nothing has come yet.
    fn opened() -> Self {
        Self {
            head: Head::opened(),
            unanswered: 0,
            any: false,
            answered: false,
        }
    }

    /// Takes bytes that were read; whether they end a head.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let ended = self.head.take(bytes);
        self.unanswered += ended;
        self.any |= ended > 0;
        ended > 0
    }

    /// Takes bytes that were written; whether HTTP/1 goes on.
    fn answer(&mut self, bytes: &[u8]) -> bool {
        if self.unanswered == 0 {
            return true;
        }
        match bytes.strip_prefix(b"HTTP/1.") {
            // 101 makes another protocol of it; the other interim ones leave the response to come.
            Some(rest) if rest.get(1..5) == Some(b" 101") => return false,
            Some(rest) if rest.get(1..3) == Some(b" 1") => {}
            Some(_) => {
                self.answered = true;
                self.unanswered -= 1;
                self.head.since = None;
            }
            // The rest of a response, or HTTP/2.
            None => return self.answered,
        }
        true
    }

    /// When the head began that is to be timed.
    fn since(&self) -> Option<Instant> {
        self.head.since.filter(|_| self.unanswered == 0)
    }
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

    /// Takes bytes, and returns how many heads end with them.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut ended = 0;
        let mut rest = bytes.len();
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.line_ended && self.any => {
                    *self = Self::awaited();
                    ended += 1;
                    rest = bytes.len() - at - 1;
                }
                b'\n' => self.line_ended = true,
                b'\r' => {}
                _ => {
                    self.any = true;
                    self.line_ended = false;
                }
            }
        }
        if rest > 0 && self.since.is_none() {
            self.since = Some(Instant::now());
        }
        ended
    }
}

/// What the first head is answered with that took too long. Later ones are not answered: something of
/// the response before may still be on its way.
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
    /// None of a WebSocket or HTTP/2, which have heads of their own.
    requests: Option<Requests>,
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

    /// Notes what was written, which may begin a response.
    fn wrote(&mut self, bytes: &[u8], written: &Poll<io::Result<usize>>) {
        if let (Poll::Ready(Ok(1..)), Some(requests)) = (written, &mut self.requests)
            && !requests.answer(bytes)
        {
            self.requests = None;
        }
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
        let Some(requests) = &mut this.requests else {
            return read;
        };
        if read.is_ready() {
            if requests.take(&buf.filled()[before..]) {
                this.late = None;
            }
            return read;
        }
        let Some(since) = requests.since() else {
            return read;
        };
        let until = since + this.patience.head;
        let late = this
            .late
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(late.as_mut().poll(cx));
        if requests.head.any && !requests.any {
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
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(buf, &written);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(bufs.first().map_or(&[], |first| &**first), &written);
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
            (&["GET / HTTP/1.1\r\nHost: t\r\n\r\n"][..], 1),
            (&["GET / HTTP/1.1\r\nHost: t\r\n\r", "\n"], 1),
            (&["GET / HTTP/1.1\nHost: t\n\n"], 1),
            (&["\r\n\r\n"], 0),
            (&["\r\n\r\n", "GET / HTTP/1.1\r\n", "\r\n"], 1),
            (&["GET / HTTP/1.1\r\nHost: t\r\n"], 0),
            (&["G", "E", "T"], 0),
            (&["GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n", "\r\n"], 2),
        ] {
            let mut head = Head::awaited();
            let ended: usize = pieces.iter().map(|piece| head.take(piece.as_bytes())).sum();
            assert_eq!(ended, complete, "{pieces:?}");
        }
    }

    #[test]
    fn a_head_is_timed_while_every_request_before_it_is_answered() {
        let mut requests = Requests::opened();
        assert!(requests.since().is_some());
        // With a body, and one sent ahead of the answer.
        assert!(requests.take(b"POST / HTTP/1.1\r\n\r\n{}"));
        requests.take(b"POST / HTTP/1.1\r\nHost: t\r\n");
        requests.take(b"\r\n{");
        for (written, unanswered) in [
            (&b"HTTP/1.1 100 Continue\r\n\r\n"[..], 2),
            (b"HTTP/1.1 200 OK\r\n", 1),
            (b"the rest of it", 1),
        ] {
            assert!(requests.answer(written));
            assert_eq!(requests.unanswered, unanswered);
            requests.take(b"{");
            assert!(requests.since().is_none());
        }
        assert!(requests.answer(b"HTTP/1.1 201 Created\r\n"));
        assert!(requests.since().is_none());
        requests.take(b"G");
        assert!(requests.since().is_some());
        requests.take(b"ET / HTTP/1.1\r\n\r\n");
        assert!(!requests.answer(b"HTTP/1.1 101 Switching Protocols\r\n"));
        let mut other = Requests::opened();
        other.take(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(!other.answer(b"\0\0\x12"));
    }
}
