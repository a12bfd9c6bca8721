//! A request that backends answer: chosen, asked, asked again elsewhere when that does no harm, and
//! what comes of it handed to the session.
//!
//! This is the only place that knows requests and upstreams both. What may be passed on is
//! `http::semantics::forwarding`'s to say, who takes it [`upstream::group`](crate::upstream::group)'s,
//! whether a try is repeated [`upstream::retry`](crate::upstream::retry)'s; here they are made to meet.

mod account;
mod ahead;
mod exchange;
mod fault;
mod key;
mod outgoing;
mod replay;
mod spill;
mod stream;
mod tunnel;

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

pub(super) use self::exchange::proxy_version;
use self::exchange::{Exchange, Reply};
use self::fault::Fault;
use self::replay::Replay;
use super::app::App;
use super::backends::Backend;
use super::client::Client;
use super::epoch::AppEpoch;
use super::error_page;
use crate::config::model::{ClientFields, Proxy};
use crate::http::semantics::forwarding::FieldOp;
use crate::http::session::{LimitCounters, Response, Upload, Upstreamed};
use crate::http::types::{Request, Status};
use crate::net::recv::End;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::upstream::group::{Admitted, Claim, NoServer, Visited};
use crate::upstream::health::{Outcome, Settled};
use crate::upstream::retry::{self, Tries, Verdict};

/// What a request asks of a backend.
pub(super) struct Asked<'r, 'b> {
    /// The request.
    pub(super) request: &'r Request<'b>,
    /// The target of a route that rewrites it, spelled as for Location.
    pub(super) target: Option<&'r str>,
    /// Who asks.
    pub(super) client: Client,
    /// The scheme of the client's connection.
    pub(super) scheme: &'static str,
    /// The addresses of the client's connection, its own first, where a backend is told by a PROXY
    /// header.
    pub(super) addresses: Option<(SocketAddr, SocketAddr)>,
    /// What a backend is told of the client's certificate.
    pub(super) told: Vec<FieldOp>,
    /// The fields of that, which are never the client's own.
    pub(super) client_fields: Option<&'r Arc<ClientFields>>,
}

/// A response, and whose it is.
pub(super) struct Answer {
    /// The response.
    pub(super) response: Response,
    /// It is ours, and says that there is none of a backend.
    pub(super) is_ours: bool,
}

impl Answer {
    fn ours(status: u16) -> Self {
        Self {
            response: error_page::plain(status),
            is_ours: true,
        }
    }
}

impl App {
    /// Answers by one of the servers of the route's upstream.
    pub(super) async fn serve_proxy(
        &self,
        epoch: &Rc<AppEpoch>,
        proxy: &Arc<Proxy>,
        asked: Asked<'_, '_>,
        upload: &mut Upload<'_>,
    ) -> Answer {
        let backend = epoch.backend(proxy);
        let admitted = match backend.group.admit() {
            Ok(admitted) => admitted,
            Err(after) => {
                let mut answer = Answer::ours(503);
                let seconds = after.as_secs_f64().ceil() as u64;
                answer
                    .response
                    .head
                    .push("Retry-After", seconds.to_string());
                return answer;
            }
        };
        let now = self.core.now();
        let mut attempts = Attempts {
            core: &self.core,
            backend,
            asked: &asked,
            timer: Timer::new(&self.core),
            started: now,
            total: proxy.timeouts.total.map(|total| now + total),
            tries: Tries::begin(now),
            visited: Visited::default(),
            log: epoch.logs().then(Upstreamed::default),
            limits: self.registry.limits(),
            last: None,
        };
        attempts.run(upload, admitted).await
    }
}

/// A try that has come to a response for the client.
struct Made {
    reply: Reply,
    claim: Claim,
    replay: Replay,
}

/// All tries of one request.
struct Attempts<'a, 'b> {
    core: &'a Core,
    backend: &'a Rc<Backend>,
    asked: &'a Asked<'a, 'b>,
    timer: Timer,
    started: Instant,
    /// When all of it has to be done.
    total: Option<Instant>,
    tries: Tries,
    visited: Visited,
    /// What the access log is told, if there is one.
    log: Option<Upstreamed>,
    /// Counts what stood in the way.
    limits: &'a LimitCounters,
    /// How the last try failed.
    last: Option<Fault>,
}

impl Attempts<'_, '_> {
    async fn run(&mut self, upload: &mut Upload<'_>, admitted: Admitted) -> Answer {
        let mut replay = Replay::new(self.asked.request, &self.backend.retries);
        let buffered = replay
            .buffer(self.core, upload, &self.backend.proxy.buffer)
            .await;
        if let Err(error) = buffered {
            error.log(&self.backend.proxy);
            return Answer::ours(error.status());
        }
        if let Some(log) = &mut self.log {
            log.spilled = replay.spilled();
        }
        let key = key::of(self.backend, self.asked);
        // The server of a try that is begun afresh, because its kept connection was closed.
        let mut again: Option<Claim> = None;
        loop {
            let is_fresh = again.is_some();
            let claim = match again.take() {
                Some(claim) => claim,
                None => match self.claim(key.as_deref(), upload).await {
                    Ok(claim) => claim,
                    Err(fault) => return self.give_up(fault, upload, admitted),
                },
            };
            self.visited.add(&claim);
            let began = self.core.now();
            let exchange = Exchange {
                core: self.core,
                backend: self.backend,
                asked: self.asked,
                timer: &mut self.timer,
                log: &mut self.log,
                total: self.total,
                began,
            };
            let fault = match exchange.run(&claim, upload, &mut replay, is_fresh).await {
                Ok(reply) => match self.may_repeat_status(&reply, &claim, &replay) {
                    None => {
                        let made = Made {
                            reply,
                            claim,
                            replay,
                        };
                        return self.answer(made, admitted, key.as_deref(), upload);
                    }
                    Some(fault) => fault,
                },
                Err(fault) => fault,
            };
            let elapsed = self.core.now().saturating_duration_since(began);
            if let Some(kind) = fault.of_server() {
                claim.record(Outcome::Failure(kind), elapsed);
            }
            fault.log(&claim, self.tries.made());
            if let Fault::Secured(error) = &fault {
                self.limits.count(error.kind.name());
            }
            let verdict = match fault.failure() {
                Some(failure) if !fault.is_status() => self.judge_elsewhere(failure, &replay),
                // It was judged, and paid for, before the response was let go.
                Some(_) => Verdict::Elsewhere,
                None => return self.give_up(fault, upload, admitted),
            };
            match verdict {
                Verdict::Afresh => again = Some(claim),
                Verdict::Elsewhere => {}
                Verdict::GiveUp(refusal) => {
                    let reason = refusal.to_string();
                    tracing::debug!(reason, "no other try");
                    return self.give_up(fault, upload, admitted);
                }
            }
            self.last = Some(fault);
            replay.rewind();
        }
    }

    /// Whether a response with a status of the route's list is given up for another try.
    fn may_repeat_status(
        &mut self,
        reply: &Reply,
        claim: &Claim,
        replay: &Replay,
    ) -> Option<Fault> {
        let status = reply.status();
        if !self.backend.retries.statuses.contains(Status(status)) {
            return None;
        }
        // Nobody else would take it: this answer is the best there is.
        if !claim.group().has_other(&self.visited) {
            return None;
        }
        match self.judge(retry::Failure::Status(status), replay) {
            Verdict::Elsewhere => Some(Fault::Status(status)),
            Verdict::Afresh | Verdict::GiveUp(_) => None,
        }
    }

    /// What follows a try that failed in this way. One that nobody is left for costs no budget.
    fn judge_elsewhere(&mut self, failure: retry::Failure, replay: &Replay) -> Verdict {
        let is_stale = matches!(failure, retry::Failure::Stale { .. });
        match is_stale || self.backend.group.has_other(&self.visited) {
            true => self.judge(failure, replay),
            false => Verdict::GiveUp(retry::Refusal::TriesSpent),
        }
    }

    fn judge(&mut self, failure: retry::Failure, replay: &Replay) -> Verdict {
        let request = retry::Request {
            is_idempotent: retry::is_idempotent(self.asked.request.method),
            is_replayable: replay.is_whole(),
        };
        let mut budget = self.backend.group.budget().borrow_mut();
        let now = self.core.now();
        let policy = &self.backend.retries;
        self.tries
            .failed(failure, request, policy, &mut budget, now)
    }

    /// The next server.
    async fn claim(&mut self, key: Option<&[u8]>, upload: &mut Upload<'_>) -> Result<Claim, Fault> {
        let group = &self.backend.group;
        // Answers to requests before this one don't wait in line with it.
        if std::future::poll_fn(|_| upload.poll_flush()).await.is_err() {
            return Err(Fault::ClientGone);
        }
        let mut claiming = pin!(group.claim(&mut self.timer, key, &mut self.visited));
        let claimed = std::future::poll_fn(|context| {
            // Nobody stands in line for a client that has left.
            if let Poll::Ready(End::Broken(_)) = upload.poll_gone() {
                return Poll::Ready(None);
            }
            claiming.as_mut().poll(context).map(Some)
        });
        match claimed.await {
            None => Err(Fault::ClientGone),
            Some(claimed) => claimed.map_err(|why| match (why, self.last.take()) {
                // All were tried: it is told how the last one failed.
                (NoServer::Nobody, Some(last)) => last,
                (why, _) => Fault::NoServer(why),
            }),
        }
    }

    fn answer(
        &mut self,
        made: Made,
        admitted: Admitted,
        key: Option<&[u8]>,
        upload: &mut Upload<'_>,
    ) -> Answer {
        let Made {
            reply,
            claim,
            replay,
        } = made;
        let settled = match self.backend.failing.contains(Status(reply.status())) {
            true => Settled::Failure,
            false => Settled::Success,
        };
        admitted.settle(settled);
        let cookie = key::cookie(self.backend, &claim, key);
        let context = stream::Context {
            core: self.core,
            backend: self.backend,
            started: self.started,
            total: self.total,
        };
        self.note(upload, None);
        let mut response = reply.into_response(&context, claim, replay, upload);
        if let Some(cookie) = cookie {
            response.head.push("Set-Cookie", cookie);
        }
        Answer {
            response,
            is_ours: false,
        }
    }

    fn give_up(&mut self, fault: Fault, upload: &mut Upload<'_>, admitted: Admitted) -> Answer {
        if fault.is_of_client() {
            drop(admitted);
        } else {
            admitted.settle(Settled::Failure);
        }
        self.note(upload, Some(self.core.now()));
        let upstream = &*self.backend.proxy.upstream.name;
        tracing::debug!(upstream, %fault, tries = self.tries.made(), "a request was not answered");
        let mut answer = Answer::ours(fault.status());
        if let Fault::NoServer(_) = fault {
            answer.response.head.push("Retry-After", RETRY_AFTER_S);
        }
        answer
    }

    /// Tells the access log what is known; `end`: there will be no more.
    fn note(&mut self, upload: &mut Upload<'_>, end: Option<Instant>) {
        if let Some(mut log) = self.log.take() {
            log.tries = self.tries.made().into();
            let total = end.map(|end| end.saturating_duration_since(self.started));
            log.total_us = total.map(micros);
            upload.note(log);
        }
    }
}

/// When a client may come again that found no server, in seconds.
const RETRY_AFTER_S: &str = "1";

/// The earlier of two deadlines, where there are any.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
