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
                skipped(format_args!("io_uring: {why}"));
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

/// Says why something isn't tested here: for who reads the output of this test, and, as nobody sees that
/// of one that passes, in the file that `BELTWAY_SKIPS` names.
pub(crate) fn skipped(why: impl std::fmt::Display) {
    use std::io::Write as _;
    eprintln!("SKIPPED: {why}");
    if let Some(path) = std::env::var_os("BELTWAY_SKIPS") {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path);
        // At one go: others write there, too.
        let written = file.and_then(|mut file| file.write_all(format!("{why}\n").as_bytes()));
        written.unwrap();
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
