//! Turns of a core, and requests through the session on a simulated machine; the same turns with the
//! kernel's engines.

use std::cell::Cell;
use std::hint::black_box;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use beltway::http::h1::HeadLimits;
use beltway::http::h1::encode::{DateBlock, DateCache};
use beltway::http::session::{
    self, Body, Epoch, Exchange, Peer, Registry, Response, Service, Settings, Upload,
};
use beltway::http::types::{Request, ResponseHead};
use beltway::net::listener::{Listening, accept_loop, limits};
use beltway::net::send::ProgressRule;
use beltway::runtime::engine::caps::{EngineChoice, Selection};
use beltway::runtime::engine::sim::{self, Act, ClientId, Config, Faults, World};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::mailbox::Wake;
use beltway::runtime::op::{Op, Output};

use super::{Piece, piece};

/// Most turns of one request; it takes a handful.
const TURNS_MAX: u64 = 1000;

/// Bytes of an echo and of an answer; few in the simulation, whose network costs something for each.
const MESSAGE: usize = 16;
const MESSAGE_REAL: usize = 1024;

const REQUEST: &[u8] = b"GET /app.js HTTP/1.1\r\nHost: www.example.com\r\nAccept: */*\r\n\r\n";

/// Turns and requests without the kernel.
pub(super) fn simulated() -> Vec<Piece> {
    vec![turn(), echo_simulated(), request()]
}

/// Echoes on each engine that this machine has.
pub(super) fn real() -> Vec<Piece> {
    let uring = Selection::choose(EngineChoice::Uring).ok();
    let epoll = Selection::choose(EngineChoice::Epoll).ok();
    [
        ("io-uring-echo-of-1-kib", uring),
        ("epoll-echo-of-1-kib", epoll),
    ]
    .into_iter()
    .filter_map(|(name, selection)| Some(echo_real(name, &selection?)))
    .collect()
}

/// A machine where nothing fails and a packet takes the same time always.
fn machine() -> (Core, World) {
    let config = Config {
        latency_us: (20, 20),
        ..Config::default()
    };
    sim::new(1, Faults::default(), config)
}

/// A turn in which 64 tasks are ready, and the engine has nothing to say.
fn turn() -> Piece {
    let (core, world) = machine();
    for _ in 0..64 {
        let of = core.clone();
        core.spawn(async move {
            loop {
                of.yield_turn().await;
            }
        });
    }
    piece("sim-turn-of-64-tasks", move || {
        core.turn(Some(Duration::ZERO)).expect("a turn");
        black_box(&world);
    })
}

/// Sends back what comes, by the ops of a core.
async fn echo(core: Core, socket: Fd) {
    let receive = || {
        let socket = socket.clone();
        core.many(Op::Recv { socket, one: false })
    };
    let mut received = receive();
    loop {
        if received.ended() {
            received = receive();
        }
        let Output::Received(bytes) = received.next().await.output else {
            continue;
        };
        let mut data = core.send_buffer();
        data.extend_from_slice(&bytes);
        drop(bytes);
        let sent = core.once(Op::Send {
            socket: socket.clone(),
            data,
            from: 0,
            more: false,
        });
        if let Output::Data(data) = sent.await.output {
            core.recycle(data);
        }
    }
}

/// A client of the simulation that sends the same message again and again, and sees when as many bytes
/// have come as each answer has.
struct Client {
    world: World,
    id: ClientId,
    message: &'static [u8],
    answer: usize,
    expected: usize,
}

impl Client {
    fn new(world: &World, id: ClientId, message: &'static [u8], answer: usize) -> Self {
        Self {
            world: world.clone(),
            id,
            message,
            answer,
            expected: 0,
        }
    }

    fn round_trip(&mut self) {
        self.expected += self.answer;
        let (expected, done) = (self.expected, Rc::new(Cell::new(false)));
        let told = Rc::clone(&done);
        let enough = move |received: &[u8]| {
            told.set(received.len() >= expected);
            told.get()
        };
        let send = Act::Send(self.message.to_vec());
        self.world.act(self.id, Duration::ZERO, send);
        self.world
            .act(self.id, Duration::ZERO, Act::Await(Box::new(enough)));
        self.world.run_until(TURNS_MAX, || done.get());
    }
}

fn echo_simulated() -> Piece {
    let (core, world) = machine();
    let (listener, id) = world.listen();
    let of = core.clone();
    core.spawn(async move {
        let mut accepts = of.many(Op::Accept {
            listener,
            one: false,
        });
        loop {
            if let Output::Socket(socket) = accepts.next().await.output {
                of.spawn(echo(of.clone(), socket));
            }
        }
    });
    let id = world.connect(id, Duration::ZERO, []);
    let mut client = Client::new(&world, id, &[b'x'; MESSAGE], MESSAGE);
    piece("sim-echo", move || client.round_trip())
}

/// Answers everything with a few bytes.
struct Constant {
    epoch: Rc<Rules>,
    registry: Rc<Registry>,
    content: Rc<[u8]>,
    date: DateBlock,
}

struct Rules(Settings);

impl Epoch for Rules {
    fn settings(&self) -> &Settings {
        &self.0
    }
}

impl Service for Constant {
    type Epoch = Rules;

    fn epoch(&self, _: &Peer) -> Rc<Rules> {
        Rc::clone(&self.epoch)
    }

    async fn call(&self, _: &Rc<Rules>, _: &Request<'_>, _: &mut Upload<'_>, _: &Peer) -> Response {
        Response {
            head: ResponseHead::new(200).with("Content-Type", "text/javascript"),
            body: Body::Shared(Rc::clone(&self.content), 0..MESSAGE),
        }
    }

    fn refusal(&self, status: u16) -> Response {
        Response::empty(status)
    }

    fn date(&self) -> DateBlock {
        self.date.clone()
    }

    fn logs(&self, _: &Rules) -> bool {
        false
    }

    fn log(&self, _: &Rules, _: &Peer, _: &Exchange<'_>) {}

    fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }
}

/// A request on a connection that is kept, from the arrival of its head to that of its answer.
fn request() -> Piece {
    let (core, world) = machine();
    let service = Rc::new(Constant {
        epoch: Rc::new(Rules(Settings {
            head: HeadLimits::default(),
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            progress: ProgressRule {
                window: Duration::from_secs(10),
                rate: 500,
            },
            requests_max: u64::MAX,
            body_drain: 0,
        })),
        registry: Rc::default(),
        content: vec![b'x'; MESSAGE].into(),
        date: DateCache::new(1_700_000_000).at(1_700_000_000).clone(),
    });
    let (listener, id) = world.listen();
    let population = Rc::clone(service.registry.population());
    let listening = Listening::new(0);
    let (inner, of, registry) = (
        core.clone(),
        Rc::clone(&listening),
        Rc::clone(&service.registry),
    );
    let serve = move |socket, member| {
        let (core, of, service) = (inner.clone(), Rc::clone(&of), Rc::clone(&service));
        inner.spawn(session::serve(core, socket, member, of, service));
    };
    let roomy = core.clone();
    core.spawn(accept_loop(
        core.clone(),
        listener,
        population,
        listening,
        limits(16),
        serve,
        move || registry.make_room(&roomy),
    ));
    let id = world.connect(
        id,
        Duration::ZERO,
        [(Duration::ZERO, Act::Send(REQUEST.to_vec()))],
    );
    world.run_for(Duration::from_millis(10));
    let answer = world.seen(id).received.len();
    assert!(answer > MESSAGE, "the first request was answered");
    let mut client = Client::new(&world, id, REQUEST, answer);
    client.expected = answer;
    piece("sim-request-kept-alive", move || client.round_trip())
}

/// What [`echo`] costs with a kernel: the client's part, two calls, included.
fn echo_real(name: &'static str, selection: &Selection) -> Piece {
    use std::io::{Read as _, Write as _};
    let wake = Wake::new().expect("an eventfd");
    let core = selection.core(wake, None).expect("a core");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut client = TcpStream::connect(address).expect("a connection");
    client.set_nodelay(true).expect("TCP_NODELAY");
    client.set_nonblocking(true).expect("O_NONBLOCK");
    let (socket, _) = listener.accept().expect("a connection");
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    core.spawn(echo(core.clone(), core.own(socket.into())));
    let mut answer = [0; MESSAGE_REAL];
    piece(name, move || {
        client
            .write_all(&[b'x'; MESSAGE_REAL])
            .expect("room for it");
        let mut got = 0;
        while got < MESSAGE_REAL {
            core.turn(Some(Duration::from_millis(1))).expect("a turn");
            got += client.read(&mut answer[got..]).unwrap_or(0);
        }
    })
}
