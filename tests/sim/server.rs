//! A small server of a line protocol on the runtime's own interface, with everything a real one does:
//! multishot receives, sends by every way, files, jobs, timeouts, scopes, and a polite close.
//!
//! Requests are lines: `echo ID LEN`, `file ID NAME`, `shrink ID NAME`, `job ID N`, `wait ID MS`. The
//! answer to each begins with its ID, and answers come in the order of the requests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use beltway::runtime::engine::sim::{Random, World};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::future::{Many, Once, Timer};
use beltway::runtime::op::{Completion, Interest, Op, OpenRequest, Output};
use beltway::runtime::scope::Scope;
use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

/// How long a client may send nothing, or take nothing.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the server reads after it has sent everything.
const LINGER: Duration = Duration::from_secs(30);

/// Why the server ended a connection before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The client sent nothing for too long; it was told.
    Idle,
    /// The client took nothing for too long.
    Stuck,
    /// A file became shorter than was announced.
    Shrunk,
    /// A file could not be read after its size was announced.
    Unreadable,
    /// The connection is broken.
    Broken,
    /// The test dropped the task.
    Dropped,
}

/// What all connections share.
pub(crate) struct Server {
    pub(crate) core: Core,
    pub(crate) world: World,
    pub(crate) root: Fd,
    /// How often each request of each client was begun.
    pub(crate) begun: RefCell<BTreeMap<(usize, u32), u32>>,
    /// How each connection ended.
    pub(crate) ended: RefCell<BTreeMap<usize, Result<(), Cut>>>,
    pub(crate) active: Cell<usize>,
    /// What is done to the tasks of connections.
    pub(crate) death: Cell<Death>,
    /// It was done to one.
    pub(crate) died: Cell<bool>,
}

/// A body that tells requests apart.
pub(crate) fn body(id: u32, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| ((id as usize * 31 + n) % 251) as u8)
        .collect()
}

/// What is done to the task of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Nothing.
    Never,
    /// It is dropped at one of its first polls.
    Within(u64),
    /// It is dropped at this poll.
    At(u64),
    /// It is dropped at this poll, and its scope is cancelled and waited for.
    ScopeAt(u64),
}

/// Counts a connection that lives, and says how it ended.
struct Alive {
    server: Rc<Server>,
    client: usize,
    end: Rc<Cell<Result<(), Cut>>>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.server.active.set(self.server.active.get() - 1);
        let mut ended = self.server.ended.borrow_mut();
        let before = ended.insert(self.client, self.end.get());
        assert!(before.is_none(), "a connection has two tasks");
    }
}

/// A future that is dropped at one of its polls, unless `polls_left` is 0; says whether it was.
struct Mortal<F> {
    inner: Option<Pin<Box<F>>>,
    polls_left: u64,
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        self.polls_left = self.polls_left.wrapping_sub(1);
        if self.polls_left == 0 {
            self.inner = None;
        }
        match self.inner.as_mut() {
            Some(inner) => inner.as_mut().poll(context).map(|()| false),
            None => Poll::Ready(true),
        }
    }
}

/// Accepts for ever.
pub(crate) async fn accept(server: Rc<Server>, listener: Fd) {
    let core = server.core.clone();
    loop {
        let listener = listener.clone();
        let mut accepts = core.many(Op::Accept {
            listener,
            one: false,
        });
        while !accepts.ended() {
            let accepted = accepts.next().await;
            match (accepted.result, accepted.output) {
                (Ok(_), Output::Socket(socket)) => start(&server, socket),
                (Err(Errno::MFILE), _) => {
                    let mut pause = Timer::new(&core);
                    pause.set(core.now() + Duration::from_millis(10));
                    pause.expired().await;
                }
                (Err(Errno::CONNABORTED | Errno::CANCELED), _) => {}
                (result, _) => panic!("accept gave {result:?}"),
            }
        }
    }
}

fn start(server: &Rc<Server>, socket: Fd) {
    let address = server.core.peer_address(&socket).expect("a peer");
    let address = SocketAddr::try_from(address).expect("an IP address");
    let client = usize::from(address.port()) - 1024;
    server.active.set(server.active.get() + 1);
    let end = Rc::new(Cell::new(Err(Cut::Dropped)));
    let alive = Alive {
        server: Rc::clone(server),
        client,
        end: Rc::clone(&end),
    };
    let mut random = server.world.random(1000 + client as u64);
    let death = server.death.get();
    let polls_left = match death {
        Death::Never => 0,
        Death::Within(most) => random.between(1, most),
        Death::At(poll) | Death::ScopeAt(poll) => poll,
    };
    let (core, server) = (server.core.clone(), Rc::clone(server));
    core.clone().spawn(async move {
        // Whole, so that it is dropped with the task, whenever that is.
        let alive = alive;
        let mut session = Session::new(server, socket.clone(), client, random);
        let scope = Rc::clone(&session.scope);
        let inner = Some(Box::pin(async move { end.set(session.run().await) }));
        let died = Mortal { inner, polls_left }.await;
        alive.server.died.set(alive.server.died.get() | died);
        if let (true, Death::ScopeAt(_)) = (died, death) {
            scope.cancel().await;
            // Nothing of the scope is in flight any more: its socket may be used for something else.
            let _ = core.send_now(&socket, b"", false);
            let mut receives = core.many(Op::Recv { socket, one: false });
            receives.cancel();
            while receives.next().await.more {}
        }
    });
}

fn poll_once(once: &mut Once) -> Poll<Completion> {
    Pin::new(once).poll(&mut Context::from_waker(Waker::noop()))
}

enum Line {
    Text(String),
    End,
    Idle,
    Broken,
}

/// One connection.
pub(crate) struct Session {
    server: Rc<Server>,
    core: Core,
    pub(crate) scope: Rc<Scope>,
    pub(crate) socket: Fd,
    client: usize,
    random: Random,
    input: Vec<u8>,
    receives: Option<Many>,
    starving: Option<std::num::NonZeroU64>,
    input_end: Option<Result<(), Errno>>,
}

impl Session {
    pub(crate) fn new(server: Rc<Server>, socket: Fd, client: usize, random: Random) -> Self {
        let core = server.core.clone();
        Self {
            scope: Rc::new(Scope::new(&core)),
            server,
            core,
            socket,
            client,
            random,
            input: Vec::new(),
            receives: None,
            starving: None,
            input_end: None,
        }
    }

    /// Serves the connection to its end.
    pub(crate) async fn run(&mut self) -> Result<(), Cut> {
        let served = self.serve().await;
        let polite = matches!(served, Ok(()) | Err(Cut::Idle));
        if !polite {
            // The answer in progress can't be made whole: the client must not take it for whole.
            self.core.reset_on_close(&self.socket);
        } else {
            self.core.shut_down_write(&self.socket);
            self.drain().await;
        }
        let scope = Rc::clone(&self.scope);
        scope.cancel().await;
        served
    }

    async fn serve(&mut self) -> Result<(), Cut> {
        loop {
            match self.line().await {
                Line::Text(text) => self.answer(&text).await?,
                Line::End => return Ok(()),
                Line::Broken => return Err(Cut::Broken),
                Line::Idle => {
                    self.send(b"timeout\n".to_vec(), false).await?;
                    return Err(Cut::Idle);
                }
            }
        }
    }

    // ---- input -------------------------------------------------------------------------------

    /// Takes what has come; `Ready` when that is something, or the end.
    fn poll_input(&mut self) -> Poll<()> {
        if self.input_end.is_some() {
            return Poll::Ready(());
        }
        if let Some(place) = &mut self.starving {
            if self.core.poll_buffers_back(place).is_pending() {
                return Poll::Pending;
            }
            self.starving = None;
        }
        let (scope, socket) = (&self.scope, &self.socket);
        let receives = self.receives.get_or_insert_with(|| {
            let socket = socket.clone();
            scope.many(Op::Recv { socket, one: false })
        });
        let Poll::Ready(received) = receives.poll_next() else {
            return Poll::Pending;
        };
        if !received.more {
            assert!(receives.ended());
            self.receives = None;
        }
        match (received.result, received.output) {
            (Ok(len), Output::Received(bytes)) => {
                assert_eq!(bytes.len(), len as usize);
                self.input.extend_from_slice(&bytes);
            }
            (Ok(0), Output::None) => self.input_end = Some(Ok(())),
            (Err(Errno::NOBUFS), _) => {
                self.starving = Some(self.core.wait_for_buffers());
            }
            (Err(Errno::CANCELED), _) => {}
            (Err(errno), _) => self.input_end = Some(Err(errno)),
            (Ok(_), _) => panic!("bytes without a buffer"),
        }
        Poll::Ready(())
    }

    async fn line(&mut self) -> Line {
        let mut timer = Timer::new(&self.core);
        loop {
            if let Some(at) = self.input.iter().position(|byte| *byte == b'\n') {
                let text: Vec<u8> = self.input.drain(..=at).collect();
                return Line::Text(String::from_utf8(text).expect("requests are text"));
            }
            match self.input_end {
                Some(Ok(())) => return Line::End,
                Some(Err(_)) => return Line::Broken,
                None => {}
            }
            timer.set(self.core.now() + PATIENCE);
            if timer.bound(|| self.poll_input()).await.is_none() && self.starving.is_none() {
                return Line::Idle;
            }
        }
    }

    /// Reads on after the last answer, so that a close doesn't destroy it on its way.
    async fn drain(&mut self) {
        let mut timer = Timer::new(&self.core);
        timer.set(self.core.now() + LINGER);
        while self.input_end.is_none() {
            if timer.bound(|| self.poll_input()).await.is_none() {
                return;
            }
            self.input.clear();
        }
    }

    // ---- output ------------------------------------------------------------------------------

    /// Waits for an op; a client that takes nothing for too long is cut off.
    async fn patiently(&self, mut once: Once) -> Result<Completion, Cut> {
        let mut timer = Timer::new(&self.core);
        timer.set(self.core.now() + PATIENCE);
        let done = timer.bound(|| poll_once(&mut once)).await;
        done.ok_or(Cut::Stuck)
    }

    async fn writable(&self) -> Result<(), Cut> {
        let fd = self.socket.clone();
        let interest = Interest::Writable;
        let ready = self.patiently(self.scope.once(Op::Ready { fd, interest }));
        ready.await?.result.map(|_| ()).map_err(|_| Cut::Broken)
    }

    async fn send(&mut self, mut data: Vec<u8>, more: bool) -> Result<(), Cut> {
        let mut from = 0;
        while from < data.len() {
            if self.random.below(3) == 0 {
                match self.core.send_now(&self.socket, &data[from..], more) {
                    Ok(sent) => from += sent,
                    Err(Errno::AGAIN) => self.writable().await?,
                    Err(_) => return Err(Cut::Broken),
                }
                continue;
            }
            let socket = self.socket.clone();
            let (len, checked) = (data.len(), data.clone());
            let op = Op::Send {
                socket,
                data,
                from,
                more,
            };
            let sent = self.patiently(self.scope.once(op)).await?;
            let Output::Data(back) = sent.output else {
                panic!("the buffer of a send is lost")
            };
            assert!(back.len() == len && back == checked);
            data = back;
            from += sent.result.map_err(|_| Cut::Broken)? as usize;
        }
        self.core.recycle(data);
        Ok(())
    }

    // ---- requests ----------------------------------------------------------------------------

    async fn answer(&mut self, text: &str) -> Result<(), Cut> {
        let mut words = text.split_ascii_whitespace();
        let (verb, id, subject) = (words.next(), words.next(), words.next());
        let id: u32 = id.and_then(|id| id.parse().ok()).expect("an ID");
        let subject = subject.expect("a subject").to_owned();
        *(self.server.begun.borrow_mut())
            .entry((self.client, id))
            .or_default() += 1;
        match verb {
            Some("echo") => {
                let len: usize = subject.parse().expect("a length");
                let mut answer = self.core.send_buffer();
                assert!(answer.is_empty());
                answer.extend_from_slice(format!("{id} {len}\n").as_bytes());
                answer.extend_from_slice(&body(id, len));
                self.send(answer, false).await
            }
            Some("wait") => {
                let mut timer = Timer::new(&self.core);
                let ms = subject.parse().expect("a time");
                timer.set(self.core.now() + Duration::from_millis(ms));
                timer.expired().await;
                self.send(format!("{id} waited\n").into_bytes(), false)
                    .await
            }
            Some("job") => {
                let number: u64 = subject.parse().expect("a number");
                let job = self
                    .scope
                    .once(Op::Offload(Box::new(move || Box::new(number * 2))));
                let answer = match job.await.output {
                    Output::Answer(answer) => {
                        let double = answer.downcast::<u64>().expect("the job's own type");
                        format!("{id} {double}\n")
                    }
                    _ => format!("{id} failed\n"),
                };
                self.send(answer.into_bytes(), false).await
            }
            Some("file") => self.file(id, &subject, false).await,
            Some("shrink") => self.file(id, &subject, true).await,
            _ => panic!("no such request: {text:?}"),
        }
    }

    async fn open(&self, path: &str) -> Result<Fd, Errno> {
        let request = || OpenRequest {
            dir: Some(self.server.root.clone()),
            path: CString::new(path).expect("no NUL in a path"),
            flags: OFlags::RDONLY,
            resolve: ResolveFlags::BENEATH,
        };
        match self.core.open_cached(&request()) {
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
        let opened = self.scope.once(Op::Open(Box::new(request()))).await;
        match opened.output {
            Output::Opened(file) => Ok(file),
            _ => Err(opened.result.expect_err("a success has a file")),
        }
    }

    async fn file(&mut self, id: u32, name: &str, shrink: bool) -> Result<(), Cut> {
        let file = match self.open(name).await {
            Ok(file) => file,
            Err(_) => {
                return self
                    .send(format!("{id} failed\n").into_bytes(), false)
                    .await;
            }
        };
        let size = self.core.stat(&file).expect("an open file").size;
        self.send(format!("{id} {size}\n").into_bytes(), true)
            .await?;
        if shrink {
            self.server.world.truncate(name, size as usize / 2);
        }
        if self.random.below(2) == 0 {
            self.file_by_reads(&file, size).await
        } else {
            self.file_by_sendfile(&file, size).await
        }
    }

    async fn read(&self, file: &Fd, offset: u64, len: usize) -> Result<Vec<u8>, Cut> {
        let (file, data) = (file.clone(), Vec::new());
        let op = Op::Read {
            file,
            data,
            len,
            offset,
        };
        let read = self.scope.once(op).await;
        let Output::Data(data) = read.output else {
            panic!("the buffer of a read is lost")
        };
        let len = read.result.map_err(|_| Cut::Unreadable)?;
        assert_eq!(data.len(), len as usize);
        Ok(data)
    }

    async fn file_by_reads(&mut self, file: &Fd, size: u64) -> Result<(), Cut> {
        let mut offset = 0;
        while offset < size {
            let len = (size - offset).min(3000) as usize;
            let data = self.read(file, offset, len).await?;
            if data.is_empty() {
                return Err(Cut::Shrunk);
            }
            offset += data.len() as u64;
            self.send(data, offset < size).await?;
        }
        Ok(())
    }

    async fn file_by_sendfile(&mut self, file: &Fd, size: u64) -> Result<(), Cut> {
        let (core, socket) = (self.core.clone(), self.socket.clone());
        core.cork(&socket, true);
        let mut offset = 0;
        while offset < size {
            let mut probe = [0; 1];
            match core.read_resident(file, &mut probe, offset) {
                Err(Errno::AGAIN) => {
                    let len = u32::try_from(size - offset).expect("a small file");
                    let advice = Op::WillNeed {
                        file: file.clone(),
                        offset,
                        len,
                    };
                    core.once(advice).await;
                    self.read(file, offset, 1).await?;
                }
                Ok(0) => return Err(Cut::Shrunk),
                Ok(_) => {}
                Err(errno) => panic!("a probe gave {errno}"),
            }
            let count = usize::try_from(size - offset).expect("a small file");
            let count = count.min(core.bulk_left());
            if count == 0 {
                core.yield_turn().await;
                continue;
            }
            match core.send_file(&socket, file, &mut offset, count) {
                Ok(0) => return Err(Cut::Shrunk),
                Ok(sent) => core.bulk_sent(sent),
                Err(Errno::AGAIN) => self.writable().await?,
                Err(_) => return Err(Cut::Broken),
            }
        }
        core.cork(&socket, false);
        Ok(())
    }
}
