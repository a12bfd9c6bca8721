//! Signals and commands that end or drain a server.

use rustix::process::Signal;

use super::{config, config_with};
use crate::support::{End, PATIENCE, Setup, Tree, noise, on_both, wait_until};

#[test]
fn quit_drains_and_stop_ends_at_once() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("long.bin", noise(16 << 20));
        for now in [false, true] {
            let mut server = Setup::run(engine, &config(&tree, "ok")).start();
            let mut loading = server.download("/long.bin");
            if now {
                // The client of the command comes back when the server is gone: it is waited for a third
                // as long as a drain may take.
                assert_eq!(server.control(&["-s", "stop"]).code, Some(0));
                loading.try_response().expect_err("it was cut");
            } else {
                server.signal(Signal::QUIT);
                assert!(loading.response().body == noise(16 << 20), "it drains");
                assert_eq!(loading.end(), End::Closed);
            }
            assert_eq!(server.exit_code(), Some(0));
        }
    });
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("long.bin", noise(16 << 20));
        let mut server = Setup::run(engine, &config(&tree, "ok")).start();
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "ok");
        let _loading = server.download("/long.bin");
        server.signal(Signal::TERM);
        assert_eq!(idle.end(), End::Closed, "it drains");
        assert!(server.ended().is_none());
        server.signal(Signal::TERM);
        // That is waited for a third as long as a drain may take.
        assert_eq!(server.exit_code(), Some(0));
    });
}

#[test]
fn winch_drains_the_workers_and_a_reload_brings_them_back() {
    on_both(|engine| {
        let tree = Tree::new();
        let mut server = Setup::run(engine, &config(&tree, "ok")).start();
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "ok");
        server.signal(Signal::WINCH);
        assert_eq!(idle.end(), End::Closed);
        wait_until("no worker is left", PATIENCE, || {
            server.workers("serving").is_empty() && server.workers("draining").is_empty()
        });
        assert!(server.ended().is_none());
        // The socket is held: who comes now waits, and is not refused.
        let mut waiting = server.connect();
        waiting.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n");
        server.must(&["reload"]);
        assert_eq!(waiting.response().text(), "ok");
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
    });
}

#[test]
fn four_generations_drain_and_a_fifth_change_is_told_what_to_do() {
    on_both(|engine| {
        let tree = Tree::new();
        let text = |number: u32| config_with(&tree, "ok", &format!("max_conns = {}", 100 + number));
        let server = Setup::run(engine, &text(0)).start();
        let mut idle = Vec::new();
        for number in 1..=4 {
            let mut client = server.connect();
            assert_eq!(client.get("/ok").text(), "ok");
            idle.push(client);
            server.write_config(&text(number));
            server.must(&["reload"]);
        }
        assert_eq!(server.workers("draining").len(), 4);
        server.write_config(&text(5));
        let output = server.control(&["reload"]);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains("drain"), "{output:?}");
        // One that ends makes room.
        assert!(idle[0].get("/ok").closes());
        wait_until("one has ended", PATIENCE, || {
            server.workers("draining").len() == 3
        });
        server.must(&["reload"]);
        // A change in place needs none.
        server.write_config(&text(5).replace("\"ok\"", "\"new\""));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/ok").text(), "new");
    });
}
