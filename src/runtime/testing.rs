//! What tests over real engines share: a core of each one, and the check that nothing is left of it.

use std::time::{Duration, Instant};

use super::engine::caps::{EngineChoice, Selection};
use super::executor::{Core, Usage};
use super::mailbox::Wake;
use super::offload::Helpers;

/// Runs the test on a core of each engine, with helpers where there are to be some, and its tasks for
/// at most `patience`; checks that nothing is left behind.
pub(crate) fn on_each_engine(helpers: Option<&Helpers>, patience: Duration, test: impl Fn(&Core)) {
    for choice in [EngineChoice::Uring, EngineChoice::Epoll] {
        let selection = match Selection::choose(choice) {
            Ok(selection) => selection,
            Err(why) => {
                eprintln!("skipped on io_uring: {why}");
                continue;
            }
        };
        let wake = Wake::new().unwrap();
        let port = helpers.map(|helpers| helpers.port(wake.clone()));
        let core = selection.core(wake, port).unwrap();
        test(&core);
        run(&core, patience);
        assert_eq!(core.panics(), 0, "no task panics on {choice:?}");
        assert!(core.shut_down(), "everything is collected on {choice:?}");
        assert_eq!(
            core.usage(),
            Usage::default(),
            "nothing is left on {choice:?}"
        );
    }
}

/// Turns until all tasks are done, for at most `patience`.
pub(crate) fn run(core: &Core, patience: Duration) {
    let deadline = Instant::now() + patience;
    while core.usage().tasks > 0 {
        assert!(
            Instant::now() < deadline,
            "the tasks did not end: {:?}",
            core.usage()
        );
        core.turn(Some(Duration::from_millis(100))).unwrap();
    }
}
