//! Sockets of the doors: TCP or unix, bound here or handed over by the init system.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr, TcpListener as StdTcpListener},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::{
    listen::ListenError,
    stream::{delegate_io, write_to_socket},
};

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn (4096 since Linux 5.4).
const BACKLOG: i32 = 4096;
/// What the kernel holds of a connection beyond what is under way to its other end, before it takes no more.
const UNSENT_BYTES: u32 = 128 * 1024;

/// A connection, before any handshake.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Once dropped, the other end sees a reset and not an end: what it was sent cannot be taken for whole. Of a unix socket
    /// there is no such sign.
    pub fn reset_when_dropped(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO)); // else it is closed as usual
        }
    }
}

/// The other end of an accepted socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// An IPv4 address that came to an IPv6 socket is an IPv4 address here.
    Tcp(SocketAddr),
    /// A process of this machine, which the socket file's mode let in.
    Unix,
}

impl PeerAddress {
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("a unix socket"),
        }
    }
}

/// Where a door listens, once it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundAddress {
    /// With the port that the system chose where 0 was asked for.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl BoundAddress {
    /// `None` for a unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who may connect to a unix socket, as the mode of its file: `0660`. A peer needs the right to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketMode(u32);

impl Default for SocketMode {
    /// 0660: owner and group.
    fn default() -> Self {
        Self(0o660)
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octal = !text.is_empty() && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!("{text:?} is not a file mode; write three octal digits, such as 0660")),
        }
    }
}

impl TryFrom<String> for SocketMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What an operator writes under `listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// A socket that the init system passed; `None`: the only one.
    Inherited(Option<String>),
}

impl FromStr for ListenAddress {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let malformed = || ListenError::AddressMalformed { address: text.to_owned() };
        let trimmed = text.trim();
        if let Some(path) = trimmed.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(malformed()) };
        }
        match trimmed.strip_prefix("inherited") {
            Some("") => Ok(Self::Inherited(None)),
            Some(rest) => match rest.strip_prefix(':').filter(|name| !name.is_empty()) {
                Some(name) => Ok(Self::Inherited(Some(name.to_owned()))),
                None => Err(malformed()),
            },
            None => trimmed.parse().map(Self::Tcp).map_err(|_| malformed()),
        }
    }
}

/// Listening sockets that the init system passed to this process (`sd_listen_fds(3)`), by name. The doors take theirs.
#[derive(Debug, Default)]
pub struct InheritedSockets(Vec<(String, RawSocket)>);

impl InheritedSockets {
    /// No socket was passed.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a socket; whether it listens is looked at when a door takes it.
    pub fn add(&mut self, name: String, socket: impl Into<OwnedFd>) {
        self.0.push((name, RawSocket::from(socket.into())));
    }

    /// The names of those that no door has taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Takes the one named `name`, or the only one.
    fn take(&mut self, name: Option<&str>) -> Result<RawSocket, ListenError> {
        let mut fitting =
            self.0.iter().enumerate().filter(|(_, (held, _))| name.is_none_or(|name| name == held));
        let fault = match (fitting.next(), fitting.next()) {
            (Some((at, _)), None) => return Ok(self.0.swap_remove(at).1),
            (None, _) => "was not passed to this process",
            (Some(_), Some(_)) => "was passed more than once",
        };
        Err(ListenError::Inherited { name: name.map(str::to_owned), fault })
    }
}

/// A bound socket that listens, on no runtime yet.
pub(crate) struct Listening {
    pub(crate) address: BoundAddress,
    /// Shared by the clones; the last one removes the file. Dropped before its socket is: up to then no other process
    /// takes the place for free, so that the file is ours.
    file: Option<Arc<SocketFile>>,
    kind: ListeningKind,
}

enum ListeningKind {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

impl Listening {
    pub(crate) fn open(
        at: &ListenAddress,
        mode: SocketMode,
        inherited: &mut InheritedSockets,
    ) -> Result<Self, ListenError> {
        match at {
            ListenAddress::Tcp(address) => Self::tcp(*address).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => ListenError::AddressInUse { address: address.to_string() },
                _ => ListenError::Bind { address: *address, source },
            }),
            ListenAddress::Unix(path) => Self::unix(path, mode),
            ListenAddress::Inherited(name) => {
                let socket = inherited.take(name.as_deref())?;
                let unusable = |fault| ListenError::Inherited { name: name.clone(), fault };
                if !socket.is_listener().unwrap_or(false) {
                    return Err(unusable("is not a listening socket"));
                }
                Self::of(socket, None).map_err(|_| unusable("is neither a TCP nor a unix socket"))
            }
        }
    }

    /// `SO_REUSEADDR` lets a restart bind while old connections linger in TIME-WAIT; it does not share a port in use.
    fn tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::of(socket, None)
    }

    /// The file has its mode before anybody can connect: up to `listen` a connection is refused.
    fn unix(path: &Path, mode: SocketMode) -> Result<Self, ListenError> {
        remove_stale(path)?;
        let bound = || -> io::Result<Self> {
            let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = SocketFile::of(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode.0))?;
            socket.listen(BACKLOG)?;
            Self::of(socket, Some(Arc::new(file)))
        };
        bound().map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => in_use(path),
            _ => ListenError::SocketFile { path: path.to_owned(), source },
        })
    }

    fn of(socket: RawSocket, file: Option<Arc<SocketFile>>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        if let Some(address) = local.as_socket() {
            // What is accepted inherits it. A slow reader's progress would be out of sight behind megabytes in the kernel.
            let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES); // without it, only that is lost
            let (address, kind) = (BoundAddress::Tcp(address), ListeningKind::Tcp(socket.into()));
            return Ok(Self { address, file, kind });
        }
        if !local.is_unix() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let abstract_name = || local.as_abstract_namespace().map(|name| format!("@{}", name.escape_ascii()));
        let path = local.as_pathname().map(Path::to_owned).or_else(|| abstract_name().map(PathBuf::from));
        let address = BoundAddress::Unix(path.unwrap_or_default());
        Ok(Self { address, file, kind: ListeningKind::Unix(socket.into()) })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let kind = match &self.kind {
            ListeningKind::Tcp(listener) => ListeningKind::Tcp(listener.try_clone()?),
            ListeningKind::Unix(listener) => ListeningKind::Unix(listener.try_clone()?),
        };
        Ok(Self { address: self.address.clone(), file: self.file.clone(), kind })
    }

    pub(crate) fn register(self) -> io::Result<Accepting> {
        let kind = match self.kind {
            ListeningKind::Tcp(listener) => AcceptingKind::Tcp(TcpListener::from_std(listener)?),
            ListeningKind::Unix(listener) => AcceptingKind::Unix(UnixListener::from_std(listener)?),
        };
        Ok(Accepting { address: self.address, _file: self.file, kind })
    }
}

/// [`Listening`], on one runtime.
pub(crate) struct Accepting {
    pub(crate) address: BoundAddress,
    _file: Option<Arc<SocketFile>>,
    kind: AcceptingKind,
}

enum AcceptingKind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepting {
    /// Cancel safe.
    pub(crate) async fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        match &self.kind {
            AcceptingKind::Tcp(listener) => {
                let (tcp, peer) = listener.accept().await?;
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "TCP_NODELAY refused: the peer is gone");
                }
                Ok((Socket::Tcp(tcp), peer.into()))
            }
            AcceptingKind::Unix(listener) => {
                let (unix, _unnamed) = listener.accept().await?;
                Ok((Socket::Unix(unix), PeerAddress::Unix))
            }
        }
    }
}

/// The file of a unix socket that was bound here. Removed with the last clone, unless another file has its name by then.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file stays behind");
        }
    }
}

/// Makes room for a socket file: one that a dead process left is removed; a live one, or another kind of file, is not.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let unusable = |source| ListenError::SocketFile { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        // Nobody listens on it any more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(unusable)
        }
        // It was removed just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Its queue may be full, or we may not ask: somebody is there.
        Ok(_) | Err(_) => Err(in_use(path)),
    }
}

fn in_use(path: &Path) -> ListenError {
    ListenError::AddressInUse { address: format!("unix:{}", path.display()) }
}

delegate_io!(Socket { Tcp, Unix }, write_to_socket);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_four_forms() {
        let parse = |text: &str| text.parse::<ListenAddress>().ok();
        for (text, expected) in [
            ("127.0.0.1:80", ListenAddress::Tcp(([127, 0, 0, 1], 80).into())),
            (" [::1]:80 ", ListenAddress::Tcp("[::1]:80".parse().unwrap())),
            ("unix:/run/bearerd/proxy.sock", ListenAddress::Unix("/run/bearerd/proxy.sock".into())),
            ("inherited", ListenAddress::Inherited(None)),
            ("inherited:proxy", ListenAddress::Inherited(Some("proxy".to_owned()))),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for bad in
            ["", "unix:", "unix:proxy.sock", "unix:@abstract", "inherited:", "inheritedproxy", "Unix:/a"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_mode_is_octal() {
        for (text, mode) in [("0660", 0o660), ("660", 0o660), ("0600", 0o600), ("0777", 0o777), ("0", 0)] {
            assert_eq!(text.parse(), Ok(SocketMode(mode)), "{text}");
        }
        for bad in ["", "0888", "rw", "-660", "+660", "0o660", "1777", "7777777777777"] {
            assert!(bad.parse::<SocketMode>().is_err(), "{bad}");
        }
    }

    fn open(path: &Path) -> Result<Listening, ListenError> {
        let at = ListenAddress::Unix(path.to_owned());
        Listening::open(&at, SocketMode(0o620), &mut InheritedSockets::none())
    }

    #[test]
    fn a_socket_file_has_its_mode_and_goes_with_the_last_clone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door.sock");
        let listening = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o620);
        assert_eq!(listening.address.to_string(), format!("unix:{}", path.display()));
        let clone = listening.try_clone().unwrap();
        drop(listening);
        StdUnixStream::connect(&path).unwrap();
        drop(clone);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door.sock");
        let live = open(&path).unwrap();
        let error = open(&path).map(drop).unwrap_err();
        assert!(matches!(error, ListenError::AddressInUse { .. }), "{error:?}");
        StdUnixStream::connect(&path).unwrap();
        drop(live);
        // What a killed process leaves: a file that nobody listens on.
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let replaced = open(&path).unwrap();
        StdUnixStream::connect(&path).unwrap();
        // Another process took the name over: its file stays.
        fs::remove_file(&path).unwrap();
        let successor = StdUnixListener::bind(&path).unwrap();
        drop(replaced);
        assert!(path.exists());
        drop(successor);
    }

    #[test]
    fn another_file_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = open(&path).map(drop).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket { .. }), "{error:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
        // A link to a live socket is no socket either.
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        let _real = open(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(open(&link), Err(ListenError::NotASocket { .. })));
        let missing = open(&folder.path().join("missing/door.sock")).map(drop).unwrap_err();
        assert!(matches!(missing, ListenError::SocketFile { .. }), "{missing:?}");
        let long = open(&folder.path().join("x".repeat(120))).map(drop).unwrap_err();
        assert!(matches!(long, ListenError::SocketFile { .. }), "{long:?}");
    }

    #[test]
    fn inherited_sockets_are_taken_by_name_once() {
        let folder = tempfile::tempdir().unwrap();
        let unix = StdUnixListener::bind(folder.path().join("passed.sock")).unwrap();
        let tcp = || StdTcpListener::bind("127.0.0.1:0").unwrap();
        let web = tcp();
        let address = web.local_addr().unwrap();
        let mut passed = InheritedSockets::none();
        for (name, socket) in [("web", OwnedFd::from(web)), ("local", unix.into()), ("twice", tcp().into())] {
            passed.add(name.to_owned(), socket);
        }
        passed.add("twice".to_owned(), tcp());
        let unlistened = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        passed.add("deaf".to_owned(), unlistened);

        let mut take = |name: Option<&str>| {
            let at = ListenAddress::Inherited(name.map(str::to_owned));
            Listening::open(&at, SocketMode::default(), &mut passed)
        };
        assert_eq!(take(Some("web")).unwrap().address, BoundAddress::Tcp(address));
        let local = take(Some("local")).unwrap();
        assert!(matches!(local.address, BoundAddress::Unix(_)));
        drop(local);
        // It is the init system's file.
        assert!(folder.path().join("passed.sock").exists());
        for (name, words) in [
            (Some("web"), "the inherited socket \"web\" was not passed to this process"),
            (Some("twice"), "the inherited socket \"twice\" was passed more than once"),
            (None, "the inherited socket was passed more than once"),
            (Some("deaf"), "the inherited socket \"deaf\" is not a listening socket"),
        ] {
            assert_eq!(take(name).map(drop).unwrap_err().to_string(), words);
        }
        assert_eq!(passed.names().collect::<Vec<_>>(), ["twice", "twice"]);
        let mut only = InheritedSockets::none();
        only.add(String::new(), tcp());
        let at = ListenAddress::Inherited(None);
        assert!(Listening::open(&at, SocketMode::default(), &mut only).is_ok());
    }

    #[test]
    fn an_ipv4_peer_of_an_ipv6_socket_is_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:80".parse().unwrap();
        assert_eq!(PeerAddress::from(mapped), PeerAddress::Tcp("192.0.2.7:80".parse().unwrap()));
        assert_eq!((PeerAddress::Unix.ip(), PeerAddress::Unix.to_string().as_str()), (None, "a unix socket"));
    }
}
