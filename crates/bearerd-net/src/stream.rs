//! The two ends that hyper is run over: [`Stream`] towards an instance, [`ServerStream`] towards a caller.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// A connection to an instance: encrypted, or plain to a literal loopback address.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<client::TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket beneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// An accepted connection, after its handshake.
#[derive(Debug)]
pub enum ServerStream {
    Plain(TcpStream),
    Tls(Box<server::TlsStream<TcpStream>>),
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
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// Hands every call to the variant inside.
macro_rules! delegate_io {
    ($stream:ident) => {
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
                    Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
                }
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
                    Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                parts: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
                    Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, parts),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Plain(tcp) => tcp.is_write_vectored(),
                    Self::Tls(tls) => tls.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
                    Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
                    Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
                }
            }
        }
    };
}

delegate_io!(Stream);
delegate_io!(ServerStream);
