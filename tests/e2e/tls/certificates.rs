//! Certificates as an administrator has them: made by this machine, and files that are replaced.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::{BOTH, Client, PATIENCE, Pem, site, trusting, trusting_der};
use crate::support::server::{Address, output, program};
use crate::support::{Engine, Server, Setup, Tree, on_both, wait_for, wait_until};

/// Where the local authority of a test is kept.
const STATE: &str = "STATE_DIRECTORY";

fn with_state(setup: Setup, tree: &Tree) -> Setup {
    let state = tree.outside().join("state");
    setup.environment(STATE, state.to_str().unwrap())
}

/// What `beltway cert` says to this.
fn cert(tree: &Tree, arguments: &[&str]) -> String {
    let state = tree.outside().join("state");
    let mut command = program();
    command.arg("cert").args(arguments).env(STATE, state);
    output(&mut command).stdout
}

/// A client that trusts what `cert trust` says.
fn trusting_authority(tree: &Tree) -> Arc<ClientConfig> {
    let pem = cert(tree, &["trust", "--pem"]);
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    trusting_der(&[der], BOTH)
}

fn certificate(address: &Address, config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let client = Client::connect_to(address, config, name);
    client.certificate().to_vec()
}

fn certificates(server: &Server) -> Vec<Value> {
    let status = server.status();
    status["certificates"].as_array().unwrap().clone()
}

#[test]
fn a_one_liner_has_a_certificate_that_clients_can_trust() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let start = || {
            let setup = Setup::serve(engine, tree.root()).arguments(&["--tls=self-signed"]);
            with_state(setup, &tree).start()
        };
        let server = start();
        let log = server.stderr();
        assert!(log.contains("listening on https://127.0.0.1:"), "{log}");
        assert!(log.contains("beltway cert trust"), "{log}");
        let config = trusting_authority(&tree);
        for name in ["localhost", "127.0.0.1"] {
            let mut client = Client::connect(&server, &config, name);
            assert_eq!(client.get(name, "/a.txt").1, b"content");
        }
        let directory = tree.outside().join("state/local-ca");
        for (path, mode) in [(&directory, 0o700), (&directory.join("ca.key"), 0o600)] {
            let found = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{}", path.display());
        }
        drop(server);
        // Who trusts it once need not do it again.
        let again = start();
        Client::connect(&again, &config, "localhost");
        // What others could have read is used by nobody.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let setup = Setup::serve(engine, tree.root()).arguments(&["--tls=self-signed"]);
        let refused = with_state(setup, &tree).fail();
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.stderr.contains("is open to other users"),
            "{refused:?}"
        );
    });
}

#[test]
fn certificates_of_this_machine_go_on_through_reload_upgrade_and_respawn() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let tls = "tls = { self_signed = true, policy = \"intermediate\", hsts = \"1d\" }\n";
        let a = |more: &str| site("a.example", &tree, &format!("{tls}{more}"));
        let setup = Setup::run(engine, &a("aliases = [\"*.a.example\"]\n"));
        let server = with_state(setup, &tree).start();
        let config = trusting_authority(&tree);
        let of = |name: &str| certificate(server.address(), &config, name);
        let first = of("a.example");
        assert_eq!(of("x.a.example"), first);
        let mut client = Client::connect(&server, &config, "a.example");
        let (head, content) = client.get("a.example", "/a.txt");
        assert!(
            head.contains("Strict-Transport-Security: max-age=86400\r\n"),
            "{head}"
        );
        assert_eq!(content, b"content");
        let all = certificates(&server);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0]["self_signed"], true);
        assert_eq!(
            all[0]["names"],
            serde_json::json!(["a.example", "*.a.example"])
        );
        assert!((390..=397).contains(&all[0]["days_left"].as_i64().unwrap()));
        let status = server.must(&["status"]).stdout;
        for expected in [
            "https://127.0.0.1:",
            "a.example, *.a.example: 39",
            "    TLS       ",
        ] {
            assert!(status.contains(expected), "{expected}: {status}");
        }
        server.ask_must("reload");
        assert_eq!(of("a.example"), first, "nothing about it has changed");
        server.ask_must("upgrade");
        assert_eq!(of("a.example"), first);
        let worker = server.worker();
        let pid = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        wait_until("another worker serves", PATIENCE, || {
            let workers = server.workers("serving");
            !workers.is_empty() && !workers.contains(&worker)
        });
        assert_eq!(of("a.example"), first);
        // Another name is another certificate, of the same authority.
        server.write_config(&a("aliases = [\"b.example\"]\n"));
        server.ask_must("reload");
        assert_ne!(of("b.example"), first);
        let list = cert(
            &tree,
            &["list", "-c", server.config_file().to_str().unwrap()],
        );
        for expected in [
            "made by the server",
            "a.example, b.example",
            "Beltway local CA",
        ] {
            assert!(list.contains(expected), "{expected}: {list}");
        }
    });
}

/// Moves the files of one certificate onto those of another, the key last.
fn put(from: &Pem, to: &Pem) {
    fs::rename(&from.cert, &to.cert).unwrap();
    fs::rename(&from.key, &to.key).unwrap();
}

#[test]
fn files_that_are_replaced_are_used_for_the_next_handshake() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let next = Pem::new(&tree, "next", &["a.example"]);
        let last = Pem::new(&tree, "last", &["a.example"]);
        let config = trusting(&[&pem, &next, &last], BOTH);
        let (first, second) = (pem.der(), next.der());
        let third = last.der();
        let text = site("a.example", &tree, &pem.line(""));
        let text = format!("[server]\nprocesses = 2\n{text}");
        let server = Setup::run(engine, &text).workers(2).start();
        let address = server.address();
        let uses = |expected: &CertificateDer<'_>| {
            // Each core of each process.
            let sees = || certificate(address, &config, "a.example") == expected.to_vec();
            (0..16).all(|_| sees())
        };
        assert!(uses(&first));
        let mut open = Client::connect(&server, &config, "a.example");
        assert_eq!(open.get("a.example", "/a.txt").1, b"content");
        let workers = server.workers("serving");
        put(&next, &pem);
        wait_until("the second one is used", PATIENCE, || uses(&second));
        assert_eq!(server.workers("serving"), workers);
        assert_eq!(open.get("a.example", "/a.txt").1, b"content", "it goes on");
        // Those that are started later have it, too, and so has the next master.
        let pid = rustix::process::Pid::from_raw(workers[0].cast_signed()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        wait_until("another worker serves", PATIENCE, || {
            let now = server.workers("serving");
            now.len() == 2 && !now.contains(&workers[0])
        });
        assert!(uses(&second));
        server.ask_must("upgrade");
        assert!(uses(&second));
        put(&last, &pem);
        wait_until("the third one is used", PATIENCE, || uses(&third));
        assert!(server.stderr().contains("a certificate was replaced"));
    });
}

#[test]
fn files_that_do_not_fit_wait_for_each_other() {
    on_both(|engine| {
        let tree = Tree::new();
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let next = Pem::new(&tree, "next", &["a.example"]);
        let config = trusting(&[&pem, &next], BOTH);
        let (first, second) = (pem.der(), next.der());
        let server = Setup::run(engine, &site("a.example", &tree, &pem.line(""))).start();
        let uses = || certificate(server.address(), &config, "a.example");
        fs::rename(&next.cert, &pem.cert).unwrap();
        let trouble = wait_for("it is seen", PATIENCE, || {
            let trouble = certificates(&server)[0]["trouble"]
                .as_str()
                .map(str::to_owned);
            trouble.filter(|trouble| !trouble.is_empty())
        });
        assert!(
            trouble.contains("belongs to another certificate"),
            "{trouble}"
        );
        assert_eq!(uses(), first.to_vec(), "the old ones go on");
        assert!(server.must(&["status"]).stdout.contains("NOT USED: "));
        fs::rename(&next.key, &pem.key).unwrap();
        wait_until("both are used", PATIENCE, || uses() == second.to_vec());
        let all = certificates(&server);
        assert_eq!(all[0]["trouble"], "");
        assert!(
            !server.stderr().contains("belongs to another"),
            "nobody is warned"
        );
    });
}

#[test]
fn a_server_without_a_master_takes_replaced_files() {
    on_both(|engine| {
        let tree = Tree::new();
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let next = Pem::new(&tree, "next", &["a.example"]);
        let config = trusting(&[&pem, &next], BOTH);
        let second = next.der().to_vec();
        let flag = format!("--tls={},{}", pem.cert.display(), pem.key.display());
        let setup = Setup::serve(engine, tree.root()).arguments(&[&flag]);
        let server = setup.workers(2).start();
        let uses = || certificate(server.address(), &config, "a.example");
        assert_eq!(uses(), pem.der().to_vec());
        put(&next, &pem);
        wait_until("the second one is used", PATIENCE, || {
            (0..8).all(|_| uses() == second)
        });
    });
}

#[test]
fn what_ends_soon_is_told_everywhere() {
    let tree = Tree::new();
    let pem = Pem::new(&tree, "a", &["a.example"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let at = |days: i32| {
        let day = Duration::from_secs(86_400);
        let time = if days < 0 {
            now - day * days.unsigned_abs()
        } else {
            now + day * days.unsigned_abs()
        };
        rcgen::date_time_ymd(1970, 1, 1) + time + Duration::from_secs(3600)
    };
    let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (at(-100), at(5));
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(&pem.key).unwrap()).unwrap();
    fs::write(&pem.cert, params.self_signed(&key).unwrap().pem()).unwrap();
    let config = site("a.example", &tree, &pem.line(""));
    let server = Setup::run(Engine::Epoll, &config).start();
    wait_until("the log warns", PATIENCE, || {
        let log = server.stderr();
        log.contains("ends in 5 days") && log.contains("a.pem")
    });
    assert_eq!(certificates(&server)[0]["days_left"], 5);
    assert!(server.must(&["status"]).stdout.contains("ENDS in 5 days"));
    let file = server.config_file();
    let file = file.to_str().unwrap();
    let check = output(program().args(["check", "-c", file])).stdout;
    assert!(check.contains("a.pem ends in 5 days, on "), "{check}");
    assert!(cert(&tree, &["list", "-c", file]).contains(", 5 days left"));
}

#[test]
fn certificates_of_a_configuration_are_listed() {
    let tree = Tree::new();
    let pem = Pem::new(&tree, "a", &["a.example", "b.example"]);
    let of = |name: &str, tls: &str| site(name, &tree, tls).replace("127.0.0.1:0", "127.0.0.1:1");
    let config = of("a.example", &pem.line(""))
        + &of("b.example", &pem.line(""))
        + &of("c.example", "tls = \"self-signed\"\n");
    let file = tree.outside().join("beltway.toml");
    fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    let text = cert(&tree, &["list", "-c", file]);
    assert!(text.contains("  sites    a.example, b.example\n"), "{text}");
    let json = cert(&tree, &["list", "-c", file, "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let [files, made] = [&json["certificates"][0], &json["certificates"][1]];
    assert_eq!(files["file"], pem.cert.to_str().unwrap());
    assert!(files["days_left"].as_i64().unwrap() > 1000, "{files}");
    assert_eq!(made["self_signed"], true);
    assert_eq!(made["names"], serde_json::json!(["c.example"]));
    assert!(
        !Path::new(&tree.outside().join("state")).exists(),
        "nothing was made"
    );
}

#[test]
fn plain_connections_to_a_site_of_this_machine_are_led_on() {
    use std::io::{Read as _, Write as _};
    let tree = Tree::new();
    let root = tree.root();
    let config = format!(
        "[site.\"a.example\"]\nlisten = [\"127.0.0.1:0\", \"http://[::1]:0\"]\nroot = {root:?}\n\
         tls = \"self-signed\"\n"
    );
    let setup = Setup::run(Engine::Epoll, &config).listeners(2);
    let server = with_state(setup, &tree).start();
    let address = server.addresses().iter().map(super::tcp);
    let plain = address.into_iter().find(|at| at.is_ipv6()).unwrap();
    let mut socket = TcpStream::connect(plain).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET /x HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    socket.write_all(request).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
}
