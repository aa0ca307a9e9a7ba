use futures_util::FutureExt;

use super::*;
use crate::testing::{ConnectProxy, FarSide, Leaf, Script, TestCa, dead_address, origin};

const NAME: &str = "dev1.service-now.com";
/// P-14: forty addresses that no name may lead to, of every kind that is not public.
const INSIDE: [&str; 40] = [
    "127.0.0.1",
    "127.1.2.3",
    "127.255.255.254",
    "::1",
    "10.0.0.1",
    "10.4.255.255",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "169.254.169.254",
    "169.254.170.2",
    "fe80::1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::10.0.0.1",
    "2001::1",
    "2002:7f00:1::",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "192.0.2.1",
    "198.18.0.1",
    "2001:db8::1",
    "240.0.0.1",
];

fn resolver(answer: impl Fn(&str) -> Vec<IpAddr> + Send + Sync + 'static) -> Resolver {
    Resolver::Scripted(Box::new(answer))
}

fn trusting(ca_file: &std::path::Path) -> IntegrationTrust {
    IntegrationTrust { ca_file: Some(ca_file.to_owned()), ..IntegrationTrust::default() }
}

/// Trusts `ca`, and shows `leaf`.
fn showing(ca: &TestCa, leaf: &Leaf) -> IntegrationTrust {
    let (certificate_file, key_file) = ca.install_as("client", leaf);
    IntegrationTrust {
        client_certificate_file: Some(certificate_file),
        client_key_file: Some(key_file),
        ..trusting(&ca.ca_file)
    }
}

/// What comes back for one request.
async fn ask(stream: &mut Stream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply)
}

fn hello() -> Script {
    Script::Reply(b"hello".to_vec())
}

#[track_caller]
fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// O-52: chain, name and dates are checked, and each objection has its own words.
#[tokio::test]
async fn a_certificate_must_be_trusted_ours_and_current() {
    let ca = TestCa::new();
    let cases = [
        (ca.issue(NAME), TlsFault::CertificateName),
        (ca.issue("127.0.0.2"), TlsFault::CertificateName),
        (ca.issue_until("127.0.0.1", 2020), TlsFault::CertificateExpired),
        (Leaf::self_signed("127.0.0.1"), TlsFault::CertificateUntrusted),
        (TestCa::new().issue("127.0.0.1"), TlsFault::CertificateUntrusted),
    ];
    for (leaf, expected) in cases {
        let far = FarSide::tls(hello(), &leaf).await;
        let error = ca.connector().connect(&far.https()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls { fault, .. } if fault == expected), "{error:?}");
        assert_eq!(far.seen(), [""; 0]);
    }
}

#[tokio::test]
async fn a_trusted_certificate_of_the_right_name_is_accepted() {
    let ca = TestCa::new();
    let far = FarSide::tls(hello(), &ca.issue("127.0.0.1")).await;
    let mut stream = ca.connector().connect(&far.https()).await.unwrap();
    assert!(matches!(stream.socket(), Socket::Tcp(tcp) if tcp.nodelay().unwrap()));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert_eq!(reply, "hello");
}

#[tokio::test]
async fn a_server_without_tls_is_a_failed_handshake() {
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH\r\n", ""] {
        let far = FarSide::plain(Script::Greet(greeting.into())).await;
        let error =
            Connector::new(&EgressSettings::default()).unwrap().connect(&far.https()).await.unwrap_err();
        assert_eq!(error.reason(), "TLS handshake failed", "{greeting:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_ends_is_timed_out() {
    let ca = TestCa::new();
    let far = FarSide::tls(Script::Stuck, &ca.issue("127.0.0.1")).await;
    // The connector's own limit is ten seconds.
    for (given_s, expected_s) in [(60, 10), (2, 2)] {
        let given = Duration::from_secs(given_s);
        let error = ca.connector().connect_limited(&far.https(), given).await.unwrap_err();
        assert!(matches!(
            error,
            ConnectError::TimedOut { stage: ConnectStage::Tls, limit }
                if limit == Duration::from_secs(expected_s)
        ));
    }
}

/// P-14: a name that leads inside is refused, whatever it said the last time; a mixed answer keeps its public part.
#[tokio::test]
async fn a_name_that_resolves_inside_is_refused() {
    let settings = EgressSettings {
        allow_private_instances: vec!["10.5.0.0/16".parse().unwrap()],
        ..EgressSettings::default()
    };
    // The list of what each address is, is the address module's; here it comes by way of a name.
    for text in INSIDE {
        let address: IpAddr = text.parse().unwrap();
        let connector = Connector::with_resolver(&settings, resolver(move |_| vec![address])).unwrap();
        let error = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap_err();
        let told = matches!(error, ConnectError::AddressRefused { address: told, .. } if told == address);
        assert!(told, "{text}: {error:?}");
    }
    let connector = Connector::new(&settings).unwrap();
    let answer = [address("127.0.0.1:443"), address("149.96.0.1:443"), address("10.5.0.1:443")];
    let admitted = connector.admitted(&origin("https://dev1.service-now.com"), &answer).unwrap();
    assert_eq!(admitted, answer[1..]);
    assert_eq!(
        connector.connect(&origin("https://10.0.0.1")).await.unwrap_err().reason(),
        "address not allowed"
    );
    assert_eq!(
        connector.connect(&origin("https://0.0.0.0")).await.unwrap_err().reason(),
        "address not allowed"
    );
}

/// P-14: a resolver that changes its mind. Each connection looks the name up once, and dials what it judged. What comes
/// of the dialling is the network's, where the test runs.
#[tokio::test(start_paused = true)]
async fn a_name_is_judged_by_the_answer_that_is_dialled() {
    let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = origin(&format!("https://{NAME}:{}", inside.local_addr().unwrap().port()));
    let settings = EgressSettings {
        allow_private_instances: vec!["240.0.0.0/4".parse().unwrap()],
        ..EgressSettings::default()
    };
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let flip_flop = resolver(move |_| match count.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => vec![[240, 0, 0, 1].into()],
        _ => vec![[127, 0, 0, 1].into()],
    });
    let connector = Connector::with_resolver(&settings, flip_flop).unwrap();
    for turn in 0..6 {
        let error = connector.connect(&to).await.unwrap_err();
        let refused = matches!(error, ConnectError::AddressRefused { kind: AddressKind::Loopback, .. });
        assert_eq!(refused, turn % 2 == 1, "{turn}: {error:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 6);
    assert!(inside.accept().now_or_never().is_none());
}

/// The same by the system's resolver.
#[tokio::test]
async fn localhost_is_a_name_and_refused() {
    let connector = Connector::new(&EgressSettings::default()).unwrap();
    let error = connector.connect(&origin("https://localhost")).await.unwrap_err();
    let loopback = AddressKind::Loopback;
    assert!(matches!(error, ConnectError::AddressRefused { kind, .. } if kind == loopback), "{error:?}");
}

#[tokio::test]
async fn nobody_listening_is_a_refused_connection() {
    let to = origin(&format!("http://{}", dead_address().await));
    let error = Connector::new(&EgressSettings::default()).unwrap().connect(&to).await.unwrap_err();
    assert_eq!(error.reason(), "connection refused");
}

/// RFC 8305 §5: a dead address does not hold up the next, nor does a silent one for longer than the delay.
#[tokio::test(start_paused = true)]
async fn addresses_race() {
    let addresses = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(address);
    let begun = Instant::now();
    let dial = |address: SocketAddr| async move {
        match address.ip().to_string().as_str() {
            "192.0.2.1" => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            "192.0.2.2" => std::future::pending().await,
            _ => Ok(address),
        }
    };
    assert_eq!(race(&addresses, dial).await.unwrap(), addresses[2]);
    assert_eq!(begun.elapsed(), ATTEMPT_DELAY, "one delay, for the silent address");
    let (last, error) = race(&addresses[..1], dial).await.unwrap_err();
    assert_eq!((last, error.kind()), (addresses[0], io::ErrorKind::ConnectionRefused));
    assert!(race(&[], dial).await.is_err());
}

/// A slow first address still wins if the second is slower.
#[tokio::test(start_paused = true)]
async fn an_attempt_goes_on_when_the_next_begins() {
    let addresses = ["192.0.2.1:1", "192.0.2.2:1"].map(address);
    let dial = |address: SocketAddr| async move {
        tokio::time::sleep(ATTEMPT_DELAY * 2).await;
        Ok(address)
    };
    assert_eq!(race(&addresses, dial).await.unwrap(), addresses[0]);
}

#[test]
fn families_alternate() {
    let given = ["[2001::1]:1", "[2001::2]:1", "[2001::3]:1", "1.0.0.1:1"].map(address);
    let expected = ["[2001::1]:1", "1.0.0.1:1", "[2001::2]:1", "[2001::3]:1"].map(address);
    assert_eq!(interleaved(given.to_vec()), expected);
    assert_eq!(interleaved(Vec::new()), []);
}

fn proxied(ca: &TestCa, proxy: &str) -> Connector {
    let settings = EgressSettings {
        proxy: Some(proxy.to_owned()),
        no_proxy: vec!["direct.org".to_owned()],
        ca_file: Some(ca.ca_file.clone()),
        ..EgressSettings::default()
    };
    // Of names, only the proxy's is resolved here.
    let resolver = resolver(|name| match name {
        "proxy.test" => vec![[127, 0, 0, 1].into()],
        "direct.org" => vec![[10, 0, 0, 1].into()],
        other => panic!("{other} was resolved"),
    });
    Connector::with_resolver(&settings, resolver).unwrap()
}

#[tokio::test]
async fn the_egress_proxy_is_asked_to_connect() {
    let ca = TestCa::new();
    let far = FarSide::tls(hello(), &ca.issue(NAME)).await;
    let proxy =
        ConnectProxy::start("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", Some(far.address)).await;
    let connector = proxied(&ca, &format!("http://user:pass@proxy.test:{}", proxy.address.port()));
    let mut stream = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    assert_eq!(reply, "hello");
    let expected = format!(
        "CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\nProxy-Authorization: Basic dXNlcjpwYXNz\r\n\r\n"
    );
    assert_eq!(proxy.seen(), [expected]);
    assert!(!far.seen()[0].contains("Proxy-Authorization"));
    // The tunnel's end is checked like any other (O-52), and so are addresses where we see them.
    let error = connector.connect(&origin("https://dev2.service-now.com")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { fault: TlsFault::CertificateName, .. }), "{error:?}");
    for refused in ["https://10.0.0.1", "https://direct.org"] {
        let error = connector.connect(&origin(refused)).await.unwrap_err();
        assert_eq!(error.reason(), "address not allowed", "{refused}");
    }
    assert_eq!(proxy.seen().len(), 2);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let ca = TestCa::new();
    for (reply, reason) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "egress proxy wants credentials"),
        ("HTTP/1.0 403 Forbidden\r\n\r\nno", "egress proxy refused"),
        ("HTTP/1.1 302 Found\r\nLocation: http://evil\r\n\r\n", "egress proxy refused"),
        ("HTTP/1.1 200 OK\r\n\r\nbytes of nobody", "egress proxy answer malformed"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "egress proxy answer malformed"),
        ("HTTP/1.1 200 OK\r\nVia:", "egress proxy answer malformed"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "egress proxy answer malformed"),
        ("", "egress proxy answer malformed"),
    ] {
        let proxy = ConnectProxy::start(reply, None).await;
        let connector = proxied(&ca, &format!("http://proxy.test:{}", proxy.address.port()));
        let error = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{reply:?}");
    }
    let connector = proxied(&ca, &format!("http://proxy.test:{}", dead_address().await.port()));
    let error = connector.connect(&origin(&format!("https://{NAME}"))).await.unwrap_err();
    assert_eq!(error.reason(), "egress proxy unreachable");
}

#[test]
fn a_tunnels_head_is_bounded_and_strict() {
    let endless = vec![b'x'; PROXY_REPLY_BYTES_MAX + 1];
    assert!(tunnel_status(&endless).is_err());
    assert!(tunnel_status(&endless[1..]).unwrap().is_none());
    for bad in [
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 2000\r\n\r\n",
        "HTTP/1.1 +20 \r\n\r\n",
        "HTTP/1.1 99\r\n\r\n",
        "\r\n\r\n",
    ] {
        assert!(tunnel_status(bad.as_bytes()).is_err(), "{bad:?}");
    }
    assert_eq!(tunnel_status(b"HTTP/1.1 200\r\n\r\n").unwrap(), Some(200));
}

/// P-17: a pool keyed by origin and `pool_key` separates trust roots, and nothing more.
#[test]
fn a_connector_is_known_by_what_it_trusts() {
    let (one, other) = (TestCa::new(), TestCa::new());
    let system = Connector::new(&EgressSettings::default()).unwrap();
    let with_one = system.with_identity(&trusting(&one.ca_file)).unwrap();
    assert!(with_one.same_as(&system.with_identity(&trusting(&one.ca_file)).unwrap()));
    assert!(with_one.same_as(&with_one.with_identity(&trusting(&one.ca_file)).unwrap()));
    let with_other = system.with_identity(&trusting(&other.ca_file)).unwrap();
    for (a, b) in [(&system, &with_one), (&with_one, &with_other), (&system, &with_other)] {
        assert!(!a.same_as(b) && a.pool_key() != b.pool_key());
    }
    assert!(system.same_as(&system.clone()) && system.pool_key() == system.clone().pool_key());
    let gone = with_one.pool_key();
    drop(with_one);
    assert_ne!(
        system.with_identity(&trusting(&one.ca_file)).unwrap().pool_key(),
        gone,
        "a key is never given again"
    );
}

/// P-17: what is shown and what is spoken separate as well; what the files are called does not.
#[test]
fn a_connector_is_known_by_what_it_shows_and_speaks() {
    let ca = TestCa::new();
    let system = Connector::new(&EgressSettings::default()).unwrap();
    let (one, other) = (ca.issue("one"), ca.issue("other"));
    let shows_one = system.with_identity(&showing(&ca, &one)).unwrap();
    let shows_other = system.with_identity(&showing(&ca, &other)).unwrap();
    let trusts = system.with_identity(&trusting(&ca.ca_file)).unwrap();
    let http2 = IntegrationTrust { http2: true, ..IntegrationTrust::default() };
    let speaks = system.with_identity(&http2).unwrap();
    assert!(speaks.http2() && !trusts.http2() && !shows_one.http2());
    let all = [&system, &shows_one, &shows_other, &trusts, &speaks];
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            assert!(!one.same_as(other) && one.pool_key() != other.pool_key());
        }
    }
    let (certificate_file, key_file) = ca.install_as("renamed", &one);
    let renamed = IntegrationTrust {
        client_certificate_file: Some(certificate_file),
        client_key_file: Some(key_file),
        ..trusting(&ca.ca_file)
    };
    assert!(system.with_identity(&renamed).unwrap().same_as(&shows_one));
    assert!(trusts.with_identity(&http2).unwrap().same_as(&speaks));
}

#[test]
fn a_client_certificate_and_its_key_come_together() {
    let ca = TestCa::new();
    let system = Connector::new(&EgressSettings::default()).unwrap();
    let whole = showing(&ca, &ca.issue("one"));
    let fault = |trust: IntegrationTrust| system.with_identity(&trust).map(drop).unwrap_err();
    for half in [
        IntegrationTrust { client_key_file: None, ..whole.clone() },
        IntegrationTrust { client_certificate_file: None, ..whole.clone() },
    ] {
        assert!(matches!(fault(half), EgressError::ClientPairHalf));
    }
    let (_, strangers) = ca.install_as("stranger", &ca.issue("two"));
    let mixed = IntegrationTrust { client_key_file: Some(strangers), ..whole.clone() };
    assert!(matches!(fault(mixed), EgressError::ClientKeyMismatch { .. }));
    let gone = IntegrationTrust { client_certificate_file: Some("/nonexistent".into()), ..whole.clone() };
    assert!(matches!(fault(gone), EgressError::ClientCertificate { .. }));
    let no_key = IntegrationTrust { client_key_file: Some(ca.ca_file.clone()), ..whole };
    assert!(matches!(fault(no_key), EgressError::ClientKey { .. }));
}

#[tokio::test]
async fn an_instance_that_asks_is_shown_the_client_certificate() {
    let (ca, clients) = (TestCa::new(), TestCa::new());
    let far = FarSide::tls_with(hello(), ca.issue("127.0.0.1").server(Some(&clients), &[])).await;
    let system = Connector::new(&EgressSettings::default()).unwrap();
    let ours = system.with_identity(&showing(&ca, &clients.issue("bearerd"))).unwrap();
    let mut stream = ours.connect(&far.https()).await.unwrap();
    assert_eq!(ask(&mut stream).await.unwrap(), "hello");
    let strangers = system.with_identity(&showing(&ca, &ca.issue("bearerd"))).unwrap();
    for refused in [strangers, system.with_identity(&trusting(&ca.ca_file)).unwrap()] {
        // In TLS 1.3 the client is done before the server has looked.
        let mut stream = refused.connect(&far.https()).await.unwrap();
        assert!(ask(&mut stream).await.is_err());
    }
    assert_eq!(far.seen().len(), 1);
}

#[tokio::test]
async fn a_session_is_resumed_within_a_connector_alone() {
    let ca = TestCa::new();
    let far = FarSide::tls(hello(), &ca.issue("127.0.0.1")).await;
    let one = ca.connector();
    for (connector, resumed) in [(&one, false), (&one, true), (&ca.connector(), false), (&one, true)] {
        let mut stream = connector.connect(&far.https()).await.unwrap();
        // The tickets come with the answer.
        assert_eq!(ask(&mut stream).await.unwrap(), "hello");
        assert_eq!(stream.resumed(), Some(resumed));
    }
}

#[tokio::test]
async fn http2_is_spoken_where_both_want_it() {
    let ca = TestCa::new();
    let leaf = ca.issue("127.0.0.1");
    let system = Connector::new(&EgressSettings::default()).unwrap();
    let with = |http2| system.with_identity(&IntegrationTrust { http2, ..trusting(&ca.ca_file) }).unwrap();
    for (alpn, wanted, spoken) in [
        (&[&b"h2"[..], b"http/1.1"][..], true, true),
        (&[b"h2", b"http/1.1"], false, false),
        (&[b"http/1.1"], true, false),
        (&[], true, false),
    ] {
        let far = FarSide::tls_with(hello(), leaf.server(None, alpn)).await;
        let stream = with(wanted).connect(&far.https()).await.unwrap();
        assert_eq!(stream.negotiated_h2(), spoken, "{alpn:?} {wanted}");
    }
    // A server that speaks nothing else refuses whoever does not.
    let far = FarSide::tls_with(hello(), leaf.server(None, &[b"h2"])).await;
    assert!(with(false).connect(&far.https()).await.is_err());
    // Over plain http there is nothing to negotiate.
    let far = FarSide::plain(hello()).await;
    for http2 in [true, false] {
        let stream = with(http2).connect(&far.http()).await.unwrap();
        assert_eq!((stream.negotiated_h2(), stream.resumed()), (http2, None));
    }
}

/// One request needs no HTTP/2, and a token endpoint may stand beside an instance that speaks it.
#[tokio::test]
async fn one_request_goes_over_http1() {
    let ca = TestCa::new();
    let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec();
    let leaf = ca.issue("127.0.0.1");
    let trust = IntegrationTrust { http2: true, ..trusting(&ca.ca_file) };
    let connector = Connector::new(&EgressSettings::default()).unwrap().with_identity(&trust).unwrap();
    let tls = FarSide::tls_with(Script::Reply(reply.clone()), leaf.server(None, &[b"h2", b"http/1.1"]));
    let (tls, plain) = (tls.await, FarSide::plain(Script::Reply(reply)).await);
    for to in [tls.https(), plain.http()] {
        let request = http::Request::get("/").body(http_body_util::Full::default()).unwrap();
        let limits = crate::FetchLimits::default();
        assert_eq!(crate::fetch(&connector, &to, request, limits).await.unwrap().body, "ok");
    }
}

#[test]
fn a_ca_file_must_hold_certificates() {
    let system = Connector::new(&EgressSettings::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    assert!(matches!(system.with_identity(&trusting(&file)), Err(EgressError::CaUnreadable { .. })));
    std::fs::write(&file, "no PEM here").unwrap();
    assert!(matches!(system.with_identity(&trusting(&file)), Err(EgressError::CaEmpty { .. })));
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(matches!(system.with_identity(&trusting(&file)), Err(EgressError::CaMalformed { .. })));
}
