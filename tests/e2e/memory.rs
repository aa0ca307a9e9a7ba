//! What a daemon holds in memory: idle, with idle callers, and while more passes through it than it could hold. Bounds are of
//! the release build, where there is one; a debug build is held to bounds that only a leak exceeds.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use bearerd_tests::{Daemon, Deployment, Setup, release_binary, wait_until};
use serde_json::json;
use servicenow_sim::Behaviour;

/// The release build, where there is one, and which it is.
fn setup(name: &str) -> (Setup, &'static str) {
    let setup = Setup::new(name);
    match release_binary() {
        Some(binary) => (setup.binary(binary), "release"),
        None => (setup, "debug"),
    }
}

fn willing() -> Behaviour {
    Behaviour { auto_approve: Some("abel.tuter".to_owned()), ..Behaviour::default() }
}

/// At rest: the same figure twice, half a second apart.
fn at_rest(daemon: &Daemon) -> u64 {
    let mut last = 0;
    wait_until("memory is at rest", Duration::from_secs(20), || {
        thread::sleep(Duration::from_millis(500));
        let now = daemon.resident_kib();
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}

/// One connection, one call, no traffic. Issue 2 promises less than 25 MiB of the release build.
#[test]
fn an_idle_daemon_is_small() {
    let (setup, build) = setup("memory");
    let bound_mib = if build == "release" { 25 } else { 80 };
    let deployment = Deployment::start(setup, willing());
    let key = deployment.connect();
    assert_eq!(deployment.incidents(&key).send().status, 200);
    let mib = at_rest(&deployment.daemon).div_ceil(1024);
    println!(
        "resident memory with one connection and no traffic: {mib} MiB ({build} build; bound {bound_mib} MiB)"
    );
    assert!(mib < bound_mib, "{mib} MiB");
}

/// P-20: a kept connection of a caller that has made a call and waits costs at most 64 KiB.
#[test]
fn idle_callers_are_small() {
    const CALLERS: u64 = 1_000;
    const BOUND_KIB: u64 = 64;
    let (setup, build) = setup("memory-callers");
    let deployment = Deployment::start(setup, willing());
    let key = deployment.connect();
    assert_eq!(deployment.incidents(&key).send().status, 200);
    let before = at_rest(&deployment.daemon);
    let proxy = proxy_address(&deployment.daemon);
    let idle: Vec<TcpStream> = (0..CALLERS)
        .map(|_| {
            let mut caller = TcpStream::connect(proxy).unwrap();
            let head = "GET /api/now/table/incident?sysparm_limit=1 HTTP/1.1\r\nHost: b\r\n";
            write!(caller, "{head}Authorization: Bearer {key}\r\n\r\n").unwrap();
            let mut answer = BufReader::new(&caller);
            let (status, length) = read_head(&mut answer);
            assert_eq!(status, 200);
            let read = std::io::copy(&mut answer.take(length), &mut std::io::sink()).unwrap();
            assert_eq!(read, length);
            caller
        })
        .collect();
    let each = at_rest(&deployment.daemon).saturating_sub(before).div_ceil(CALLERS);
    println!("resident memory of an idle caller: {each} KiB ({build} build; bound {BOUND_KIB} KiB)");
    assert!(each <= BOUND_KIB, "{each} KiB");
    drop(idle);
}

/// P-20: 1 GiB passes in either direction in at most 8 MiB.
#[test]
fn attachments_pass_through() {
    const SIZE: u64 = 1 << 30;
    const BOUND_MIB: u64 = 8;
    let (setup, build) = setup("memory-attachments");
    let setup = setup.set("proxy.workers", "1");
    let daemon = setup.start();
    let instance = lend_to_an_instance(&daemon);
    let open = json!({"connections": "all", "families": ["attachment"], "tables": "all", "methods": ["GET", "POST"]});
    daemon.put("/v1/policies/open", &json!({"rules": [open]}));
    let key = daemon.new_key("open");
    let begin = |request_line: &str, more: &str| {
        let mut caller = TcpStream::connect(proxy_address(&daemon)).unwrap();
        write!(caller, "{request_line} HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {key}\r\n{more}\r\n")
            .unwrap();
        caller
    };
    let down = |size: u64, each_mib: &mut dyn FnMut()| {
        let caller = begin(&format!("GET /api/now/attachment/{size:032x}/file"), "");
        let mut answer = BufReader::new(&caller);
        assert_eq!(read_head(&mut answer), (200, size));
        pass(size, each_mib, |piece| answer.read_exact(piece).unwrap());
    };
    let up = |size: u64, each_mib: &mut dyn FnMut()| {
        let path = "POST /api/now/attachment/file?table_name=incident&file_name=a";
        let mut caller = begin(path, &format!("Content-Length: {size}\r\n"));
        pass(size, each_mib, |piece| caller.write_all(piece).unwrap());
        let mut answer = BufReader::new(&caller);
        let (status, length) = read_head(&mut answer);
        let mut taken = String::new();
        answer.take(length).read_to_string(&mut taken).unwrap();
        assert_eq!((status, taken), (200, size.to_string()));
    };
    for (what, transfer) in [("down", &down as &dyn Fn(u64, &mut dyn FnMut())), ("up", &up)] {
        transfer(1 << 20, &mut || {}); // what is allocated once
        let before = at_rest(&daemon);
        let mut most = before;
        transfer(SIZE, &mut || most = most.max(daemon.resident_kib()));
        let added = (most - before).div_ceil(1024);
        println!("resident memory added by 1 GiB {what}: {added} MiB ({build} build; bound {BOUND_MIB} MiB)");
        assert!(added <= BOUND_MIB, "{what}: {added} MiB");
    }
    drop(instance);
}

/// P-20, I-11: what is kept of a body for its replay is bounded in memory, however small the pieces are that it comes in.
#[test]
fn a_body_in_the_smallest_pieces_is_not_kept_at_any_cost() {
    const BOUND_MIB: u64 = 8;
    let (setup, build) = setup("memory-pieces");
    let daemon = setup.set("proxy.workers", "1").start();
    let instance = lend_to_an_instance(&daemon);
    let open = json!({"connections": "all", "tables": "all", "methods": ["POST"]});
    daemon.put("/v1/policies/open", &json!({"rules": [open]}));
    let key = daemon.new_key("open");
    let before = at_rest(&daemon);
    let mut caller = TcpStream::connect(proxy_address(&daemon)).unwrap();
    caller.set_nodelay(true).unwrap();
    let head = "POST /api/now/table/incident HTTP/1.1\r\nHost: b\r\nContent-Length: 30000\r\n";
    write!(caller, "{head}Authorization: Bearer {key}\r\n\r\n").unwrap();
    let mut most = before;
    for piece in 0..30_000 {
        caller.write_all(b"x").unwrap();
        thread::sleep(Duration::from_micros(20)); // its pace: so that each piece is read by itself
        if piece % 1_000 == 0 {
            most = most.max(daemon.resident_kib());
        }
    }
    assert_eq!(read_head(&mut BufReader::new(&caller)).0, 200);
    let added = (most - before).div_ceil(1024);
    println!(
        "resident memory added by 30,000 pieces of a byte: {added} MiB ({build} build; bound {BOUND_MIB} MiB)"
    );
    assert!(added <= BOUND_MIB, "{added} MiB");
    drop(instance);
}

fn proxy_address(daemon: &Daemon) -> SocketAddr {
    daemon.proxy_origin().trim_start_matches("http://").parse().unwrap()
}

/// `size` bytes, a MiB at a time.
fn pass(size: u64, each_mib: &mut dyn FnMut(), mut piece: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        piece(&mut buffer);
        each_mib();
    }
}

/// Status and `Content-Length` of an answer.
fn read_head(answer: &mut impl BufRead) -> (u16, u64) {
    let mut lines = answer.lines().map(Result::unwrap);
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let fields: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let length = fields
        .iter()
        .find_map(|field| field.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    (status, length.unwrap_or(0))
}

/// An instance that answers an attachment of as many bytes as its id says, and counts those that it is sent; and a
/// connection that lends tokens for it.
fn lend_to_an_instance(daemon: &Daemon) -> thread::JoinHandle<()> {
    let listener = TcpListener::bind((daemon.address(), 0)).unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let serving = thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || while serve_one(&stream).is_some() {});
        }
    });
    let integration = json!({"instance": origin, "client_id": "memory", "client_secret": "memory"});
    daemon.put("/v1/integrations/hr", &integration);
    let tokens = json!({"access_token": "token-of-memory", "expires_in": 86_400});
    daemon.put("/v1/connections/hr-prod", &json!({"integration": "hr", "import": tokens}));
    serving
}

/// `None`: the connection has ended.
fn serve_one(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut writer = stream;
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let request_line = lines.next()?;
    let fields: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let length =
        fields.iter().find_map(|field| field.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let path = request_line.split(' ').nth(1)?;
    let asked = path.strip_prefix("/api/now/attachment/").and_then(|path| path.strip_suffix("/file"));
    if let Some(size) = asked.and_then(|id| u64::from_str_radix(id, 16).ok()) {
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").ok()?;
        let mut left = size;
        let piece = vec![0; 1 << 16];
        while left > 0 {
            let here = left.min(piece.len() as u64);
            writer.write_all(&piece[..usize::try_from(here).ok()?]).ok()?;
            left -= here;
        }
        return Some(());
    }
    let taken = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).ok()?;
    let body = if path.starts_with("/api/now/table/sys_user") {
        json!({"result": [{"sys_id": "6816f79cc0a8016401c5a33be04be441", "user_name": "a.user", "name": "A User"}]}).to_string()
    } else {
        taken.to_string()
    };
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()
}
