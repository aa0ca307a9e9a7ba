//! The two ends that hyper is run over: [`Stream`] towards an instance, [`ServerStream`] towards a caller.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::HandshakeKind;
use tokio::io::AsyncWrite;
use tokio_rustls::{client, server};

use crate::socket::Socket;

/// A connection to an instance: encrypted, or plain to a literal loopback address.
#[derive(Debug)]
pub enum Stream {
    Plain(Socket),
    /// Plain, and both ends know without a word that HTTP/2 is spoken (RFC 9113 §3.3).
    PriorKnowledge(Socket),
    Tls(Box<client::TlsStream<Socket>>),
}

impl Stream {
    /// Whether HTTP/2 is to be spoken, by ALPN or by prior knowledge; otherwise HTTP/1.1.
    pub fn negotiated_h2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::PriorKnowledge(_) => true,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Whether the TLS handshake took up an earlier session, so that no certificate was shown. `None` without TLS.
    pub fn resumed(&self) -> Option<bool> {
        match self {
            Self::Plain(_) | Self::PriorKnowledge(_) => None,
            Self::Tls(tls) => Some(tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)),
        }
    }

    /// The socket beneath.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) | Self::PriorKnowledge(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// An accepted connection, after its handshake.
#[derive(Debug)]
pub enum ServerStream {
    Plain(Socket),
    Tls(Box<server::TlsStream<Socket>>),
}

impl ServerStream {
    /// The protocol agreed in the TLS handshake (RFC 7301), if any: `h2` or `http/1.1`.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// The socket beneath.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// Writes to a socket. What is small goes in one piece: `send` costs the kernel a microsecond less than `writev`, which is
/// more than a copy of so little (docs/performance.md).
pub(crate) fn write_to_socket<S: AsyncWrite>(
    socket: Pin<&mut S>,
    cx: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let mut filled = parts.iter().filter(|part| !part.is_empty());
    match (filled.next(), filled.next()) {
        (None, _) => socket.poll_write(cx, &[]),
        (Some(only), None) => socket.poll_write(cx, only),
        _ => {
            let len = parts.iter().map(|part| part.len()).sum::<usize>();
            if len > SMALL_WRITE_BYTES {
                return socket.poll_write_vectored(cx, parts);
            }
            let mut whole = Vec::with_capacity(len);
            for part in parts {
                whole.extend_from_slice(part);
            }
            socket.poll_write(cx, &whole)
        }
    }
}

/// A head and a small body.
const SMALL_WRITE_BYTES: usize = 4 * 1024;

/// Hands every call to the variant inside; `$write_vectored` writes several parts at once.
macro_rules! delegate_io {
    ($stream:ident { $($variant:ident),+ }, $write_vectored:path) => {
        impl tokio::io::AsyncRead for $stream {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => std::pin::Pin::new(stream).poll_read(cx, buffer),)+
                }
            }
        }

        impl tokio::io::AsyncWrite for $stream {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => std::pin::Pin::new(stream).poll_write(cx, bytes),)+
                }
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                parts: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => $write_vectored(std::pin::Pin::new(stream), cx, parts),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $(Self::$variant(stream) => stream.is_write_vectored(),)+
                }
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => std::pin::Pin::new(stream).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => std::pin::Pin::new(stream).poll_shutdown(cx),)+
                }
            }
        }
    };
}

pub(crate) use delegate_io;

delegate_io!(Stream { Plain, PriorKnowledge, Tls }, AsyncWrite::poll_write_vectored);
delegate_io!(ServerStream { Plain, Tls }, AsyncWrite::poll_write_vectored);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Says what came, and whether it came in one piece; takes so many bytes at once.
    struct Far {
        got: Vec<u8>,
        takes: usize,
        vectored: bool,
    }

    impl AsyncWrite for Far {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.takes);
            self.got.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.vectored = true;
            let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            self.poll_write(cx, &whole)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_a_beginning_of_what_was_given(
            lens in proptest::collection::vec(prop_oneof![Just(0), 0..30_usize, 4_000..4_200_usize], 0..5),
            takes in 1..9_000_usize,
        ) {
            let parts: Vec<Vec<u8>> =
                lens.iter().enumerate().map(|(at, len)| vec![u8::try_from(at).unwrap(); *len]).collect();
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut far = Far { got: Vec::new(), takes, vectored: false };
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let Poll::Ready(Ok(taken)) = write_to_socket(Pin::new(&mut far), &mut cx, &slices) else {
                panic!("it takes at once");
            };
            let whole = parts.concat();
            prop_assert_eq!(taken, whole.len().min(takes));
            prop_assert_eq!(&far.got[..], &whole[..taken]);
            let several = lens.iter().filter(|len| **len > 0).count() > 1;
            prop_assert_eq!(far.vectored, several && whole.len() > SMALL_WRITE_BYTES);
        }
    }
}
