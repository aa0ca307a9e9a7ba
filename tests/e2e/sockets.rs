//! Doors that listen on something else than TCP, and callers who come by way of a proxy: the real binary, its settings
//! and its socket files.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use bearerd_tests::{Setup, bearerd_binary, free_port, loopback};

const CALL: &[u8] = b"GET /api/now/table/incident HTTP/1.1\r\nHost: bearerd\r\nConnection: close\r\n\r\n";
/// PROXY protocol, version 2: for 192.0.2.7.
const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\0\x50\x01\xbb";

#[test]
fn a_door_on_a_unix_socket() {
    let setup = Setup::new("unix-socket");
    let path = setup.folder().join("proxy.sock");
    let listen = format!("unix:{}", path.display());
    let mut daemon = setup.set("proxy.listen", &listen).set("proxy.listen_mode", "0600").start();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    check_door(UnixStream::connect(&path).unwrap(), CALL);
    // A killed process leaves its file, and the next one takes the place over.
    daemon.kill();
    assert!(path.exists() && UnixStream::connect(&path).is_err());
    daemon.start_again();
    check_door(UnixStream::connect(&path).unwrap(), CALL);
    // Another process does not.
    let second = Setup::new("unix-socket-second").set("proxy.listen", &listen).serve_in_vain();
    assert!(second.code != 0 && second.stderr.contains("in use"), "{second:?}");
    check_door(UnixStream::connect(&path).unwrap(), CALL);
    assert!(daemon.terminate().success());
    assert!(!path.exists(), "an orderly end leaves nothing behind");
}

#[test]
fn a_door_on_a_socket_that_was_passed() {
    let address = SocketAddr::new(loopback(), 0);
    let address = SocketAddr::new(address.ip(), free_port(address.ip()));
    let setup = Setup::new("inherited-socket").set("proxy.listen", "inherited:proxy");
    let launcher = launcher(setup.folder(), address);
    let daemon = setup.binary(launcher).start();
    check_door(TcpStream::connect(address).unwrap(), CALL);
    drop(daemon);

    let nothing = Setup::new("inherited-nothing").set("proxy.listen", "inherited:proxy").serve_in_vain();
    assert!(nothing.code != 0 && nothing.stderr.contains("was not passed"), "{nothing:?}");
}

/// Who is trusted must say for whom it speaks; who is not trusted is not heard.
#[test]
fn a_door_behind_a_proxy() {
    let behind = |name: &str, trusted: &str| {
        let setup = Setup::new(name).set("proxy.caller_address", "proxy_protocol");
        setup.set("proxy.trusted_proxies", trusted).start()
    };
    let door = |daemon: &bearerd_tests::Daemon| {
        TcpStream::connect(daemon.proxy_origin().trim_start_matches("http://")).unwrap()
    };
    let trusting = behind("proxy-protocol", "127.0.0.0/8,10.0.0.0/8");
    check_door(door(&trusting), &[HEADER, CALL].concat());
    assert_eq!(said(door(&trusting), CALL), "");
    let strict = behind("proxy-protocol-stranger", "10.0.0.0/8");
    assert_eq!(said(door(&strict), &[HEADER, CALL].concat()), "");
    assert!(strict.log().contains("not inside trusted_proxies"));
    let mistyped = Setup::new("proxy-protocol-nobody").set("proxy.caller_address", "forwarded");
    let refused = mistyped.serve_in_vain();
    assert!(refused.code != 0 && refused.stderr.contains("trusted_proxies"), "{refused:?}");
}

/// A program that listens on `address`, and becomes bearerd as systemd would start it.
fn launcher(folder: &Path, address: SocketAddr) -> std::path::PathBuf {
    let path = folder.join("launcher");
    let text = format!(
        "#!/usr/bin/env python3\n\
         import os, socket, sys\n\
         door = socket.create_server(({:?}, {}))\n\
         os.dup2(door.fileno(), 3)\n\
         os.set_inheritable(3, True)\n\
         os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES='proxy', LISTEN_PID=str(os.getpid()))\n\
         os.execv('{}', ['bearerd', *sys.argv[1:]])\n",
        address.ip().to_string(),
        address.port(),
        bearerd_binary().display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The proxy door answers there: a call without a key is told so.
#[track_caller]
fn check_door(stream: impl Read + Write, bytes: &[u8]) {
    let reply = said(stream, bytes);
    assert!(reply.starts_with("HTTP/1.1 401 ") && reply.contains("caller_key_missing"), "{reply}");
}

/// What comes back, up to the end. A reset is an end too.
fn said(mut stream: impl Read + Write, bytes: &[u8]) -> String {
    let mut reply = Vec::new();
    drop(stream.write_all(bytes));
    drop(stream.read_to_end(&mut reply));
    String::from_utf8_lossy(&reply).into_owned()
}
