//! Probers over real sockets, on both engines.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use super::*;
use crate::config::model::ServerAddr;
use crate::config::model::{ServerState, Upstream, UpstreamServer};
use crate::http::types::{Status, StatusSet};
use crate::net::{on_each_engine, run};
use crate::upstream::health::{Finder, Reason};
use crate::upstream::roster::Resolved;

const PATIENCE: Duration = Duration::from_secs(20);
const ALONE: Share = Share { index: 0, of: 1 };
const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell";
const BAD: &[u8] = b"HTTP/1.1 503 Ill\r\nContent-Length: 4\r\n\r\nwell";

/// What is said to the n-th request, from 0; `None` is silence until the other side ends.
type Script = dyn Fn(usize) -> Option<Vec<u8>> + Send + Sync;

/// A server on a thread of its own, one connection after the other, but for silent ones.
struct Backend {
    address: SocketAddr,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<String>>,
    /// Silent connections that the other side has ended.
    given_up: AtomicUsize,
    stop: AtomicBool,
}

impl Backend {
    fn start(script: impl Fn(usize) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let (of_thread, script): (_, Arc<Script>) = (Arc::clone(&seen), Arc::new(script));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.stop.load(Ordering::SeqCst) {
                    return;
                }
                answer(stream.unwrap(), &of_thread, &script);
            }
        });
        Self {
            address,
            seen,
            thread: Some(thread),
        }
    }

    fn saying(answer: &'static [u8]) -> Self {
        Self::start(move |_| Some(answer.to_vec()))
    }

    fn server(&self) -> ServerAddr {
        ServerAddr::Ip(self.address)
    }

    fn asked(&self) -> usize {
        self.seen.requests.lock().unwrap().len()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(mut stream: TcpStream, seen: &Arc<Seen>, script: &Arc<Script>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    let n = {
        let mut requests = seen.requests.lock().unwrap();
        requests.push(String::from_utf8(request).unwrap());
        requests.len() - 1
    };
    match script(n) {
        // Whoever has heard enough ends.
        Some(said) => drop(stream.write_all(&said)),
        None => {
            let seen = Arc::clone(seen);
            thread::spawn(move || {
                while matches!(stream.read(&mut byte), Ok(1..)) {}
                seen.given_up.fetch_add(1, Ordering::SeqCst);
            });
        }
    }
}

fn http(path: &str, host: Option<&str>, body: Option<&str>) -> HealthCheck {
    HealthCheck {
        probe: model::Probe::Http {
            path: path.into(),
            host: host.map(Into::into),
            statuses: StatusSet::new([(Status(200), Status(399))]),
            body: body.map(|text| text.as_bytes().into()),
        },
        interval: Duration::from_millis(20),
        timeout: PATIENCE,
        rise: 1,
        fall: 1,
        tls: true,
    }
}

fn tcp() -> HealthCheck {
    HealthCheck {
        probe: model::Probe::Tcp,
        ..http("/", None, None)
    }
}

fn roster(servers: &[ServerAddr], health: Option<HealthCheck>) -> Arc<Roster> {
    let servers = servers.iter().cloned().map(UpstreamServer::new).collect();
    let mut upstream = Upstream::new("app", servers);
    upstream.health = health;
    Roster::new(&Arc::new(upstream), Instant::now())
}

fn is_out(roster: &Roster, at: usize) -> bool {
    roster.members().board.is_condemned(at, Judge::Probe)
}

/// What the last probe of a server that is out was.
fn kind(roster: &Roster, at: usize) -> Option<FailureKind> {
    let state = roster.members().board.state(at, Instant::now());
    match state.reason {
        Some(Reason {
            finder: Finder::Probe,
            kind,
        }) if state.standing == Standing::Down => Some(kind),
        _ => None,
    }
}

fn condemn(roster: &Roster, at: usize) {
    let board = &roster.members().board;
    board.condemn(at, Judge::Probe, FailureKind::Body, Instant::now());
}

/// Turns the core until it is so.
fn until(core: &Core, what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "it did not come: {what}");
        core.turn(Some(Duration::from_millis(5))).unwrap();
    }
}

fn turn_for(core: &Core, time: Duration) {
    let begin = Instant::now();
    until(core, "time", || begin.elapsed() >= time);
}

/// What is logged on this thread meanwhile.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    // With one subscriber alone, a thread without it may turn its lines off for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    tracing::subscriber::with_default(subscriber, work);
    let lines = lines.0.lock().unwrap().clone();
    String::from_utf8(lines).unwrap()
}

#[test]
fn a_server_is_out_after_bad_answers_in_a_row_and_back_after_good_ones() {
    on_each_engine(|core| {
        let script = b"++-+---+-+-++";
        let backend = Backend::start(move |n| {
            let is_good = script.get(n).is_none_or(|answer| *answer == b'+');
            Some(if is_good { GOOD } else { BAD }.to_vec())
        });
        let check = HealthCheck {
            rise: 2,
            fall: 3,
            ..http("/", None, None)
        };
        let roster = roster(&[backend.server()], Some(check));
        let log = logged(|| {
            let prober = Prober::start(core, &roster, None, (ALONE, 1)).unwrap();
            until(core, "it is out", || is_out(&roster, 0));
            assert!(backend.asked() >= 7, "{}", backend.asked());
            assert_eq!(kind(&roster, 0), Some(FailureKind::Status(503)));
            until(core, "it is back", || !is_out(&roster, 0));
            assert!(backend.asked() >= 13, "{}", backend.asked());
            until(core, "more", || backend.asked() >= 16);
            drop(prober);
        });
        assert!(!is_out(&roster, 0));
        let lines: Vec<&str> = log.lines().collect();
        let [down, up] = lines[..] else {
            panic!("each is said once: {log}")
        };
        let server = format!("server=\"{}\"", backend.address);
        for (line, level) in [(down, "WARN"), (up, "INFO")] {
            assert!(line.contains(level) && line.contains(&server), "{line}");
            assert!(line.contains("upstream=\"app\""), "{line}");
        }
        assert!(down.contains("status 503"), "{down}");
    });
}

#[test]
fn answers_that_are_not_as_expected_say_why() {
    let padded = |bytes: usize| {
        let mut said = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        said.resize(said.len() + bytes, b'.');
        said.extend_from_slice(b"all is well");
        said
    };
    let cases: Vec<(Vec<u8>, FailureKind)> = vec![
        (BAD.to_vec(), FailureKind::Status(503)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nill".to_vec(),
            FailureKind::Body,
        ),
        (padded(PROBE_BODY_BYTES_MAX), FailureKind::Body),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nall is well".to_vec(),
            FailureKind::Reset,
        ),
        (b"HTTP/1.1 200 OK\r\nConte".to_vec(), FailureKind::Reset),
        (Vec::new(), FailureKind::Reset),
        (b"220 ready\r\n\r\n".to_vec(), FailureKind::Malformed),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nwell".to_vec(),
            FailureKind::Malformed,
        ),
        (
            b"HTTP/1.1 101 So\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".to_vec(),
            FailureKind::Malformed,
        ),
    ];
    on_each_engine(|core| {
        for (said, expected) in &cases {
            let of_script = said.clone();
            let backend = Backend::start(move |_| Some(of_script.clone()));
            let check = http("/", None, Some("all is well"));
            let roster = roster(&[backend.server()], Some(check));
            let _prober = Prober::start(core, &roster, None, (ALONE, 2)).unwrap();
            until(core, "it is out", || is_out(&roster, 0));
            let said = String::from_utf8_lossy(&said[..said.len().min(80)]);
            assert_eq!(kind(&roster, 0), Some(*expected), "{said}");
        }
    });
}

#[test]
fn answers_that_are_as_expected_bring_a_server_back() {
    let cases: [(&[u8], Option<&str>); 6] = [
        (GOOD, None),
        (GOOD, Some("well")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nwe\r\n2\r\nll\r\n0\r\n\r\n",
            Some("well"),
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nall is well", Some("well")),
        (
            b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 Nothing\r\n\r\n",
            None,
        ),
        // Nobody reads on where nobody wants the body.
        (b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\ncut", None),
    ];
    on_each_engine(|core| {
        for (said, text) in cases {
            let backend = Backend::saying(said);
            let roster = roster(&[backend.server()], Some(http("/", None, text)));
            condemn(&roster, 0);
            let _prober = Prober::start(core, &roster, None, (ALONE, 3)).unwrap();
            until(core, &String::from_utf8_lossy(said), || !is_out(&roster, 0));
        }
    });
}

#[test]
fn a_probe_says_what_it_is() {
    on_each_engine(|core| {
        let backend = Backend::saying(GOOD);
        for (host, expected) in [
            (None, backend.address.to_string()),
            (Some("health.example"), "health.example".to_owned()),
        ] {
            let check = http("/healthz?deep=1", host, None);
            let roster = roster(&[backend.server()], Some(check));
            let before = backend.asked();
            let _prober = Prober::start(core, &roster, None, (ALONE, 4)).unwrap();
            until(core, "it is asked", || backend.asked() > before);
            let request = backend.seen.requests.lock().unwrap()[before].clone();
            assert_eq!(
                request,
                format!(
                    "GET /healthz?deep=1 HTTP/1.1\r\nHost: {expected}\r\n\
                     User-Agent: beltway-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
                )
            );
        }
    });
}

#[test]
fn unix_sockets_are_asked_as_localhost() {
    on_each_engine(|core| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let missing = directory.path().join("missing");
        let servers = [path, missing].map(ServerAddr::Unix);
        let roster = roster(&servers, Some(http("/", None, None)));
        let prober = Prober::start(core, &roster, None, (ALONE, 5)).unwrap();
        let accepted = Cell::new(None);
        until(core, "it is asked", || {
            accepted.set(accepted.take().or_else(|| listener.accept().ok()));
            let stream = accepted.take();
            let is_there = stream.is_some();
            accepted.set(stream);
            is_there
        });
        let mut stream = accepted.take().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        let mut request = [0; 1024];
        let length = Cell::new(0);
        let read = std::cell::RefCell::new((&mut stream, &mut request));
        until(core, "it says what it wants", || {
            let (stream, request) = &mut *read.borrow_mut();
            length.set(stream.read(&mut request[..]).unwrap_or(0));
            length.get() > 0
        });
        let request = String::from_utf8_lossy(&request[..length.get()]);
        assert!(request.contains("\r\nHost: localhost\r\n"), "{request}");
        until(core, "the other is out", || is_out(&roster, 1));
        assert_eq!(kind(&roster, 1), Some(FailureKind::Refused));
        drop(prober);
    });
}

#[test]
fn silence_is_bounded_by_the_timeout() {
    on_each_engine(|core| {
        let backend = Backend::start(|_| None);
        let check = HealthCheck {
            interval: Duration::from_millis(200),
            timeout: Duration::from_millis(100),
            ..http("/", None, None)
        };
        let roster = roster(&[backend.server()], Some(check));
        let _prober = Prober::start(core, &roster, None, (ALONE, 6)).unwrap();
        until(core, "it is out", || is_out(&roster, 0));
        assert_eq!(kind(&roster, 0), Some(FailureKind::Timeout));
        let given_up = || backend.seen.given_up.load(Ordering::SeqCst) >= 1;
        until(core, "the connection is closed", given_up);
    });
}

#[test]
fn a_connection_is_enough_where_nothing_else_is_asked() {
    on_each_engine(|core| {
        // Takes connections and never says anything.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = ServerAddr::Ip(listener.local_addr().unwrap());
        let roster = roster(&[server], Some(tcp()));
        condemn(&roster, 0);
        let _prober = Prober::start(core, &roster, None, (ALONE, 7)).unwrap();
        until(core, "it is back", || !is_out(&roster, 0));
        drop(listener);
        until(core, "it is out", || is_out(&roster, 0));
        assert_eq!(kind(&roster, 0), Some(FailureKind::Refused));
    });
}

#[test]
fn a_server_that_cant_be_asked_by_our_own_fault_isnt_judged() {
    on_each_engine(|core| {
        let backend = Backend::saying(BAD);
        // Longer than the address of a socket can be.
        let unusable = ServerAddr::Unix(std::path::PathBuf::from("/x".repeat(200)));
        let roster = roster(&[unusable, backend.server()], Some(http("/", None, None)));
        let _prober = Prober::start(core, &roster, None, (ALONE, 8)).unwrap();
        until(core, "rounds", || backend.asked() > 5);
        assert!(!is_out(&roster, 0) && is_out(&roster, 1));
    });
}

#[test]
fn what_was_found_before_is_known_to_the_next_prober() {
    on_each_engine(|core| {
        let backend = Backend::saying(GOOD);
        let check = HealthCheck {
            rise: 4,
            ..http("/", None, None)
        };
        let with = roster(&[backend.server()], Some(check));
        condemn(&with, 0);
        let prober = Prober::start(core, &with, None, (ALONE, 9)).unwrap();
        until(core, "it is back", || !is_out(&with, 0));
        assert!(backend.asked() >= 4, "{}", backend.asked());
        drop(prober);
        // Where nobody asks any more, nobody could take it back.
        condemn(&with, 0);
        let mut settings = (**with.settings()).clone();
        settings.health = None;
        let without = Roster::succeeding(&Arc::new(settings), &with, Instant::now());
        assert!(is_out(&without, 0));
        assert!(Prober::start(core, &without, None, (ALONE, 9)).is_none());
        assert!(!is_out(&without, 0));
    });
}

#[test]
fn names_are_asked_where_they_lead_at_the_moment() {
    on_each_engine(|core| {
        let silent = Backend::start(|_| None);
        let (ill, well) = (Backend::saying(BAD), Backend::saying(GOOD));
        let roster = roster(
            &[ServerAddr::Name("name.example".into(), 80)],
            Some(http("/", None, None)),
        );
        let resolve = |backends: &[&Backend]| {
            let addresses: Vec<Resolved> = backends
                .iter()
                .map(|backend| Resolved {
                    address: backend.address,
                    weight: 1,
                    is_backup: false,
                })
                .collect();
            assert!(roster.resolved(0, &addresses, Instant::now()));
        };
        let out = || -> Vec<SocketAddr> {
            let members = roster.members();
            let list = members.list.iter().enumerate();
            list.filter(|(at, _)| members.board.is_condemned(*at, Judge::Probe))
                .filter_map(|(_, member)| match member.address {
                    Some(Address::Tcp(address)) => Some(address),
                    _ => None,
                })
                .collect()
        };
        let _prober = Prober::start(core, &roster, None, (ALONE, 10)).unwrap();
        turn_for(core, Duration::from_millis(50));
        resolve(&[&silent]);
        until(core, "the address is asked", || silent.asked() == 1);
        assert!(silent.seen.requests.lock().unwrap()[0].contains("Host: name.example:80\r\n"));
        resolve(&[&ill, &well]);
        until(core, "the new one is out", || out() == [ill.address]);
        let given_up = || silent.seen.given_up.load(Ordering::SeqCst) == 1;
        until(core, "nobody waits for the old one", given_up);
        until(core, "both are asked", || well.asked() > 2);
        // Wherever they stand in the list, it is known who is who.
        resolve(&[&silent, &ill, &well]);
        assert_eq!(out(), [ill.address], "known at once");
        until(core, "the old one is asked again", || silent.asked() == 2);
        assert_eq!(out(), [ill.address]);
        resolve(&[&well]);
        let before = well.asked();
        until(core, "rounds", || well.asked() > before + 30);
        let asked = ill.asked();
        until(core, "rounds", || well.asked() > before + 40);
        assert_eq!((ill.asked(), out()), (asked, vec![]));
    });
}

#[test]
fn each_server_is_asked_by_one_core() {
    on_each_engine(|core| {
        let backends: Vec<Backend> = (0..8).map(|_| Backend::saying(GOOD)).collect();
        let witness = Backend::saying(GOOD);
        let servers: Vec<ServerAddr> = backends.iter().map(Backend::server).collect();
        let asked = |index: usize| -> Vec<bool> {
            let before: Vec<usize> = backends.iter().map(Backend::asked).collect();
            let all = roster(&servers, Some(http("/", None, None)));
            let one = roster(&[witness.server()], Some(http("/", None, None)));
            let probers = [
                Prober::start(core, &all, None, (Share { index, of: 2 }, 11)).unwrap(),
                Prober::start(core, &one, None, (ALONE, 12)).unwrap(),
            ];
            // By the same clock as all others, each of which was due within the first of these rounds.
            let rounds = witness.asked() + 20;
            until(core, "rounds", || witness.asked() >= rounds);
            drop(probers);
            // One after the other is answered: what was on its way is heard before these are.
            let addresses: Vec<SocketAddr> = backends.iter().map(|it| it.address).collect();
            let last = thread::spawn(move || {
                for address in addresses {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
                    stream.read_to_end(&mut Vec::new()).unwrap();
                }
            });
            until(core, "all are heard", || last.is_finished());
            last.join().unwrap();
            let after = backends.iter().map(Backend::asked);
            after
                .zip(before)
                .map(|(after, old)| after > old + 1)
                .collect()
        };
        let (first, second) = (asked(0), asked(1));
        for (a, b) in first.iter().zip(&second) {
            assert!(a != b, "by exactly one: {first:?} {second:?}");
        }
    });
}

#[test]
fn whom_the_administrator_has_taken_out_is_left_alone() {
    on_each_engine(|core| {
        let backends = [(); 3].map(|()| Backend::saying(GOOD));
        let states = [ServerState::Up, ServerState::Drain, ServerState::Down];
        let mut upstream = Upstream::new("app", Vec::new());
        upstream.health = Some(http("/", None, None));
        for (backend, state) in backends.iter().zip(states) {
            let mut server = UpstreamServer::new(backend.server());
            server.state = state;
            upstream.servers.push(server);
        }
        let roster = Roster::new(&Arc::new(upstream), Instant::now());
        let _prober = Prober::start(core, &roster, None, (ALONE, 12)).unwrap();
        let [up, drain, down] = &backends;
        until(core, "rounds", || up.asked() > 4 && drain.asked() > 4);
        assert_eq!(down.asked(), 0);
        let name = down.address.to_string();
        roster
            .set_admin(&name, Standing::Up, Instant::now())
            .unwrap();
        until(core, "it is asked again", || down.asked() > 0);
    });
}

/// Servers on which nobody accepts, so that nobody answers.
fn more_than_are_asked_at_once() -> (Vec<TcpListener>, Vec<ServerAddr>) {
    let listeners: Vec<TcpListener> = (0..PROBES_MAX + 4)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let servers = listeners
        .iter()
        .map(|listener| ServerAddr::Ip(listener.local_addr().unwrap()))
        .collect();
    (listeners, servers)
}

#[test]
fn so_many_are_asked_at_once_and_no_more() {
    on_each_engine(|core| {
        let (listeners, servers) = more_than_are_asked_at_once();
        let check = HealthCheck {
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(500),
            ..http("/", None, None)
        };
        let roster = roster(&servers, Some(check));
        let prober = Prober::start(core, &roster, None, (ALONE, 13)).unwrap();
        let slots = Cell::new(0);
        until(core, "all were asked", || {
            slots.set(slots.get().max(core.usage().slots));
            (0..servers.len()).all(|at| is_out(&roster, at))
        });
        // One that receives, each; what is cancelled is collected in the next turns.
        assert!(slots.get() >= PROBES_MAX, "{}", slots.get());
        let connections = |listener: &TcpListener| {
            listener.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| listener.accept().ok()).count()
        };
        let most = listeners.iter().map(connections).max();
        assert!(most < Some(6), "those that were asked wait for the others");
        drop(prober);
    });
}

#[test]
fn who_has_no_answer_yet_keeps_the_others_waiting() {
    on_each_engine(|core| {
        let (listeners, servers) = more_than_are_asked_at_once();
        // All are due within the first interval, and none is given up during the test.
        let roster = roster(&servers, Some(http("/", None, None)));
        let _prober = Prober::start(core, &roster, None, (ALONE, 17)).unwrap();
        let asked = RefCell::new(Vec::new());
        let accept = || {
            let mut asked = asked.borrow_mut();
            for listener in &listeners {
                listener.set_nonblocking(true).unwrap();
                asked.extend(std::iter::from_fn(|| listener.accept().ok()));
            }
            asked.len()
        };
        until(core, "as many are asked as may be", || {
            accept() >= PROBES_MAX
        });
        turn_for(core, Duration::from_millis(200));
        assert_eq!(accept(), PROBES_MAX, "the others wait");
        drop(asked.borrow_mut().pop());
        until(core, "one of the others is asked", || {
            accept() == PROBES_MAX
        });
        turn_for(core, Duration::from_millis(100));
        assert_eq!(accept(), PROBES_MAX, "one for one");
    });
}

#[test]
fn nothing_is_left_of_a_prober_that_ends_and_an_idle_one_ends_by_itself() {
    on_each_engine(|core| {
        let backend = Backend::start(|_| None);
        let asked = roster(&[backend.server()], Some(http("/", None, None)));
        let prober = Prober::start(core, &asked, None, (ALONE, 14)).unwrap();
        until(core, "it is asked", || backend.asked() == 1);
        assert_eq!(core.usage().tasks, 1);
        drop(prober);
        assert_eq!((core.usage().tasks, core.usage().timers), (0, 0));
        let given_up = || backend.seen.given_up.load(Ordering::SeqCst) == 1;
        until(core, "the connection is closed", given_up);

        let empty = Share { index: 0, of: 0 };
        let nowhere = Share { index: 1, ..empty };
        let idle = Prober::start(core, &asked, None, (nowhere, 14)).unwrap();
        run(core);
        assert!(idle.is_for(&asked, None));
    });
}
