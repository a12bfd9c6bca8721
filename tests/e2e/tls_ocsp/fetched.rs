//! Authorities that are asked while the server runs: what they say reaches clients, and goes on where the
//! server does; who doesn't answer, or answers nonsense, harms nobody.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rcgen::CustomExtension;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::has_openssl;
use crate::support::{Server, Setup, Tree, on_both, wait_for, wait_until};
use crate::tls::tcp;

/// Longer than a responder may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// An authority with a responder that does what the path of a question says.
struct Authority {
    own: super::Authority,
    address: SocketAddr,
    /// How often each path was asked.
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Authority {
    fn new(tree: &Tree) -> Self {
        let own = super::Authority::new(tree);
        let directory = own.directory.clone();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::default();
        let this = Self {
            own,
            address,
            asked: Arc::clone(&asked),
        };
        thread::spawn(move || {
            // Those that are kept waiting.
            let mut held = Vec::new();
            for socket in listener.incoming().map_while(Result::ok) {
                held.extend(answer(socket, &directory, &asked));
            }
        });
        this
    }

    /// A certificate whose responder is asked by this path, in files of this name.
    fn issue(&self, name: &str, serial: u64, path: Option<&str>) {
        let url = path.map(|path| format!("http://{}/{path}", self.address));
        let extensions = url.iter().map(|url| names_responder(url)).collect();
        self.own.issue((name, serial), extensions);
    }

    fn site(&self, name: &str) -> String {
        let file = |kind: &str| self.own.path(&format!("{name}.{kind}"));
        format!(
            "[site.\"{name}.example\"]\nlisten = [\"127.0.0.1:0\"]\nrespond = 204\n\
             tls = {{ cert = {:?}, key = {:?}, ocsp = true }}\n",
            file("pem"),
            file("key")
        )
    }

    fn asked(&self, path: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.get(path).copied().unwrap_or_default()
    }

    /// What a client is told that asks for this name.
    fn told(&self, server: &Server, name: &str) -> String {
        let output = Command::new("openssl")
            .args(["s_client", "-status", "-connect"])
            .arg(tcp(server.address()).to_string())
            .args(["-servername", &format!("{name}.example"), "-CAfile"])
            .arg(self.own.path("ca.pem"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether a client is told that the certificate with this number is good.
    fn is_good(&self, server: &Server, name: &str, serial: &str) -> bool {
        let told = self.told(server, name);
        told.contains("Cert Status: good") && told.contains(&format!("Serial Number: {serial}"))
    }
}

fn names_responder(url: &str) -> CustomExtension {
    let element = |tag: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 0x80);
        [&[tag, length], content].concat()
    };
    // id-ad-ocsp, and a URL.
    let method = element(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
    let access = element(0x30, &[method, element(0x86, url.as_bytes())].concat());
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], element(0x30, &access))
}

/// Answers one question as its path says. Gives the connection back where that is not at all.
fn answer(
    mut socket: TcpStream,
    directory: &Path,
    asked: &Mutex<BTreeMap<String, usize>>,
) -> Option<TcpStream> {
    let mut got = Vec::new();
    let (head, request) = loop {
        let mut part = [0; 4096];
        let bytes = socket.read(&mut part).ok().filter(|bytes| *bytes > 0)?;
        got.extend_from_slice(&part[..bytes]);
        let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&got[..end]).into_owned();
        let length = head.split("Content-Length: ").nth(1)?;
        let length: usize = length.split("\r\n").next()?.parse().ok()?;
        if got.len() >= end + 4 + length {
            break (head, got.split_off(end + 4));
        }
    };
    let path = head.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let times = {
        let mut asked = asked.lock().unwrap();
        let times = asked.entry(path.clone()).or_default();
        *times += 1;
        *times
    };
    let content = match &*path {
        "hang" => return Some(socket),
        // Down at first.
        "later" if times == 1 => return None,
        "garbage" => b"<html>no</html>".to_vec(),
        "flood" => vec![b'x'; 200_000],
        "revoked" => says(directory, &request, false),
        "other" => {
            // About whatever the first question was about that could be answered.
            let other = directory.join("other.request");
            says(directory, &fs::read(other).unwrap(), true)
        }
        _ => says(directory, &request, true),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        content.len()
    );
    let _ = socket.write_all(&[head.as_bytes(), &content].concat());
    None
}

/// What OpenSSL says to a question.
fn says(directory: &Path, request: &[u8], is_good: bool) -> Vec<u8> {
    // One at a time asks.
    let lines = (1..10).map(|serial| match is_good {
        true => format!("V\t350101000000Z\t\t0{serial}\tunknown\t/CN=a{serial}\n"),
        false => format!("R\t350101000000Z\t240101000000Z\t0{serial}\tunknown\t/CN=a{serial}\n"),
    });
    fs::write(directory.join("index.txt"), lines.collect::<String>()).unwrap();
    fs::write(directory.join("request"), request).unwrap();
    let output = Command::new("openssl")
        .current_dir(directory)
        .args([
            "ocsp",
            "-index",
            "index.txt",
            "-CA",
            "ca.pem",
            "-rsigner",
            "ca.pem",
        ])
        .args([
            "-rkey", "ca.key", "-reqin", "request", "-respout", "response",
        ])
        .args(["-ndays", "5"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::read(directory.join("response")).unwrap()
}

/// What is said of the certificate for a name.
fn ocsp(server: &Server, name: &str) -> Value {
    let status = server.status();
    let all = status["certificates"].as_array().unwrap();
    let site = format!("{name}.example");
    let one = all.iter().find(|one| one["sites"][0] == *site).unwrap();
    one["ocsp"].clone()
}

#[test]
fn what_an_authority_says_is_stapled_and_goes_on() {
    if !has_openssl() {
        return;
    }
    on_both(|engine| {
        let tree = Tree::new();
        let authority = Authority::new(&tree);
        authority.issue("a", 1, Some("good"));
        let config = format!("[server]\nprocesses = 2\n{}", authority.site("a"));
        let server = Setup::run(engine, &config).workers(1).start();
        let is_good = |serial: &str| authority.is_good(&server, "a", serial);
        wait_until("a staple", PATIENCE, || is_good("01"));
        let everywhere = |what: &str| {
            // Every process, and each time.
            assert!((0..6).all(|_| is_good("01")), "{what}");
        };
        let wait_for_all = || {
            wait_until("both processes", PATIENCE, || (0..6).all(|_| is_good("01")));
        };
        wait_for_all();
        let said = ocsp(&server, "a");
        assert_eq!(
            (&said["state"], &said["trouble"]),
            (&"stapled".into(), &"".into())
        );
        let fetched = said["fetched"].as_str().unwrap().to_owned();
        assert!(said["until"].as_str().unwrap() > &*fetched);
        let list = server.control(&["cert", "list"]);
        assert!(
            list.stdout.contains("ocsp     stapled, good until 20"),
            "{list:?}"
        );
        server.ask_must("reload");
        everywhere("after a reload");
        // Another one that needs new workers.
        let more = config.replace("[server]\n", "[server]\nmax_conns = 500\n");
        server.write_config(&more);
        server.ask_must("reload");
        everywhere("after a reload with new workers");
        let before = server.workers("serving");
        let victim = Pid::from_raw(before[0].try_into().unwrap()).unwrap();
        kill_process(victim, Signal::KILL).unwrap();
        wait_until("a respawn", PATIENCE, || {
            let now = server.workers("serving");
            now.len() == 2 && !now.contains(&before[0])
        });
        everywhere("after the death of a worker");
        server.ask_must("upgrade");
        everywhere("after an upgrade");
        assert_eq!(
            ocsp(&server, "a")["fetched"],
            *fetched,
            "nobody has asked again"
        );
        assert_eq!(authority.asked("good"), 1);
        // Another certificate takes its place, and the master after the upgrade asks.
        authority.issue("a", 2, Some("good"));
        wait_until("a new staple", PATIENCE, || (0..6).all(|_| is_good("02")));
        assert_eq!(authority.asked("good"), 2);
    });
}

#[test]
fn who_gives_no_answer_harms_nobody_and_is_asked_again() {
    if !has_openssl() {
        return;
    }
    on_both(|engine| {
        let tree = Tree::new();
        let authority = Authority::new(&tree);
        let names = [
            "hang", "garbage", "flood", "other", "revoked", "later", "good",
        ];
        for (serial, name) in (1..).zip(names) {
            authority.issue(name, serial, Some(name));
        }
        authority.issue("silent", 9, None);
        // A question about another certificate, to be answered in the place of each.
        let made = Command::new("openssl")
            .current_dir(&authority.own.directory)
            .args([
                "ocsp",
                "-issuer",
                "ca.pem",
                "-cert",
                "good.pem",
                "-no_nonce",
            ])
            .args(["-reqout", "other.request"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let all = names.iter().chain(&["silent"]);
        let config: String = all.map(|name| authority.site(name)).collect();
        let server = Setup::run(engine, &config).start();
        // Those that hang hold nobody up.
        wait_until("a staple", PATIENCE, || {
            authority.is_good(&server, "good", "07")
        });
        for (name, state, trouble) in [
            ("garbage", "none", "holds no OCSP response in DER"),
            ("flood", "none", "answered with 200000 bytes"),
            ("other", "none", "is about another certificate"),
            ("revoked", "revoked", ""),
            ("silent", "none", "it names no OCSP responder"),
            ("hang", "none", "took too long"),
        ] {
            let said = wait_for(name, PATIENCE, || {
                let said = ocsp(&server, name);
                let text = said["trouble"].as_str().unwrap().to_owned();
                (said["state"] == state && text.contains(trouble)).then_some(said)
            });
            assert_eq!(said["fetched"], "", "{said}");
            let told = authority.told(&server, name);
            assert!(
                told.contains("OCSP response: no response sent"),
                "{name}: {told}"
            );
        }
        // One that was down is asked again soon.
        wait_until("a second question", PATIENCE, || {
            authority.is_good(&server, "later", "06")
        });
        assert!(authority.asked("later") >= 2);
        let log = server.stderr();
        for words in [
            "IS REVOKED",
            "took too long; nothing is stapled",
            "names no OCSP responder",
        ] {
            assert!(log.contains(words), "{words}: {log}");
        }
        let text = server.must(&["status"]).stdout;
        assert!(
            text.contains("OCSP: REVOKED, says http://127.0.0.1:"),
            "{text}"
        );
        // A reload begins with what was said, and nothing that was refused counts.
        server.ask_must("reload");
        assert!(authority.is_good(&server, "good", "07"));
        assert_eq!(authority.asked("good"), 1);
    });
}

#[test]
fn a_file_that_is_replaced_is_stapled_without_a_reload() {
    if !has_openssl() {
        return;
    }
    on_both(|engine| {
        let tree = Tree::new();
        let authority = Authority::new(&tree);
        authority.issue("a", 1, None);
        let file = authority.own.directory.join("a.ocsp");
        let put = |name: &str| {
            let made = Command::new("openssl")
                .current_dir(&authority.own.directory)
                .args(["ocsp", "-issuer", "ca.pem", "-cert", name, "-no_nonce"])
                .args(["-reqout", "asked"])
                .output()
                .unwrap();
            assert!(made.status.success(), "{made:?}");
            let request = fs::read(authority.own.directory.join("asked")).unwrap();
            fs::write(&file, says(&authority.own.directory, &request, true)).unwrap();
        };
        put("a.pem");
        let config = authority
            .site("a")
            .replace("ocsp = true", &format!("ocsp = {file:?}"));
        let server = Setup::run(engine, &config).start();
        assert!(authority.is_good(&server, "a", "01"));
        // The next certificate, and then what is said of it.
        authority.issue("a", 2, None);
        wait_until("the next certificate", PATIENCE, || {
            let told = authority.told(&server, "a");
            told.contains("OCSP response: no response sent")
        });
        put("a.pem");
        wait_until("its statement", PATIENCE, || {
            authority.is_good(&server, "a", "02")
        });
        assert!(!server.must(&["plan"]).stdout.contains("ocsp"));
        server.ask_must("upgrade");
        assert!(authority.is_good(&server, "a", "02"));
    });
}
