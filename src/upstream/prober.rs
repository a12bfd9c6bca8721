//! Asks the servers of an upstream whether they are well, and tells the roster what they say.
//!
//! When to ask and what an answer means is decided by [`health`](super::health); this carries it out: a
//! connection of its own for each question, so that what is found is what a new client would find, and
//! closed after it. Each server is asked by one core, which is told by what the server is called and not
//! by its place in the list: servers that come and go don't move the others to another core.

use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Share;
use super::balance::Standing;
use super::health::{
    Change, Expectation, FailureKind, PROBE_BODY_BYTES_MAX, Probe, ProbePlan, Step, probes_here,
};
use super::roster::{Member, Members, Roster};
use super::shared::Judge;
use crate::config::model::{self, HealthCheck};
use crate::http::h1::HeadLimits;
use crate::http::h1::body::BodyDecoder;
use crate::http::h1::encode::ResponseFraming;
use crate::http::h1::response::{Asked, HeadKind, ResponseReader};
use crate::http::types::Method;
use crate::net::connect::{ConnectError, connect_from};
use crate::net::proxy_protocol::{self, Origin, ProxyVersion};
use crate::net::recv::Receiver;
use crate::net::secured::{self, HandshakeError};
use crate::net::send::{ProgressRule, Sender};
use crate::net::tls::{ClientSettings, PeerName};
use crate::runtime::address::Address;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::runtime::task::TaskId;
use crate::util::random::Random;

/// Most probes at once, of one upstream on one core. The others wait, those that are due longest first.
pub const PROBES_MAX: usize = 16;

/// How often it is seen whether names have other addresses, which nobody wakes a core for.
const LOOK: Duration = Duration::from_millis(500);

/// The whole of a probe is bounded in time, so its request needs no rule of its own.
const NO_RULE: ProgressRule = ProgressRule {
    window: Duration::from_secs(1),
    rate: 0,
};

/// Probes the servers of an upstream that fall to this core, until it is dropped.
pub struct Prober {
    core: Core,
    roster: Arc<Roster>,
    header: Option<ProxyVersion>,
    task: TaskId,
}

impl Prober {
    /// Begins to probe. `None` where the upstream has no health check: what one of before a reload has
    /// found is taken back then, because nobody would ever do so.
    ///
    /// `header`: each connection begins with a PROXY header of this version, which says that it is our
    /// own. A server that awaits one from every client takes a probe without it for broken.
    pub fn start(
        core: &Core,
        roster: &Arc<Roster>,
        header: Option<ProxyVersion>,
        (share, seed): (Share, u64),
    ) -> Option<Self> {
        let Some(check) = &roster.settings().health else {
            let members = roster.members();
            for at in 0..members.list.len() {
                members.board.acquit(at, Judge::Probe, core.now());
            }
            return None;
        };
        let rounds = Rounds {
            core: core.clone(),
            roster: Arc::clone(roster),
            share,
            header,
            secured: secured_by(roster.settings(), check),
            check: check.clone(),
            plan: plan(check),
            random: Random::new(seed),
            members: roster.members(),
            patients: Vec::new(),
            last_number: 0,
            running: Vec::new(),
        };
        Some(Self {
            core: core.clone(),
            roster: Arc::clone(roster),
            header,
            task: core.spawn(rounds.run()),
        })
    }

    /// Whether it is the one that [`Self::start`] would make of these.
    pub fn is_for(&self, roster: &Arc<Roster>, header: Option<ProxyVersion>) -> bool {
        Arc::ptr_eq(&self.roster, roster) && self.header == header
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // With it go the probes that run: their connections are closed.
        self.core.abort(self.task);
    }
}

/// The task.
struct Rounds {
    core: Core,
    roster: Arc<Roster>,
    share: Share,
    header: Option<ProxyVersion>,
    /// What connections to servers under TLS are made by, where they are asked under it.
    secured: Option<Rc<ClientSettings>>,
    check: HealthCheck,
    plan: ProbePlan,
    random: Random,
    members: Arc<Members>,
    /// The servers that fall to this core.
    patients: Vec<Patient>,
    last_number: u64,
    /// At most [`PROBES_MAX`].
    running: Vec<Running>,
}

/// A server that is probed.
struct Patient {
    /// Differs from that of every other one, also of one that was gone and came back.
    number: u64,
    /// Its place in the settings.
    server: usize,
    address: Address,
    /// Its place in the list of this moment.
    at: usize,
    probe: Probe,
    /// The last verdict, for a board that hasn't heard it.
    verdict: Option<Change>,
}

/// A probe on its way, and of whom.
struct Running {
    number: u64,
    answer: Pin<Box<dyn Future<Output = Result<(), Trouble>>>>,
}

/// Why a probe found no server that is well.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    /// It isn't.
    Server(FailureKind),
    /// It isn't to be talked to under TLS.
    Handshake(HandshakeError),
    /// It couldn't be asked, and that isn't its fault.
    Ours(ConnectError),
}

impl Rounds {
    async fn run(mut self) {
        let mut timer = Timer::new(&self.core);
        self.take_list();
        loop {
            self.keep_up();
            self.begin_due();
            let wake = self.wake_at();
            if wake.is_none() && self.running.is_empty() {
                // No server falls to this core, and none ever will.
                return;
            }
            if let Some(wake) = wake {
                timer.set(wake);
            }
            let running = &mut self.running;
            let answered = std::future::poll_fn(|context| {
                for (at, probe) in running.iter_mut().enumerate() {
                    if let Poll::Ready(answer) = probe.answer.as_mut().poll(context) {
                        return Poll::Ready(Some((at, answer)));
                    }
                }
                match wake {
                    Some(_) => timer.poll_expired().map(|()| None),
                    None => Poll::Pending,
                }
            });
            if let Some((at, answer)) = answered.await {
                let number = self.running.swap_remove(at).number;
                self.finish(number, answer);
            }
        }
    }

    /// Looks whether there is another list.
    fn keep_up(&mut self) {
        if self.roster.version() != self.members.version {
            self.members = self.roster.members();
            self.take_list();
        }
    }

    /// Goes over to the list of this moment: those that stay go on as they are.
    fn take_list(&mut self) {
        let now = self.core.now();
        let mut before = std::mem::take(&mut self.patients);
        for (at, member) in self.members.list.iter().enumerate() {
            let Some(address) = &member.address else {
                continue;
            };
            if !falls_here(member, self.share) {
                continue;
            }
            let is_it = |it: &Patient| it.server == member.server && it.address == *address;
            let patient = match before.iter().position(is_it) {
                Some(known) => Patient {
                    at,
                    ..before.swap_remove(known)
                },
                None => {
                    self.last_number += 1;
                    let is_out = self.members.board.is_condemned(at, Judge::Probe);
                    let (plan, seed) = (self.plan.clone(), self.random.next_u64());
                    Patient {
                        number: self.last_number,
                        server: member.server,
                        address: address.clone(),
                        at,
                        probe: Probe::resume(plan, now, seed, is_out.then_some(false)),
                        verdict: None,
                    }
                }
            };
            // What was said between the copy of the board and its coming into force is lost there.
            patient.tell(&self.members, now);
            self.patients.push(patient);
        }
        let patients = &self.patients;
        self.running
            .retain(|it| patients.iter().any(|patient| patient.number == it.number));
    }

    /// Asks those that are due, as far as there is room.
    fn begin_due(&mut self) {
        let now = self.core.now();
        while self.running.len() < PROBES_MAX {
            let due = self.patients.iter_mut();
            let due = due.filter(|it| it.probe.due().is_some_and(|due| due <= now));
            let Some(patient) = due.min_by_key(|it| it.probe.due()) else {
                return;
            };
            if patient.probe.step(now) != Step::Ask {
                return;
            }
            let state = self.members.board.state(patient.at, now);
            if state.admin == Standing::Down {
                // Nobody wants to know; it is looked at again at the next interval.
                patient.probe.abandon();
                continue;
            }
            let (number, server, address) =
                (patient.number, patient.server, patient.address.clone());
            let question = Question {
                core: self.core.clone(),
                from: self.roster.settings().source.towards(&address),
                deadline: now + self.plan.timeout,
                expects: self.plan.expects.clone(),
                secured: self.secured.as_ref().and_then(|settings| {
                    let name = self.roster.settings().peer_name(server)?;
                    Some((Rc::clone(settings), name))
                }),
                header: self.header(),
                request: self.request(server, &address),
                address,
            };
            self.running.push(Running {
                number,
                answer: Box::pin(question.ask()),
            });
        }
    }

    /// When there is something to do, should no answer come before.
    fn wake_at(&self) -> Option<Instant> {
        let has_names = self.roster.names().next().is_some();
        let look = has_names.then(|| self.core.now() + LOOK);
        let due = match self.running.len() < PROBES_MAX {
            true => self.patients.iter().filter_map(|it| it.probe.due()).min(),
            false => None,
        };
        look.into_iter().chain(due).min()
    }

    fn finish(&mut self, number: u64, answer: Result<(), Trouble>) {
        let now = self.core.now();
        self.keep_up();
        let mut patients = self.patients.iter_mut();
        let Some(patient) = patients.find(|it| it.number == number) else {
            return;
        };
        let upstream = &*self.roster.settings().name;
        let server = &*self.members.list[patient.at].label;
        let mut detail = None;
        let result = match answer {
            Ok(()) => Ok(()),
            Err(Trouble::Server(kind)) => Err(kind),
            Err(Trouble::Handshake(error)) => {
                detail = error.detail;
                Err(FailureKind::Secured(error.kind))
            }
            Err(Trouble::Ours(error)) => {
                tracing::debug!(upstream, server, %error, "a server can't be probed");
                patient.probe.abandon();
                return;
            }
        };
        let Some(change) = patient.probe.finish(result) else {
            return;
        };
        patient.verdict = Some(change);
        if patient.tell(&self.members, now) {
            match change {
                Change::Down(reason) => tracing::warn!(
                    upstream, server, %reason, detail,
                    "a server doesn't answer its health check as it should: it takes no requests"
                ),
                Change::Up => tracing::info!(
                    upstream,
                    server,
                    "a server answers its health check again: it takes requests"
                ),
            }
        }
    }

    /// What is sent before everything else; maybe nothing.
    fn header(&self) -> Vec<u8> {
        let Some(version) = self.header else {
            return Vec::new();
        };
        let mut header = self.core.send_buffer();
        proxy_protocol::write(&mut header, version, Origin::Unspecified);
        header
    }

    /// What is asked of this server; nothing where a connection says it all.
    fn request(&self, server: usize, address: &Address) -> Vec<u8> {
        let model::Probe::Http { path, host, .. } = &self.check.probe else {
            return Vec::new();
        };
        let configured = &self.roster.settings().servers[server];
        let host = match host {
            Some(host) => host.to_string(),
            None => configured.authority(address),
        };
        let mut request = self.core.send_buffer();
        for part in [
            "GET ",
            path,
            " HTTP/1.1\r\nHost: ",
            &host,
            "\r\nUser-Agent: beltway-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        ] {
            request.extend_from_slice(part.as_bytes());
        }
        request
    }
}

impl Patient {
    /// Tells the board the last verdict. Says whether that is news to it.
    fn tell(&self, members: &Members, now: Instant) -> bool {
        let board = &members.board;
        match self.verdict {
            Some(Change::Down(kind)) => board.condemn(self.at, Judge::Probe, kind, now),
            Some(Change::Up) => board.acquit(self.at, Judge::Probe, now),
            None => false,
        }
    }
}

/// Whether this core asks this server.
fn falls_here(member: &Member, share: Share) -> bool {
    // Which of them doesn't matter, as long as all cores take the same bits.
    probes_here(member.id as usize, share.index, share.of)
}

fn plan(check: &HealthCheck) -> ProbePlan {
    ProbePlan {
        interval: check.interval,
        timeout: check.timeout,
        rise: check.rise,
        fall: check.fall,
        expects: match &check.probe {
            model::Probe::Tcp => Expectation::Connection,
            model::Probe::Http { statuses, body, .. } => Expectation::Response {
                statuses: *statuses,
                body: body.as_deref().map(Into::into),
            },
        },
    }
}

/// What servers are asked by under TLS; `None` where they aren't.
fn secured_by(upstream: &model::Upstream, check: &HealthCheck) -> Option<Rc<ClientSettings>> {
    let terms = &upstream.tls.as_ref().filter(|_| check.tls)?.terms;
    let servers = upstream.servers.len();
    Some(Rc::new(ClientSettings::new(terms, servers)))
}

/// One probe.
struct Question {
    core: Core,
    address: Address,
    /// The local address; `None` where the kernel takes one.
    from: Option<IpAddr>,
    deadline: Instant,
    expects: Expectation,
    /// What the connection is under TLS by, and the name of the server; `None` in the clear.
    secured: Option<(Rc<ClientSettings>, PeerName)>,
    /// Sent first, in the clear.
    header: Vec<u8>,
    /// Empty: a connection is enough.
    request: Vec<u8>,
}

impl Question {
    async fn ask(mut self) -> Result<(), Trouble> {
        let core = self.core.clone();
        let left = self.deadline.saturating_duration_since(core.now());
        let socket = connect_from(&core, &self.address, self.from, left).await;
        let socket = socket.map_err(|error| match FailureKind::of_connect(error) {
            Some(kind) => Trouble::Server(kind),
            None => Trouble::Ours(error),
        })?;
        let mut request = std::mem::take(&mut self.header);
        let receiver = match &self.secured {
            None => Receiver::new(&core, socket),
            Some((settings, name)) => {
                let header = std::mem::take(&mut request);
                let by = (&**settings, name);
                let receiver = secured::connect(&core, socket, by, header, self.deadline).await;
                receiver.map_err(Trouble::Handshake)?
            }
        };
        request.append(&mut self.request);
        if request.is_empty() {
            return Ok(());
        }
        let mut timer = Timer::new(&core);
        timer.set(self.deadline);
        let mut exchange = pin!(self.exchange(receiver, request));
        let mut context = Context::from_waker(Waker::noop());
        let answer = timer
            .bound(|| exchange.as_mut().poll(&mut context))
            .await
            .unwrap_or(Err(FailureKind::Timeout));
        answer.map_err(Trouble::Server)
    }

    async fn exchange(&self, receiver: Receiver, request: Vec<u8>) -> Result<(), FailureKind> {
        let mut sender = Sender::new(&self.core, receiver.socket().clone(), NO_RULE);
        if let Some(secured) = receiver.secured() {
            sender.secure(Rc::clone(secured));
        }
        let mut unbound = Timer::new(&self.core);
        // A server that doesn't take it may have answered before.
        let _ = sender.buffer(&mut unbound, request, false).await;
        if matches!(self.expects, Expectation::Connection) {
            return Ok(());
        }
        let mut incoming = Incoming {
            receiver,
            bytes: Vec::new(),
        };
        let (status, framing) = incoming.head().await?;
        match self.expects.judge(status, &[]) {
            // Not in what was read of it, which was nothing yet.
            Err(FailureKind::Body) => {}
            judged => return judged,
        }
        let body = incoming.body(framing).await?;
        self.expects.judge(status, &body)
    }
}

/// What a server answers.
struct Incoming {
    receiver: Receiver,
    /// Received and not used: at most a head, whose size is bounded, and what one receive adds to it.
    bytes: Vec<u8>,
}

impl Incoming {
    /// More bytes. Says whether any came before the end.
    async fn more(&mut self) -> bool {
        match std::future::poll_fn(|_| self.receiver.poll_next()).await {
            Ok(bytes) => {
                self.bytes.extend_from_slice(&bytes);
                true
            }
            Err(_) => false,
        }
    }

    /// The final status, and how its body ends.
    async fn head(&mut self) -> Result<(u16, ResponseFraming), FailureKind> {
        let limits = HeadLimits::default();
        let mut reader = ResponseReader::new(Asked::method(Method::Get));
        loop {
            let received = reader.head(&self.bytes, &limits);
            let received = received.map_err(|_| FailureKind::Malformed)?;
            let seen = received.map(|it| {
                let head = &it.response;
                (it.kind, it.length, head.status.0, head.framing)
            });
            let Some((kind, used, status, framing)) = seen else {
                match self.more().await {
                    true => continue,
                    false => return Err(FailureKind::Reset),
                }
            };
            self.bytes.drain(..used);
            match kind {
                HeadKind::Interim => {}
                HeadKind::Final => return Ok((status, framing)),
                // It wasn't asked for, and the reader doesn't believe it.
                HeadKind::Switch => return Err(FailureKind::Malformed),
            }
        }
    }

    /// As much of the body as is judged.
    async fn body(&mut self, framing: ResponseFraming) -> Result<Vec<u8>, FailureKind> {
        let mut decoder = BodyDecoder::for_response(framing);
        let mut body = Vec::new();
        loop {
            let decoded = decoder.decode(&self.bytes);
            let decoded = decoded.map_err(|_| FailureKind::Malformed)?;
            body.extend_from_slice(&self.bytes[decoded.data.clone()]);
            self.bytes.drain(..decoded.consumed);
            if decoded.end || body.len() >= PROBE_BODY_BYTES_MAX {
                return Ok(body);
            }
            if self.bytes.is_empty() && !self.more().await {
                return match decoder.end_of_input() && !self.receiver.is_cut() {
                    true => Ok(body),
                    false => Err(FailureKind::Reset),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests;
