//! Backends under TLS: who is believed, what is carried, and what the log says where it isn't.

mod renewed;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::backend::{Backend, Connection, answer, ok};
use super::{Setup, site, tables};
use crate::support::{Client, End, Engine, PATIENCE, Server, noise, on_both, wait_until};

/// Authorities have names of their own.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// An authority, with what it has signed in files.
struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let serial = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("authority {serial}");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            directory,
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate for these names, in `NAME.pem` and `NAME.key`.
    fn sign(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    /// What a server with that certificate speaks by.
    fn config(&self, file: &str) -> Arc<ServerConfig> {
        self.config_with(file, None)
    }

    /// The same; it wants client certificates of this authority.
    fn config_with(&self, file: &str, clients: Option<&Self>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate.clone()).unwrap();
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = CertificateDer::from_pem_file(self.file(&format!("{file}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file(&format!("{file}.key"))).unwrap();
        let mut config = builder.with_single_cert(vec![chain], key).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 2;
        Arc::new(config)
    }

    /// The keys of `tls` that make it believed, and these.
    fn tls(&self, more: &str) -> String {
        format!("tls = {{ ca = {:?}{more} }}", self.file("ca.pem"))
    }

    /// A backend with a certificate for `localhost`.
    fn backend(&self, script: impl Fn(&mut Connection) + Send + Sync + 'static) -> Backend {
        self.sign("server", &["localhost", "127.0.0.1"], |_| {});
        Backend::secured(&self.config("server"), script)
    }
}

/// A server in front of this backend under TLS, with these lines in its upstream and its site.
fn front(engine: Engine, backend: &str, table: &str, lines: &str) -> Server {
    Setup::run(engine, &config(backend, table, lines)).start()
}

fn config(backend: &str, table: &str, lines: &str) -> String {
    tables(&format!("{:?}", [backend]), table, lines)
}

/// Answers with the target of each request and the length of its body, and keeps the connection.
fn echo(connection: &mut Connection) {
    while let Some(request) = connection.request() {
        connection.send(ok(&format!("{} {}", request.target, request.body.len())));
    }
}

#[test]
fn requests_of_every_kind_are_answered_on_one_connection() {
    on_both(|engine| {
        let authority = Authority::new();
        let large = noise(3 << 20);
        let content = large.clone();
        let backend = authority.backend(move |connection| {
            while let Some(request) = connection.request() {
                match request.target.as_str() {
                    "/large" => {
                        let length = content.len();
                        connection.send(format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                        ));
                        connection.send(&content);
                    }
                    "/chunked" => {
                        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                        for part in content.chunks(100_000) {
                            connection.send(format!("{:x}\r\n", part.len()));
                            connection.send(part);
                            connection.send("\r\n");
                        }
                        connection.send("0\r\n\r\n");
                    }
                    target => {
                        let is_whole = request.body.is_empty() || request.body == content;
                        connection.send(ok(&format!("{target} {is_whole}")));
                    }
                }
            }
        });
        let server = front(engine, &backend.https("localhost"), &authority.tls(""), "");
        let mut client = server.connect();
        for n in 0..5 {
            let target = format!("/{n}");
            assert_eq!(client.get(&target).text(), format!("{target} true"));
        }
        assert_eq!(backend.last().must("Host"), "localhost");
        for target in ["/large", "/chunked"] {
            assert!(client.get(target).body == large, "{target}");
        }
        let length = large.len();
        client.send(format!(
            "PUT /put HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send(&large);
        assert_eq!(client.response().text(), "/put true");
        client.send("POST /post HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for part in large.chunks(70_000) {
            client.send(format!("{:x}\r\n", part.len()));
            client.send(part);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.response().text(), "/post true");
        assert_eq!(backend.connections(), 1, "it was kept, tickets and all");
        let status = server.status();
        let of = &status["upstreams"][0]["servers"][0];
        assert_eq!(
            (of["idle"].as_u64(), of["failures"].as_u64()),
            (Some(1), Some(0))
        );
    });
}

#[test]
fn sessions_are_resumed() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(|connection| {
            while connection.request().is_some() {
                let resumed = connection.is_resumed();
                connection.send(ok(&resumed.to_string()));
            }
        });
        let table = format!("{}\nkeepalive = false", authority.tls(""));
        let server = front(engine, &backend.https("localhost"), &table, "");
        let mut client = server.connect();
        assert_eq!(client.get("/").text(), "false");
        for _ in 0..10 {
            assert_eq!(client.get("/").text(), "true");
        }
        assert_eq!(backend.connections(), 11);
    });
}

#[test]
fn an_address_with_two_names_has_connections_for_each() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(|connection| {
            while let Some(request) = connection.request() {
                let (host, _) = request.must("Host").rsplit_once(':').expect("a port");
                let told = connection.tls().server_name().unwrap_or("127.0.0.1");
                let text = format!("{host} {told}");
                connection.send(ok(&text));
            }
        });
        let servers = ["localhost", "127.0.0.1"].map(|host| backend.https(host));
        let lines = "upstream_host = \"upstream\"";
        let config = tables(&format!("{servers:?}"), &authority.tls(""), lines);
        let server = Setup::run(engine, &config).start();
        let mut client = server.connect();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            seen.insert(client.get("/").text().to_owned());
        }
        let expected = ["127.0.0.1 127.0.0.1", "localhost localhost"];
        assert!(seen.iter().eq(expected.iter()), "{seen:?}");
        assert_eq!(backend.connections(), 2);
    });
}

/// Asks once, and waits until the log says this.
fn refused(server: &Server, status: u16, words: &[&str]) {
    assert_eq!(server.connect().get("/").status, status);
    wait_until("the log tells it", PATIENCE, || {
        let log = server.stderr();
        words.iter().all(|word| log.contains(word))
    });
}

#[test]
fn who_is_not_believed_gets_no_request_and_the_log_says_why() {
    on_both(|engine| {
        let (authority, other) = (Authority::new(), Authority::new());
        let backend = authority.backend(echo);
        let https = backend.https("localhost");
        let server = front(engine, &https, &other.tls(""), "");
        let unknown = "its certificate comes from an unknown authority";
        refused(&server, 502, &[unknown, "a try failed"]);
        let status = server.status().to_string();
        assert!(
            status.contains("TLS to servers: unknown authority"),
            "{status}"
        );
        // By what the system believes, which is not that authority.
        let server = front(engine, &https, "", "");
        refused(&server, 502, &[unknown]);
        // Names of the certificate and the one that was expected.
        let server = front(engine, &https, &authority.tls(", name = \"b.example\""), "");
        refused(
            &server,
            502,
            &["its certificate is for other names (expected b.example, it is for localhost"],
        );
        authority.sign("old", &["localhost"], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        });
        let expired = Backend::secured(&authority.config("old"), echo);
        let server = front(engine, &expired.https("localhost"), &authority.tls(""), "");
        refused(&server, 502, &["its certificate has expired", "days ago"]);
        let plain = Backend::start(|connection| {
            connection.bytes();
            connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            connection.close();
        });
        let server = front(engine, &plain.https("localhost"), &authority.tls(""), "");
        refused(&server, 502, &["what it answers isn't TLS"]);
        for backend in [&backend, &expired, &plain] {
            assert!(backend.requests().is_empty(), "no request came");
        }
    });
}

#[test]
fn the_system_believes_whom_its_file_names() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(echo);
        // A site that names the server itself, by name and by address.
        for host in ["localhost", "127.0.0.1"] {
            let config = site(&format!(
                "proxy = {:?}\nupstream_host = \"upstream\"",
                backend.https(host)
            ));
            let file = authority.file("ca.pem").display().to_string();
            let setup = Setup::run(engine, &config).environment("SSL_CERT_FILE", &file);
            let server = setup.start();
            assert_eq!(server.connect().get("/x").text(), "/x 0");
            assert!(backend.last().must("Host").starts_with(host));
        }
    });
}

#[test]
fn insecure_asks_anybody_and_says_so_loudly() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(echo);
        let config = config(&backend.https("127.0.0.2"), "tls = { insecure = true }", "");
        let server = Setup::run(engine, &config).start();
        assert!(
            server.stderr().contains("insecure = true: nobody verifies"),
            "{}",
            server.stderr()
        );
        // 127.0.0.2 has nobody else's port: what listens is 127.0.0.1 alone.
        assert_eq!(server.connect().get("/").status, 502);
        let config = config.replace("127.0.0.2", "127.0.0.1");
        server.write_config(&config.replace("insecure", "name = \"wrong.example\", insecure"));
        server.must(&["reload"]);
        wait_until("it is in force", PATIENCE, || {
            server.connect().get("/x").status == 200
        });
        assert_eq!(server.status()["upstreams"][0]["insecure"], true);
    });
}

#[test]
fn a_client_certificate_is_shown_to_who_asks() {
    on_both(|engine| {
        let (authority, clients) = (Authority::new(), Authority::new());
        authority.sign("server", &["localhost"], |_| {});
        clients.sign("client", &["client.example"], |_| {});
        authority.sign("wrong", &["client.example"], |_| {});
        let config = authority.config_with("server", Some(&clients));
        let backend = Backend::secured(&config, |connection| {
            while connection.request().is_some() {
                let shown = connection.tls().peer_certificates().is_some();
                connection.send(ok(&shown.to_string()));
            }
        });
        let https = backend.https("localhost");
        let with = |of: &Authority, file: &str| {
            let part = |suffix: &str| of.file(&format!("{file}.{suffix}"));
            authority.tls(&format!(
                ", cert = {:?}, key = {:?}",
                part("pem"),
                part("key")
            ))
        };
        let server = front(engine, &https, &with(&clients, "client"), "");
        assert_eq!(server.connect().get("/").text(), "true");
        let before = backend.requests().len();
        let server = front(engine, &https, &authority.tls(""), "");
        refused(&server, 502, &["it wants a client certificate"]);
        let server = front(engine, &https, &with(&authority, "wrong"), "");
        refused(&server, 502, &["it refuses our client certificate"]);
        assert_eq!(backend.requests().len(), before, "no request was looked at");
    });
}

#[test]
fn a_server_that_fails_its_handshake_is_passed_over() {
    on_both(|engine| {
        let (authority, other) = (Authority::new(), Authority::new());
        let (good, bad) = (authority.backend(echo), other.backend(echo));
        let servers = format!("{:?}", [bad.https("localhost"), good.https("localhost")]);
        let server = Setup::run(engine, &tables(&servers, &authority.tls(""), "")).start();
        let mut client = server.connect();
        for _ in 0..6 {
            // Also what may not be done twice: nothing of it was sent.
            client.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
            assert_eq!(client.response().text(), "/x 2");
        }
        assert!(bad.connections() > 0 && bad.requests().is_empty());
        // It is left out after a while, and the status says why.
        wait_until("it is left out", PATIENCE, || {
            client.get("/x");
            let status = server.status().to_string();
            status.contains("TLS: its certificate comes from an unknown authority")
        });
    });
}

#[test]
fn a_handshake_has_the_time_of_a_connection() {
    on_both(|engine| {
        let authority = Authority::new();
        let silent = Backend::start(|connection| drop(connection.rest()));
        let lines = "timeouts = { connect = \"300ms\" }";
        let server = front(
            engine,
            &silent.https("localhost"),
            &authority.tls(""),
            lines,
        );
        refused(&server, 504, &["no handshake within the connect timeout"]);
    });
}

#[test]
fn what_ends_without_a_word_is_cut_short() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(|connection| {
            let Some(request) = connection.request() else {
                return;
            };
            connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it, or not");
            match request.target.as_str() {
                "/whole" => connection.end(),
                _ => connection.cut(),
            }
            connection.rest();
        });
        let server = front(engine, &backend.https("localhost"), &authority.tls(""), "");
        let ask = |target: &str| {
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/1.0\r\nHost: a\r\n\r\n"));
            client.rest()
        };
        let (whole, end) = ask("/whole");
        assert!(whole.ends_with(b"all of it, or not"));
        assert_eq!(end, End::Closed);
        let (_, end) = ask("/cut");
        assert_eq!(end, End::Reset, "nothing else tells that it isn't whole");
        let mut client = server.connect();
        client.send("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.try_response().is_err(), "no last chunk");
    });
}

#[test]
fn an_idle_connection_that_is_ended_costs_nobody_an_error() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(|connection| {
            if let Some(request) = connection.request() {
                connection.send(ok(&request.target));
                match connection.number % 3 {
                    0 => connection.end(),
                    1 => connection.cut(),
                    _ => connection.reset(),
                }
            }
        });
        let server = front(engine, &backend.https("localhost"), &authority.tls(""), "");
        let mut client = server.connect();
        for n in 0..30 {
            let target = format!("/{n}");
            assert_eq!(client.get(&target).text(), target);
        }
    });
}

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                      Connection: Upgrade\r\n\r\n";

fn switched(server: &Server) -> Client {
    let mut client = server.connect();
    client
        .send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.response().status, 101);
    client
}

#[test]
fn a_tunnel_goes_through_to_its_ends() {
    on_both(|engine| {
        let authority = Authority::new();
        let backend = authority.backend(|connection| {
            let request = connection.request().expect("a request");
            connection.send(SWITCH);
            if request.target == "/chat" {
                loop {
                    let bytes = connection.bytes();
                    if bytes.is_empty() {
                        break;
                    }
                    connection.send(bytes);
                }
            }
            connection.end();
        });
        let server = front(engine, &backend.https("localhost"), &authority.tls(""), "");
        let mut client = switched(&server);
        for size in [1, 100, 300_000] {
            let bytes = noise(size);
            client.send(&bytes[..size / 2]);
            client.send(&bytes[size / 2..]);
            assert!(client.exactly(size) == bytes, "{size}");
        }
        client.send("last");
        client.end_input();
        let (rest, end) = client.rest();
        assert_eq!((rest.as_slice(), end), (&b"last"[..], End::Closed));
    });
}

#[test]
fn probes_ask_under_tls_unless_they_are_told_not_to() {
    on_both(|engine| {
        let (authority, other) = (Authority::new(), Authority::new());
        let backend = authority.backend(|connection| {
            while let Some(request) = connection.request() {
                connection.send(answer(200, "", &request.target));
            }
        });
        let https = backend.https("localhost");
        let health = "health = { path = \"/healthz\", interval = \"100ms\", fall = 1 }";
        let _good = front(
            engine,
            &https,
            &format!("{}\n{health}", authority.tls("")),
            "",
        );
        backend.await_requests(2);
        assert_eq!(backend.last().target, "/healthz");
        let server = front(engine, &https, &format!("{}\n{health}", other.tls("")), "");
        wait_until("it is found", PATIENCE, || {
            let status = server.status().to_string();
            status.contains("probe: TLS: its certificate comes from an unknown authority")
        });
        assert_eq!(server.connect().get("/").status, 503);
        // A connection alone, of which the backend's certificate is no matter.
        let health = "health = { tcp = true, tls = false, interval = \"100ms\" }";
        let server = front(engine, &https, &format!("{}\n{health}", other.tls("")), "");
        let before = backend.connections();
        wait_until("it is probed", PATIENCE, || {
            backend.connections() > before + 2
        });
        assert!(!server.status().to_string().contains("probe: "));
    });
}

#[test]
fn a_proxy_header_comes_before_tls() {
    on_both(|engine| {
        let authority = Authority::new();
        authority.sign("server", &["localhost"], |_| {});
        let tls = authority.config("server");
        let backend = Backend::start(move |connection| {
            let header = connection.line();
            assert!(header.starts_with("PROXY TCP4 127.0.0.1 "), "{header}");
            connection.secure(&tls);
            while let Some(request) = connection.request() {
                connection.send(ok(&request.target));
            }
        });
        let lines = "send_proxy_protocol = \"v1\"";
        let server = front(
            engine,
            &backend.https("localhost"),
            &authority.tls(""),
            lines,
        );
        for target in ["/a", "/b"] {
            assert_eq!(server.connect().get(target).text(), target);
        }
        assert_eq!(backend.connections(), 2, "each is of one client alone");
    });
}
