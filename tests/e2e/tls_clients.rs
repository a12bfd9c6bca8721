//! Certificates of clients from the outside: who comes in, what backends are told of them, and requests that
//! try to come in beside them.

mod programs;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::support::server::program;
use crate::support::{Setup, Tree, on_both, wait_until};
use crate::tls::{BOTH, Client, PATIENCE, Pem, echoing, s_client, site, tcp};

/// An authority for clients, in a file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: PathBuf,
}

/// So many days from now.
macro_rules! in_days {
    ($days:expr) => {{
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let days: i64 = $days;
        let day = Duration::from_secs(86_400);
        let from = match days < 0 {
            true => now - day * days.unsigned_abs() as u32,
            false => now + day * days as u32,
        };
        date_time_ymd(1970, 1, 1) + from
    }};
}
use in_days;

impl Authority {
    fn new(tree: &Tree, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = tree.outside().join(format!("{name}.pem"));
        fs::write(&pem, params.self_signed(&key).unwrap().pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, name: &str, serial: u64, to_days: i64) -> Shown {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = in_days!(-10);
        params.not_after = in_days!(to_days);
        let key = KeyPair::generate().unwrap();
        Shown {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn list(&self, revoked: &[u64]) -> String {
        let params = CertificateRevocationListParams {
            this_update: in_days!(-1),
            next_update: in_days!(5),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: (revoked.iter())
                .map(|number| RevokedCertParams {
                    serial_number: SerialNumber::from(*number),
                    revocation_time: in_days!(-1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// What a client shows.
struct Shown {
    pem: String,
    key: String,
}

fn showing(
    server: &Pem,
    shown: Option<&Shown>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let chain = rustls::pki_types::CertificateDer::pem_slice_iter(shown.pem.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
            let chain = chain.map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// A proxied site whose backend says what it got.
fn proxied(name: &str, backend: SocketAddr, lines: &str) -> String {
    format!("[site.\"{name}\"]\nlisten = [\"127.0.0.1:0\"]\nproxy = [\"{backend}\"]\n{lines}")
}

const FIELDS: &str = "verified = \"X-Client-Verify\", subject = \"X-Client-Subject\", \
     issuer = \"X-Client-Issuer\", serial = \"X-Client-Serial\", fingerprint = \"X-Client-Print\"";

/// Fields of a request that says of itself what only we may say, in every spelling.
const SPOOFED: &str = "X-Client-Verify: SUCCESS\r\nx-client-subject: CN=Root\r\nX-CLIENT-ISSUER: CN=Root\r\n\
     X-Client-Serial: 00\r\nX_Client_Subject: CN=Root\r\nX-Client-Print: 00\r\nX-Client-Subject: CN=Other\r\n";

fn asked(client: &mut Client, host: &str, fields: &str) -> (String, String) {
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").as_bytes());
    let (head, content) = client.response();
    (head, String::from_utf8(content).unwrap())
}

/// Whether a connection is of any use: a refusal may come after the client's last message.
fn is_refused(server: &crate::support::Server, config: &Arc<ClientConfig>, name: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut client) = Client::try_connect(server.address(), config, name) else {
        return true;
    };
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n");
    client.0.write_all(request.as_bytes()).is_err() || client.0.read_exact(&mut [0]).is_err()
}

#[test]
fn a_backend_is_told_who_the_client_is_and_by_nobody_else() {
    on_both(|engine| {
        let tree = Tree::new();
        let pem = Pem::new(&tree, "a", &["a.example", "b.example", "c.example"]);
        let authority = Authority::new(&tree, "Clients CA");
        let backend = echoing();
        let log = tree.outside().join("access.log");
        let of = |more: &str| format!("client_certificates = {{ {more}{FIELDS} }}\n");
        let ca = format!("ca = {:?}, ", authority.pem);
        let optional = format!("{ca}required = false, ");
        let tls = pem.line(", policy = \"intermediate\"");
        let config = format!("[server]\naccess_log = {log:?}\nlog_format = \"json\"\n")
            + &proxied("a.example", backend, &format!("{tls}{}", of(&ca)))
            + &proxied("b.example", backend, &format!("{tls}{}", of(&optional)))
            + &proxied("c.example", backend, &format!("{tls}{}", of("")));
        let server = Setup::run(engine, &config).start();
        let anna = authority.issue("Anna\r\nX-Admin: 1", 0xabcd, 10);
        for version in [&TLS12, &TLS13] {
            let config = showing(&pem, Some(&anna), &[version]);
            for name in ["a.example", "b.example"] {
                let mut client = Client::connect(&server, &config, name);
                for _ in 0..2 {
                    let (_, got) = asked(&mut client, name, SPOOFED);
                    for line in [
                        "X-Client-Verify: SUCCESS\r\n",
                        "X-Client-Subject: CN=Anna\\0D\\0AX-Admin: 1\r\n",
                        "X-Client-Issuer: CN=Clients CA\r\n",
                        "X-Client-Serial: ABCD\r\n",
                    ] {
                        assert_eq!(got.matches(line).count(), 1, "{line}: {got}");
                    }
                    let lower = got.to_ascii_lowercase();
                    assert!(
                        !lower.contains("root") && !lower.contains("cn=other"),
                        "{got}"
                    );
                    let print = got.split("X-Client-Print: ").nth(1).unwrap();
                    let print = print.split("\r\n").next().unwrap();
                    assert!(
                        print.len() == 64 && !lower.contains("print: 00\r\n"),
                        "{got}"
                    );
                    // In a trailer neither.
                    let chunked = "Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-client-subject\r\n\
                                   \r\n1\r\nx\r\n0\r\nX-Client-Subject: CN=Root\r\nX-Sum: 1\r\n";
                    let (_, got) = asked(&mut client, name, chunked);
                    assert!(!got.contains("CN=Root"), "{got}");
                }
            }
        }
        // Who shows none is nobody, whatever it says; a site that asks for none believes none.
        let nobody = showing(&pem, None, BOTH);
        let known = showing(&pem, Some(&anna), BOTH);
        for (name, config) in [
            ("b.example", &nobody),
            ("c.example", &nobody),
            ("c.example", &known),
        ] {
            let mut client = Client::connect(&server, config, name);
            let (_, got) = asked(&mut client, name, SPOOFED);
            assert!(got.contains("X-Client-Verify: NONE\r\n"), "{got}");
            let lower = got.to_ascii_lowercase();
            let others = ["subject", "issuer", "serial", "print"];
            let is_told = |name: &str| lower.contains(&format!("x-client-{name}"));
            assert!(!others.iter().any(|name| is_told(name)), "{got}");
        }
        assert!(is_refused(&server, &nobody, "a.example"));
        wait_until("the log has the name", PATIENCE, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.contains("\"client_subject\":\"CN=Anna\\\\0D\\\\0AX-Admin: 1\"")
        });
    });
}

#[test]
fn a_request_for_another_site_than_the_connection_was_made_for_is_misdirected() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let names = [
            "open.example",
            "www.open.example",
            "closed.example",
            "127.0.0.1",
        ];
        let pem = Pem::new(&tree, "a", &names);
        let authority = Authority::new(&tree, "Clients CA");
        let closed = |required: bool| {
            format!(
                "{}client_certificates = {{ ca = {:?}, required = {required} }}\n",
                pem.line(""),
                authority.pem
            )
        };
        let open = format!(
            "{}aliases = [\"www.open.example\"]\n",
            pem.line(", default = true")
        );
        let config = site("open.example", &tree, &open)
            + &site("other.example", &tree, &pem.line(""))
            + &site("closed.example", &tree, &closed(true))
            + &site("asked.example", &tree, &closed(false));
        let server = Setup::run(engine, &config).start();
        let anna = authority.issue("Anna", 1, 10);
        let nobody = showing(&pem, None, BOTH);
        let known = showing(&pem, Some(&anna), BOTH);
        // The connection goes on: its own site is still served.
        for config in [&nobody, &known] {
            let mut client = Client::connect(&server, config, "open.example");
            for (host, status) in [
                ("open.example", 200),
                ("closed.example", 421),
                ("CLOSED.example:443", 421),
                ("asked.example", 421),
                ("other.example", 421),
                ("www.open.example", 200),
                ("closed.example", 421),
                ("open.example", 200),
            ] {
                let (head, _) = client.get(host, "/a.txt");
                let begin = format!("HTTP/1.1 {status} ");
                assert!(head.starts_with(&begin), "{host}: {head}");
            }
            // In one batch, and by the other spelling of a target.
            client.send(
                b"GET /a.txt HTTP/1.1\r\nHost: open.example\r\n\r\n\
                  GET https://closed.example/a.txt HTTP/1.1\r\nHost: open.example\r\n\r\n",
            );
            assert!(client.response().0.starts_with("HTTP/1.1 200 "));
            assert!(client.response().0.starts_with("HTTP/1.1 421 "));
        }
        // Without a name, the default site is no way around, with and without a certificate.
        for config in [&nobody, &known] {
            let mut client = Client::connect(&server, config, "127.0.0.1");
            for (host, status) in [
                ("closed.example", 421),
                ("asked.example", 421),
                ("open.example", 200),
            ] {
                let (head, _) = client.get(host, "/a.txt");
                assert!(
                    head.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{host}: {head}"
                );
            }
        }
        let mut client = Client::connect(&server, &known, "closed.example");
        assert_eq!(client.get("closed.example", "/a.txt").1, b"content");
        assert!(
            client
                .get("open.example", "/a.txt")
                .0
                .starts_with("HTTP/1.1 421 ")
        );
        assert!(
            client
                .get("asked.example", "/a.txt")
                .0
                .starts_with("HTTP/1.1 421 ")
        );
        assert_eq!(client.get("closed.example", "/a.txt").1, b"content");
        let status = server.status().to_string();
        assert!(status.contains("TLS: request for another site"), "{status}");
    });
}

#[test]
fn a_trusted_proxy_is_no_way_around_a_certificate() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let authority = Authority::new(&tree, "Clients CA");
        let root = tree.root();
        let text = format!(
            "[site.\"a.example\"]\nlisten = [\"http://127.0.0.1:0\", \"127.0.0.2:0\"]\nroot = {root:?}\n\
             trusted_proxies = [\"127.0.0.1\"]\n{}client_certificates = {{ ca = {:?} }}\n",
            pem.line(""),
            authority.pem
        );
        let server = Setup::run(engine, &text).listeners(2).start();
        let mut plain = server.connect();
        for (fields, status) in [("", 308), ("X-Forwarded-Proto: https\r\n", 421)] {
            plain.send(format!(
                "GET /a.txt HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n"
            ));
            assert_eq!(plain.response().status, status);
        }
    });
}

#[test]
fn a_reload_with_another_list_ends_sessions_and_open_connections() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let authority = Authority::new(&tree, "Clients CA");
        let list = tree.outside().join("clients.crl");
        fs::write(&list, authority.list(&[7])).unwrap();
        let lines = format!(
            "{}client_certificates = {{ ca = {:?}, crl = {list:?} }}\n",
            pem.line(", policy = \"intermediate\""),
            authority.pem
        );
        let server = Setup::run(engine, &site("a.example", &tree, &lines))
            .workers(2)
            .start();
        let [anna, bert, seven] = [("Anna", 1), ("Bert", 2), ("Seven", 7)]
            .map(|(name, number)| authority.issue(name, number, 10));
        let expired = authority.issue("Old", 9, -1);
        for (shown, reason) in [
            (Some(&seven), "TLS: revoked client certificate"),
            (Some(&expired), "TLS: expired client certificate"),
            (None, "TLS: no certificate from the client"),
        ] {
            assert!(is_refused(
                &server,
                &showing(&pem, shown, BOTH),
                "a.example"
            ));
            wait_until(reason, PATIENCE, || {
                server.status().to_string().contains(reason)
            });
        }
        let configs =
            |shown| [&TLS12, &TLS13].map(|version| showing(&pem, Some(shown), &[version]));
        let open = |config: &Arc<ClientConfig>| {
            let mut client = Client::connect(&server, config, "a.example");
            assert_eq!(client.get("a.example", "/a.txt").1, b"content");
            client
        };
        let (of_anna, of_bert) = (configs(&anna), configs(&bert));
        let mut annas = of_anna.each_ref().map(open);
        let mut berts = of_bert.each_ref().map(open);
        assert!(
            of_anna
                .iter()
                .chain(&of_bert)
                .all(|config| open(config).is_resumed())
        );
        fs::write(&list, authority.list(&[7, 2])).unwrap();
        let plan = server.must(&["plan"]).stdout;
        assert!(plan.contains("crl"), "{plan}");
        server.ask_must("reload");
        for client in &mut annas {
            for _ in 0..2 {
                assert_eq!(client.get("a.example", "/a.txt").1, b"content", "goes on");
            }
        }
        for client in &mut berts {
            let (head, _) = client.get("a.example", "/a.txt");
            assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
            assert!(head.contains("Connection: close\r\n"), "{head}");
        }
        for config in &of_anna {
            assert!(!open(config).is_resumed(), "verified by the new list");
            assert!(open(config).is_resumed());
        }
        assert!(
            of_bert
                .iter()
                .all(|config| is_refused(&server, config, "a.example"))
        );
        // A list that can't be read changes nothing.
        fs::write(&list, "").unwrap();
        let refused = server.control(&["reload"]);
        assert_eq!(refused.code, Some(78));
        assert!(
            refused.stderr.contains("holds no revocation list in PEM"),
            "{refused:?}"
        );
        assert!(of_anna.iter().all(|config| open(config).is_resumed()));
        assert!(
            of_bert
                .iter()
                .all(|config| is_refused(&server, config, "a.example"))
        );
    });
}

#[test]
fn a_list_that_is_replaced_on_the_disk_is_used_without_a_reload() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let authority = Authority::new(&tree, "Clients CA");
        let list = tree.outside().join("clients.crl");
        fs::write(&list, authority.list(&[7])).unwrap();
        let lines = format!(
            "{}client_certificates = {{ ca = {:?}, crl = {list:?} }}\n",
            pem.line(""),
            authority.pem
        );
        let server = Setup::run(engine, &site("a.example", &tree, &lines)).start();
        let [anna, bert] =
            [("Anna", 1), ("Bert", 2)].map(|(name, number)| authority.issue(name, number, 10));
        let [of_anna, of_bert] = [&anna, &bert].map(|shown| showing(&pem, Some(shown), BOTH));
        let [mut of_anna_open, mut of_bert_open] = [&of_anna, &of_bert].map(|config| {
            let mut client = Client::connect(&server, config, "a.example");
            assert_eq!(client.get("a.example", "/a.txt").1, b"content");
            client
        });
        // What is broken, or would let somebody in again, changes nothing.
        fs::write(&list, "").unwrap();
        let trouble = |server: &crate::support::Server| {
            server.status()["client_certificates"][0]["trouble"].to_string()
        };
        wait_until("the empty list", PATIENCE, || {
            trouble(&server).contains("holds no revocation list in PEM")
        });
        assert_eq!(of_bert_open.get("a.example", "/a.txt").1, b"content");
        fs::write(&list, authority.list(&[7, 2])).unwrap();
        wait_until("the new list", PATIENCE, || {
            is_refused(&server, &of_bert, "a.example")
        });
        assert_eq!(trouble(&server), "\"\"");
        // Connections that are open as well, at their next request.
        let (head, _) = of_bert_open.get("a.example", "/a.txt");
        assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
        for _ in 0..2 {
            assert_eq!(of_anna_open.get("a.example", "/a.txt").1, b"content");
        }
        let mut again = Client::connect(&server, &of_anna, "a.example");
        assert_eq!(again.get("a.example", "/a.txt").1, b"content");
        assert!(!again.is_resumed(), "verified by the new list");
        // Workers that come later, and the next master, know it; a reload changes nothing.
        let plan = server.must(&["plan"]).stdout;
        assert!(!plan.contains("crl"), "{plan}");
        server.ask_must("upgrade");
        assert!(is_refused(&server, &of_bert, "a.example"));
        assert!(!is_refused(&server, &of_anna, "a.example"));
        let text = server.must(&["status"]).stdout;
        assert!(
            text.contains("revocation list of CN=Clients CA: until "),
            "{text}"
        );
    });
}

#[test]
fn a_wrong_configuration_never_starts_open() {
    let tree = Tree::new();
    let pem = Pem::new(&tree, "a", &["a.example"]);
    let authority = Authority::new(&tree, "Clients CA");
    let other = Authority::new(&tree, "Other CA");
    let [list, empty] = ["clients.crl", "empty"].map(|name| tree.outside().join(name));
    fs::write(&list, authority.list(&[])).unwrap();
    fs::write(&empty, "").unwrap();
    let missing = tree.outside().join("missing.pem");
    let check = |lines: &str| {
        let file = tree.outside().join("beltway.toml");
        fs::write(
            &file,
            site("a.example", &tree, lines).replace(":0\"", ":8443\""),
        )
        .unwrap();
        let output = program().args(["check", "-c"]).arg(&file).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (tls, ca) = (pem.line(""), &authority.pem);
    for (keys, expected) in [
        (format!("ca = {missing:?}"), "doesn't exist"),
        (format!("ca = {empty:?}"), "holds no certificate in PEM"),
        (format!("ca = {list:?}"), "holds no certificate in PEM"),
        (
            format!("ca = [{ca:?}, {:?}]", pem.key),
            "holds no certificate in PEM",
        ),
        ("ca = []".to_owned(), "`ca` needs a file name"),
        (format!("ca = {ca:?}, crl = {missing:?}"), "doesn't exist"),
        (
            format!("ca = {ca:?}, crl = {empty:?}"),
            "holds no revocation list in PEM",
        ),
        (
            format!("ca = {ca:?}, crl = {ca:?}"),
            "holds no revocation list in PEM",
        ),
        (format!("crl = {list:?}"), "`crl` says nothing without `ca`"),
        (
            "required = true".to_owned(),
            "`required` says nothing without `ca`",
        ),
        (String::new(), "`client_certificates` says nothing"),
        (
            format!("ca = {ca:?}, subject = \"Host\""),
            "`Host` can't be such a field",
        ),
        (
            format!("ca = {ca:?}, subject = \"X-Forwarded-For\""),
            "can't be such a field",
        ),
        (
            format!("ca = {ca:?}, subject = \"a b\""),
            "can't be such a field",
        ),
        (
            format!("ca = {ca:?}, subject = \"X_A\""),
            "can't be such a field",
        ),
        (
            format!("ca = {ca:?}, subject = \"X-A\", issuer = \"x-a\""),
            "named twice",
        ),
        (
            format!("ca = {ca:?}, name = \"X-A\""),
            "there is no key `name`",
        ),
    ] {
        let (code, text) = check(&format!("{tls}client_certificates = {{ {keys} }}\n"));
        assert_eq!(code, Some(78), "{keys}: {text}");
        assert!(
            text.contains(expected) && text.contains("help: "),
            "{keys}: {text}"
        );
    }
    for without in ["", "tls = false\n"] {
        let (code, text) = check(&format!(
            "{without}client_certificates = {{ ca = {ca:?} }}\n"
        ));
        assert!(
            code == Some(78) && text.contains("come by TLS alone"),
            "{text}"
        );
    }
    let both = format!("ca = [{ca:?}, {:?}], crl = {list:?}", other.pem);
    let (code, text) = check(&format!("{tls}client_certificates = {{ {both} }}\n"));
    assert!(
        code == Some(0) && text.contains("authority `Other CA`"),
        "{text}"
    );
}

#[test]
fn openssl_as_a_client_agrees() {
    let found = Command::new("openssl").arg("version").output();
    if found.is_err() {
        crate::support::skipped("openssl is not installed");
        return;
    }
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let authority = Authority::new(&tree, "Clients CA");
        let lines = format!(
            "{}client_certificates = {{ ca = {:?} }}\n",
            pem.line(", policy = \"intermediate\""),
            authority.pem
        );
        let server = Setup::run(engine, &site("a.example", &tree, &lines)).start();
        let shown = authority.issue("Anna", 1, 10);
        let [cert, key] = ["anna.pem", "anna.key"].map(|name| tree.outside().join(name));
        fs::write(&cert, &shown.pem).unwrap();
        fs::write(&key, &shown.key).unwrap();
        let [cert, key] = [&cert, &key].map(|path| path.to_str().unwrap());
        for version in ["-tls1_2", "-tls1_3"] {
            let ask = |more: &[&str]| s_client(tcp(server.address()), &pem.cert, more);
            let output = ask(&[version, "-cert", cert, "-key", key]);
            assert!(output.contains("HTTP/1.1 200 OK"), "{output}");
            assert!(output.contains("CN=Clients CA") || output.contains("CN = Clients CA"));
            assert!(!ask(&[version]).contains("HTTP/1.1"), "none");
            let server_key = pem.key.to_str().unwrap();
            let own = pem.cert.to_str().unwrap();
            let output = ask(&[version, "-cert", own, "-key", server_key]);
            assert!(!output.contains("HTTP/1.1"), "self-made");
        }
    });
}
