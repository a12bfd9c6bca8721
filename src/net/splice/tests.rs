//! Relays and tunnels between real sockets on both engines, and between simulated ones with faults.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;

use super::*;
use crate::net::connect::connect;
use crate::net::testing::{on_each_engine, run, simulate, spawn_mortal};
use crate::runtime::address::Address;
use crate::runtime::engine::sim::{Act, Answer, ClientId, Faults, Pace, World};

const PATIENT: RelayRules = RelayRules {
    source_silence: Some(Duration::from_secs(10)),
    sink: ProgressRule {
        window: Duration::from_secs(10),
        rate: 1,
    },
};

/// The other end of a socket of the core's.
trait Peer: Read + Write + Send + 'static {
    fn end(&self);
}

impl Peer for TcpStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Peer for UnixStream {
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// Makes a socket of the core's and its other end.
type Make = fn(&Core) -> (Fd, Box<dyn Peer>);

fn tcp(core: &Core) -> (Fd, Box<dyn Peer>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (core.own(OwnedFd::from(ours)), Box::new(theirs))
}

fn unix(core: &Core) -> (Fd, Box<dyn Peer>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (core.own(OwnedFd::from(ours)), Box::new(theirs))
}

fn pattern(len: usize, of: usize) -> Vec<u8> {
    (0..len)
        .map(|n| ((n * 7 + n / 251 + of) % 253) as u8)
        .collect()
}

type Relayed = Rc<RefCell<Option<Result<u64, RelayError>>>>;

/// Starts a relay; its result is there when its task has ended.
fn start(core: &Core, from: &Fd, to: &Fd, limit: Option<u64>, rules: RelayRules) -> Relayed {
    let told = Relayed::default();
    let (core, from, to) = (core.clone(), from.clone(), to.clone());
    let tell = Rc::clone(&told);
    core.clone().spawn(async move {
        let (mut timer, moved) = (Timer::new(&core), Moved::default());
        let result = relay(&core, &mut timer, (&from, &to), limit, &rules, &moved).await;
        let (taken, given) = match result {
            Ok(bytes) => (bytes, bytes),
            Err(error) => (error.taken, error.given),
        };
        assert_eq!((moved.taken(), moved.given()), (taken, given));
        *tell.borrow_mut() = Some(result);
    });
    told
}

/// Relays `len` of `sent` bytes between sockets made so, and checks what arrives and what stays.
fn exact(core: &Core, make: (Make, Make), len: usize) {
    let ((from, mut source), (to, mut sink)) = (make.0(core), make.1(core));
    let bytes = pattern(len, len);
    let expected = bytes.clone();
    let writer = thread::spawn(move || {
        source.write_all(&bytes).unwrap();
        source.write_all(b"next").unwrap();
        source
    });
    let reader = thread::spawn(move || {
        let mut got = vec![0; len];
        sink.read_exact(&mut got).unwrap();
        (sink, got)
    });
    let told = start(core, &from, &to, Some(len as u64), PATIENT);
    run(core);
    assert_eq!(told.take(), Some(Ok(len as u64)));
    let _source = writer.join().unwrap();
    let (mut sink, got) = reader.join().unwrap();
    assert!(got == expected, "{len} bytes arrive as they were");
    // What belongs to the next message was left alone, and the sink's direction is open.
    let mut rest = [0; 16];
    assert_eq!(core.receive_now(&from, &mut rest), Ok(4));
    assert_eq!(&rest[..4], b"next");
    assert_eq!(core.send_now(&to, b"more", false), Ok(4));
    sink.read_exact(&mut rest[..4]).unwrap();
    assert_eq!(&rest[..4], b"more");
    assert_eq!(core.usage().pipes, 0, "no pipe stays in use");
}

#[test]
fn moves_exactly_what_was_announced() {
    on_each_engine(|core| {
        for len in [0, 1, COPY_MAX, COPY_MAX + 1, PIPE_BYTES, 5_000_000] {
            exact(core, (tcp, tcp), len);
        }
        exact(core, (unix, tcp), 3_000_000);
        exact(core, (tcp, unix), 3_000_000);
        exact(core, (unix, unix), 3_000_000);
    });
}

#[test]
fn copies_when_there_is_no_pipe() {
    on_each_engine(|core| {
        let all: Vec<_> = std::iter::from_fn(|| core.take_pipe()).collect();
        let ((from, mut source), (to, mut sink)) = (tcp(core), unix(core));
        let writer = thread::spawn(move || source.write_all(&pattern(1_000_000, 1)).unwrap());
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            sink.read_to_end(&mut got).unwrap();
            got
        });
        let told = start(core, &from, &to, None, PATIENT);
        run(core);
        assert_eq!(told.take(), Some(Ok(1_000_000)));
        core.shut_down_write(&to);
        writer.join().unwrap();
        assert!(reader.join().unwrap() == pattern(1_000_000, 1));
        assert_eq!(core.usage().pipes, all.len());
    });
}

#[test]
fn says_which_end_failed_and_how_far_it_came() {
    on_each_engine(|core| {
        // The source ends too early.
        let ((from, mut source), (to, mut sink)) = (tcp(core), tcp(core));
        source.write_all(&pattern(30_000, 0)).unwrap();
        drop(source);
        let told = start(core, &from, &to, Some(100_000), PATIENT);
        run(core);
        let error = told.take().unwrap().unwrap_err();
        assert_eq!(error.cause, Cause::SourceClosed);
        assert_eq!((error.taken, error.given), (30_000, 30_000));
        let mut got = vec![0; 30_000];
        sink.read_exact(&mut got).unwrap();

        // The source breaks: it closes with our bytes unread.
        let ((from, source), (to, _sink)) = (tcp(core), tcp(core));
        core.send_now(&from, b"unread", false).unwrap();
        drop(source);
        let told = start(core, &from, &to, Some(100_000), PATIENT);
        run(core);
        let error = told.take().unwrap().unwrap_err();
        assert_eq!(error.cause, Cause::SourceBroken(Errno::CONNRESET));

        // The sink is gone.
        let ((from, mut source), (to, sink)) = (tcp(core), unix(core));
        let writer = thread::spawn(move || {
            // It may find its own end closed.
            let _ = source.write_all(&pattern(1_000_000, 0));
        });
        drop(sink);
        let told = start(core, &from, &to, Some(1_000_000), PATIENT);
        run(core);
        let error = told.take().unwrap().unwrap_err();
        assert_eq!(error.cause, Cause::SinkBroken(Errno::PIPE));
        assert!(!error.cause.is_of_source() && error.given == 0 && error.taken > 0);
        assert_eq!(core.usage().pipes, 0);
        drop((from, to));
        core.turn(Some(Duration::ZERO)).unwrap();
        core.turn(Some(Duration::ZERO)).unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn a_silent_source_and_a_slow_sink_are_found_out() {
    on_each_engine(|core| {
        let ((from, mut source), (to, _sink)) = (tcp(core), tcp(core));
        source.write_all(b"a beginning").unwrap();
        let rules = RelayRules {
            source_silence: Some(Duration::from_millis(50)),
            ..PATIENT
        };
        let told = start(core, &from, &to, Some(100_000), rules);
        run(core);
        let error = told.take().unwrap().unwrap_err();
        assert_eq!((error.cause, error.given), (Cause::SourceSilent, 11));

        let ((from, mut source), (to, _sink)) = (unix(core), unix(core));
        let writer = thread::spawn(move || {
            let _ = source.write_all(&pattern(8_000_000, 0));
        });
        let rules = RelayRules {
            sink: ProgressRule {
                window: Duration::from_millis(50),
                rate: 1_000,
            },
            ..PATIENT
        };
        let told = start(core, &from, &to, None, rules);
        run(core);
        assert_eq!(told.take().unwrap().unwrap_err().cause, Cause::SinkTooSlow);
        drop((from, to));
        core.turn(Some(Duration::ZERO)).unwrap();
        core.turn(Some(Duration::ZERO)).unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn a_relay_dropped_with_bytes_on_the_way_spoils_no_other() {
    on_each_engine(|core| {
        let ((from, mut source), (to, sink)) = (tcp(core), tcp(core));
        let writer = thread::spawn(move || {
            let _ = source.write_all(&pattern(50_000_000, 0));
        });
        let (inner, first, second) = (core.clone(), from.clone(), to.clone());
        let moved = Rc::new(Moved::default());
        let watched = Rc::clone(&moved);
        let task = core.spawn(async move {
            let mut timer = Timer::new(&inner);
            let ends = (&first, &second);
            let _ = relay(&inner, &mut timer, ends, None, &PATIENT, &watched).await;
        });
        // Nobody reads: bytes stay in the pipe.
        let deadline = Instant::now() + Duration::from_secs(10);
        while moved.taken() == moved.given() {
            assert!(Instant::now() < deadline);
            core.turn(Some(Duration::from_millis(10))).unwrap();
        }
        assert_eq!(core.usage().pipes, 1);
        assert!(core.abort(task));
        assert_eq!(core.usage().pipes, 0);
        drop((from, to, sink));
        core.turn(Some(Duration::from_millis(10))).unwrap();
        core.turn(Some(Duration::from_millis(10))).unwrap();
        writer.join().unwrap();
        exact(core, (tcp, tcp), 1_000_000);
    });
}

type Tunnelled = Rc<RefCell<Option<TunnelEnd>>>;

fn start_tunnel(core: &Core, a: Fd, b: Fd, mut early: Early, idle: Option<Duration>) -> Tunnelled {
    let told = Tunnelled::default();
    let (inner, tell) = (core.clone(), Rc::clone(&told));
    core.spawn(async move {
        let end = tunnel(&inner, (&a, &b), &mut early, idle).await;
        *tell.borrow_mut() = Some(end);
    });
    told
}

#[test]
fn a_tunnel_carries_both_ways_at_once_and_keeps_half_open() {
    on_each_engine(|core| {
        let ((a, mut client), (b, mut server)) = (tcp(core), unix(core));
        let early = Early {
            from_a: b"early ".to_vec(),
            from_b: b"101 ".to_vec(),
        };
        let told = start_tunnel(core, a, b, early, Some(Duration::from_secs(10)));
        let client = thread::spawn(move || {
            client.write_all(&pattern(2_000_000, 1)).unwrap();
            client.end();
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            got
        });
        let server = thread::spawn(move || {
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            // The client has ended, and still gets its answer.
            server.write_all(&pattern(3_000_000, 2)).unwrap();
            got
        });
        run(core);
        let end = told.take().unwrap();
        let of = |bytes| Flow {
            bytes,
            end: FlowEnd::Closed,
        };
        assert_eq!((end.a_to_b, end.b_to_a), (of(2_000_006), of(3_000_004)));
        assert!(server.join().unwrap() == [b"early ".to_vec(), pattern(2_000_000, 1)].concat());
        // The last task's descriptors are closed in the next turn.
        core.turn(Some(Duration::ZERO)).unwrap();
        assert!(client.join().unwrap() == [b"101 ".to_vec(), pattern(3_000_000, 2)].concat());
    });
}

#[test]
fn a_tunnel_at_rest_ends_by_its_idle_timeout_and_holds_nothing_meanwhile() {
    on_each_engine(|core| {
        let ((a, mut client), (b, mut server)) = (tcp(core), tcp(core));
        let idle = Duration::from_secs(1);
        let begun = Instant::now();
        let told = start_tunnel(core, a, b, Early::default(), Some(idle));
        for _ in 0..3 {
            client.write_all(b"ping").unwrap();
            core.turn(Some(Duration::from_millis(20))).unwrap();
            core.turn(Some(Duration::from_millis(20))).unwrap();
            assert_eq!(core.usage().pipes, 0);
        }
        run(core);
        let end = told.take().unwrap();
        assert_eq!((end.a_to_b.bytes, end.a_to_b.end), (12, FlowEnd::Idle));
        assert_eq!((end.b_to_a.bytes, end.b_to_a.end), (0, FlowEnd::Idle));
        assert!(begun.elapsed() >= idle);
        core.turn(Some(Duration::ZERO)).unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"pingpingping");
    });
}

#[test]
fn a_broken_end_breaks_the_tunnel_for_the_other() {
    on_each_engine(|core| {
        let ((a, client), (b, mut server)) = (tcp(core), tcp(core));
        core.send_now(&a, b"unread", false).unwrap();
        let told = start_tunnel(core, a, b, Early::default(), None);
        core.turn(Some(Duration::ZERO)).unwrap();
        drop(client);
        run(core);
        let end = told.take().unwrap();
        let broken = Cause::SourceBroken(Errno::CONNRESET);
        assert_eq!(end.a_to_b.end, FlowEnd::Failed(broken));
        assert_eq!(end.b_to_a.end, FlowEnd::Cut);
        core.turn(Some(Duration::ZERO)).unwrap();
        let error = server.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_future_of_a_tunnel_is_small() {
    let selection = crate::runtime::engine::caps::Selection::choose(
        crate::runtime::engine::caps::EngineChoice::Epoll,
    );
    let wake = crate::runtime::mailbox::Wake::new().unwrap();
    let core = selection.unwrap().core(wake, None).unwrap();
    let ((a, _first), (b, _second)) = (unix(&core), unix(&core));
    let mut early = Early::default();
    let future = tunnel(&core, (&a, &b), &mut early, Some(Duration::MAX));
    let bytes = size_of_val(&future);
    assert!(bytes <= 900, "{bytes} bytes");
}

// ---- simulated -------------------------------------------------------------------------------

const SOON: Duration = Duration::from_micros(300);

fn source_address() -> Address {
    Address::Tcp("192.0.2.1:80".parse().unwrap())
}

fn sink_address() -> Address {
    Address::Tcp("192.0.2.2:80".parse().unwrap())
}

/// Waits until the peer knows the end of its connection, for at most 200 s.
async fn told(core: &Core, world: &World, peer: ClientId) {
    let mut timer = Timer::new(core);
    for _ in 0..2000 {
        if world.is_over(peer) {
            return;
        }
        timer.set(core.now() + Duration::from_millis(100));
        timer.expired().await;
    }
}

/// What a run came upon.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    whole: u64,
    cut: u64,
}

/// Relays in a simulation; checks what the sink has got against what was sent.
async fn relay_simulated(core: Core, world: World, tally: Rc<Cell<Tally>>) {
    let mut random = world.random(3);
    let len = random.between(1, 60_000) as usize;
    let announced = len as u64 + random.below(2) * random.below(100);
    let limit = (random.below(2) == 0).then_some(announced);
    let slow = Pace::Slow {
        bytes: random.between(1, 8_000) as usize,
        every: Duration::from_millis(1),
    };
    let is_slow = random.below(3) == 0;
    world.backend(&source_address(), Answer::Accepts, move |_| {
        let first = pattern(len, 9);
        let second = first[len / 2..].to_vec();
        vec![
            (SOON, Act::Send(first[..len / 2].to_vec())),
            (Duration::from_millis(3), Act::Send(second)),
            (SOON, Act::HalfClose),
        ]
    });
    world.backend(&sink_address(), Answer::Accepts, move |_| {
        let pace = if is_slow { slow } else { Pace::Eager };
        vec![(Duration::ZERO, Act::Read(pace))]
    });
    let timeout = Duration::from_secs(3);
    let (Ok(from), Ok(to)) = (
        connect(&core, &source_address(), timeout).await,
        connect(&core, &sink_address(), timeout).await,
    ) else {
        return;
    };
    let (source, sink) = (
        world.peers(&source_address())[0],
        world.peers(&sink_address())[0],
    );
    let (mut timer, moved) = (Timer::new(&core), Moved::default());
    let ends = (&from, &to);
    let result = relay(&core, &mut timer, ends, limit, &PATIENT, &moved).await;
    if result.is_err() {
        core.reset_on_close(&to);
    }
    drop((from, to));
    told(&core, &world, sink).await;
    let seen = world.seen(sink);
    let sent = pattern(len, 9);
    if !sent.starts_with(&seen.received) || (seen.received.len() as u64) > moved.given() {
        world.fail("the sink got other bytes than were sent");
    }
    let broken = seen.broken || world.seen(source).broken;
    let mut count = tally.get();
    match result {
        Ok(bytes) => {
            count.whole += 1;
            let arrived = seen.received.len() == len || seen.broken;
            if bytes != len as u64 || !arrived {
                world.fail(format_args!("{bytes} of {len} bytes, {arrived}"));
            }
        }
        Err(error) => {
            count.cut += 1;
            let short = limit.is_some_and(|limit| limit > len as u64);
            let expected = error.cause == Cause::SourceClosed && short && error.given == len as u64;
            if !(expected || broken) {
                world.fail(format_args!("{error:?}"));
            }
        }
    }
    tally.set(count);
}

#[test]
fn simulated_relays_lose_nothing_and_leave_nothing() {
    let tally = Rc::new(Cell::new(Tally::default()));
    for seed in 0..600 {
        let count = Rc::clone(&tally);
        simulate(seed, Faults::seeded(seed), async move |core, world| {
            relay_simulated(core, world, count).await;
        });
    }
    let tally = tally.get();
    assert!(tally.whole > 100 && tally.cut > 20, "{tally:?}");
}

/// A tunnel between two scripted ends; each sends, ends its direction, and reads to the end.
async fn tunnel_simulated(core: Core, world: World, whole: Rc<Cell<u64>>) {
    let mut random = world.random(4);
    let lens = [random.below(50_000) as usize, random.below(50_000) as usize];
    for (index, address) in [source_address(), sink_address()].iter().enumerate() {
        let pause = Duration::from_millis(random.below(20));
        world.backend(address, Answer::Accepts, move |_| {
            vec![
                (pause, Act::Send(pattern(lens[index], index))),
                (pause, Act::HalfClose),
            ]
        });
    }
    let timeout = Duration::from_secs(3);
    let (Ok(a), Ok(b)) = (
        connect(&core, &source_address(), timeout).await,
        connect(&core, &sink_address(), timeout).await,
    ) else {
        return;
    };
    let peers = [source_address(), sink_address()].map(|address| world.peers(&address)[0]);
    let idle = Some(Duration::from_secs(60));
    let end = tunnel(&core, (&a, &b), &mut Early::default(), idle).await;
    drop((a, b));
    told(&core, &world, peers[0]).await;
    told(&core, &world, peers[1]).await;
    let seen = peers.map(|peer| world.seen(peer));
    let flows = [end.a_to_b, end.b_to_a];
    let broken = seen.iter().any(|seen| seen.broken);
    for (index, flow) in flows.iter().enumerate() {
        let (sent, got) = (pattern(lens[index], index), &seen[1 - index].received);
        let right = sent.starts_with(got) && got.len() as u64 <= flow.bytes;
        let is_whole = flow.end == FlowEnd::Closed && got.len() == sent.len();
        if !right || !(is_whole || broken) {
            world.fail(format_args!("{end:?}: {} of {}", got.len(), sent.len()));
        }
    }
    if !broken {
        whole.set(whole.get() + 1);
    }
}

#[test]
fn simulated_tunnels_keep_both_directions_whole() {
    let whole = Rc::new(Cell::new(0));
    for seed in 0..600 {
        let count = Rc::clone(&whole);
        simulate(seed, Faults::seeded(seed), async move |core, world| {
            tunnel_simulated(core, world, count).await;
        });
    }
    assert!(whole.get() > 100, "{}", whole.get());
}

#[test]
fn relays_and_tunnels_may_be_dropped_at_each_of_their_polls() {
    let mut deaths = 0;
    for seed in 0..12 {
        for is_tunnel in [false, true] {
            let mut polls = 1;
            loop {
                let died = Rc::new(Cell::new(false));
                let flag = Rc::clone(&died);
                let faults = Faults::seeded(seed);
                simulate(seed, faults, async move |core, world| {
                    let (inner, of) = (core.clone(), world.clone());
                    if is_tunnel {
                        let work = tunnel_simulated(inner, of, Rc::default());
                        spawn_mortal(&core, polls, flag, work);
                    } else {
                        let work = relay_simulated(inner, of, Rc::default());
                        spawn_mortal(&core, polls, flag, work);
                    }
                });
                if !died.get() {
                    break;
                }
                deaths += 1;
                // The first ones each, then farther and farther.
                polls += 1 + polls / 20;
            }
        }
    }
    assert!(deaths > 300, "{deaths}");
}
