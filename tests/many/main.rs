//! Ten thousand open connections: all are answered, each costs little, and idle ones cost no time.
//!
//! A program of its own, so that no other test competes for descriptors, memory and time while it
//! measures. `MANY_HUNDRED=1 cargo test --release --test many hundred` does the same with 100 000, in as many processes
//! as the limit of descriptors needs.
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

mod handshakes;
mod hundred;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    ticks_of(server.pid())
}

fn ticks_of(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("the name in parentheses");
    // `utime` and `stime` (proc_pid_stat(5)).
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// The tests here use all descriptors there are, so they have them one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the threads of a process have gone to sleep: about once for each turn of a core.
fn sleeps(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of_thread = |path: std::path::PathBuf| {
        let status = fs::read_to_string(path.join("status")).ok()?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        count.trim().parse::<u64>().ok()
    };
    threads
        .filter_map(|thread| of_thread(thread.ok()?.path()))
        .sum()
}

#[test]
fn ten_thousand_connections_are_held_and_answered() {
    let _turn = alone();
    let count = connections();
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
        let turns = sleeps(server.pid());
        std::thread::park_timeout(Duration::from_secs(1));
        let used = cpu_ticks(&server) - ticks;
        let turns = sleeps(server.pid()) - turns;
        assert!(used <= 10, "{used} ticks in {:?}", begin.elapsed());
        assert!(turns <= 100, "{turns} turns in {:?}", begin.elapsed());

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

#[test]
fn idle_connections_make_room_for_new_ones_when_memory_is_short() {
    let _turn = alone();
    let count = connections();
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        // What is beyond the base is the least that a core gets: about five thousand idle ones.
        let limit = 6 << 20;
        let config = format!(
            "[server]\nmemory_limit = \"{limit}B\"\n[server.timeouts]\nidle = \"10m\"\n\
             [site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let worker = server.worker();
        let mut clients: Vec<Client> = Vec::with_capacity(count);
        let mut most = 0;
        for index in 0..count {
            let mut client = server.connect();
            assert_eq!(client.get("/a.txt").text(), "hello");
            clients.push(client);
            if index % 100 == 0 {
                most = most.max(support::memory(worker));
            }
        }
        let status = server.status();
        let told = &status["generations"][0]["workers"][0]["memory"];
        let base = told["base_bytes"].as_u64().unwrap();
        let bound = limit.max(base + (4 << 20)) / 20 * 21;
        assert!(most <= bound, "{most} B of {bound}: {told}");
        let closed = status["limits"]["memory: idle connections closed"].as_u64();
        let closed = closed.expect("that is the way out") as usize;
        let cut = status["limits"]["memory: connections cut"].as_u64();
        assert_eq!(cut, None, "nothing else was needed");
        // Those that have idled longest are closed, in order, and the others are not.
        assert!(closed < count, "{closed} of {count}");
        assert_eq!(clients[0].end(), support::End::Closed);
        let last = clients.last_mut().expect("many");
        assert_eq!(last.get("/a.txt").text(), "hello");
        let open = clients.iter_mut().skip(closed + count / 10);
        assert!(open.take(100).all(|client| client.is_open()));
        drop(clients);
        wait_until("there is enough again", PATIENCE, || {
            let mut status = server.status();
            status["generations"][0]["workers"][0]["memory"]["level"].take() == "enough"
        });
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
    let _turn = alone();
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
