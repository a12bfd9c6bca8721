//! What a connection costs, and what a reload does to it, with the real handlers.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::app::{App, Place};
use super::epoch::NewEpoch;
use crate::cache::open_files::Bounds;
use crate::config::model::Model;
use crate::config::{self, sources::Input};
use crate::http::session::{self, Registry, Traffic};
use crate::net::listener::Listening;
use crate::runtime::engine::caps::{EngineChoice, Selection};
use crate::runtime::executor::Core;
use crate::runtime::mailbox::Wake;
use crate::upstream::Share;
use crate::upstream::roster::Rosters;

/// Most bytes of the future that an idle connection keeps, and of the one that a busy one has on
/// top of it. Beneath them are what is allocated once per connection: a slot, a descriptor, a timer.
const IDLE_MAX: usize = 280;
const BUSY_MAX: usize = 3600;

/// More than a socket and its peer hold, and not a small file.
const LARGE: usize = 8 << 20;

fn model(root: &Path, more: &str) -> Arc<Model> {
    let input = Input {
        file: Some("test.toml".into()),
        content: Some(format!(
            "{more}\n[site.\"127.0.0.1:8080\"]\nroot = {root:?}\n"
        )),
        directory: root.to_owned(),
        ..Input::default()
    };
    let loaded = config::load(&input).unwrap_or_else(|_| panic!("a valid configuration"));
    loaded.model
}

/// A core with handlers, whose clients are on its own thread.
struct Bench {
    core: Core,
    app: Rc<App>,
    registry: Rc<Registry>,
    listening: Rc<Listening>,
}

impl Bench {
    fn new(choice: EngineChoice, model: &Arc<Model>) -> Self {
        let selection = Selection::choose(choice).unwrap();
        let wake = Wake::new().unwrap();
        let core = selection.core(Arc::clone(&wake), None).unwrap();
        let (registry, listening) = (Rc::new(Registry::default()), Listening::new(7));
        let first = NewEpoch {
            id: 1,
            model,
            rosters: &Rosters::new(&model.upstreams, core.now()),
            secured: &Arc::default(),
            listeners: &[(listening.clone(), 0)],
            log: None,
        };
        let place = Place {
            core: core.clone(),
            wake,
            share: Share { index: 0, of: 1 },
        };
        let app = App::new(place, first, registry.clone(), Bounds::default(), 7);
        Self {
            core,
            app,
            registry,
            listening,
        }
    }

    fn swap(&self, id: u64, model: &Arc<Model>, listening: &Rc<Listening>) {
        self.app.swap(NewEpoch {
            id,
            model,
            rosters: &Rosters::new(&model.upstreams, self.core.now()),
            secured: &Arc::default(),
            listeners: &[(listening.clone(), 0)],
            log: None,
        });
    }

    fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let member = self
            .registry
            .population()
            .enter(&self.core, &self.listening);
        let (core, app) = (self.core.clone(), self.app.clone());
        let socket = core.own(ours.into());
        let session = session::serve(core, socket, member, self.listening.clone(), app);
        self.core.spawn(session);
        theirs
    }

    /// Ends the core; nothing may be left in flight.
    fn end(&self) {
        assert_eq!(self.core.panics(), 0);
        assert!(self.core.shut_down());
    }

    /// Turns the core until this is so.
    fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "in vain: {what}");
            self.core.turn(Some(Duration::from_millis(5))).unwrap();
        }
    }

    /// Reads until the connection ends or `enough`; an error of the connection ends it with `!`.
    fn read(&self, client: &mut UnixStream, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let (mut got, mut part) = (Vec::new(), vec![0; 64 << 10]);
        self.until("an answer", || match client.read(&mut part) {
            Ok(0) => true,
            Ok(len) => {
                got.extend_from_slice(&part[..len]);
                enough(&got)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            Err(_) => {
                got.push(b'!');
                true
            }
        });
        got
    }

    fn send(client: &mut UnixStream, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
    }

    /// The answer to a request for a file whose content ends with a full stop.
    fn ask(&self, client: &mut UnixStream, path: &str) -> String {
        Self::send(client, path);
        let answer = self.read(client, |got| got.ends_with(b"."));
        String::from_utf8(answer).unwrap()
    }
}

fn on_each_engine(test: impl Fn(EngineChoice)) {
    [EngineChoice::Auto, EngineChoice::Epoll]
        .into_iter()
        .for_each(test);
}

#[test]
fn an_idle_connection_is_small_and_a_busy_one_bounded() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(EngineChoice::Epoll, &model(root.path(), ""));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (core, listening) = (bench.core.clone(), bench.listening.clone());
    let member = bench.registry.population().enter(&core, &listening);
    let socket = core.own(ours.into());
    let idle = session::serve(core, socket, member, listening, bench.app);
    let idle_bytes = size_of_val(&idle);
    let busy_bytes = session::exchange_bytes::<App>();
    assert!(idle_bytes <= IDLE_MAX, "an idle connection: {idle_bytes} B");
    assert!(busy_bytes <= BUSY_MAX, "a busy connection: {busy_bytes} B");
    println!("idle {idle_bytes} B, busy {busy_bytes} B");
}

#[test]
fn a_connection_takes_the_new_configuration_with_its_next_request() {
    on_each_engine(|choice| {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(old.path().join("f"), "old.").unwrap();
        fs::write(new.path().join("f"), "new.").unwrap();
        let (old, new) = (model(old.path(), ""), model(new.path(), ""));
        let bench = Bench::new(choice, &old);
        let mut client = bench.connect();
        assert!(bench.ask(&mut client, "/f").ends_with("\r\n\r\nold."));
        let known = bench.app.files.usage();
        assert!(known.0 > 0);
        // The same again: what is known of its files stays known.
        bench.swap(2, &old, &bench.listening);
        assert_eq!(bench.app.files.usage(), known);
        bench.swap(3, &new, &bench.listening);
        assert_eq!(bench.app.files.usage(), (0, 0), "files of a root that went");
        assert!(bench.ask(&mut client, "/f").ends_with("\r\n\r\nnew."));
        assert_eq!(bench.app.epochs(), [(3, 0)]);
        let traffic = Traffic {
            accepted: 1,
            requests: 2,
            errors: 0,
        };
        assert_eq!(bench.registry.traffic(), traffic);
        bench.end();
    });
}

#[test]
fn a_request_in_flight_ends_in_the_configuration_it_began_in() {
    on_each_engine(|choice| {
        let root = tempfile::tempdir().unwrap();
        fs::write(
            root.path().join("large"),
            [vec![b'x'; LARGE], b".".to_vec()].concat(),
        )
        .unwrap();
        let model = model(root.path(), "");
        let bench = Bench::new(choice, &model);
        let lines = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
        let swap = |id: u64, lines: &Rc<Cell<u32>>| {
            let lines = Rc::clone(lines);
            bench.app.swap(NewEpoch {
                id,
                model: &model,
                rosters: &Arc::default(),
                secured: &Arc::default(),
                listeners: &[(bench.listening.clone(), 0)],
                log: Some(Rc::new(move |_| lines.set(lines.get() + 1))),
            });
        };
        swap(2, &lines[0]);
        let mut client = bench.connect();
        Bench::send(&mut client, "/large");
        bench.until("it is in flight", || bench.app.epochs() == [(2, 1)]);
        swap(3, &lines[1]);
        assert_eq!(bench.app.epochs(), [(2, 1), (3, 0)]);
        let answer = bench.read(&mut client, |got| got.ends_with(b"."));
        assert!(answer.len() > LARGE);
        bench.until("the old one is gone", || bench.app.epochs() == [(3, 0)]);
        assert_eq!(Rc::strong_count(&lines[0]), 1, "and its log");
        bench.ask(&mut client, "/large");
        assert_eq!(
            (lines[0].get(), lines[1].get()),
            (1, 1),
            "logged where they began"
        );
        bench.end();
    });
}

#[test]
fn connections_of_a_removed_socket_keep_their_configuration_and_drain() {
    on_each_engine(|choice| {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(old.path().join("f"), "old.").unwrap();
        fs::write(new.path().join("f"), "new.").unwrap();
        let bench = Bench::new(choice, &model(old.path(), ""));
        let (mut first, mut second, mut third) =
            (bench.connect(), bench.connect(), bench.connect());
        for client in [&mut first, &mut second, &mut third] {
            bench.ask(client, "/f");
        }
        let other = Listening::new(8);
        bench.swap(2, &model(new.path(), ""), &other);
        bench.swap(3, &model(new.path(), ""), &other);
        assert_eq!(bench.app.epochs(), [(1, 0), (3, 0)]);
        let answer = bench.ask(&mut first, "/f");
        assert!(answer.ends_with("old.") && !answer.contains("Connection: close"));
        bench.listening.drain();
        bench.core.wake_all();
        let answer = bench.ask(&mut second, "/f");
        assert!(answer.ends_with("old.") && answer.contains("Connection: close"));
        assert_eq!(bench.read(&mut second, |_| false), b"");
        drop(second);
        bench.until("one has left", || bench.listening.open() == 2);
        bench.listening.expire();
        bench.core.wake_all();
        assert_eq!(bench.read(&mut third, |_| false), b"");
        bench.until("all have left", || bench.registry.population().open() == 0);
        bench.end();
        let Bench { app, listening, .. } = bench;
        assert_eq!(Rc::strong_count(&listening), 1);
        drop(listening);
        assert_eq!(app.epochs(), [(3, 0)], "gone with the socket");
    });
}

#[test]
fn a_busy_connection_of_a_removed_socket_is_cut_at_the_deadline() {
    on_each_engine(|choice| {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("large"), vec![b'x'; LARGE]).unwrap();
        let bench = Bench::new(choice, &model(root.path(), ""));
        let (mut client, _idle) = (bench.connect(), bench.connect());
        Bench::send(&mut client, "/large");
        bench.until("the request is in flight", || {
            bench.app.epochs() == [(1, 1)]
        });
        let other = Listening::new(8);
        assert_eq!(bench.registry.cut(&bench.core, &other), 0);
        assert_eq!(bench.registry.cut(&bench.core, &bench.listening), 2);
        assert_eq!((bench.listening.open(), bench.core.usage().tasks), (0, 0));
        assert_eq!(bench.app.epochs(), [(1, 0)]);
        assert!(bench.read(&mut client, |_| false).len() < LARGE);
        bench.end();
    });
}

#[test]
fn times_of_a_reload_are_those_of_a_connection_from_its_next_request_on() {
    on_each_engine(|choice| {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("f"), "content.").unwrap();
        let bench = Bench::new(choice, &model(root.path(), ""));
        let mut client = bench.connect();
        bench.ask(&mut client, "/f");
        let impatient = model(root.path(), "[server.timeouts]\nidle = \"1s\"");
        bench.swap(2, &impatient, &bench.listening);
        let begin = Instant::now();
        bench.ask(&mut client, "/f");
        assert_eq!(bench.read(&mut client, |_| false), b"");
        assert!(begin.elapsed() >= Duration::from_millis(900), "not at once");
        bench.end();
    });
}

#[test]
fn servers_are_probed_by_the_current_configuration_alone() {
    on_each_engine(|choice| {
        let root = tempfile::tempdir().unwrap();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let models = listeners.each_ref().map(|listener| {
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let health = "health = { tcp = true, interval = \"100ms\", timeout = \"100ms\" }";
            let site = "[site.\"127.0.0.1:8081\"]\nproxy = \"app\"";
            let more = format!("{site}\n[upstream.app]\nservers = [\"{address}\"]\n{health}\n");
            model(root.path(), &more)
        });
        let asked = |listener: &TcpListener| {
            let accepted = std::iter::from_fn(|| listener.accept().ok());
            accepted.count()
        };
        let tasks = |bench: &Bench| bench.core.usage().tasks;
        let bench = Bench::new(choice, &models[0]);
        bench.until("the first is asked", || asked(&listeners[0]) > 0);
        assert_eq!(tasks(&bench), 1);
        // A listening socket that is gone holds the old one for long.
        let listening = Listening::new(8);
        bench.swap(2, &models[1], &listening);
        assert_eq!(bench.app.epochs(), [(1, 0), (2, 0)]);
        assert_eq!(tasks(&bench), 1, "the other has ended");
        asked(&listeners[0]);
        bench.until("the second is asked", || asked(&listeners[1]) > 0);
        bench.until("more often", || asked(&listeners[1]) > 0);
        assert_eq!(asked(&listeners[0]), 0);
        // Upstreams that stay go on: with them those that ask.
        let rosters = Rosters::new(&models[1].upstreams, bench.core.now());
        for id in 3..=4 {
            bench.app.swap(NewEpoch {
                id,
                model: &models[1],
                rosters: &rosters,
                secured: &Arc::default(),
                listeners: &[(listening.clone(), 0)],
                log: None,
            });
            assert_eq!(tasks(&bench), 1);
        }
        bench.until("it is still asked", || asked(&listeners[1]) > 0);
        bench.app.close();
        assert_eq!(tasks(&bench), 0, "nothing keeps the core from ending");
        bench.end();
    });
}
