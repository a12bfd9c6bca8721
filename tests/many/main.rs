//! Ten thousand open connections: all are answered, each costs little, and idle ones cost no time.
//!
//! A program of its own, so that no other test competes for descriptors, memory and time while it
//! measures.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking and explain on standard error"
)]

#[path = "../e2e/support/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the helpers of all end-to-end tests, of which this one needs a few"
)]
mod support;

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use support::{Client, Engine, PATIENCE, Server, Setup, Tree, on_both, wait_until};

/// How many connections are opened, where the limit of descriptors allows.
const CONNECTIONS: u64 = 10_000;

/// Ten times the goal for an idle connection, for a build that isn't optimised and a process that
/// is measured from outside.
const MEMORY_EACH_MAX: u64 = 10 << 10;

/// How many connections this process may open: the server has the same limit.
fn connections() -> usize {
    let hard = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, raised).expect("a process may raise its soft limit");
    let limit = hard.unwrap_or(u64::MAX);
    let count = CONNECTIONS.min(limit.saturating_sub(200));
    if count < CONNECTIONS {
        eprintln!("REDUCED to {count} connections: the hard limit of descriptors is {limit}");
    }
    assert!(count > 100, "too few descriptors for this test: {limit}");
    count as usize
}

/// The resident memory of a process in bytes, without what is shared with files.
fn memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let mut lines = status.lines();
    let kib = lines.find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix(" kB"));
    let kib: u64 = kib.expect("the kernel tells it").trim().parse().unwrap();
    kib * 1024
}

/// CPU time that a process has used, in clock ticks: hundredths of a second.
fn cpu_ticks(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("the name in parentheses");
    // `utime` and `stime` (proc_pid_stat(5)).
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Held by the test that runs: each needs all descriptors, and measures.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn ten_thousand_connections_are_held_and_answered() {
    let count = connections();
    let _alone = ALONE.lock();
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let mut server = Setup::serve(engine, tree.root())
            .arguments(&["--set", "server.timeouts.idle=10m"])
            .start();
        // What the first requests allocate is not the price of a connection.
        for _ in 0..200 {
            assert_eq!(server.connect().get("/a.txt").text(), "hello");
        }
        let memory_before = memory(&server);
        let mut clients: Vec<Client> = Vec::with_capacity(count);
        for _ in 0..count {
            let mut client = server.connect();
            client.send("GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n");
            clients.push(client);
        }
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello");
        }
        wait_until("the last answer is done with", PATIENCE, || {
            std::thread::park_timeout(Duration::from_millis(100));
            let ticks = cpu_ticks(&server);
            std::thread::park_timeout(Duration::from_millis(200));
            cpu_ticks(&server) - ticks <= 2
        });
        let memory = memory(&server).saturating_sub(memory_before);
        let each = memory / count as u64;
        eprintln!("{engine:?}: {count} idle connections, {each} B each");
        assert!(each < MEMORY_EACH_MAX, "{each} B for each connection");

        // Idle connections cost no time: a second of nothing is nothing.
        let (ticks, begin) = (cpu_ticks(&server), Instant::now());
        std::thread::park_timeout(Duration::from_secs(1));
        let used = cpu_ticks(&server) - ticks;
        assert!(used <= 10, "{used} ticks in {:?}", begin.elapsed());

        // All of them are still there, and all at once is no problem.
        for client in &mut clients {
            client.send("GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello");
        }
        // Idle connections do not hold up the end.
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
    });
}

/// A server with two threads, and one socket for both or for each.
fn two_cores(engine: Engine, tree: &Tree, reuseport: bool) -> Server {
    let text = format!(
        "[server]\nreuseport = {reuseport}\n[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n",
        tree.root()
    );
    Setup::run(engine, &text).workers(2).start()
}

#[test]
fn a_burst_of_ten_thousand_loses_nobody_and_meets_both_cores() {
    // A client's port is one of the machine's, and both ends are descriptors of this machine.
    let count = connections().min(10_000);
    // The other test is in this process, too.
    let _alone = ALONE.lock();
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        for reuseport in [false, true] {
            let server = two_cores(engine, &tree, reuseport);
            // All at once: nobody waits for an answer before the next one comes.
            let mut clients: Vec<Client> = (0..count)
                .map(|_| {
                    let mut client = server.connect();
                    client.send("GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n");
                    client
                })
                .collect();
            for client in &mut clients {
                assert_eq!(client.response().text(), "hello");
            }
            let status = server.status();
            let cores = &status["generations"][0]["workers"][0]["cores"];
            let each: Vec<u64> = (0..2)
                .map(|core| cores[core]["connections"].as_u64().expect("a number"))
                .collect();
            eprintln!("{engine:?}, reuseport {reuseport}: {each:?}");
            assert_eq!(each.iter().sum::<u64>(), count as u64, "{each:?}");
            // A third on one of what the other has would be a fault; it is some per cent.
            assert!(each.iter().all(|it| *it > count as u64 / 4), "{each:?}");
        }
    });
}
