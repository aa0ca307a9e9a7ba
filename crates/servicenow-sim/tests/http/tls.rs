//! TLS, client certificates and HTTP/2.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use servicenow_sim::{Fault, FaultOn, FaultRule, GeneratedFile, Sim, SimSettings, SimTls, pattern};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::*;

const INCIDENTS: &str = "/api/now/table/incident?sysparm_limit=1";

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key in PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

async fn tls_sim(authority: &Authority, demands_certificate: bool) -> Sim {
    let (certificate, private_key) = authority.issue("localhost");
    let mut tls = SimTls::new(certificate, private_key);
    tls.client_ca = demands_certificate.then(|| authority.pem());
    Sim::start(SimSettings { tls: Some(tls), ..SimSettings::default() }).await.unwrap()
}

fn client(authority: &Authority, alpn: &str, own: Option<(String, String)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Arc::new(config)
}

async fn connect(sim: &Sim, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(sim.local_addr()).await?;
    TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

type Sender = http2::SendRequest<Full<Bytes>>;

async fn http2_over<S>(stream: S) -> Sender
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn call(
    sender: &mut Sender,
    sim: &Sim,
    target: &str,
    header: &str,
) -> hyper::Result<Response<Incoming>> {
    let uri = format!("{}{target}", sim.origin());
    let request = Request::builder().uri(uri).header("authorization", header);
    sender.send_request(request.body(Full::default()).unwrap()).await
}

/// Without a socket of its own: a token of the application user.
async fn access_token(sender: &mut Sender, sim: &Sim) -> String {
    let body = format!("grant_type=client_credentials&{CLIENT}");
    let request = Request::post(format!("{}/oauth_token.do", sim.origin()))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::from(body))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    format!("Bearer {}", answer["access_token"].as_str().unwrap())
}

#[tokio::test]
async fn http_2_by_alpn_and_http_1_too() {
    let authority = Authority::new();
    let sim = tls_sim(&authority, false).await;
    assert!(sim.origin().starts_with("https://127.0.0.1:"));
    let stream = connect(&sim, client(&authority, "h2", None)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = http2_over(stream).await;
    let header = access_token(&mut sender, &sim).await;
    let answer = call(&mut sender, &sim, INCIDENTS, &header).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));

    let stream = connect(&sim, client(&authority, "http/1.1", None)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(INCIDENTS).header("host", "sim").header("authorization", &header);
    let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_11));

    let records = sim.state().last_requests();
    let [token, first, second] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((first.version.as_str(), second.version.as_str()), ("HTTP/2.0", "HTTP/1.1"));
    assert_eq!((token.request_on_connection, first.request_on_connection), (1, 2));
    assert!(first.is_tls && first.raw_head.is_none() && second.raw_head.is_some());
    let counters = sim.state().counters();
    assert_eq!((counters.tls_handshakes, counters.http2_requests, counters.malformed_requests), (2, 2, 0));
}

#[tokio::test]
async fn a_session_is_resumed() {
    let authority = Authority::new();
    let sim = tls_sim(&authority, false).await;
    let config = client(&authority, "h2", None);
    let mut sender = http2_over(connect(&sim, Arc::clone(&config)).await.unwrap()).await;
    access_token(&mut sender, &sim).await; // by then the tickets have come
    http2_over(connect(&sim, config).await.unwrap()).await;
    sim.state().wait_for(|counters| (counters.tls_handshakes, counters.tls_resumptions) == (2, 1)).await;
}

#[tokio::test]
async fn a_client_certificate_can_be_demanded() {
    let authority = Authority::new();
    let sim = tls_sim(&authority, true).await;
    let without = connect(&sim, client(&authority, "h2", None)).await;
    sim.state().wait_for(|counters| counters.tls_failures == 1).await;
    drop(without); // TLS 1.3 tells a client only after its handshake
    let own = authority.issue("broker");
    let mut sender = http2_over(connect(&sim, client(&authority, "h2", Some(own))).await.unwrap()).await;
    access_token(&mut sender, &sim).await;
    assert_eq!(sim.state().last_requests()[0].client_certificate.as_ref().unwrap().len(), 64);
}

#[tokio::test]
async fn http_2_with_prior_knowledge_in_clear_text() {
    let sim = sim().await;
    let mut sender = http2_over(TcpStream::connect(sim.local_addr()).await.unwrap()).await;
    let header = access_token(&mut sender, &sim).await;
    let calls = (0..20).map(|_| {
        let (mut sender, origin, header) = (sender.clone(), sim.origin(), header.clone());
        tokio::spawn(async move {
            let request = Request::get(format!("{origin}{INCIDENTS}")).header("authorization", header);
            sender.send_request(request.body(Full::default()).unwrap()).await.unwrap().status()
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(sim.state().counters().connections, 1);
    let file = GeneratedFile { bytes: 300_000, sized: true };
    let target = format!("/api/now/attachment/{}/file", file.sys_id());
    let answer = call(&mut sender, &sim, &target, &header).await.unwrap();
    assert!(answer.into_body().collect().await.unwrap().to_bytes() == pattern(0, 300_000));
}

#[tokio::test]
async fn on_http_2_a_fault_costs_its_stream_only() {
    let sim = sim().await;
    let mut sender = http2_over(TcpStream::connect(sim.local_addr()).await.unwrap()).await;
    let header = access_token(&mut sender, &sim).await;
    for fault in [Fault::DropBefore, Fault::DropAfter, Fault::TwoAnswers] {
        sim.state().add_fault(FaultRule::new(FaultOn::Table, fault.clone()).once());
        assert!(call(&mut sender, &sim, INCIDENTS, &header).await.is_err(), "{fault:?}");
    }
    sim.state().add_fault(FaultRule::new(FaultOn::Table, Fault::CutBody { after_bytes: 3 }).once());
    let cut = call(&mut sender, &sim, INCIDENTS, &header).await.unwrap();
    assert!(cut.into_body().collect().await.is_err());
    let trailers = [("x-tail".to_owned(), "t".to_owned())].into();
    sim.state().add_fault(FaultRule::new(FaultOn::Table, Fault::Trailers { trailers }).once());
    let answer =
        call(&mut sender, &sim, INCIDENTS, &header).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-tail"], "t");
    assert_eq!(call(&mut sender, &sim, INCIDENTS, &header).await.unwrap().status(), StatusCode::OK);
    assert_eq!(sim.state().counters().connections, 1);
    sim.state().add_fault(FaultRule::new(FaultOn::Table, Fault::DropConnection).once());
    assert!(call(&mut sender, &sim, INCIDENTS, &header).await.is_err());
    assert!(call(&mut sender, &sim, INCIDENTS, &header).await.is_err(), "the connection is gone");
}

#[tokio::test]
async fn http_2_ends_by_goaway() {
    let sim = sim_with(json!({"connection_requests_max": 2, "http2_streams_max": 1})).await;
    let mut sender = http2_over(TcpStream::connect(sim.local_addr()).await.unwrap()).await;
    let header = access_token(&mut sender, &sim).await;
    assert_eq!(call(&mut sender, &sim, INCIDENTS, &header).await.unwrap().status(), StatusCode::OK);
    while sender.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(call(&mut sender, &sim, INCIDENTS, &header).await.is_err());
    assert_eq!(sim.state().counters().requests_to("table"), 1);
}

#[tokio::test]
async fn wrong_pem_is_refused_at_start() {
    let tls = SimTls::new("no pem".to_owned(), "no key".to_owned());
    assert!(Sim::start(SimSettings { tls: Some(tls), ..SimSettings::default() }).await.is_err());
    let authority = Authority::new();
    let (certificate, _) = authority.issue("localhost");
    let (_, other_key) = authority.issue("localhost");
    let tls = SimTls::new(certificate, other_key);
    assert!(Sim::start(SimSettings { tls: Some(tls), ..SimSettings::default() }).await.is_err());
}
