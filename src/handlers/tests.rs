//! What a connection costs, with the real handlers.

use std::rc::Rc;

use super::app::App;
use super::epoch::NewEpoch;
use crate::cache::open_files::Bounds;
use crate::config::{self, sources::Input};
use crate::http::session::{self, Registry};
use crate::net::listener::Listening;
use crate::runtime::engine::caps::{EngineChoice, Selection};
use crate::runtime::mailbox::Wake;

/// Most bytes of the future that an idle connection keeps, and of the one that a busy one has on
/// top of it. Beneath them are what is allocated once per connection: a slot, a descriptor, a timer.
const IDLE_MAX: usize = 384;
const BUSY_MAX: usize = 3600;

#[test]
fn an_idle_connection_is_small_and_a_busy_one_bounded() {
    let selection = Selection::choose(EngineChoice::Epoll).unwrap();
    let core = selection.core(Wake::new().unwrap(), None).unwrap();
    let root = tempfile::tempdir().unwrap();
    let input = Input {
        file: Some("test.toml".into()),
        content: Some(format!("[site.\":8080\"]\nroot = {:?}\n", root.path())),
        directory: root.path().to_owned(),
        ..Input::default()
    };
    let loaded = config::load(&input).unwrap_or_else(|_| panic!("a valid configuration"));
    let registry = Rc::new(Registry::default());
    let listening = Listening::new(0);
    let first = NewEpoch {
        id: 1,
        model: &loaded.model,
        listeners: &[(listening.clone(), 0)],
        log: None,
    };
    let app = App::new(&core, first, registry.clone(), Bounds::default(), 7);
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let member = registry.population().enter(&core, &listening);
    let idle = session::serve(core.clone(), core.own(ours.into()), member, listening, app);
    let idle_bytes = size_of_val(&idle);
    let busy_bytes = session::exchange_bytes::<App>();
    assert!(idle_bytes <= IDLE_MAX, "an idle connection: {idle_bytes} B");
    assert!(busy_bytes <= BUSY_MAX, "a busy connection: {busy_bytes} B");
    println!("idle {idle_bytes} B, busy {busy_bytes} B");
}
