//! What a test sees of a simulation: clients with scripts, files, and the ledger at the end.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::backend::{Answer, Backend};
use super::faults::Random;
use super::kernel::{Kernel, Object, What};
use super::net::{Client, Connection};
use crate::runtime::address::Address;
use crate::runtime::executor::{Core, Usage};
use crate::runtime::fd::Fd;

/// Names a listener of the simulation, also after its close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(u32);

/// Names a client of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(usize);

/// Says of what was received whether it is enough.
pub type Enough = Box<dyn Fn(&[u8]) -> bool>;

/// Says, of what was received until now, what is sent in answer, and whether the talk is over.
pub type Talk = Box<dyn FnMut(&[u8]) -> (Vec<u8>, bool)>;

/// One step of a client's script.
pub enum Act {
    /// Sends all of this, waiting for room where it has to.
    Send(Vec<u8>),
    /// Waits until what was received satisfies this, or the connection has ended.
    Await(Enough),
    /// Sends what this says, and asks it again whenever more was received, until it says that it is over, or
    /// the connection has ended: a protocol whose bytes depend on what the other side says.
    Talk(Talk),
    /// Reads at this pace from now on.
    Read(Pace),
    /// Ends its sending direction, and goes on receiving.
    HalfClose,
    /// Closes its socket: what still comes is answered by a reset.
    Close,
    /// Breaks the connection by a reset.
    Abort,
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(bytes) => write!(f, "Send({} bytes)", bytes.len()),
            Self::Await(_) => f.write_str("Await"),
            Self::Talk(_) => f.write_str("Talk"),
            Self::Read(pace) => write!(f, "Read({pace:?})"),
            Self::HalfClose => f.write_str("HalfClose"),
            Self::Close => f.write_str("Close"),
            Self::Abort => f.write_str("Abort"),
        }
    }
}

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Everything at once; its window never closes.
    Eager,
    /// A few bytes at a time.
    Slow {
        /// Bytes read at once, at least 1.
        bytes: usize,
        /// How long after bytes came, or after the last read.
        every: Duration,
    },
    /// Not at all.
    Paused,
}

/// How a connection ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server ended the stream, and all before it was received.
    Fin,
    /// The connection was reset.
    Reset,
    /// Nobody listened.
    Refused,
}

/// What a client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// All bytes that it received.
    pub received: Vec<u8>,
    /// How the connection ended, as far as it did.
    pub end: Option<End>,
    /// The client broke the connection itself.
    pub aborted: bool,
    /// The network broke the connection: a fault of [`super::Faults::reset`].
    pub broken: bool,
    /// Nothing is left of its script.
    pub finished: bool,
}

/// The world around a simulated core. It lives on the core's thread.
#[derive(Clone)]
pub struct World {
    kernel: Rc<RefCell<Kernel>>,
    core: Core,
}

impl World {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>, core: Core) -> Self {
        Self { kernel, core }
    }

    /// The seed of this run.
    pub fn seed(&self) -> u64 {
        self.kernel.borrow().seed
    }

    /// A generator for the test's own decisions, whose numbers depend on the seed and `use_of` alone.
    pub fn random(&self, use_of: u64) -> Random {
        let mut random = Random::new(self.seed().wrapping_add(use_of.wrapping_mul(0x9e37)));
        Random::new(random.bits() ^ use_of)
    }

    /// The virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.kernel.borrow().now_ns)
    }

    /// How many turns the core has taken.
    pub fn turns(&self) -> u64 {
        self.kernel.borrow().turns
    }

    /// How often the core has waited for a disk, because a page that it sent wasn't in memory.
    pub fn blocked(&self) -> u64 {
        self.kernel.borrow().blocked
    }

    /// A hash of everything that happened: equal for runs that were equal.
    pub fn trace_hash(&self) -> u64 {
        self.kernel.borrow().trace.hash()
    }

    /// The last of what happened, one event a line.
    pub fn trace(&self) -> String {
        self.kernel.borrow().trace.text()
    }

    /// Wakes the core as another thread would.
    pub fn wake(&self) {
        self.kernel.borrow_mut().woken = true;
    }

    // ---- connections -------------------------------------------------------------------------

    /// A listening socket of the core, and its name for clients.
    pub fn listen(&self) -> (Fd, ListenerId) {
        let backlog = Default::default();
        let number = self.kernel.borrow_mut().open(Object::Listener { backlog });
        (self.core.simulated(number), ListenerId(number))
    }

    /// A client that connects after `pause` and then goes through its script; each act has a pause
    /// before it.
    pub fn connect(
        &self,
        listener: ListenerId,
        pause: Duration,
        script: impl IntoIterator<Item = (Duration, Act)>,
    ) -> ClientId {
        let kernel = &mut *self.kernel.borrow_mut();
        let id = kernel.clients.len();
        let connection = kernel.connections.len();
        kernel.connections.push(Connection::new(id, listener.0));
        let mut client = Client::new(connection, kernel.config.socket_bytes);
        client.script.extend(script);
        kernel.clients.push(client);
        let delay_ns = pause.as_nanos() as u64 + kernel.latency_ns();
        kernel.after(delay_ns, What::Arrive(connection));
        ClientId(id)
    }

    /// An upstream server at an address where none is yet. `script` makes the script of the peer of its
    /// n-th connection.
    pub fn backend(
        &self,
        address: &Address,
        answer: Answer,
        script: impl Fn(usize) -> Vec<(Duration, Act)> + 'static,
    ) {
        self.kernel.borrow_mut().backends.push(Backend {
            address: address.clone(),
            answer,
            script: Box::new(script),
            peers: Vec::new(),
        });
    }

    /// Changes what happens to those that connect to this address from now on.
    pub fn set_answer(&self, address: &Address, answer: Answer) {
        let kernel = &mut *self.kernel.borrow_mut();
        for backend in &mut kernel.backends {
            if backend.address == *address {
                backend.answer = answer;
            }
        }
    }

    /// The peers of the connections that the core has opened to this address, in order.
    pub fn peers(&self, address: &Address) -> Vec<ClientId> {
        let kernel = self.kernel.borrow();
        let at_address = |backend: &&Backend| backend.address == *address;
        let found = kernel.backends.iter().find(at_address);
        let peers = found.map_or(&[][..], |backend| &backend.peers);
        peers.iter().map(|peer| ClientId(*peer)).collect()
    }

    /// Adds an act to a client's script.
    pub fn act(&self, client: ClientId, pause: Duration, act: Act) {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.clients[client.0].script.push_back((pause, act));
        kernel.poke(client.0);
    }

    /// Makes a client's receive buffer hold so many bytes, at least 1.
    pub fn set_window(&self, client: ClientId, bytes: usize) {
        self.kernel.borrow_mut().clients[client.0].window = bytes.max(1);
    }

    /// What a client knows.
    pub fn seen(&self, client: ClientId) -> Seen {
        let kernel = self.kernel.borrow();
        let of = &kernel.clients[client.0];
        Seen {
            received: of.received.clone(),
            end: of.end,
            aborted: of.aborted,
            broken: of.broken,
            finished: of.script.is_empty(),
        }
    }

    /// Whether a client has nothing more to do: its connection has ended or was broken by it.
    pub fn is_over(&self, client: ClientId) -> bool {
        let kernel = self.kernel.borrow();
        let of = &kernel.clients[client.0];
        of.end.is_some() || of.aborted || (of.script.is_empty() && of.closed(&kernel))
    }

    // ---- files -------------------------------------------------------------------------------

    /// The root directory of the simulated files.
    pub fn root(&self) -> Fd {
        let number = self.kernel.borrow_mut().open(Object::Directory(Vec::new()));
        self.core.simulated(number)
    }

    /// Puts a file at a path without a leading slash, as a rename would: handles keep the old one.
    /// Its pages aren't in memory.
    pub fn file(&self, path: &str, content: impl Into<Vec<u8>>) {
        let kernel = &mut *self.kernel.borrow_mut();
        let now_ns = kernel.now_ns;
        kernel.files.file(path.as_bytes(), content.into(), now_ns);
    }

    /// Makes a directory and those above it.
    pub fn directory(&self, path: &str) {
        let kernel = &mut *self.kernel.borrow_mut();
        let now_ns = kernel.now_ns;
        kernel.files.directory(path.as_bytes(), now_ns);
    }

    /// Changes the length of a file in place; open handles see it.
    pub fn truncate(&self, path: &str, len: usize) {
        let kernel = &mut *self.kernel.borrow_mut();
        let now_ns = kernel.now_ns;
        kernel.files.truncate(path.as_bytes(), len, now_ns);
    }

    /// Takes a name away; open handles keep the file.
    pub fn remove(&self, path: &str) {
        self.kernel.borrow_mut().files.remove(path.as_bytes());
    }

    // ---- the run -----------------------------------------------------------------------------

    /// Turns the core until `done`.
    ///
    /// # Panics
    /// With the seed, when that takes more than `turns_max` turns, or the engine finds a rule broken.
    pub fn run_until(&self, turns_max: u64, mut done: impl FnMut() -> bool) {
        let last = self.turns() + turns_max;
        let mut finished = false;
        let ran = self.core.run_until(|| {
            finished = done();
            finished || self.turns() >= last
        });
        if let Err(errno) = ran {
            self.fail(format_args!("a turn failed: {errno}"));
        }
        if !finished {
            let usage = self.core.usage();
            self.fail(format_args!("not done after {turns_max} turns: {usage:?}"));
        }
    }

    /// Turns the core for so much virtual time.
    ///
    /// # Panics
    /// As [`Self::run_until`].
    pub fn run_for(&self, time: Duration) {
        let until = self.elapsed() + time;
        while self.elapsed() < until {
            let left = until - self.elapsed();
            if let Err(errno) = self.core.turn(Some(left)) {
                self.fail(format_args!("a turn failed: {errno}"));
            }
        }
    }

    /// Stops the core and lets all that is under way arrive, then checks the ledger: no descriptor,
    /// slot, scope, buffer, task, timer or job is left, and no task has panicked.
    ///
    /// # Panics
    /// With the seed, when something is left.
    pub fn finish(&self) {
        if !self.core.shut_down() {
            self.fail("ops are left in flight after the stop");
        }
        self.run_for(Duration::from_secs(1));
        let leftovers = self.kernel.borrow().leftovers();
        if !leftovers.is_empty() {
            self.fail(format_args!("left behind: {leftovers}"));
        }
        let usage = self.core.usage();
        if usage != Usage::default() {
            self.fail(format_args!("left behind: {usage:?}"));
        }
        if self.core.panics() > 0 {
            self.fail(format_args!("{} tasks panicked", self.core.panics()));
        }
    }

    /// Ends the run with the seed and the last of what happened.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&self, why: impl fmt::Display) -> ! {
        self.kernel.borrow().fail(why)
    }
}

impl Client {
    /// It has closed its end, and its connection goes nowhere any more.
    fn closed(&self, kernel: &Kernel) -> bool {
        let of = &kernel.connections[self.connection];
        of.client_closed && (of.dead || of.server_closed)
    }
}
