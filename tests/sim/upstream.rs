//! The same for a small gateway: requests go from clients through pooled connections to upstream
//! servers, bodies are relayed both ways, and the servers end, break, cut, speak unasked or aren't
//! there. Every answer belongs to its request and is whole, or is seen to be cut.
//!
//! A request is a line `ask ID LEN` and LEN bytes; an answer a line `ans SERVER CONNECTION NUMBER LEN`
//! and LEN bytes. A server doesn't read what it is asked; so answers are told apart by who gave them,
//! and what the peers have received says to which request that was.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use beltway::net::connect::connect;
use beltway::net::recv::Receiver;
use beltway::net::send::ProgressRule;
use beltway::net::splice::{Early, Moved, RelayRules, relay, tunnel};
use beltway::runtime::address::Address;
use beltway::runtime::engine::sim::{
    self, Act, Answer, ClientId, Config, End, Faults, Pace, Random, World,
};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::future::Timer;
use beltway::runtime::op::{Interest, Op, Output};
use beltway::upstream::pool::{Connection, Limits, Pool};
use rustix::io::Errno;

use crate::server::body;
use crate::{SEEDS, TURNS_MAX, number, told};

/// Longest line.
const LINE_MAX: usize = 100;

/// How long anybody may do nothing.
const PATIENCE: Duration = Duration::from_secs(20);

const RULES: RelayRules = RelayRules {
    source_silence: Some(PATIENCE),
    sink: ProgressRule {
        window: PATIENCE,
        rate: 1,
    },
};

fn address(server: usize) -> Address {
    Address::Tcp(SocketAddr::from(([192, 0, 2, 10 + server as u8], 80)))
}

/// One message: the numbers of its line, and its content.
struct Message<'a> {
    numbers: Vec<usize>,
    content: &'a [u8],
}

/// The whole messages that these bytes begin with, and how many bytes are left.
fn messages(mut bytes: &[u8]) -> (Vec<Message<'_>>, usize) {
    let mut all = Vec::new();
    while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
        let line = std::str::from_utf8(&bytes[..at]).expect("lines are text");
        let words = line.split(' ').skip(1);
        let numbers: Vec<usize> = words.map(|word| word.parse().expect("a number")).collect();
        let end = at + 1 + numbers.last().expect("a length");
        let Some(content) = bytes.get(at + 1..end) else {
            break;
        };
        all.push(Message { numbers, content });
        bytes = &bytes[end..];
    }
    (all, bytes.len())
}

fn has(count: usize) -> Act {
    Act::Await(Box::new(move |got| messages(got).0.len() >= count))
}

fn ms(random: &mut Random, most: u64) -> Duration {
    Duration::from_millis(random.below(most))
}

/// What a peer of a server's n-th connection does: answers some requests and then misbehaves.
fn serve(seed: u64, server: usize, n: usize, len_max: u64) -> Vec<(Duration, Act)> {
    let mut random = Random::new(seed ^ ((server * 1000 + n) as u64) << 20);
    let mut script = Vec::new();
    let answers = random.between(1, 4) as usize;
    for number in 0..answers {
        script.push((ms(&mut random, 5), has(number + 1)));
        let len = random.below(len_max) as usize;
        let mut answer = format!("ans {server} {n} {number} {len}\n").into_bytes();
        answer.extend(body((server * 100 + n * 10 + number) as u32, len));
        if random.below(8) == 0 {
            answer.truncate(random.below(answer.len() as u64) as usize);
            script.push((Duration::ZERO, Act::Send(answer)));
            script.push((Duration::ZERO, Act::HalfClose));
            return script;
        }
        let rest = answer.split_off(answer.len() / 2);
        script.push((ms(&mut random, 5), Act::Send(answer)));
        script.push((ms(&mut random, 5), Act::Send(rest)));
    }
    let last = match random.below(4) {
        0 => Act::Abort,
        1 => Act::Send(b"unasked".to_vec()),
        _ => Act::HalfClose,
    };
    script.push((ms(&mut random, 2000), last));
    script
}

/// The requests of a client: their ids and lengths.
fn requests(random: &mut Random, client: usize, len_max: u64) -> Vec<(usize, usize)> {
    let many = random.between(1, 4) as usize;
    let ids = client * 100..client * 100 + many;
    ids.map(|id| (id, random.below(len_max) as usize)).collect()
}

fn client_script(random: &mut Random, asked: &[(usize, usize)]) -> Vec<(Duration, Act)> {
    let mut script = Vec::new();
    if random.below(4) == 0 {
        let bytes = random.between(20, 5000) as usize;
        let every = Duration::from_millis(1);
        script.push((Duration::ZERO, Act::Read(Pace::Slow { bytes, every })));
    }
    for (index, (id, len)) in asked.iter().enumerate() {
        let mut request = format!("ask {id} {len}\n").into_bytes();
        request.extend(body(*id as u32, *len));
        script.push((ms(random, 1500), Act::Send(request)));
        script.push((Duration::ZERO, has(index + 1)));
    }
    let last = if random.below(6) == 0 {
        Act::Abort
    } else {
        Act::HalfClose
    };
    script.push((ms(random, 10), last));
    script
}

struct Gateway {
    core: Core,
    pool: Pool,
    servers: usize,
    active: Cell<usize>,
}

/// A line that was received, and what came after it.
async fn line(core: &Core, receiver: &mut Receiver, before: Vec<u8>) -> Option<(String, Vec<u8>)> {
    let mut got = before;
    let mut timer = Timer::new(core);
    timer.set(core.now() + PATIENCE);
    loop {
        if let Some(at) = got.iter().position(|byte| *byte == b'\n') {
            let rest = got.split_off(at + 1);
            got.pop();
            return Some((String::from_utf8(got).ok()?, rest));
        }
        if got.len() > LINE_MAX {
            return None;
        }
        let next = timer.bound(|| receiver.poll_next()).await?;
        got.extend_from_slice(&next.ok()?);
    }
}

async fn send(core: &Core, to: &Fd, mut bytes: &[u8]) -> Option<()> {
    let mut timer = Timer::new(core);
    while !bytes.is_empty() {
        match core.send_now(to, bytes, false) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::AGAIN) => {
                let mut ready = core.once(Op::Ready {
                    fd: to.clone(),
                    interest: Interest::Writable,
                });
                timer.set(core.now() + PATIENCE);
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                let poll = || std::pin::Pin::new(&mut ready).poll(&mut context);
                timer.bound(poll).await?.result.ok()?;
            }
            Err(_) => return None,
        }
    }
    Some(())
}

/// Passes a line and its content on; gives what came after it.
async fn pass(
    core: &Core,
    (line, rest): (String, Vec<u8>),
    (from, receiver): (&Fd, &mut Receiver),
    to: &Fd,
) -> Option<Vec<u8>> {
    let len: usize = line.rsplit(' ').next()?.parse().ok()?;
    send(core, to, format!("{line}\n").as_bytes()).await?;
    let mut came = rest;
    if came.len() < len {
        came.extend(receiver.stop().await);
    }
    let after = came.split_off(came.len().min(len));
    send(core, to, &came).await?;
    let left = (len - came.len()) as u64;
    if left > 0 {
        let (mut timer, moved) = (Timer::new(core), Moved::default());
        let relayed = relay(core, &mut timer, (from, to), Some(left), &RULES, &moved).await;
        assert_eq!(relayed.is_ok(), moved.given() == left);
        relayed.ok()?;
    }
    Some(after)
}

impl Gateway {
    async fn take(&self, request: usize) -> Option<Connection> {
        let to = address(request % self.servers);
        let timeout = Duration::from_secs(3);
        let open = async || connect(&self.core, &to, timeout).await;
        self.pool.take(&to, open).await.ok()
    }

    async fn exchange(
        &self,
        socket: &Fd,
        receiver: &mut Receiver,
        before: Vec<u8>,
    ) -> Result<Vec<u8>, bool> {
        let core = &self.core;
        let asked = line(core, receiver, before).await.ok_or(true)?;
        let id = asked.0.split(' ').nth(1).and_then(|id| id.parse().ok());
        let mut upstream = self.take(id.ok_or(true)?).await.ok_or(false)?;
        let server = upstream.socket().clone();
        let ends = (socket, &mut *receiver);
        let after = pass(core, asked, ends, &server).await.ok_or(false)?;
        let answer = line(core, upstream.receiver(), Vec::new()).await;
        let ends = (&server, upstream.receiver());
        let unasked = pass(core, answer.ok_or(false)?, ends, socket).await;
        if unasked.ok_or(false)?.is_empty() {
            upstream.give_back();
        }
        Ok(after)
    }

    /// Serves a client to its end, or breaks its connection where an answer can't be whole.
    async fn serve(&self, socket: Fd) {
        let mut receiver = Receiver::new(&self.core, socket.clone());
        let mut before = Vec::new();
        loop {
            match self.exchange(&socket, &mut receiver, before).await {
                Ok(after) => before = after,
                Err(is_polite) => {
                    if !is_polite {
                        self.core.reset_on_close(&socket);
                    }
                    return;
                }
            }
        }
    }
}

/// Counts a connection that lives.
struct Alive(Rc<Gateway>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

async fn accept(gateway: Rc<Gateway>, listener: Fd) {
    let core = gateway.core.clone();
    loop {
        let mut accepts = core.many(Op::Accept {
            listener: listener.clone(),
            one: false,
        });
        while !accepts.ended() {
            let accepted = accepts.next().await;
            if let Output::Socket(socket) = accepted.output {
                gateway.active.set(gateway.active.get() + 1);
                let alive = Alive(Rc::clone(&gateway));
                core.spawn(async move {
                    alive.0.serve(socket).await;
                });
            } else {
                let mut pause = Timer::new(&core);
                pause.set(core.now() + Duration::from_millis(10));
                pause.expired().await;
            }
        }
    }
}

/// Checks what a client got; gives how many whole answers that were.
fn check(
    world: &World,
    client: ClientId,
    asked: &[(usize, usize)],
    peers: &[Vec<ClientId>],
) -> usize {
    let seen = world.seen(client);
    let (answers, rest) = messages(&seen.received);
    if rest > 0 && seen.end == Some(End::Fin) {
        world.fail(format_args!(
            "half an answer ends like a whole one: {rest} bytes"
        ));
    }
    if answers.len() > asked.len() {
        world.fail("more answers than requests");
    }
    for (answer, (id, len)) in answers.iter().zip(asked) {
        let [server, connection, number, _] = answer.numbers[..] else {
            world.fail("not an answer")
        };
        let which = (server * 100 + connection * 10 + number) as u32;
        if answer.content != body(which, answer.content.len()) {
            world.fail(format_args!("request {id} got a mangled answer"));
        }
        let peer = world.seen(peers[server][connection]);
        let (requests, _) = messages(&peer.received);
        let Some(request) = requests.get(number) else {
            world.fail("an answer without a request")
        };
        if request.numbers != [*id, *len] || request.content != body(*id as u32, *len) {
            world.fail(format_args!("request {id} got the answer to another"));
        }
    }
    answers.len()
}

/// What the runs came upon.
#[derive(Debug, Default)]
struct Tally {
    whole: usize,
    reused: u64,
    stale: u64,
    discarded: u64,
}

fn run(seed: u64, tally: &mut Tally) -> u64 {
    let (faults, config) = (Faults::seeded(seed), Config::seeded(seed));
    let len_max = (config.socket_bytes as u64 * 8).min(60_000);
    let (core, world) = sim::new(seed, faults, config);
    let mut random = world.random(0);
    let servers = random.between(1, 3) as usize;
    for server in 0..servers {
        let answer = match random.below(12) {
            0 => Answer::Refuses,
            1 => Answer::Silent,
            2 => Answer::HalfOpen,
            _ => Answer::Accepts,
        };
        let script = move |n| serve(seed, server, n, len_max);
        world.backend(&address(server), answer, script);
    }
    let limits = Limits {
        idle_per_server: random.below(3) as usize,
        idle_max: random.between(1, 4) as usize,
        idle_timeout: Duration::from_secs(5),
    };
    let pool = Pool::new(&core, limits);
    let gateway = Rc::new(Gateway {
        core: core.clone(),
        pool: pool.clone(),
        servers,
        active: Cell::new(0),
    });
    let (listener, id) = world.listen();
    let mut clients = Vec::new();
    for client in 0..random.between(1, 5) as usize {
        let asked = requests(&mut random, client, len_max);
        let script = client_script(&mut random, &asked);
        let pause = ms(&mut random, 500);
        clients.push((world.connect(id, pause, script), asked));
    }
    core.spawn(accept(Rc::clone(&gateway), listener));
    world.run_until(TURNS_MAX, || {
        gateway.active.get() == 0 && clients.iter().all(|(client, _)| world.is_over(*client))
    });
    let peers: Vec<Vec<ClientId>> = (0..servers).map(|n| world.peers(&address(n))).collect();
    for (client, asked) in &clients {
        tally.whole += check(&world, *client, asked, &peers);
    }
    let counters = pool.counters();
    assert_eq!(counters.busy, 0, "seed {seed}: {counters:?}");
    tally.reused += counters.reused;
    tally.stale += counters.ended + counters.unasked;
    tally.discarded += counters.discarded;
    pool.close();
    drop((gateway, pool));
    assert!(core.shut_down(), "everything is collected");
    world.finish();
    world.trace_hash()
}

#[test]
fn every_answer_belongs_to_its_request_and_nothing_is_left() {
    if let Some(seed) = number("BELTWAY_SIM_SEED") {
        told(seed, || run(seed, &mut Tally::default()));
        return;
    }
    let mut tally = Tally::default();
    for seed in 0..number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS) / 3 {
        told(seed, || run(seed, &mut tally));
    }
    println!("{tally:?}");
    let Tally {
        whole,
        reused,
        stale,
        discarded,
    } = tally;
    assert!(whole > 0 && reused > 0 && stale > 0 && discarded > 0);
}

#[test]
fn a_seed_gives_the_same_history_again() {
    let hash = |seed| run(seed, &mut Tally::default());
    for seed in 0..50 {
        assert_eq!(hash(seed), hash(seed), "seed {seed}");
    }
}

/// A tunnel whose task dies at this poll, between a client and a server; says whether it lived so long.
fn tunnel_to_death(seed: u64, polls: u64) -> bool {
    let (core, world) = sim::new(seed, Faults::seeded(seed), Config::seeded(seed));
    world.backend(&address(0), Answer::Accepts, |_| {
        let pause = Duration::from_millis(3);
        vec![(pause, Act::Send(body(1, 20_000))), (pause, Act::HalfClose)]
    });
    world.backend(&address(1), Answer::Accepts, |_| {
        vec![(Duration::ZERO, Act::Send(body(2, 30_000)))]
    });
    let died = Rc::new(Cell::new(false));
    let (inner, flag) = (core.clone(), Rc::clone(&died));
    let mut work = Some(Box::pin(async move {
        let timeout = Duration::from_secs(1);
        let a = connect(&inner, &address(0), timeout).await.ok()?;
        let b = connect(&inner, &address(1), timeout).await.ok()?;
        let idle = Some(Duration::from_secs(2));
        let mut early = Early {
            from_a: b"early".to_vec(),
            from_b: Vec::new(),
        };
        Some(tunnel(&inner, (&a, &b), &mut early, idle).await)
    }));
    let mut left = polls;
    core.spawn(async move {
        std::future::poll_fn(move |context| {
            left -= 1;
            if left == 0 {
                work = None;
                flag.set(true);
            }
            match work.as_mut() {
                Some(work) => work.as_mut().poll(context).map(drop),
                None => std::task::Poll::Ready(()),
            }
        })
        .await;
    });
    world.run_until(TURNS_MAX, || core.usage().tasks == 0);
    assert!(core.shut_down(), "everything is collected");
    world.finish();
    died.get()
}

#[test]
fn a_tunnel_may_be_dropped_at_each_of_its_polls() {
    let mut deaths = 0;
    for seed in 0..30 {
        let mut polls = 1;
        while told(seed, || u64::from(tunnel_to_death(seed, polls))) == 1 {
            deaths += 1;
            polls += 1 + polls / 50;
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 500, "{deaths}");
}
