//! Bodies that stream in and out, interim responses and tunnels, with handlers that do what a proxy
//! does, in the simulator and on both engines.

mod engines;
mod handlers;
mod proxy_header;
mod relaying;
mod relays;
mod secured;
mod simulated;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Epoch, Exchange, Peer, Registry, RelayOutcome, Response, Service, Settings, Upload};
use crate::http::h1::HeadLimits;
use crate::http::h1::encode::{DateBlock, DateCache};
use crate::http::types::Request;
use crate::net::send::ProgressRule;
use crate::net::tls::{self, Failure};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::util::network::Peers;

/// Most bytes of a request's body that are thrown away to keep the connection.
const BODY_DRAIN: u64 = 2000;

/// What the handlers have done.
#[derive(Default)]
struct Seen {
    /// A line for each exchange: method, target, status, bytes sent, received, and a reason.
    log: RefCell<Vec<String>>,
    /// The client's address of each exchange.
    clients: RefCell<Vec<String>>,
    /// Pieces that streams gave.
    pieces: Cell<usize>,
    /// Bytes that streams took of their uploads.
    uploaded: Cell<u64>,
    /// Tunnels that are open.
    tunnels: Cell<usize>,
    /// Streams that live.
    streams: Cell<usize>,
    /// The backend's socket for the next who wants one.
    backend: RefCell<Option<Fd>>,
    /// How the last relayed response goes.
    outcome: RefCell<Option<Rc<RelayOutcome>>>,
}

/// A configuration: nothing but limits.
struct Rules(Settings);

impl Epoch for Rules {
    fn settings(&self) -> &Settings {
        &self.0
    }
}

/// Answers by the first segment of the path: see `handlers`.
struct Handlers {
    core: Core,
    rules: Rc<Rules>,
    registry: Rc<Registry>,
    seen: Rc<Seen>,
    /// Whose connections begin with a PROXY header.
    introduced_by: RefCell<Option<Arc<Peers>>>,
    /// What connections are secured by, with the name that they have to ask for.
    secured_by: RefCell<Option<(Arc<tls::Settings>, &'static str)>>,
}

impl Handlers {
    fn new(core: &Core) -> Rc<Self> {
        let settings = Settings {
            head: HeadLimits::default(),
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            progress: ProgressRule {
                window: Duration::from_secs(10),
                rate: 500,
            },
            requests_max: 100,
            body_drain: BODY_DRAIN,
        };
        Rc::new(Self {
            core: core.clone(),
            rules: Rc::new(Rules(settings)),
            registry: Rc::default(),
            seen: Rc::default(),
            introduced_by: RefCell::default(),
            secured_by: RefCell::default(),
        })
    }

    fn log(&self) -> Vec<String> {
        self.seen.log.borrow().clone()
    }
}

impl Service for Handlers {
    type Epoch = Rules;

    fn epoch(&self, _: &Peer) -> Rc<Rules> {
        Rc::clone(&self.rules)
    }

    fn proxy_header(&self, _: &Peer) -> Option<Arc<Peers>> {
        self.introduced_by.borrow().clone()
    }

    fn is_secured(&self, _: &Peer) -> bool {
        self.secured_by.borrow().is_some()
    }

    fn tls(&self, _: &Peer, name: Option<&str>) -> Result<Arc<tls::Settings>, Failure> {
        match (&*self.secured_by.borrow(), name) {
            (_, None) => Err(Failure::NoName),
            (Some((settings, known)), Some(name)) if *known == name => Ok(Arc::clone(settings)),
            _ => Err(Failure::UnknownName),
        }
    }

    async fn call(
        &self,
        _: &Rc<Rules>,
        request: &Request<'_>,
        upload: &mut Upload<'_>,
        _: &Peer,
    ) -> Response {
        handlers::answer(self, request, upload).await
    }

    fn refusal(&self, status: u16) -> Response {
        Response::empty(status)
    }

    fn date(&self) -> DateBlock {
        DateCache::new(784_111_777).at(784_111_777).clone()
    }

    fn logs(&self, _: &Rules) -> bool {
        true
    }

    fn log(&self, _: &Rules, peer: &Peer, exchange: &Exchange<'_>) {
        let mut line = format!(
            "{} {} {} {} {}",
            exchange.method,
            exchange.target,
            exchange.status,
            exchange.body_bytes,
            exchange.received
        );
        for more in [
            exchange.reason.map(str::to_owned),
            exchange.upstream.map(|upstream| upstream.address.clone()),
        ] {
            more.iter().for_each(|more| line += &format!(" [{more}]"));
        }
        self.seen.log.borrow_mut().push(line);
        let client = peer.address(&self.core).map(|address| address.to_string());
        self.seen
            .clients
            .borrow_mut()
            .push(client.unwrap_or_default());
    }

    fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }
}

/// A request for HTTP/1.1 with these fields, each with its CRLF, and content.
fn request(method: &str, target: &str, fields: &str, content: &str) -> Vec<u8> {
    format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n{content}").into_bytes()
}

/// Without the lines that are the same everywhere.
fn plain(received: &[u8]) -> String {
    let text = String::from_utf8_lossy(received);
    text.replace("Server: Beltway\r\n", "")
        .replace("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "")
}
