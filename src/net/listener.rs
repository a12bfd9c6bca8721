//! Accepting connections under the rules of the accept gate.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::accept_gate::{AcceptGate, Decision, Limits};
use super::spread::Seat;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Op, Output};
use crate::runtime::scope::Scope;
use crate::runtime::task::TaskId;

/// What becomes of the connections that wait in the accept queue of a socket that is accepted from no
/// more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// They are taken, since the close of the last socket would reset them.
    #[default]
    Take,
    /// They are left to another process, which goes on accepting from the socket. Those that wait
    /// when our own accept has been taken back are still taken: see [`accept_loop`].
    Leave,
}

/// How far the end of a group of connections has come. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Open,
    /// Nothing more is accepted.
    Closed,
    /// Each connection ends with its next answer, which says so.
    Draining,
    /// Idle connections end at once.
    Expired,
}

/// A group of connections of one core, and what their listeners know of it: all of the core, or those
/// of one listening socket ([`Listening`]). Whoever brings its end one stage further wakes all tasks.
#[derive(Default)]
pub struct Population {
    open: Cell<usize>,
    stage: Cell<Stage>,
    rest: Cell<Rest>,
    /// How often another holder of the listening sockets has let go of them.
    let_go: Cell<u64>,
    waiting: Cell<Vec<TaskId>>,
    /// Nothing is accepted for now.
    paused: Cell<bool>,
    /// The tasks of the listeners.
    listeners: RefCell<Vec<TaskId>>,
    /// Where other cores see how many there are.
    seat: OnceCell<Rc<Seat>>,
}

impl Population {
    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Lets the listeners end. It comes before [`Self::drain`], so that a request that waits in the
    /// accept queue is begun, and answered like every one that has begun. The first call decides what
    /// becomes of the queue.
    pub fn close(&self, rest: Rest) {
        if !self.closed() {
            self.rest.set(rest);
        }
        self.advance(Stage::Closed);
    }

    /// Lets each connection end with its next answer, which says so (`Connection: close`); one that
    /// idles may still ask. Nothing more is accepted.
    pub fn drain(&self) {
        self.advance(Stage::Draining);
    }

    /// Ends idle connections now, and the others with their answer.
    pub fn expire(&self) {
        self.advance(Stage::Expired);
    }

    /// Has the listeners look at their accept queues, now and a few times after: another process, or
    /// another core, has let go of the same sockets.
    pub fn accept_again(&self) {
        self.let_go.set(self.let_go.get() + 1);
    }

    /// Lets the listeners accept nothing until they are told otherwise: memory is short. What has been
    /// accepted is served.
    pub fn pause(&self, core: &Core, paused: bool) {
        if self.paused.replace(paused) != paused {
            let listeners = self.listeners.borrow();
            listeners.iter().for_each(|task| core.wake_task(*task));
        }
    }

    /// Whether nothing is accepted for now.
    pub fn paused(&self) -> bool {
        self.paused.get()
    }

    fn advance(&self, stage: Stage) {
        self.stage.set(self.stage.get().max(stage));
    }

    /// Whether nothing more is accepted.
    pub fn closed(&self) -> bool {
        self.stage.get() >= Stage::Closed
    }

    /// Whether connections end with their next answer.
    pub fn draining(&self) -> bool {
        self.stage.get() >= Stage::Draining
    }

    /// Whether idle connections end at once.
    pub fn expired(&self) -> bool {
        self.stage.get() >= Stage::Expired
    }

    /// Shows other cores how many there are. Once, before there is any.
    pub fn show(&self, seat: Rc<Seat>) {
        // There is one seat for each core.
        let _ = self.seat.set(seat);
    }

    /// Counts a connection from `listening`, here and there, until the guard is dropped.
    pub fn enter(self: &Rc<Self>, core: &Core, listening: &Rc<Listening>) -> Member {
        let groups = Groups {
            population: Rc::clone(self),
            listening: Rc::clone(listening),
            core: core.clone(),
        };
        Rc::new(groups).enter()
    }

    /// Ready when no connection is open; otherwise the current task is woken when one closes.
    pub fn poll_empty(&self, core: &Core) -> Poll<()> {
        if self.open() == 0 {
            return Poll::Ready(());
        }
        self.wait_for_close(core.current_task());
        Poll::Pending
    }

    fn wait_for_close(&self, task: TaskId) {
        let mut waiting = self.waiting.take();
        if !waiting.contains(&task) {
            waiting.push(task);
        }
        self.waiting.set(waiting);
    }

    fn leave(&self, core: &Core) {
        self.open.set(self.open.get() - 1);
        if let Some(seat) = self.seat.get() {
            seat.leave();
        }
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(|task| core.wake_task(task));
    }
}

/// One listening socket as one core knows it: the connections that were accepted from it, and how far
/// its end has come. A `Population` of its own.
pub struct Listening {
    id: u32,
    population: Population,
    kept: RefCell<Option<Rc<dyn Any>>>,
}

impl Listening {
    /// One with a number that no other socket of this core has or had.
    pub fn new(id: u32) -> Rc<Self> {
        Rc::new(Self {
            id,
            population: Population::default(),
            kept: RefCell::default(),
        })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Keeps something until the last that knows this socket is gone: its connections, and the task
    /// that accepts from it. What was kept before is let go.
    pub fn keep(&self, what: Rc<dyn Any>) {
        self.kept.replace(Some(what));
    }

    /// What is kept.
    pub fn kept<T: 'static>(&self) -> Option<Rc<T>> {
        self.kept.borrow().clone()?.downcast().ok()
    }
}

impl Deref for Listening {
    type Target = Population;

    fn deref(&self) -> &Population {
        &self.population
    }
}

/// One open connection, counted for its core and for its listening socket.
pub struct Member(Rc<Groups>);

impl Member {
    /// The socket that the connection was accepted from.
    pub fn listening(&self) -> &Rc<Listening> {
        &self.0.listening
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.population.leave(&self.0.core);
        self.0.listening.leave(&self.0.core);
    }
}

/// What a listener belongs to: its core's population, and its own. All its connections share it.
struct Groups {
    population: Rc<Population>,
    listening: Rc<Listening>,
    core: Core,
}

impl Groups {
    fn closed(&self) -> bool {
        self.population.closed() || self.listening.closed()
    }

    /// What becomes of the accept queue. What was said of this socket goes before what was said of all.
    fn rest(&self) -> Rest {
        if self.listening.closed() {
            self.listening.rest.get()
        } else {
            self.population.rest.get()
        }
    }

    fn enter(self: &Rc<Self>) -> Member {
        let (all, own) = (&self.population, &self.listening.population);
        all.open.set(all.open() + 1);
        own.open.set(own.open() + 1);
        if let Some(seat) = all.seat.get() {
            seat.enter();
        }
        Member(Rc::clone(self))
    }

    fn poll_resumed(&self) -> Poll<()> {
        if self.closed() || !self.population.paused() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn poll_closed(&self) -> Poll<()> {
        if self.closed() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Ready when enough connections have closed, or nothing more is taken.
    fn poll_room(&self, core: &Core, limits: &Limits) -> Poll<()> {
        if self.closed() || self.population.open() <= limits.connections_resume {
            return Poll::Ready(());
        }
        self.population.wait_for_close(core.current_task());
        Poll::Pending
    }
}

/// The gate's limits for a core that may hold so many connections.
pub fn limits(connections_max: usize) -> Limits {
    let connections_max = connections_max.max(2);
    Limits {
        connections_max,
        connections_resume: connections_max - (connections_max / 64).max(1),
        pause_min: Duration::from_millis(5),
        pause_max: Duration::from_secs(1),
    }
}

/// With room for fewer connections than this they are accepted one by one: an accept for many takes
/// all that wait before it can be cancelled.
const ROOM_FOR_MANY: usize = 256;

/// Most connections that are taken from the accept queue at the end; the kernel's own bound
/// (`net.core.somaxconn`) is this by default.
const LAST_ACCEPTS: usize = 4096;

/// How long a core that is full waits for a connection to close before it tries again to make room:
/// one that was busy may idle by now.
const MAKE_ROOM_AGAIN: Duration = Duration::from_millis(50);

/// When a listener looks at the accept queue again after another holder of the socket is gone.
///
/// A connection wakes one of those that wait on its socket, and no other. If that one is gone before it
/// has accepted, the connection stays in the queue, and whoever else waits sleeps on, until the next
/// connection wakes it. A process that was killed takes such wake-ups beyond its end: the kernel ends
/// the accepts of its rings on a work queue of its own, and nothing tells when that is done. It takes
/// milliseconds, on a machine with much else to do more; the looks spread accordingly.
const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// Looks at the accept queue that are due, by [`LOOKS`].
struct Looks {
    timer: Timer,
    /// [`Population::accept_again`] so many times was seen.
    seen: u64,
    /// When the row of looks began.
    since: Instant,
    /// Which look comes next.
    next: usize,
}

impl Looks {
    /// For a listener that begins now, maybe in place of one that was killed: its first accept is its
    /// first look.
    fn new(core: &Core, seen: u64) -> Self {
        let mut looks = Self {
            timer: Timer::new(core),
            seen,
            since: core.now(),
            next: 0,
        };
        looks.looked();
        looks
    }

    /// Whether the next look is due.
    fn poll_due(&mut self, told: u64, now: Instant) -> Poll<()> {
        if self.seen != told {
            (self.seen, self.since, self.next) = (told, now, 0);
        }
        let Some(after) = LOOKS.get(self.next) else {
            return Poll::Pending;
        };
        self.timer.set(self.since + *after);
        self.timer.poll_expired()
    }

    fn looked(&mut self) {
        self.next += 1;
    }
}

/// Accepts on one listening socket until it, or the whole core, takes no more; then what waits in the
/// accept queue is taken as far as there is room, unless it is left to another process. `serve` starts
/// the task of a connection, which counts from then on until its membership is dropped; `make_room` is
/// told when there are as many as allowed, and closes idle ones if it can.
///
/// The kernel wakes only one of those that wait on a socket, whichever process they are in
/// (`EPOLLEXCLUSIVE`; an accept of io_uring waits so, too). An accept that was woken and is cancelled
/// before it runs keeps that to itself, and the client would wait until another one comes. So whoever
/// has had an accept armed looks into the queue once more.
pub async fn accept_loop(
    core: Core,
    listener: Fd,
    population: Rc<Population>,
    listening: Rc<Listening>,
    limits: Limits,
    mut serve: impl FnMut(Fd, Member),
    mut make_room: impl FnMut(),
) {
    let groups = Rc::new(Groups {
        population,
        listening,
        core: core.clone(),
    });
    let mut gate = AcceptGate::new(limits);
    let mut timer = Timer::new(&core);
    let mut looks = Looks::new(&core, groups.population.let_go.get());
    let mut armed = false;
    let _counted = Counted::new(&core, &groups.population);
    while !groups.closed() {
        std::future::poll_fn(|_| groups.poll_resumed()).await;
        if groups.closed() {
            break;
        }
        match gate.next(groups.population.open(), core.now()) {
            Decision::WaitForClose => {
                make_room();
                timer.set(core.now() + MAKE_ROOM_AGAIN);
                timer.bound(|| groups.poll_room(&core, &limits)).await;
            }
            Decision::WaitUntil(until) => {
                timer.set(until);
                timer.bound(|| groups.poll_closed()).await;
            }
            Decision::Accept => {
                armed = true;
                accept(&core, &listener, &groups, &mut gate, &mut looks, &mut serve).await;
            }
        }
    }
    let room = match groups.rest() {
        Rest::Leave if !armed => 0,
        Rest::Take | Rest::Leave => gate.room(groups.population.open()).min(LAST_ACCEPTS),
    };
    for _ in 0..room {
        match core.accept_now(&listener) {
            Ok(socket) => serve(socket, groups.enter()),
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
            // The queue is empty, or nothing more can be taken from it.
            Err(_) => return,
        }
    }
}

/// The current task among the listeners of a population, until this is dropped.
struct Counted {
    population: Rc<Population>,
    task: TaskId,
}

impl Counted {
    fn new(core: &Core, population: &Rc<Population>) -> Self {
        let task = core.current_task();
        population.listeners.borrow_mut().push(task);
        Self {
            population: Rc::clone(population),
            task,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut listeners = self.population.listeners.borrow_mut();
        listeners.retain(|task| *task != self.task);
    }
}

/// Keeps one accept armed while the gate is open. What was accepted when it closed is served, too; so
/// that this is little, connections are accepted one by one where there is not much room left.
async fn accept(
    core: &Core,
    listener: &Fd,
    groups: &Rc<Groups>,
    gate: &mut AcceptGate,
    looks: &mut Looks,
    serve: &mut impl FnMut(Fd, Member),
) {
    let scope = Scope::new(core);
    let one = gate.room(groups.population.open()) < ROOM_FOR_MANY;
    let mut accepts = scope.many(Op::Accept {
        listener: listener.clone(),
        one,
    });
    let mut cancelled = false;
    // An accept that found no slot has ended before it began, and says so once.
    loop {
        let accepted = std::future::poll_fn(|_| {
            if !cancelled && (groups.closed() || groups.population.paused()) {
                cancelled = true;
                accepts.cancel();
            }
            let told = groups.population.let_go.get();
            if !cancelled && looks.poll_due(told, core.now()).is_ready() {
                looks.looked();
                cancelled = true;
                accepts.cancel();
            }
            accepts.poll_next()
        })
        .await;
        match (accepted.result, accepted.output) {
            (_, Output::Socket(socket)) => {
                gate.accepted();
                serve(socket, groups.enter());
                let connections = groups.population.open();
                let open = gate.next(connections, core.now()) == Decision::Accept;
                let room = gate.room(connections);
                if !(one || cancelled || open && room >= ROOM_FOR_MANY) {
                    cancelled = true;
                    accepts.cancel();
                }
            }
            (Err(errno), _) if is_exhaustion(errno) => {
                let connections = groups.population.open();
                tracing::warn!(%errno, connections, "accepting pauses");
                gate.exhausted(core.now());
            }
            (Err(Errno::CANCELED | Errno::CONNABORTED | Errno::INTR), _) | (Ok(_), _) => {}
            (Err(errno), _) => {
                tracing::error!(%errno, "accepting failed; trying again");
                gate.exhausted(core.now());
            }
        }
        if accepts.ended() {
            return;
        }
    }
}

/// The kernel is out of something that closing connections gives back (accept(2)).
fn is_exhaustion(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::engine::caps::{EngineChoice, Selection};
    use crate::runtime::mailbox::Wake;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    type End = fn(&Population, &Listening);

    /// Clients that wait when this is done before anything was accepted, how many of them are served?
    /// Gives that, and how many are left in the queue.
    fn served_of_three(
        choice: EngineChoice,
        end: impl Fn(&Population, &Listening),
    ) -> (usize, usize) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let selection = Selection::choose(choice).unwrap();
        let core = selection.core(Wake::new().unwrap(), None).unwrap();
        let (population, listening) = (Rc::<Population>::default(), Listening::new(3));
        let served = Rc::new(Cell::new(0));
        let counted = Rc::clone(&served);
        let shared: Arc<OwnedFd> = Arc::new(socket.try_clone().unwrap().into());
        core.spawn(accept_loop(
            core.clone(),
            core.share(shared),
            Rc::clone(&population),
            Rc::clone(&listening),
            limits(100),
            move |_, member| {
                assert_eq!(member.listening().id(), 3);
                counted.set(counted.get() + 1);
            },
            || {},
        ));
        let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
        end(&population, &listening);
        let deadline = Instant::now() + Duration::from_secs(10);
        while core.usage().tasks > 0 {
            assert!(Instant::now() < deadline, "the listener did not end");
            core.turn(Some(Duration::from_millis(20))).unwrap();
        }
        assert!(core.shut_down());
        let left = std::iter::from_fn(|| socket.accept().ok()).count();
        (served.get(), left)
    }

    #[test]
    fn the_queue_is_taken_at_the_end_or_left_to_another_process() {
        for choice in [EngineChoice::Auto, EngineChoice::Epoll] {
            let ends: [(End, _); 6] = [
                (|all, _| all.close(Rest::Take), (3, 0)),
                (|all, _| all.close(Rest::Leave), (0, 3)),
                (|_, one| one.close(Rest::Take), (3, 0)),
                (|_, one| one.close(Rest::Leave), (0, 3)),
                // What was said of the socket itself goes first, and what was said first stays.
                (
                    |all, one| (all.close(Rest::Leave), one.close(Rest::Take)).0,
                    (3, 0),
                ),
                (
                    |_, one| (one.close(Rest::Leave), one.close(Rest::Take)).0,
                    (0, 3),
                ),
            ];
            for (index, (end, expected)) in ends.into_iter().enumerate() {
                assert_eq!(served_of_three(choice, end), expected, "case {index}");
            }
        }
    }

    /// A core that accepts from this socket, what ends it, and how many clients it has served.
    fn accepting(
        choice: EngineChoice,
        socket: &TcpListener,
    ) -> (Core, Rc<Listening>, Rc<Cell<usize>>) {
        let selection = Selection::choose(choice).unwrap();
        let core = selection.core(Wake::new().unwrap(), None).unwrap();
        let (listening, served) = (Listening::new(0), Rc::new(Cell::new(0)));
        let counted = Rc::clone(&served);
        let shared: Arc<OwnedFd> = Arc::new(socket.try_clone().unwrap().into());
        core.spawn(accept_loop(
            core.clone(),
            core.share(shared),
            Rc::default(),
            Rc::clone(&listening),
            limits(1000),
            move |_, _| counted.set(counted.get() + 1),
            || {},
        ));
        (core, listening, served)
    }

    #[test]
    fn a_client_whose_arrival_woke_the_one_that_leaves_is_served() {
        for choice in [EngineChoice::Auto, EngineChoice::Epoll] {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            let (old, leaving, by_old) = accepting(choice, &socket);
            old.turn(Some(Duration::ZERO)).unwrap();
            let (new, staying, by_new) = accepting(choice, &socket);
            new.turn(Some(Duration::ZERO)).unwrap();
            // The kernel wakes one of those that wait, the first.
            let _client = TcpStream::connect(address).unwrap();
            leaving.close(Rest::Leave);
            old.wake_all();
            let deadline = Instant::now() + Duration::from_secs(5);
            while old.usage().tasks > 0 || by_old.get() + by_new.get() == 0 {
                assert!(
                    Instant::now() < deadline,
                    "{choice:?}: nobody took the client"
                );
                old.turn(Some(Duration::from_millis(1))).unwrap();
                new.turn(Some(Duration::from_millis(1))).unwrap();
            }
            assert_eq!(by_old.get() + by_new.get(), 1);
            staying.close(Rest::Take);
            assert!(old.shut_down() && new.shut_down());
        }
    }

    #[test]
    fn an_end_goes_on_and_never_back() {
        let listening = Listening::new(0);
        let stages = || {
            (
                listening.closed(),
                listening.draining(),
                listening.expired(),
            )
        };
        assert_eq!(stages(), (false, false, false));
        listening.close(Rest::Leave);
        assert_eq!(stages(), (true, false, false));
        listening.expire();
        assert_eq!(stages(), (true, true, true));
        listening.drain();
        assert_eq!(stages(), (true, true, true));
    }

    #[test]
    fn what_a_socket_keeps_goes_with_its_last_connection() {
        let selection = Selection::choose(EngineChoice::Epoll).unwrap();
        let core = selection.core(Wake::new().unwrap(), None).unwrap();
        let (population, listening) = (Rc::<Population>::default(), Listening::new(0));
        let kept = Rc::new(5_u64);
        listening.keep(Rc::clone(&kept) as Rc<dyn Any>);
        let member = population.enter(&core, &listening);
        assert_eq!((population.open(), listening.open()), (1, 1));
        drop(listening);
        assert_eq!(member.listening().kept::<u64>(), Some(Rc::clone(&kept)));
        assert_eq!(member.listening().kept::<u32>(), None);
        drop(member);
        assert_eq!((population.open(), Rc::strong_count(&kept)), (0, 1));
    }
}
