//! The process: signals and the drain, a kernel that forbids io_uring, and too few descriptors.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::framing::simple;
use crate::support::child::Before;
use crate::support::server::serve;
use crate::support::{
    Client, End, Engine, PATIENCE, Server, Setup, Tree, noise, on_both, uring_missing, wait_until,
};

/// Whether nobody answers there any more: refused, or closed without a word.
fn is_deaf(server: &Server) -> bool {
    let (domain, address) = server.address().socket();
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
    socket.connect_timeout(&address, PATIENCE).is_err()
}

#[test]
fn a_signal_lets_requests_in_flight_finish() {
    on_both(|engine| {
        for signal in [Signal::TERM, Signal::INT] {
            let tree = Tree::new();
            let content = noise(16 << 20);
            tree.write("large.bin", &content);
            let mut server = simple(engine, &tree);
            let mut idle: Vec<Client> = (0..5).map(|_| server.connect()).collect();
            for client in &mut idle {
                assert_eq!(client.get("/ok").text(), "ok");
            }
            let mut loading = server.download("/large.bin");
            let mut asking = server.connect();
            assert_eq!(asking.get("/ok").text(), "ok");
            asking.send("GET /ok HTTP/1.1\r\nHost: a\r\n");
            // The server has seen the half request once it answers what was sent after it.
            assert_eq!(server.connect().get("/ok").text(), "ok");
            server.signal(signal);
            for client in &mut idle {
                assert_eq!(client.end(), End::Closed, "idle ones are closed at once");
            }
            wait_until("nobody is let in", PATIENCE, || is_deaf(&server));
            assert!(server.ended().is_none(), "two requests are in flight");
            asking.send("\r\n");
            let response = asking.response();
            assert_eq!((response.text(), response.closes()), ("ok", true));
            assert_eq!(asking.end(), End::Closed);
            assert!(loading.response().body == content, "the download is whole");
            assert_eq!(loading.end(), End::Closed);
            assert_eq!(server.exit_code(), Some(0));
        }
    });
}

#[test]
fn an_idle_server_ends_at_once() {
    on_both(|engine| {
        let tree = Tree::new();
        let mut server = simple(engine, &tree);
        server.signal(Signal::TERM);
        // That is waited for a third as long as a drain may take.
        assert_eq!(server.exit_code(), Some(0));
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", noise(16 << 20));
        let mut server = simple(engine, &tree);
        let mut idle = server.connect();
        assert_eq!(idle.get("/ok").text(), "ok");
        let _loading = server.download("/large.bin");
        server.signal(Signal::TERM);
        assert_eq!(idle.end(), End::Closed, "it drains");
        assert!(server.ended().is_none());
        server.signal(Signal::TERM);
        // That is waited for a third as long as a drain may take.
        server.exit_code();
    });
}

#[test]
fn the_drain_has_an_end() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", noise(16 << 20));
        let mut server = serve(engine, &tree, &["--drain=400ms"]);
        let mut loading = server.download("/large.bin");
        let begin = Instant::now();
        server.signal(Signal::TERM);
        assert!(server.exit_code().is_some(), "it ends by itself");
        assert!(begin.elapsed() > Duration::from_millis(350));
        let error = loading.try_response().expect_err("it was cut short");
        assert_ne!(error.kind(), std::io::ErrorKind::TimedOut);
    });
}

#[test]
fn where_io_uring_is_forbidden_epoll_serves_and_says_why() {
    let forbidden = Before {
        forbid: Some(libc::SYS_io_uring_setup),
        ..Before::default()
    };
    let tree = Tree::with(&[("a.txt", "hello")]);
    let server = Setup::serve(Engine::Epoll, tree.root())
        .engine_auto()
        .before(forbidden)
        .start();
    assert_eq!(server.connect().get("/a.txt").text(), "hello");
    let stderr = server.stderr();
    let line = stderr
        .lines()
        .find(|line| line.contains("engine=epoll"))
        .expect("the engine is named");
    assert!(
        line.contains("io_uring_setup") || line.contains("not permitted") || line.contains("EPERM"),
        "the reason is missing: {line}"
    );
    let output = Setup::serve(Engine::Uring, tree.root())
        .before(forbidden)
        .fail();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("io_uring"), "{output:?}");
}

#[test]
fn where_openat2_is_forbidden_the_start_fails_and_says_so() {
    let forbidden = Before {
        forbid: Some(libc::SYS_openat2),
        ..Before::default()
    };
    let tree = Tree::with(&[("a.txt", "hello")]);
    let output = Setup::serve(Engine::Epoll, tree.root())
        .before(forbidden)
        .fail();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(
        output.stderr.contains("openat2(2) is forbidden"),
        "{output:?}"
    );
}

#[test]
fn io_uring_is_chosen_where_the_kernel_has_it() {
    if let Some(why) = uring_missing() {
        crate::support::skipped(format_args!("that io_uring is chosen: {why}"));
        return;
    }
    let tree = Tree::with(&[("a.txt", "hello")]);
    let server = Setup::serve(Engine::Uring, tree.root())
        .engine_auto()
        .start();
    assert_eq!(server.connect().get("/a.txt").text(), "hello");
    wait_until("the engine is named", PATIENCE, || {
        server.stderr().contains("engine=io_uring")
    });
}

#[test]
fn without_descriptors_connections_go_on_and_accepting_resumes() {
    on_both(|engine| {
        let tree = Tree::with(&[("b.txt", "not in any cache yet")]);
        for number in 0..16 {
            tree.write(&format!("{number}.txt"), format!("file {number}"));
        }
        let mut server = Setup::serve(engine, tree.root())
            .before(Before {
                descriptors: Some(64),
                ..Before::default()
            })
            .start();
        let mut existing = server.connect();
        assert_eq!(existing.get("/1.txt").text(), "file 1");
        // Half a request each, so that none of them is idle and makes room.
        existing.send("GET /1.txt HTTP/1.1\r\nHost: a\r\n");
        let mut crowd: Vec<Client> = (0..120)
            .map(|_| {
                let mut client = server.connect();
                client.send("GET /2.txt HTTP/1.1\r\nHost: a\r\n");
                client
            })
            .collect();
        for number in [1, 2, 3, 2, 3] {
            existing.send(format!(
                "\r\nGET /{number}.txt HTTP/1.1\r\nHost: a\r\nX: y\r\n"
            ));
            let response = existing.response();
            assert_eq!(response.status, 200, "{}", response.text());
        }
        assert!(server.ended().is_none());
        // Those in the backlog come in as others leave, and none is lost.
        let mut late = crowd.split_off(60);
        drop(crowd);
        for client in &mut late {
            client.send("Connection: close\r\n\r\n");
        }
        for client in &mut late {
            assert_eq!(client.response().text(), "file 2");
        }
        drop(late);
        existing.send("\r\n");
        assert_eq!(existing.response().text(), "file 3");
        assert_eq!(existing.get("/b.txt").text(), "not in any cache yet");
        for _ in 0..10 {
            assert_eq!(server.connect().get("/1.txt").text(), "file 1");
        }
    });
}
