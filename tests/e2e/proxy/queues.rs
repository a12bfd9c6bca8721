//! Servers that may have so many requests at once, and those that wait.

use std::time::Duration;

use super::backend::{Backend, Gate, ok};
use super::{upstream, upstream_config};
use crate::support::{Client, Engine, PATIENCE, Server, on_both, wait_until};

/// Answers with the target when the gate lets it.
fn slow(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(move |connection| {
        while let Some(request) = connection.request() {
            gate.wait();
            connection.send(ok(&request.target));
        }
    })
}

fn ask(server: &Server, target: &str) -> Client {
    let mut client = server.connect();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client
}

/// A server whose only backend is at work on a first request, for which the client waits.
fn busy(engine: Engine, table: &str) -> (Gate, Backend, Server, Client) {
    let gate = Gate::default();
    let backend = slow(&gate);
    let server = upstream(engine, &[backend.name()], table, "");
    let first = ask(&server, "/0");
    backend.await_requests(1);
    (gate, backend, server, first)
}

#[test]
fn the_second_request_waits_for_the_first() {
    on_both(|engine| {
        let (gate, backend, server, mut first) = busy(engine, "max_conns = 1");
        let mut waiting: Vec<Client> = (1..=3)
            .map(|n| {
                let mut client = ask(&server, &format!("/{n}"));
                assert!(client.is_silent_for(Duration::from_millis(50)));
                client
            })
            .collect();
        assert_eq!(backend.requests().len(), 1, "one at a time");
        gate.open();
        assert_eq!(first.response().text(), "/0");
        for (n, client) in waiting.iter_mut().enumerate() {
            backend.await_requests(n + 2);
            gate.open();
            assert_eq!(client.response().text(), format!("/{}", n + 1), "in order");
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_full_queue_and_a_queue_that_does_not_move_are_said_at_once() {
    on_both(|engine| {
        let table = "max_conns = 1\nqueue = { size = 1, timeout = \"700ms\" }";
        let (gate, backend, server, mut first) = busy(engine, table);
        let mut second = ask(&server, "/1");
        assert!(second.is_silent_for(Duration::from_millis(100)));
        let mut third = ask(&server, "/2");
        assert_eq!(third.response().status, 503, "there is no room");
        let response = second.response();
        assert_eq!(
            (response.status, response.closes()),
            (503, false),
            "it waited"
        );
        gate.open();
        assert_eq!(first.response().text(), "/0");
        // All is as before.
        gate.open();
        assert_eq!(third.get("/3").text(), "/3");
        assert_eq!(backend.requests().len(), 2);
    });
}

#[test]
fn without_a_queue_nobody_waits() {
    on_both(|engine| {
        let gate = Gate::default();
        let backend = slow(&gate);
        let table = "max_conns = 2\nqueue = false";
        let server = upstream(engine, &[backend.name()], table, "");
        let mut clients = [ask(&server, "/0"), ask(&server, "/1")];
        backend.await_requests(2);
        assert_eq!(ask(&server, "/2").response().status, 503);
        gate.open_for(2);
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    });
}

#[test]
fn a_client_that_leaves_the_queue_makes_room() {
    on_both(|engine| {
        let table = "max_conns = 1\nqueue = { size = 1, timeout = \"20s\" }";
        let (gate, backend, server, mut first) = busy(engine, table);
        let mut waiting = ask(&server, "/gone");
        assert!(waiting.is_silent_for(Duration::from_millis(100)));
        waiting.abort();
        wait_until("there is room again", PATIENCE, || {
            let mut client = ask(&server, "/next");
            client.is_silent_for(Duration::from_millis(100))
        });
        gate.open();
        assert_eq!(first.response().text(), "/0");
        gate.open_for(100);
        assert_eq!(server.connect().get("/last").text(), "/last");
        let targets: Vec<String> = backend.requests().into_iter().map(|r| r.target).collect();
        assert!(!targets.contains(&"/gone".to_owned()), "{targets:?}");
    });
}

#[test]
fn the_other_server_takes_what_one_may_not() {
    on_both(|engine| {
        let gate = Gate::default();
        let (a, b) = (slow(&gate), slow(&gate));
        let server = upstream(engine, &[a.name(), b.name()], "max_conns = 1", "");
        let mut clients = [ask(&server, "/0"), ask(&server, "/1")];
        a.await_requests(1);
        b.await_requests(1);
        gate.open_for(2);
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    });
}

#[test]
fn a_reload_forgets_nobody_in_line() {
    on_both(|engine| {
        let table = "max_conns = 1\nqueue = { size = 5, timeout = \"20s\" }";
        let (gate, backend, server, mut first) = busy(engine, table);
        let mut waiting = ask(&server, "/1");
        assert!(waiting.is_silent_for(Duration::from_millis(100)));
        // The servers stay, and what is said of them: so does the line.
        let config = upstream_config(&[backend.name()], table, "headers = { X-New = \"1\" }");
        server.write_config(&config);
        server.must(&["reload"]);
        // Then the line itself is another one.
        server.write_config(&config.replace("size = 5", "size = 6"));
        server.must(&["reload"]);
        gate.open_for(10);
        assert_eq!(first.response().text(), "/0");
        assert_eq!(waiting.response().text(), "/1");
        let response = server.connect().get("/2");
        assert_eq!((response.text(), response.must("X-New")), ("/2", "1"));
    });
}

#[test]
fn the_bound_of_a_server_holds_over_a_reload() {
    on_both(|engine| {
        let table = "max_conns = 1\nqueue = { size = 5, timeout = \"20s\" }";
        let (gate, backend, server, mut first) = busy(engine, table);
        let config = upstream_config(&[backend.name()], table, "headers = { X-New = \"1\" }");
        server.write_config(&config);
        server.must(&["reload"]);
        let mut second = ask(&server, "/1");
        assert!(second.is_silent_for(Duration::from_millis(200)));
        assert_eq!(backend.requests().len(), 1, "it may have one at a time");
        gate.open_for(2);
        assert_eq!(first.response().text(), "/0");
        assert_eq!(second.response().text(), "/1");
    });
}
