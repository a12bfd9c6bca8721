//! New keys in the middle of everything (RFC 8446 §4.6.3): clients go on with others, and want others of
//! the server. Without the kernel, which can't be given new ones; what happens then is tested in `tests/emulated`.

use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;

use super::*;
use crate::support::records::{
    DATA, DECODE_ERROR, HANDSHAKE, ILLEGAL_PARAMETER, Records, UNEXPECTED_MESSAGE, key_update,
};

const NAME: &str = "a.example";

/// Trusts a certificate, and speaks one version by one cipher suite.
pub(super) fn by_suite(
    pem: &Pem,
    version: &'static SupportedProtocolVersion,
    suite: CipherSuite,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(pem.der()).unwrap();
    let all = rustls::crypto::aws_lc_rs::default_provider();
    let suites = all.cipher_suites.iter().filter(|it| it.suite() == suite);
    let provider = CryptoProvider {
        cipher_suites: suites.copied().collect(),
        ..all
    };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

pub(super) const SUITES: [(&SupportedProtocolVersion, CipherSuite); 6] = [
    (&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256),
    (&TLS13, CipherSuite::TLS13_AES_256_GCM_SHA384),
    (&TLS13, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        &TLS12,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// A server with a small file and a large one, and an echo at `/echo`; it speaks both versions.
pub(super) fn speaking(engine: Engine, timeouts: &str) -> (Tree, Pem, Server, Vec<u8>) {
    let tree = Tree::new();
    let large = noise(6 << 20);
    tree.write("a.txt", "content");
    tree.write("large.bin", &large);
    let pem = Pem::new(&tree, "a", &[NAME]);
    let (root, to) = (tree.root(), echoing());
    let config = format!(
        "[server]\nktls = \"off\"\n{timeouts}\
         [site.\"{NAME}\"]\nlisten = [\"127.0.0.1:0\"]\n{}\
         routes = {{ \"/echo\" = {{ proxy = \"http://{to}\" }}, \"/*\" = {{ root = {root:?} }} }}\n",
        pem.line(", policy = \"intermediate\"")
    );
    let server = Setup::run(engine, &config).workers(1).start();
    (tree, pem, server, large)
}

pub(super) fn request(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").into_bytes()
}

/// The next response is that of the small file.
pub(super) fn is_answered(client: &mut Records) {
    let (head, content) = read_response(client);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(content, b"content");
}

fn connect(pem: &Pem, server: &Server, suite: usize) -> Records {
    let (version, suite) = SUITES[suite];
    let config = by_suite(pem, version, suite);
    Records::connect(tcp(server.address()), &config, NAME)
}

#[test]
fn keys_are_renewed_at_whichever_place_of_a_request() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        for suite in 0..3 {
            let mut client = connect(&pem, &server, suite);
            for asks in [false, true] {
                let before = client.key_updates;
                let expect = |client: &Records, asked: usize| {
                    let more = client.key_updates - before;
                    let least = usize::from(asks && asked > 0);
                    let most = if asks { asked } else { 0 };
                    assert!((least..=most).contains(&more), "{more} of {asked}");
                };
                // Before a request, alone and with it.
                let renewed = client.seal_key_update(asks);
                client.send_raw(&renewed);
                client.send(&request);
                is_answered(&mut client);
                expect(&client, 1);
                let mut together = client.seal_key_update(asks);
                together.extend(client.seal(DATA, &request));
                client.send_raw(&together);
                is_answered(&mut client);
                expect(&client, 2);
                // Within one, in one piece and in two.
                for cut in (1..request.len()).step_by(7) {
                    client.send(&request[..cut]);
                    let mut rest = client.seal_key_update(asks);
                    rest.extend(client.seal(DATA, &request[cut..]));
                    client.send_raw(&rest);
                    is_answered(&mut client);
                }
                // In a batch.
                let mut batch = Vec::new();
                for _ in 0..20 {
                    batch.extend(client.seal(DATA, &request));
                    batch.extend(client.seal_key_update(asks));
                }
                client.send_raw(&batch);
                for _ in 0..20 {
                    is_answered(&mut client);
                }
                client.send(&request);
                is_answered(&mut client);
                expect(&client, 22 + request.len().div_ceil(7));
            }
            client.end();
            assert_eq!(client.rest(), (Vec::new(), Some(0)), "the end is told");
        }
    });
}

#[test]
fn keys_are_renewed_during_a_download() {
    on_both(|engine| {
        let (_tree, pem, server, large) = speaking(engine, "");
        for suite in 0..3 {
            let mut client = connect(&pem, &server, suite);
            client.send(&request("/large.bin"));
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let (mut content, mut asked) = (vec![0; large.len()], 0);
            let next = request(&format!("/a.txt?{}", "x".repeat(100)));
            for (at, part) in content.chunks_mut(100_000).enumerate() {
                // It takes part of what was sent by the keys before.
                let (asks, times) = (at % 3 != 0, 1 + at % 4);
                for _ in 0..times {
                    let renewed = client.seal_key_update(asks);
                    client.send_raw(&renewed);
                    asked += usize::from(asks);
                }
                client.read_exact(part).unwrap();
                // Else they would be too many in a row: the next request has begun.
                client.send(&next[at..=at]);
            }
            assert!(content == large);
            client.send(&next[large.len().div_ceil(100_000)..]);
            is_answered(&mut client);
            // Whether they are heard while an answer is under way, or behind it, is the server's choice.
            let renewed = client.key_updates;
            assert!((1..=asked).contains(&renewed), "{renewed} of {asked}");
        }
    });
}

#[test]
fn an_upload_may_renew_keys_with_every_byte() {
    const BYTES: usize = 3000;
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let mut client = connect(&pem, &server, 0);
        let head =
            format!("POST /echo HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {BYTES}\r\n\r\n");
        client.send(head.as_bytes());
        let body = noise(BYTES);
        // It reads nothing of what is said to it meanwhile.
        for part in body.chunks(100) {
            let mut records = Vec::new();
            for byte in part {
                records.extend(client.seal_key_update(true));
                records.extend(client.seal(DATA, &[*byte]));
            }
            client.send_raw(&records);
        }
        let (_, echoed) = read_response(&mut client);
        assert!(echoed.ends_with(&body));
        let renewed = client.key_updates;
        assert!((1..=BYTES).contains(&renewed), "{renewed}");
    });
}

#[test]
fn who_renews_keys_and_says_nothing_is_ended() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        for asks in [false, true] {
            let mut client = connect(&pem, &server, 0);
            // So many may come between two bytes, as often as they like.
            for byte in request("/a.txt") {
                let mut records = Vec::new();
                for _ in 0..32 {
                    records.extend(client.seal_key_update(asks));
                }
                records.extend(client.seal(DATA, &[byte]));
                client.send_raw(&records);
            }
            is_answered(&mut client);
            let flood: Vec<u8> = (0..33).flat_map(|_| client.seal_key_update(asks)).collect();
            client.send_raw(&flood);
            assert_eq!(client.rest(), (Vec::new(), Some(UNEXPECTED_MESSAGE)));
        }
        is_answered_to_another(&server, &pem);
    });
}

fn is_answered_to_another(server: &Server, pem: &Pem) {
    let mut client = Client::connect(server, &trusting(&[pem], BOTH), NAME);
    assert_eq!(client.get(NAME, "/a.txt").1, b"content");
}

#[test]
fn what_only_looks_like_new_keys_ends_the_connection() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let (one, two) = (key_update(false), [key_update(false); 2].concat());
        let messages: [(&str, &[u8]); 8] = [
            ("another request", &[24, 0, 0, 1, 2]),
            ("empty", &[24, 0, 0, 0]),
            ("too long", &[24, 0, 0, 2, 0, 0]),
            ("two in a record", &two),
            ("and more in a record", &[&one[..], &[4]].concat()),
            ("a Finished", &[20, 0, 0, 1, 0]),
            ("a ClientHello", &[1, 0, 0, 2, 3, 3]),
            ("a HelloRequest", &[0, 0, 0, 0]),
        ];
        for (what, message) in messages {
            let mut client = connect(&pem, &server, 0);
            let record = client.seal(HANDSHAKE, message);
            client.send_raw(&record);
            let (content, alert) = client.rest();
            assert_eq!(content, b"", "{what}");
            let expected = [UNEXPECTED_MESSAGE, DECODE_ERROR, ILLEGAL_PARAMETER];
            let alert = alert.unwrap_or_else(|| panic!("{what}: nothing is told"));
            assert!(expected.contains(&alert), "{what}: {alert}");
        }
        // Keys by which nothing was announced.
        let mut client = connect(&pem, &server, 0);
        client.renew();
        client.send(&request("/a.txt"));
        assert_eq!(client.rest(), (Vec::new(), Some(20)));
        // TLS 1.2 knows no such thing.
        for suite in 3..SUITES.len() {
            let mut client = connect(&pem, &server, suite);
            let record = client.seal(HANDSHAKE, &one);
            client.send_raw(&record);
            let (content, alert) = client.rest();
            assert_eq!((content, alert), (Vec::new(), Some(UNEXPECTED_MESSAGE)));
        }
        is_answered_to_another(&server, &pem);
    });
}

#[test]
fn a_message_about_keys_in_two_records_is_taken_or_refused() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        for cut in 1..5 {
            let mut client = connect(&pem, &server, 0);
            let message = key_update(false);
            let mut records = client.seal(HANDSHAKE, &message[..cut]);
            records.extend(client.seal(HANDSHAKE, &message[cut..]));
            client.renew();
            records.extend(client.seal(DATA, &request("/a.txt")));
            client.send_raw(&records);
            let mut first = [0; 15];
            match client.read_exact(&mut first) {
                Ok(()) => assert_eq!(&first, b"HTTP/1.1 200 OK"),
                // Never read by the keys before, as if it were content.
                Err(_) => assert_eq!(client.rest().0, b""),
            }
        }
        is_answered_to_another(&server, &pem);
    });
}

#[test]
fn openssl_renews_keys_as_it_is_told() {
    if !has("openssl") {
        return;
    }
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let mut child = Command::new("openssl")
            .args(["s_client", "-tls1_3", "-servername", NAME, "-connect"])
            .arg(tcp(server.address()).to_string())
            .arg("-CAfile")
            .arg(&pem.cert)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(std::sync::Mutex::new(String::new()));
        let listens = |mut from: Box<dyn Read + Send>| {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                let mut room = [0; 4096];
                while let Ok(length @ 1..) = from.read(&mut room) {
                    let text = String::from_utf8_lossy(&room[..length]);
                    said.lock().unwrap().push_str(&text);
                }
            })
        };
        let listeners = [
            listens(Box::new(child.stdout.take().unwrap())),
            listens(Box::new(child.stderr.take().unwrap())),
        ];
        let has_said = |what: &str, times: usize| {
            let deadline = std::time::Instant::now() + PATIENCE;
            while said.lock().unwrap().matches(what).count() < times {
                let now = std::time::Instant::now();
                assert!(now < deadline, "{what:?}: {}", said.lock().unwrap());
                thread::park_timeout(Duration::from_millis(5));
            }
        };
        let mut stdin = child.stdin.take().unwrap();
        // It takes what it reads at once for a command, if it begins like one.
        has_said("Verify return code", 1);
        for (at, command) in ["K\n", "k\n", "K\n", "k\n"].into_iter().enumerate() {
            stdin.write_all(command.as_bytes()).unwrap();
            has_said("KEYUPDATE", at + 1);
            stdin.write_all(&request("/a.txt")).unwrap();
            has_said("\r\n\r\ncontent", at + 1);
        }
        drop(stdin);
        child.wait().unwrap();
        for listener in listeners {
            listener.join().unwrap();
        }
        let said = said.lock().unwrap();
        assert!(!said.contains("alert"), "{said}");
    });
}
