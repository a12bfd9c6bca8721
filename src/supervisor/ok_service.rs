//! A service that answers everything with `ok`, to try the wiring without handlers.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::core_thread::{Parts, Serves};
use super::swap::Swap;
use crate::handlers::secured::SecuredSites;
use crate::http::h1::HeadLimits;
use crate::http::h1::encode::{DateBlock, DateCache};
use crate::http::session::{
    Body, Epoch, Exchange, Peer, Registry, Response, Service, Settings, Upload,
};
use crate::http::types::{Request, ResponseHead, Status};
use crate::net::listener::Listening;
use crate::net::send::ProgressRule;
use crate::observability::access_log::Record;
use crate::observability::core_log::CoreLog;
use crate::upstream::group::Account;

/// What a request for `/spin` waits for without giving the core back.
pub(super) static SPINNING: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

/// Answers `ok`; panics when it is asked for `/panic`, and spins when it is asked for `/spin`.
pub(super) struct OkService {
    epoch: Rc<OkEpoch>,
    registry: Rc<Registry>,
    log: Option<Rc<CoreLog>>,
}

/// Its settings, which never change.
pub(super) struct OkEpoch(Settings);

impl Epoch for OkEpoch {
    fn settings(&self) -> &Settings {
        &self.0
    }
}

impl OkService {
    pub(super) fn new(parts: Parts<'_>) -> Rc<Self> {
        let Parts {
            first,
            registry,
            log,
            ..
        } = parts;
        let model = &first.model;
        let timeouts = &model.server.timeouts;
        let settings = Settings {
            head: HeadLimits::default(),
            header_timeout: timeouts.header,
            handshake_timeout: timeouts.handshake,
            idle_timeout: timeouts.idle,
            progress: ProgressRule {
                window: timeouts.progress,
                rate: timeouts.progress_rate,
            },
            requests_max: model.server.limits.requests_per_connection,
            body_drain: model.server.limits.body_drain,
        };
        Rc::new(Self {
            epoch: Rc::new(OkEpoch(settings)),
            registry,
            log,
        })
    }
}

impl Serves for OkService {
    fn swap(&self, _: &Swap, _: &[(Rc<Listening>, usize)]) {}

    fn secure(&self, _: u64, _: &Arc<SecuredSites>) {}

    fn epochs(&self) -> Vec<(u64, usize)> {
        Vec::new()
    }

    fn upstreams(&self) -> Vec<Account> {
        Vec::new()
    }

    fn tidy(&self) {}

    fn shrink(&self) {}

    fn cached(&self) -> usize {
        0
    }

    fn close(&self) {}
}

impl Service for OkService {
    type Epoch = OkEpoch;

    fn epoch(&self, _: &Peer) -> Rc<OkEpoch> {
        Rc::clone(&self.epoch)
    }

    async fn call(
        &self,
        _: &Rc<OkEpoch>,
        request: &Request<'_>,
        _: &mut Upload<'_>,
        _: &Peer,
    ) -> Response {
        assert_ne!(request.path, "/panic", "asked for");
        if request.path == "/spin" {
            let spinning = SPINNING.lock().unwrap().clone();
            while spinning
                .as_ref()
                .is_some_and(|it| it.load(Ordering::Relaxed))
            {
                std::hint::spin_loop();
            }
        }
        Response {
            head: ResponseHead::new(200),
            body: Body::Bytes(b"ok".to_vec()),
        }
    }

    fn refusal(&self, status: u16) -> Response {
        Response::empty(status)
    }

    fn date(&self) -> DateBlock {
        DateCache::new(0).at(0).clone()
    }

    fn logs(&self, _: &OkEpoch) -> bool {
        self.log.is_some()
    }

    fn log(&self, _: &OkEpoch, _: &Peer, exchange: &Exchange<'_>) {
        if let Some(log) = &self.log {
            log.push(&Record {
                remote: None,
                time_unix: 0,
                method: exchange.method.as_bytes(),
                target: exchange.target.as_bytes(),
                version: exchange
                    .version
                    .unwrap_or(crate::http::types::Version::Http11),
                status: Status(exchange.status),
                body_bytes: exchange.body_bytes,
                referer: exchange.referer,
                user_agent: exchange.user_agent,
                host: Some(exchange.host.as_bytes()),
                scheme: "http",
                client_subject: None,
                duration_us: 0,
                received: exchange.received,
                upstream: exchange.upstream,
            });
        }
    }

    fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }
}
