//! A hundred thousand idle connections, and what they cost. One process can't have as many descriptors on
//! most machines, so the server has some processes, and so have the clients, each with an address.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, getrlimit};
use socket2::SockAddr;

use super::support::server::Address;
use super::*;

/// How many connections are opened in all.
const ALL: usize = 100_000;

/// Most that one process of the clients opens: ports of one address are not many more.
const EACH: usize = 15_000;

/// Says to a process of this program that it is one of clients: address of the server, own address, count.
const CLIENTS: &str = "MANY_CLIENTS";

/// Set where the test is wanted.
const WANTED: &str = "MANY_HUNDRED";

/// Bytes of the kernel's slabs, where sockets and descriptors are.
fn slabs() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("it is there");
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("Slab:")?.strip_suffix(" kB"));
    line.expect("the kernel tells it")
        .trim()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// One process of clients, which says a line when all its connections are open and were answered, and
/// asks once more on each when it is told a line.
#[test]
fn clients() {
    let Ok(told) = std::env::var(CLIENTS) else {
        return;
    };
    let words: Vec<&str> = told.split(' ').collect();
    let server = Address::Tcp(words[0].parse().unwrap());
    let own: SocketAddr = words[1].parse().unwrap();
    let count: usize = words[2].parse().unwrap();
    connections();
    let mut clients: Vec<Client> = (0..count)
        .map(|_| {
            let mut client = Client::connect_with(&server, |socket| {
                socket
                    .bind(&SockAddr::from(own))
                    .expect("an address of this machine");
            });
            assert_eq!(client.get("/a.txt").text(), "hello");
            client
        })
        .collect();
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\nopen").unwrap();
    stdout.flush().unwrap();
    std::io::stdin()
        .lock()
        .read_line(&mut String::new())
        .unwrap();
    for client in &mut clients {
        assert_eq!(client.get("/a.txt").text(), "hello");
    }
    writeln!(stdout, "\nanswered").unwrap();
    stdout.flush().unwrap();
    let _ = std::io::stdin().lock().read(&mut [0]);
}

struct Clients {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Clients {
    fn start(server: &Server, index: usize, count: usize) -> Self {
        let Address::Tcp(address) = server.address() else {
            panic!("it listens on TCP");
        };
        let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + index as u8)), 0);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hundred::clients", "--nocapture"])
            .env(CLIENTS, format!("{address} {own} {count}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits until it says so.
    fn wait_for(&mut self, word: &str) {
        let found = (&mut self.lines)
            .lines()
            .any(|line| line.unwrap_or_default() == word);
        assert!(found, "clients ended without {word:?}");
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_hundred_thousand_idle_connections_cost_little_and_no_time() {
    if std::env::var_os(WANTED).is_none() {
        crate::support::skipped(format_args!(
            "it takes 2 GiB of memory and some minutes; set {WANTED} for it"
        ));
        return;
    }
    let _turn = alone();
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if limit < EACH as u64 + 1000 {
        crate::support::skipped(format_args!("the hard limit of descriptors is {limit}"));
        return;
    }
    // A quarter of the descriptors is left to files, and not all processes get equally many.
    let processes = (ALL as u64).div_ceil(limit.min(1 << 20) / 4 * 3 - 200) + 1;
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let config = format!(
            "[server]\nprocesses = {processes}\n[server.timeouts]\nidle = \"10m\"\n\
             [site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n",
            tree.root()
        );
        let mut server = Setup::run(engine, &config).start();
        let workers = server.workers("serving");
        let memory = || workers.iter().map(|pid| support::memory(*pid)).sum::<u64>();
        let ticks = || workers.iter().map(|pid| ticks_of(*pid)).sum::<u64>();
        let turns = || workers.iter().map(|pid| sleeps(*pid)).sum::<u64>();
        let (memory_before, slabs_before) = (memory(), slabs());
        let mut clients: Vec<Clients> = (0..ALL.div_ceil(EACH))
            .map(|index| Clients::start(&server, index, EACH.min(ALL - index * EACH)))
            .collect();
        for some in &mut clients {
            some.wait_for("open");
        }
        let each = memory().saturating_sub(memory_before) / ALL as u64;
        let kernel = slabs().saturating_sub(slabs_before) / ALL as u64;
        let seconds = 5;
        let (ticks_before, turns_before) = (ticks(), turns());
        std::thread::park_timeout(Duration::from_secs(seconds));
        let (ticks, turns) = (ticks() - ticks_before, turns() - turns_before);
        eprintln!(
            "{engine:?}: {ALL} idle connections to {} processes: {each} B each, and {kernel} B of the \
             kernel for both ends; {ticks} ticks and {turns} turns in {seconds} s",
            workers.len()
        );
        assert!(each < MEMORY_EACH_MAX, "{each} B for each connection");
        assert!(ticks <= 50, "{ticks} ticks");
        assert!(turns <= 100 * workers.len() as u64, "{turns} turns");
        // All of them are still there.
        clients.iter_mut().for_each(Clients::go_on);
        for some in &mut clients {
            some.wait_for("answered");
        }
        // The end takes no time: no turn lasts so long that a core would count as stalled.
        let begin = Instant::now();
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
        eprintln!("{engine:?}: all closed in {:?}", begin.elapsed());
        assert!(!server.stderr().contains("STALLED"));
    });
}
