//! The memory limit: whatever clients do, the worker stays within it, goes on answering those who behave,
//! tells what it gave up, and has its memory back afterwards.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Client, Engine, PATIENCE, Server, Setup, Tree, memory, on_both, wait_until};

/// The limit of these tests. The base is a fifth of it.
const LIMIT: u64 = 48 << 20;

/// What the limit may be exceeded by.
const TOLERANCE: u64 = LIMIT / 20;

/// A backend that answers every connection with this many bytes, as fast as they are taken.
fn backend(size: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let serve = move || {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
                );
                // A proxy that gives up says so by an error here.
                let block = [b'x'; 64 << 10];
                let mut left = size;
                while left > 0 {
                    let now = left.min(block.len());
                    if stream.write_all(&block[..now]).is_err() {
                        return;
                    }
                    left -= now;
                }
            };
            let _ = thread::Builder::new().stack_size(256 << 10).spawn(serve);
        }
    });
    address
}

fn server(engine: Engine, tree: &Tree, backend: SocketAddr) -> Server {
    let config = format!(
        "[server]\nmemory_limit = \"{LIMIT}B\"\n\
         [server.timeouts]\nheader = \"60s\"\n\
         [upstream.app]\nservers = [\"{backend}\"]\n\
         [site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n\
         [site.\"*\".routes]\n\"=/ok\" = {{ respond = 200, body = \"ok\" }}\n\
         \"/list/\" = {{ root = {:?}, list = true }}\n\
         \"/app\" = {{ proxy = \"app\", buffer = {{ response = \"32MiB\" }} }}\n",
        tree.root(),
        tree.root(),
    );
    Setup::run(engine, &config).start()
}

/// How often each thing was given up.
fn given_up(server: &Server, what: &str) -> u64 {
    let status = server.status();
    status["limits"][format!("memory: {what}")]
        .as_u64()
        .unwrap_or(0)
}

/// The memory of the one worker, as it tells it.
fn told(server: &Server) -> serde_json::Value {
    server.status()["generations"][0]["workers"][0]["memory"].take()
}

/// Watches the size of the worker while `attack` runs, and asks for `/ok` all the time, on a connection
/// that stays and on new ones. Gives the largest size.
fn watched(server: &Server, attack: impl FnOnce()) -> u64 {
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let worker = server.worker();
    thread::scope(|scope| {
        // Also when the attack fails, or the scope would wait for ever.
        let ending = Ending(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(memory(worker), Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(2));
            }
        });
        let client = scope.spawn(|| {
            let mut kept = server.connect();
            let request = "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n";
            while !over.load(Ordering::Relaxed) {
                // An idle one may be closed when memory is short.
                match kept.try_response_to(request) {
                    Ok(response) => assert_eq!(response.text(), "ok"),
                    Err(_) => kept = server.connect(),
                }
                assert_eq!(server.connect().get("/ok").text(), "ok");
                thread::park_timeout(Duration::from_millis(20));
            }
        });
        attack();
        drop(ending);
        client.join().expect("who behaves is answered");
    });
    most.into_inner()
}

/// Says that it is over when it is dropped.
struct Ending<'o>(&'o AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Everything is as before: memory, level, and what needs much memory is answered.
fn is_well_again(server: &Server, before: u64) {
    wait_until("memory is no longer short", PATIENCE, || {
        told(server)["level"] == "enough"
    });
    let worker = server.worker();
    let mut now = 0;
    wait_until("memory goes back to the kernel", PATIENCE, || {
        now = memory(worker);
        now < before + (LIMIT - before) / 3
    });
    let response = server.connect().get("/app");
    assert_eq!((response.status, response.body.len()), (200, SIZE));
}

/// Bytes of a response of the backend.
const SIZE: usize = 4 << 20;

/// A client that asks and reads nothing.
fn silent_reader(server: &Server, target: &str) -> Client {
    let mut client = Client::connect_with(server.address(), |socket| {
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
    });
    let _ = client.try_send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client
}

#[test]
fn readers_of_buffered_responses_that_do_not_read_are_cut_within_the_limit() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = server(engine, &tree, backend(SIZE));
        let before = memory(server.worker());
        let most = watched(&server, || {
            let clients: Vec<Client> = (0..60).map(|_| silent_reader(&server, "/app")).collect();
            wait_until("connections are cut", PATIENCE, || {
                given_up(&server, "connections cut") >= 20
            });
            let memory = told(&server);
            assert_eq!(memory["limit_bytes"], LIMIT);
            assert_eq!(memory["limit_source"], "memory_limit");
            assert!(memory["used_bytes"].as_u64().unwrap() > LIMIT / 2);
            let text = server.must(&["status"]).stdout;
            for part in ["48.0 MiB (memory_limit)", "requests ", "connections cut ×"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            drop(clients);
        });
        assert!(most <= LIMIT + TOLERANCE, "{most}");
        assert!(most > LIMIT / 2, "{most}: that was no attack");
        assert!(server.stderr().contains("MEMORY IS SHORT"));
        is_well_again(&server, before);
    });
}

#[test]
fn listings_that_nobody_reads_stay_within_the_limit() {
    on_both(|engine| {
        let tree = Tree::new();
        for index in 0..6000 {
            tree.write(&format!("list/{index}{}", "n".repeat(200)), "");
        }
        let server = server(engine, &tree, backend(SIZE));
        let before = memory(server.worker());
        let most = watched(&server, || {
            // Three megabytes each: more than a socket takes.
            let clients: Vec<Client> = (0..40).map(|_| silent_reader(&server, "/list/")).collect();
            wait_until("something is given up", PATIENCE, || {
                given_up(&server, "connections cut") + given_up(&server, "requests refused") >= 5
            });
            drop(clients);
        });
        assert!(most <= LIMIT + TOLERANCE, "{most}");
        is_well_again(&server, before);
    });
}

#[test]
fn heads_that_do_not_end_stay_within_the_limit() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = server(engine, &tree, backend(SIZE));
        let before = memory(server.worker());
        let most = watched(&server, || {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(31 << 10));
            let mut clients = Vec::new();
            // As many descriptors as are left to all tests of this program.
            for _ in 0..3000 {
                let given_up = |what| given_up(&server, what);
                let mut client = server.connect();
                let _ = client.try_send(&head);
                clients.push(client);
                if clients.len() % 500 == 0
                    && given_up("connections cut") + given_up("requests refused") > 100
                {
                    break;
                }
            }
            wait_until("something is given up", PATIENCE, || {
                given_up(&server, "connections cut") + given_up(&server, "requests refused") > 100
            });
            drop(clients);
        });
        assert!(most <= LIMIT + TOLERANCE, "{most}");
        is_well_again(&server, before);
    });
}

#[test]
fn files_that_nobody_reads_take_no_memory() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", vec![b'L'; 4 << 20]);
        let server = server(engine, &tree, backend(SIZE));
        let before = memory(server.worker());
        let most = watched(&server, || {
            let clients: Vec<Client> = (0..200)
                .map(|_| silent_reader(&server, "/large.bin"))
                .collect();
            assert_eq!(server.connect().get("/ok").text(), "ok");
            drop(clients);
        });
        // 800 MiB were asked for.
        assert!(most < before + (8 << 20), "{before} {most}");
        assert_eq!(given_up(&server, "caches emptied"), 0);
    });
}

#[test]
fn without_a_limit_there_is_one_of_the_machine() {
    let tree = Tree::new();
    let server = Setup::run(
        Engine::Epoll,
        &format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n",
            tree.root()
        ),
    )
    .start();
    let memory = told(&server);
    let source = memory["limit_source"].as_str().unwrap();
    assert!(source.starts_with("three quarters of the "), "{source}");
    let (limit, base) = (&memory["limit_bytes"], &memory["base_bytes"]);
    assert!(limit.as_u64() > base.as_u64() && base.as_u64() > Some(1 << 20));
    assert_eq!(memory["level"], "enough");
}
