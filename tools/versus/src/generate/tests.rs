//! The generator against a small server in the same process, with every way of going wrong.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::body;
use crate::certificate::Certificate;

/// How the server misbehaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Right,
    /// Announces a close with every tenth response of a connection, and closes.
    ClosesAnnounced,
    /// Announces a close with every response, and closes.
    ClosesEach,
    /// Closes without a word after ten responses.
    ClosesSuddenly,
    /// The body's last byte is another one.
    WrongByte,
    NotFound,
    /// Says the length of another file.
    WrongLength,
    /// Takes requests and never answers beyond the first.
    FallsSilent,
}

/// A server on a port of the kernel's choice, which ends with the test process.
struct TestServer {
    address: SocketAddr,
    /// Responses begun.
    served: Arc<AtomicU64>,
}

impl TestServer {
    fn start(len: u64, manner: Manner) -> Self {
        Self::start_with(len, manner, None)
    }

    fn start_with(len: u64, manner: Manner, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let served = Arc::new(AtomicU64::new(0));
        let counter = served.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counter, tls) = (counter.clone(), tls.clone());
                // A client that resets the connection is not this server's failure.
                thread::spawn(move || match tls {
                    None => serve(stream, len, manner, &counter).ok(),
                    Some(config) => {
                        let tls = ServerConnection::new(config).expect("a configuration");
                        serve(StreamOwned::new(tls, stream), len, manner, &counter).ok()
                    }
                });
            }
        });
        Self { address, served }
    }
}

/// What responses go through.
trait Transport: Read + Write {
    /// Tells that nothing follows.
    fn finish(&mut self) -> std::io::Result<()>;
}

impl Transport for TcpStream {
    fn finish(&mut self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Transport for StreamOwned<ServerConnection, TcpStream> {
    fn finish(&mut self) -> std::io::Result<()> {
        self.conn.send_close_notify();
        self.flush()?;
        self.sock.shutdown(Shutdown::Write)
    }
}

fn serve(
    mut stream: impl Transport,
    len: u64,
    manner: Manner,
    served: &AtomicU64,
) -> std::io::Result<()> {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    let mut answered = 0;
    loop {
        let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                taken => received.extend_from_slice(&chunk[..taken]),
            }
            continue;
        };
        received.drain(..end + 4);
        answered += 1;
        let last = answered % 10 == 0 || matches!(manner, Manner::ClosesEach);
        if matches!(manner, Manner::FallsSilent) && answered > 1 {
            continue;
        }
        served.fetch_add(1, Ordering::SeqCst);
        stream.write_all(&response(len, manner, last))?;
        match manner {
            Manner::ClosesSuddenly if last => return Ok(()),
            Manner::ClosesAnnounced | Manner::ClosesEach if last => {
                // Closing over unread requests would reset what is on its way (RFC 9112 §9.6).
                stream.finish()?;
                while stream.read(&mut chunk)? > 0 {}
                return Ok(());
            }
            _ => {}
        }
    }
}

fn response(len: u64, manner: Manner, last: bool) -> Vec<u8> {
    let status = match manner {
        Manner::NotFound => "404 Not Found",
        _ => "200 OK",
    };
    let close = match manner {
        Manner::ClosesAnnounced | Manner::ClosesEach if last => "Connection: close\r\n",
        _ => "",
    };
    let said = match manner {
        Manner::WrongLength => len + 1,
        _ => len,
    };
    let mut bytes =
        format!("HTTP/1.1 {status}\r\n{close}Content-Length: {said}\r\n\r\n").into_bytes();
    bytes.extend((0..len).map(|offset| body::byte_at(len, offset)));
    if let (Manner::WrongByte, Some(last)) = (manner, bytes.last_mut()) {
        *last ^= 1;
    }
    bytes
}

fn load(server: &TestServer, body_len: u64, connections: u32, depth: u32) -> Load {
    Load {
        address: server.address,
        target: format!("/{}", body::file_name(body_len)),
        body_len,
        connections,
        depth,
        upgrade: false,
        pace: Pace::Closed,
        tls: None,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Runs until so many requests are complete or a connection is lost, and returns the driver.
fn driven(load: Load, requests: u64) -> Driver {
    let (connections, deadline) = (load.connections, soon());
    let mut driver = Driver::new(load).expect("a ring");
    driver.open(connections, deadline).expect("connections");
    if driver.tally.errors.is_empty() {
        assert_eq!(driver.tally.requests, u64::from(connections), "one on each");
    }
    driver.start().expect("a ring");
    while driver.tally.requests < requests && driver.tally.errors.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", driver.tally);
        driver
            .run_until(Instant::now() + Duration::from_millis(5))
            .expect("a ring");
    }
    driver
}

#[test]
fn counts_what_the_server_served() {
    // Copied; pipelined; just copied; just discarded; discarded in many pieces.
    for (len, connections, depth) in [
        (1024, 8, 1),
        (1024, 4, 16),
        (1, 3, 2),
        (driver::COPIED_BODY_MAX, 3, 3),
        (driver::COPIED_BODY_MAX + 1, 3, 1),
        (3 << 20, 2, 1),
    ] {
        let server = TestServer::start(len, Manner::Right);
        let wanted = if len > 1 << 20 { 20 } else { 300 };
        let driver = driven(load(&server, len, connections, depth), wanted);
        let (tally, served) = (&driver.tally, server.served.load(Ordering::SeqCst));
        let on_their_way = u64::from(connections * depth);
        assert!(
            tally.errors.is_empty(),
            "{len} bytes: {:?}",
            tally.first_error
        );
        assert!(
            (tally.requests..=tally.requests + on_their_way).contains(&served),
            "{len} bytes: counted {}, served {served}",
            tally.requests,
        );
        assert!(tally.bytes >= tally.requests * len);
        assert!(tally.latency.quantile(0.5) > 0 && tally.latency.max() > 0);
    }
}

#[test]
fn an_announced_close_is_followed_by_a_new_connection() {
    for (len, depth) in [(1024, 1), (1024, 8), (20_000, 1)] {
        let server = TestServer::start(len, Manner::ClosesAnnounced);
        let driver = driven(load(&server, len, 4, depth), 300);
        assert!(
            driver.tally.errors.is_empty(),
            "{:?}",
            driver.tally.first_error
        );
        assert!(driver.tally.reconnects >= 20, "{}", driver.tally.reconnects);
    }
}

#[test]
fn each_request_may_have_a_connection_of_its_own() {
    for len in [1024, 20_000] {
        let server = TestServer::start(len, Manner::ClosesEach);
        let mut load = load(&server, len, 4, 1);
        load.pace = Pace::Reconnect;
        let driver = driven(load, 100);
        let tally = &driver.tally;
        assert!(tally.errors.is_empty(), "{:?}", tally.first_error);
        // Those of the last four requests may not have been opened anew yet.
        assert!(
            tally.reconnects + 4 >= tally.requests,
            "{} of {}",
            tally.reconnects,
            tally.requests
        );
    }
}

#[test]
fn what_is_under_tls_is_compared_as_well() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = Certificate::new(directory.path()).expect("a certificate");
    let certificate = CertificateDer::from_pem_file(&files.certificate).expect("a certificate");
    let config = |tickets| {
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.clone()], key)
            })
            .expect("a configuration");
        config.send_tls13_tickets = tickets;
        Arc::new(config)
    };
    let secured = |server: &TestServer, len, group, resume| {
        let tls = Tls::new(&files.certificate, group, resume).expect("a certificate");
        Load {
            tls: Some(tls),
            ..load(server, len, 4, 1)
        }
    };
    for (len, group) in [
        (1024, Group::X25519),
        (1 << 20, Group::X25519),
        (20_000, Group::Hybrid),
    ] {
        let server = TestServer::start_with(len, Manner::Right, Some(config(1)));
        let driver = driven(secured(&server, len, group, false), 40);
        assert!(driver.tally.errors.is_empty(), "{:?}", driver.tally);
        assert!(driver.tally.bytes > 40 * len, "heads count as well");
    }
    let server = TestServer::start_with(1024, Manner::WrongByte, Some(config(1)));
    let driver = driven(secured(&server, 1024, Group::X25519, false), 10);
    assert_eq!(
        driver.tally.errors.keys().next().map(String::as_str),
        Some("body")
    );
    // A session with each connection, and none where the server gives none.
    for (tickets, resumed) in [(1, true), (0, false)] {
        let server = TestServer::start_with(1024, Manner::ClosesEach, Some(config(tickets)));
        let mut load = secured(&server, 1024, Group::X25519, true);
        load.pace = Pace::Reconnect;
        let driver = driven(load, 100);
        let fault = driver.tally.errors.keys().next().map(String::as_str);
        assert_eq!(fault, (!resumed).then_some("tls"), "{:?}", driver.tally);
    }
}

#[test]
fn a_fixed_rate_is_kept_and_what_is_held_back_counts_from_when_it_was_due() {
    let server = TestServer::start(1024, Manner::Right);
    let mut kept = options(&server, 1024, 4);
    kept.rate = Some(1000);
    let began = Instant::now();
    let report = run(&kept).expect("a measurement");
    assert!(report.errors.is_empty(), "{:?}", report.first_error);
    // However late some were, no more were due than in all of that time.
    let due_max = began.elapsed().as_millis() as u64 + 1;
    assert!(report.requests > 0 && report.requests <= due_max);

    let silent = TestServer::start(1024, Manner::FallsSilent);
    let mut load = load(&silent, 1024, 2, 1);
    load.pace = Pace::Rate(1000);
    let mut driver = Driver::new(load).expect("a ring");
    driver.open(2, soon()).expect("connections");
    driver.start().expect("a ring");
    driver.reset();
    driver
        .run_until(Instant::now() + Duration::from_millis(100))
        .expect("a ring");
    driver.note_overdue();
    // Two were sent, a hundred were due: the median one had waited half of the time.
    assert_eq!(driver.tally.requests, 0);
    let median_ms = driver.tally.latency.quantile(0.5) / 1_000_000;
    assert!((40..10_000).contains(&median_ms), "{median_ms} ms");
}

#[test]
fn a_cold_file_is_measured_from_the_first_request() {
    let server = TestServer::start(3_000_000, Manner::Right);
    let mut cold = options(&server, 3_000_000, 1);
    cold.cold = true;
    let report = run(&cold).expect("a measurement");
    assert_eq!(
        (report.requests, server.served.load(Ordering::SeqCst)),
        (1, 1)
    );
    assert!(report.bytes > 3_000_000 && report.seconds > 0.0);
}

#[test]
fn a_client_beside_the_load_is_counted_for_itself() {
    let server = TestServer::start(1024, Manner::Right);
    let mut large = options(&server, 1024, 2);
    large.bystander = Some(1024);
    let report = run(&large).expect("a measurement");
    assert!(report.errors.is_empty(), "{:?}", report.first_error);
    let beside = report.bystander_us.expect("latencies");
    assert!(beside.p50 > 0.0 && beside.p50 <= beside.max);
}

#[test]
fn faults_are_counted_by_kind() {
    for (manner, len, kinds) in [
        (Manner::NotFound, 1024, &["status"][..]),
        (Manner::WrongLength, 1024, &["length"]),
        (Manner::WrongByte, 1024, &["body"]),
        (Manner::WrongByte, 100_000, &["body"]),
        // The request that crosses the close may be answered by a reset.
        (Manner::ClosesSuddenly, 1024, &["closed", "io"]),
        (Manner::ClosesSuddenly, 100_000, &["closed", "io"]),
    ] {
        let server = TestServer::start(len, manner);
        let driver = driven(load(&server, len, 2, 1), u64::MAX);
        let errors = &driver.tally.errors;
        assert!(!errors.is_empty() && driver.tally.first_error.is_some());
        assert!(
            errors.keys().all(|kind| kinds.contains(&kind.as_str())),
            "{manner:?}: {errors:?}"
        );
    }
}

fn options(server: &TestServer, len: u64, connections: u32) -> GenerateOptions {
    GenerateOptions {
        address: server.address,
        target: format!("/{}", body::file_name(len)),
        body: len,
        connections,
        depth: 1,
        warm_up: 0.02,
        seconds: 0.1,
        idle: false,
        upgrade: false,
        reconnect: false,
        rate: None,
        cold: false,
        bystander: None,
        certificate: None,
        group: Group::X25519,
        resume: false,
        backend: None,
        watch: vec![std::process::id()],
        server_cpu: None,
        client_cpu: None,
    }
}

#[test]
fn a_measurement_reports_figures_of_its_span() {
    let server = TestServer::start(1024, Manner::Right);
    let report = run(&options(&server, 1024, 4)).expect("a measurement");
    assert!(report.errors.is_empty(), "{:?}", report.first_error);
    assert!(report.requests > 0 && report.requests < server.served.load(Ordering::SeqCst));
    assert!(report.seconds >= 0.1 && report.client_busy > 0.0);
    assert!(report.latency_us.p50 <= report.latency_us.p99);
    assert!(report.latency_us.p999 <= report.latency_us.max);
}

#[test]
fn a_server_that_falls_silent_is_an_error() {
    let server = TestServer::start(1024, Manner::FallsSilent);
    let report = run(&options(&server, 1024, 3)).expect("a measurement");
    assert_eq!(report.errors.get("stalled"), Some(&3));
    assert_eq!(report.requests, 0);
}

#[test]
fn idle_connections_are_opened_and_weighed() {
    let server = TestServer::start(1024, Manner::Right);
    let mut options = options(&server, 1024, 200);
    options.idle = true;
    let report = run(&options).expect("a measurement");
    let idle = report.idle.expect("memory");
    assert!(report.errors.is_empty(), "{:?}", report.first_error);
    assert_eq!(server.served.load(Ordering::SeqCst), 200);
    assert_eq!(idle.connections, 199);
    assert!(idle.before.allocated > 0 && idle.after.allocated > 0);
}

#[test]
fn loads_that_break_a_bound_are_refused() {
    let server = TestServer::start(1024, Manner::Right);
    for (len, connections, depth) in [(100_000, 1, 2), (1024, 0, 1), (1024, 1, 1000)] {
        assert!(Driver::new(load(&server, len, connections, depth)).is_err());
    }
    let mut elsewhere = options(&server, 1024, 1);
    elsewhere.address = SocketAddr::from(([192, 0, 2, 1], 80));
    assert!(run(&elsewhere).is_err());
}
