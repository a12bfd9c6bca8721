//! The cache on real directories, on each engine.

use super::*;
use crate::runtime::engine::caps::{EngineChoice, Selection};
use crate::runtime::mailbox::Wake;
use crate::runtime::offload::Helpers;
use std::fs;

/// Runs `test` as a task of a core of each engine, beneath a fresh directory.
fn with_root<F: Future<Output = ()> + 'static>(
    bounds: Bounds,
    test: impl Fn(Core, Rc<OpenFiles>, PathBuf) -> F,
) {
    let helpers = Helpers::start(1, 16).unwrap();
    for choice in [EngineChoice::Auto, EngineChoice::Epoll] {
        let wake = Wake::new().unwrap();
        let selection = Selection::choose(choice).unwrap();
        let core = selection
            .core(wake.clone(), Some(helpers.port(wake)))
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let files = OpenFiles::new(&core, bounds);
        core.spawn(test(core.clone(), files, root));
        let deadline = Instant::now() + Duration::from_secs(10);
        while core.usage().tasks > 0 {
            assert!(Instant::now() < deadline, "the test did not end");
            core.turn(Some(Duration::from_millis(50))).unwrap();
        }
        assert_eq!(core.panics(), 0);
        assert!(core.shut_down());
    }
}

fn tag(found: &Found) -> Option<Arc<[u8]>> {
    match found {
        Found::File(file) => file.tag(),
        _ => None,
    }
}

fn content(found: &Found) -> Option<&[u8]> {
    match found {
        Found::File(file) => file.content.as_deref(),
        _ => None,
    }
}

#[test]
fn finds_what_stands_there_and_believes_it_for_a_while() {
    with_root(Bounds::default(), |_, files, root| async move {
        fs::write(root.join("a.txt"), "one").unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        let held = files.add_root(root.clone(), Links::Beneath);
        let id = held.id();
        assert_eq!(
            content(&files.look_up(id, "a.txt", None).await),
            Some(&b"one"[..])
        );
        assert!(matches!(
            files.look_up(id, "dir", None).await,
            Found::Directory
        ));
        assert!(matches!(
            files.look_up(id, "", None).await,
            Found::Directory
        ));
        assert!(matches!(
            files.look_up(id, "none", None).await,
            Found::Missing
        ));
        fs::remove_file(root.join("a.txt")).unwrap();
        assert_eq!(
            content(&files.look_up(id, "a.txt", None).await),
            Some(&b"one"[..])
        );
    });
}

#[test]
fn a_replaced_file_and_a_switched_root_show_within_a_second() {
    with_root(Bounds::default(), |core, files, root| async move {
        let (one, two, current) = (root.join("one"), root.join("two"), root.join("current"));
        for (dir, text) in [(&one, "first"), (&two, "other")] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("f"), text).unwrap();
        }
        std::os::unix::fs::symlink(&one, &current).unwrap();
        let held = files.add_root(current.clone(), Links::Beneath);
        let id = held.id();
        assert_eq!(
            content(&files.look_up(id, "f", None).await),
            Some(&b"first"[..])
        );
        fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink(&two, &current).unwrap();
        let mut timer = crate::runtime::future::Timer::new(&core);
        timer.set(core.now() + BELIEVED);
        timer.expired().await;
        assert_eq!(
            content(&files.look_up(id, "f", None).await),
            Some(&b"other"[..])
        );
        fs::remove_file(two.join("f")).unwrap();
        timer.set(core.now() + BELIEVED);
        timer.expired().await;
        assert!(matches!(files.look_up(id, "f", None).await, Found::Missing));
    });
}

#[test]
fn what_is_asked_of_a_root_that_is_no_longer_fresh_is_not_believed_for_longer_than_it() {
    with_root(Bounds::default(), |core, files, root| async move {
        let (one, two, current) = (root.join("one"), root.join("two"), root.join("current"));
        for (dir, text) in [(&one, "first"), (&two, "other")] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("f"), text).unwrap();
        }
        std::os::unix::fs::symlink(&one, &current).unwrap();
        let held = files.add_root(current.clone(), Links::Beneath);
        let id = held.id();
        assert!(matches!(
            files.look_up(id, "", None).await,
            Found::Directory
        ));
        fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink(&two, &current).unwrap();
        let switched = core.now();
        let mut timer = crate::runtime::future::Timer::new(&core);
        timer.set(switched + BELIEVED / 2);
        timer.expired().await;
        files.look_up(id, "f", None).await;
        timer.set(switched + BELIEVED);
        timer.expired().await;
        assert_eq!(
            content(&files.look_up(id, "f", None).await),
            Some(&b"other"[..])
        );
    });
}

#[test]
fn a_sidecar_that_appears_shows_as_soon_as_a_file_does() {
    with_root(Bounds::default(), |core, files, root| async move {
        fs::write(root.join("a"), "plain").unwrap();
        let held = files.add_root(root.clone(), Links::Beneath);
        let id = held.id();
        let coding = Coding::Gzip;
        files.look_up(id, "a", Some(coding)).await;
        fs::write(root.join("a.gz"), "coded").unwrap();
        let written = core.now();
        let mut timer = crate::runtime::future::Timer::new(&core);
        timer.set(written + BELIEVED / 2);
        timer.expired().await;
        let Found::File(file) = files.look_up(id, "a", None).await else {
            panic!("no file")
        };
        files.sidecars(id, "a", &file).await;
        timer.set(written + BELIEVED);
        timer.expired().await;
        assert!(files.sidecars(id, "a", &file).await.has(coding));
    });
}

#[test]
fn links_never_leave_the_root_and_absolute_ones_to_inside_are_followed() {
    with_root(Bounds::default(), |_, files, root| async move {
        let (inside, outside) = (root.join("inside"), root.join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inside.join("f"), "in").unwrap();
        fs::write(outside.join("f"), "out").unwrap();
        std::os::unix::fs::symlink("f", inside.join("relative")).unwrap();
        std::os::unix::fs::symlink(inside.join("f"), inside.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../outside/f", inside.join("escape")).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("dir")).unwrap();
        let held = files.add_root(inside.clone(), Links::Beneath);
        let beneath = held.id();
        let held = files.add_root(inside.clone(), Links::Off);
        let off = held.id();
        let held = files.add_root(inside.clone(), Links::On);
        let on = held.id();
        assert_ne!(beneath, off);
        for (id, path, expected) in [
            (beneath, "relative", Some("in")),
            (beneath, "absolute", Some("in")),
            (beneath, "escape", None),
            (beneath, "dir/f", None),
            (off, "f", Some("in")),
            (off, "relative", None),
            (on, "escape", Some("out")),
            (on, "dir/f", Some("out")),
        ] {
            let found = files.look_up(id, path, None).await;
            assert_eq!(
                content(&found),
                expected.map(str::as_bytes),
                "{path} gave {found:?}"
            );
        }
    });
}

#[test]
fn what_is_no_file_is_never_opened_for_long() {
    with_root(Bounds::default(), |_, files, root| async move {
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let held = files.add_root(root, Links::Beneath);
        let id = held.id();
        assert!(matches!(
            files.look_up(id, "fifo", None).await,
            Found::Forbidden
        ));
        assert!(matches!(
            files.look_up(id, "socket", None).await,
            Found::Forbidden
        ));
    });
}

#[test]
fn bounds_hold_and_what_is_used_stays() {
    let bounds = Bounds {
        entries_max: 8,
        bytes_max: 1 << 20,
    };
    with_root(bounds, |core, files, root| async move {
        fs::write(root.join("hot"), "hot").unwrap();
        let held = files.add_root(root, Links::Beneath);
        let id = held.id();
        for n in 0..100 {
            files.look_up(id, "hot", None).await;
            files.look_up(id, &format!("missing-{n}"), None).await;
            assert!(files.usage().0 <= 8);
        }
        assert!(files.cached(id, "hot", None).is_some());
        files.clear();
        assert_eq!(files.usage(), (0, 0));
        assert!(core.now() <= Instant::now());
    });
}

#[test]
fn a_file_whose_time_says_nothing_gets_its_tag_from_its_content() {
    with_root(Bounds::default(), |core, files, root| async move {
        let epoch = std::time::UNIX_EPOCH;
        for (name, size) in [("small", 10), ("large", 100_000)] {
            let file = fs::File::create(root.join(name)).unwrap();
            file.set_len(size).unwrap();
            file.set_modified(epoch).unwrap();
        }
        let held = files.add_root(root, Links::Beneath);
        let id = held.id();
        for name in ["small", "large"] {
            let deadline = core.now() + Duration::from_secs(5);
            // One that is still being written gets it when it has rested.
            while tag(&files.look_up(id, name, None).await).is_none() {
                assert!(core.now() < deadline, "{name}");
                core.yield_turn().await;
            }
        }
    });
}

#[test]
fn a_file_changed_a_tick_ago_is_not_known_by_its_times() {
    let now = Duration::new(1_700_000_000, 20_000_000);
    for (time, recent) in [
        ((1_700_000_000, 20_000_000), true),
        ((1_700_000_000, 10_000_000), true),
        ((1_699_999_999, 980_000_000), true),
        ((1_699_999_999, 970_000_000), false),
        ((1_700_000_000, 60_000_000), true),
        ((1_700_000_001, 0), false),
        ((0, 0), false),
        ((-1, 0), false),
    ] {
        assert_eq!(is_recent(time, now), recent, "{time:?}");
    }
}

#[test]
fn a_file_that_has_just_been_written_is_read_again() {
    with_root(Bounds::default(), |core, files, root| async move {
        fs::write(root.join("a.txt"), "one").unwrap();
        let held = files.add_root(root, Links::Beneath);
        let id = held.id();
        let first = files.look_up(id, "a.txt", None).await;
        assert!(tag(&first).is_some(), "its content makes a tag at once");
        let Found::File(first) = first else {
            panic!("no file")
        };
        let deadline = core.now() + Duration::from_secs(5);
        loop {
            let Found::File(file) = files.look_up(id, "a.txt", None).await else {
                panic!("no file")
            };
            if file.rested {
                assert!(first.rested || !Rc::ptr_eq(&file, &first));
                return;
            }
            assert!(core.now() < deadline, "it has rested long ago");
            core.yield_turn().await;
        }
    });
}

#[test]
fn a_root_goes_with_its_last_holder_and_its_name_is_never_used_again() {
    with_root(Bounds::default(), |_, files, root| async move {
        let (one, two) = (root.join("one"), root.join("two"));
        for dir in [&one, &two] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("f"), "content").unwrap();
        }
        let first = files.add_root(one.clone(), Links::Beneath);
        let second = files.add_root(one.clone(), Links::Beneath);
        let other = files.add_root(two, Links::Beneath);
        let id = first.id();
        assert_eq!(id, second.id());
        files.look_up(id, "f", None).await;
        files.look_up(other.id(), "f", None).await;
        drop(first);
        assert_eq!(files.usage().0, 2, "one holds it still");
        drop(second);
        assert_eq!(files.usage().0, 1, "that of the other root");
        let again = files.add_root(one, Links::Beneath);
        assert_ne!(again.id(), id);
        assert!(matches!(files.look_up(id, "f", None).await, Found::Missing));
        assert_eq!(
            files.usage().0,
            1,
            "nothing is kept for a root that is gone"
        );
        let found = files.look_up(again.id(), "f", None).await;
        assert_eq!(content(&found), Some(&b"content"[..]));
    });
}
