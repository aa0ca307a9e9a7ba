//! The two ends that hyper is run over: [`Stream`] towards an instance, [`ServerStream`] towards a caller.

use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::socket::Socket;

/// A connection to an instance: encrypted, or plain to a literal loopback address.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    /// Plain, and both ends know without a word that HTTP/2 is spoken (RFC 9113 §3.3).
    PriorKnowledge(TcpStream),
    Tls(Box<client::TlsStream<TcpStream>>),
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
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) | Self::PriorKnowledge(tcp) => tcp,
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

/// Hands every call to the variant inside.
macro_rules! delegate_io {
    ($stream:ident { $($variant:ident),+ }) => {
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
                    $(Self::$variant(stream) => std::pin::Pin::new(stream).poll_write_vectored(cx, parts),)+
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

delegate_io!(Stream { Plain, PriorKnowledge, Tls });
delegate_io!(ServerStream { Plain, Tls });
