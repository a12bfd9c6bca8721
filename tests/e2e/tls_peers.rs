//! TLS as clients see it that others have written, where they are installed; and as those see it that
//! mean no good: floods, slow ones, and who leaves at whichever step.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};

use crate::support::{Engine, Server, Setup, Tree, has, on_both, wait_until};
use crate::tls::{BOTH, Client, PATIENCE, Pem, site, tcp, trusting};

const NAME: &str = "a.example";
const REQUEST: &[u8] = b"GET /a.txt HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

/// What `openssl s_client` says when it is told `input`, errors included.
fn s_client(address: SocketAddr, pem: &Pem, more: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-CAfile"])
        .arg(&pem.cert)
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input);
    let output = match more.contains(&"-ign_eof") {
        true => child.wait_with_output().unwrap(),
        // Without it the end of the input would come before what was to be seen.
        false => {
            let output = child.wait_with_output();
            drop(stdin);
            output.unwrap()
        }
    };
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn named<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["-servername", NAME, "-ign_eof"], more].concat()
}

fn content() -> (Tree, Pem) {
    let tree = Tree::new();
    tree.write("a.txt", "content");
    let pem = Pem::new(&tree, "a", &[NAME]);
    (tree, pem)
}

/// A server of that content, with the policy that has both versions.
fn speaking_both(engine: Engine, workers: usize) -> (Tree, Pem, Server) {
    let (tree, pem) = content();
    let line = pem.line(", policy = \"intermediate\"");
    let setup = Setup::run(engine, &site(NAME, &tree, &line));
    let server = setup.workers(workers).start();
    (tree, pem, server)
}

#[test]
fn openssl_is_held_to_the_policy() {
    if !has("openssl") {
        return;
    }
    on_both(|engine| {
        let (tree, pem) = content();
        for (policy, has_12) in [("modern", false), ("intermediate", true)] {
            let line = pem.line(&format!(", policy = {policy:?}"));
            let server = Setup::run(engine, &site(NAME, &tree, &line)).start();
            let address = tcp(server.address());
            let ask = |more: &[&str]| s_client(address, &pem, &named(more), REQUEST);
            for (more, is_taken) in [
                (&["-tls1_3"][..], true),
                (&["-tls1_2"], has_12),
                (&["-tls1_1"], false),
                (&["-tls1"], false),
                (
                    &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
                    has_12,
                ),
                (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"], false),
                (
                    &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
                    false,
                ),
                (
                    &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
                    true,
                ),
                (&["-tls1_3", "-groups", "P-384"], true),
                (&["-tls1_3", "-groups", "P-521"], false),
                (&["-tls1_3", "-alpn", "http/1.1"], true),
                (&["-tls1_3", "-alpn", "spdy/1"], false),
            ] {
                let said = ask(more);
                assert_eq!(
                    said.contains("HTTP/1.1 200 OK"),
                    is_taken,
                    "{policy} {more:?}: {said}"
                );
            }
            assert!(ask(&[]).contains("Verify return code: 0 (ok)"));
            let said = s_client(
                address,
                &pem,
                &["-servername", "b.example", "-ign_eof"],
                REQUEST,
            );
            assert!(said.contains("unrecognized name"), "{said}");
            let status = server.status().to_string();
            // What openssl doesn't offer at all, such as TLS 1.1, isn't counted here.
            let reasons = [
                "no shared key exchange group",
                "no shared application protocol",
            ];
            let of_policy = ["no shared version", "no shared cipher"][usize::from(has_12)];
            for reason in reasons
                .into_iter()
                .chain([of_policy, "unknown server name"])
            {
                assert!(
                    status.contains(&format!("TLS: {reason}")),
                    "{reason}: {status}"
                );
            }
        }
    });
}

#[test]
fn openssl_resumes_at_every_core_and_after_a_reload() {
    if !has("openssl") {
        return;
    }
    on_both(|engine| {
        let (tree, pem, server) = speaking_both(engine, 2);
        let address = tcp(server.address());
        for version in ["-tls1_3", "-tls1_2"] {
            let session = tree.outside().join(format!("session{version}"));
            let session = session.to_str().unwrap();
            let ask = |how| s_client(address, &pem, &named(&[version, how, session]), REQUEST);
            assert!(ask("-sess_out").contains("\nNew, TLSv1."));
            let resumed = || {
                let said = ask("-sess_in");
                assert!(said.contains("HTTP/1.1 200 OK"), "{said}");
                said.contains("\nReused, TLSv1.")
            };
            assert!((0..4).all(|_| resumed()), "{version}");
            server.ask_must("reload");
            assert!((0..4).all(|_| resumed()), "{version}, after the reload");
        }
    });
}

#[test]
fn there_is_no_renegotiation_and_no_compression() {
    if !has("openssl") {
        return;
    }
    on_both(|engine| {
        let (_tree, pem, server) = speaking_both(engine, 1);
        let address = tcp(server.address());
        // A line that is but an R is a command.
        let said = s_client(address, &pem, &["-servername", NAME, "-tls1_2"], b"R\n");
        assert!(said.contains("Secure Renegotiation IS supported"), "{said}");
        assert!(said.contains("Compression: NONE"), "{said}");
        assert!(said.contains("RENEGOTIATING"), "{said}");
        assert!(said.contains("no renegotiation"), "{said}");
        let mut client = Client::connect(&server, &trusting(&[&pem], BOTH), NAME);
        assert_eq!(client.get(NAME, "/a.txt").1, b"content");
    });
}

#[test]
fn curl_is_led_to_https_and_told_to_stay() {
    if !has("curl") {
        return;
    }
    on_both(|engine| {
        let (tree, pem) = content();
        let config = format!(
            "[site.\"{NAME}\"]\nlisten = [\"http://127.0.0.1:0\", \"127.0.0.2:0\"]\nroot = {:?}\n{}",
            tree.root(),
            pem.line(", hsts = \"365d\"")
        );
        let server = Setup::run(engine, &config).listeners(2).start();
        let [http, https] = [0, 1].map(|at| tcp(&server.addresses()[at]));
        let output = Command::new("curl")
            .args(["-sSL", "-D", "-", "--noproxy", "*", "--cacert"])
            .arg(&pem.cert)
            .args([http, https].iter().flat_map(|address| {
                let known = format!("{NAME}:{}:{}", address.port(), address.ip());
                ["--resolve".to_owned(), known]
            }))
            .arg(format!("http://{NAME}:{}/a.txt", http.port()))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let (redirect, answer) = said.split_once("\r\n\r\n").unwrap();
        assert!(redirect.starts_with("HTTP/1.1 308 "), "{said}");
        assert!(!redirect.contains("Strict-Transport-Security"), "{said}");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(
            answer.contains("Strict-Transport-Security: max-age=31536000\r\n"),
            "{said}"
        );
        assert!(answer.ends_with("\r\n\r\ncontent"), "{said}");
    });
}

#[test]
fn sslscan_finds_nothing_weak() {
    if !has("sslscan") {
        return;
    }
    on_both(|engine| {
        let (tree, pem) = content();
        for (policy, of_12) in [("modern", "disabled"), ("intermediate", "enabled")] {
            let line = pem.line(&format!(", policy = {policy:?}"));
            let server = Setup::run(engine, &site(NAME, &tree, &line)).start();
            // Its list of groups waits for messages in records of their own, three seconds for each.
            let output = Command::new("sslscan")
                .args(["--no-colour", "--no-groups", &format!("--sni-name={NAME}")])
                .arg(tcp(server.address()).to_string())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let state = |version: &str| {
                let mut lines = said.lines().map(|line| line.split_whitespace());
                lines.find_map(|mut words| (words.next() == Some(version)).then(|| words.next())?)
            };
            for version in ["SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"] {
                assert_eq!(state(version), Some("disabled"), "{said}");
            }
            assert_eq!(state("TLSv1.2"), Some(of_12), "{said}");
            assert_eq!(state("TLSv1.3"), Some("enabled"), "{said}");
            let is_suite =
                |line: &&str| line.starts_with("Accepted") || line.starts_with("Preferred");
            let suites: Vec<&str> = said.lines().filter(is_suite).collect();
            assert!(suites.len() >= 3, "{said}");
            let is_strong = |suite: &&str| suite.contains("GCM") || suite.contains("CHACHA20");
            assert!(suites.iter().all(is_strong), "{said}");
            assert!(
                said.contains("Session renegotiation not supported"),
                "{said}"
            );
            assert!(
                !said.replace("not vulnerable", "").contains("vulnerable"),
                "{said}"
            );
        }
    });
}

/// What takes a moment each; with `TESTSSL=all` in the environment every known vulnerability (`-U`), which
/// takes twenty seconds.
#[test]
fn testssl_finds_nothing_weak() {
    let Some(program) = ["testssl", "testssl.sh"].into_iter().find(|name| has(name)) else {
        return;
    };
    let (tree, pem) = content();
    let line = pem.line(", policy = \"intermediate\", default = true");
    let server = Setup::run(Engine::Epoll, &site(NAME, &tree, &line)).start();
    let asked: &[&str] = match std::env::var_os("TESTSSL") {
        Some(_) => &["-p", "-s", "-U"],
        None => &["-p", "-H", "-I", "-R", "-C"],
    };
    let output = Command::new(program)
        .args(["--quiet", "--color", "0", "--warnings", "off"])
        .args(asked)
        .arg(tcp(server.address()).to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("TLS 1.3    offered (OK)"), "{said}");
    assert!(
        said.contains("Heartbleed (CVE-2014-0160)                not vulnerable"),
        "{said}"
    );
    for weakness in ["NOT ok", "VULNERABLE", "potentially", "WARN"] {
        assert!(!said.contains(weakness), "{said}");
    }
}

/// A ClientHello for the site.
fn hello(config: &Arc<ClientConfig>) -> (ClientConnection, Vec<u8>) {
    let name = ServerName::try_from(NAME).unwrap();
    let mut tls = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    (tls, bytes)
}

fn socket(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(tcp(server.addresses().last().unwrap())).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A site with RSA, whose signatures cost the most: at a plain port that believes in a proxy, and under
/// TLS.
fn costly(tree: &Tree) -> (Pem, String) {
    tree.write("a.txt", "content");
    let pem = Pem::of(tree, "a", &[NAME], &rcgen::PKCS_RSA_SHA256);
    let config = format!(
        "[site.\"{NAME}\"]\nlisten = [\"http://127.0.0.1:0\", \"127.0.0.2:0\"]\nroot = {:?}\n\
         trusted_proxies = [\"127.0.0.1\"]\n{}",
        tree.root(),
        pem.line("")
    );
    (pem, config)
}

#[test]
fn a_flood_of_handshakes_keeps_nobody_out() {
    /// Connections that each attacker has at a time.
    const HELD: usize = 200;
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, config) = costly(&tree);
        let server = Setup::run(engine, &config).listeners(2).workers(1).start();
        let config = trusting(&[&pem], BOTH);
        let (_, hello) = hello(&config);
        let https = &server.addresses()[1];
        let (stop, floods) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut held = std::collections::VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    let mut socket = socket(&server);
                    let _ = socket.write_all(&hello);
                    held.push_back(socket);
                    if held.len() > HELD {
                        held.pop_front();
                        floods.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let mut plain = server.connect();
            let (mut answered, mut secured) = (0, 0);
            // As long as the flood needs to be one.
            while answered < 50 || secured == 0 || floods.load(Ordering::Relaxed) < 2 * HELD {
                plain.send(
                    "GET /a.txt HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Proto: https\r\n\r\n",
                );
                assert_eq!(plain.response().text(), "content");
                answered += 1;
                // It may be refused, as anybody beyond the line.
                if secured == 0
                    && let Ok(mut client) = Client::try_connect(https, &config, NAME)
                {
                    assert_eq!(client.get(NAME, "/a.txt").1, b"content");
                    secured += 1;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        wait_until("the line has room", PATIENCE, || {
            let client = Client::try_connect(https, &config, NAME);
            client.is_ok_and(|mut client| client.get(NAME, "/a.txt").1 == b"content")
        });
    });
}

#[test]
fn a_line_that_is_full_refuses_and_all_others_are_served() {
    const TOGETHER: usize = 600;
    /// Places in the line of a core.
    const LINE: usize = 256;
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, config) = costly(&tree);
        let server = Setup::run(engine, &config).listeners(2).workers(1).start();
        let (_, hello) = hello(&trusting(&[&pem], BOTH));
        let mut sockets: Vec<TcpStream> = (0..TOGETHER).map(|_| socket(&server)).collect();
        for socket in &mut sockets {
            socket.write_all(&hello).unwrap();
        }
        let (mut served, mut refused) = (0, 0);
        for socket in &mut sockets {
            let mut head = [0; 7];
            socket.read_exact(&mut head).unwrap();
            match head {
                [22, 3, 3, ..] => served += 1,
                // Fatal, user_canceled (RFC 8446 §6.1).
                [21, 3, 3, 0, 2, 2, 90] => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(
            served >= LINE && served + refused == TOGETHER,
            "{served} {refused}"
        );
        let status = server.status();
        let told = status
            .pointer("/limits/TLS: handshakes under way")
            .and_then(serde_json::Value::as_u64);
        assert_eq!(told.unwrap_or(0), refused as u64, "{status}");
    });
}

#[test]
fn slow_handshakes_end_in_time_and_hold_up_nobody() {
    const SLOW: usize = 700;
    on_both(|engine| {
        let (tree, pem) = content();
        let timeouts = "[server]\ntimeouts = { handshake = \"5s\" }\n";
        let config = format!("{timeouts}{}", site(NAME, &tree, &pem.line("")));
        let server = Setup::run(engine, &config).workers(1).start();
        let config = trusting(&[&pem], BOTH);
        let (_, hello) = hello(&config);
        // Nothing, less and less of a ClientHello, and all of it with nothing behind.
        let sockets: Vec<TcpStream> = (0..SLOW)
            .map(|at| {
                let mut socket = socket(&server);
                let part = at * hello.len() / (SLOW - 100);
                socket.write_all(&hello[..part.min(hello.len())]).unwrap();
                socket
            })
            .collect();
        let mut client = Client::connect(&server, &config, NAME);
        assert_eq!(client.get(NAME, "/a.txt").1, b"content");
        for mut socket in sockets {
            // What comes before the end is an answer to a whole hello, or an alert.
            let _ = socket.read_to_end(&mut Vec::new());
        }
        assert_eq!(client.get(NAME, "/a.txt").1, b"content");
        let status = server.status();
        let told = status
            .pointer("/limits/TLS: time to a whole handshake")
            .and_then(serde_json::Value::as_u64);
        assert_eq!(told, Some(SLOW as u64), "{status}");
    });
}

/// Lets a handshake go on until this many bytes have been sent, then goes.
fn leave_after(server: &Server, config: &Arc<ClientConfig>, bytes: usize) -> io::Result<bool> {
    let (mut tls, hello) = hello(config);
    let mut socket = socket(server);
    let mut sent = 0;
    let mut outgoing = hello;
    loop {
        let part = outgoing.len().min(bytes - sent);
        socket.write_all(&outgoing[..part])?;
        sent += part;
        if sent == bytes {
            return Ok(false);
        }
        if !tls.is_handshaking() {
            return Ok(true);
        }
        outgoing.clear();
        while tls.is_handshaking() && !tls.wants_write() {
            if tls.read_tls(&mut socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            tls.process_new_packets().map_err(io::Error::other)?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut outgoing)?;
        }
    }
}

#[test]
fn who_leaves_at_whichever_byte_harms_nobody() {
    on_both(|engine| {
        let (_tree, pem, server) = speaking_both(engine, 1);
        for version in [&TLS12, &TLS13] {
            let config = trusting(&[&pem], &[version]);
            let (_, hello) = hello(&config);
            // The bytes behind the hello one by one, up to the end of the handshake.
            for bytes in hello.len().. {
                if leave_after(&server, &config, bytes).unwrap() {
                    assert!(bytes > hello.len() + 50, "{bytes}");
                    break;
                }
            }
            let mut client = Client::connect(&server, &config, NAME);
            assert_eq!(client.get(NAME, "/a.txt").1, b"content");
        }
        wait_until("all have gone", PATIENCE, || server.open_connections() == 0);
        let status = server.status().to_string();
        assert!(
            status.contains("TLS: client left within the handshake"),
            "{status}"
        );
    });
}

/// A socket that sends every byte for itself, and takes them so.
struct ByteByByte(TcpStream);

impl Read for ByteByByte {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(&mut buffer[..1])
    }
}

impl Write for ByteByByte {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn records_may_come_byte_by_byte_and_in_messages_of_any_size() {
    on_both(|engine| {
        let (_tree, pem, server) = speaking_both(engine, 1);
        for version in [&TLS12, &TLS13] {
            let mut config = ClientConfig::clone(&trusting(&[&pem], &[version]));
            // The least that rustls makes.
            config.max_fragment_size = Some(32);
            let (mut tls, hello) = hello(&Arc::new(config));
            let mut socket = ByteByByte(socket(&server));
            socket.0.set_nodelay(true).unwrap();
            socket.write_all(&hello).unwrap();
            while tls.wants_write() {
                tls.write_tls(&mut socket).unwrap();
            }
            let mut stream = rustls::StreamOwned::new(tls, socket);
            stream.write_all(REQUEST).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("\r\n\r\ncontent"), "{answer}");
        }
    });
}

#[test]
fn a_hello_without_measure_is_refused() {
    on_both(|engine| {
        let (tree, pem) = content();
        let server = Setup::run(engine, &site(NAME, &tree, &pem.line("")))
            .workers(1)
            .start();
        // A ClientHello that says that it has 16 MiB, in whole records.
        let mut record = vec![22, 3, 1, 0x40, 0];
        record.extend([1, 0xff, 0xff, 0xff, 3, 3]);
        record.resize(5 + (16 << 10), 0);
        let mut socket = socket(&server);
        let _ = (0..64).try_for_each(|_| socket.write_all(&record));
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        // Fatal, decode_error (RFC 8446 §6.2), if it came before what was on its way was refused.
        assert!(
            answer.is_empty() || answer == [21, 3, 3, 0, 2, 2, 50],
            "{answer:?}"
        );
        let status = server.status().to_string();
        assert!(
            status.contains("TLS: malformed ClientHello") || status.contains("TLS: too much"),
            "{status}"
        );
        let mut client = Client::connect(&server, &trusting(&[&pem], BOTH), NAME);
        assert_eq!(client.get(NAME, "/a.txt").1, b"content");
    });
}
