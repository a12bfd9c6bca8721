//! Connections that speak something else from some moment on: WebSocket and its like.

use std::io::Read as _;
use std::time::Duration;

use super::backend::{Backend, Connection, Gate, answer, ok};
use super::{Setup, plain, proxy, upstream_config};
use crate::support::{Client, End, PATIENCE, Server, noise, on_both, wait_until};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Key: a2V5\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                      Connection: Upgrade\r\nSec-WebSocket-Accept: yes\r\n\r\n";

/// Switches, and gives back what comes, to its end.
fn echo(connection: &mut Connection) {
    let request = connection.request().expect("a request");
    assert_eq!(request.must("Upgrade"), "websocket");
    assert!(request.must("Connection").eq_ignore_ascii_case("upgrade"));
    connection.send(SWITCH);
    give_back(connection);
}

/// Gives back what comes, to its end.
fn give_back(connection: &mut Connection) {
    loop {
        let bytes = connection.bytes();
        if bytes.is_empty() {
            return;
        }
        connection.send(bytes);
    }
}

/// A client whose connection was switched.
fn switched(server: &Server) -> Client {
    let mut client = server.connect();
    client.send(ASK);
    let response = client.response();
    assert_eq!(response.status, 101);
    assert!(response.must("Upgrade").eq_ignore_ascii_case("websocket"));
    assert!(response.lists("Connection", "upgrade"), "{response:?}");
    assert_eq!(response.must("Sec-WebSocket-Accept"), "yes");
    client
}

#[test]
fn bytes_move_both_ways_until_both_have_ended() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let server = plain(engine, &backend);
        let mut client = switched(&server);
        for size in [1, 100, 70_000] {
            let bytes = noise(size);
            client.send(&bytes);
            assert!(client.exactly(size) == bytes);
        }
        client.send("last");
        client.end_input();
        // The other direction is still open, and gives what is left.
        let (rest, end) = client.rest();
        assert_eq!((rest.as_slice(), end), (&b"last"[..], End::Closed));
    });
}

#[test]
fn either_side_may_end_first() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            connection.request().expect("a request");
            connection.send(SWITCH);
            connection.send("all that I have");
            connection.end();
            // Ours is ended; theirs goes on.
            assert_eq!(connection.exactly(5), b"still");
            assert_eq!(connection.rest(), b" here");
        });
        let server = plain(engine, &backend);
        let mut client = switched(&server);
        assert_eq!(client.exactly(15), b"all that I have");
        assert!(client.is_ended_in(), "the end comes through at once");
        client.send("still");
        client.send(" here");
        client.end_input();
        assert_eq!(client.end(), End::Closed);
    });
}

#[test]
fn what_was_sent_before_the_switch_is_held_for_it() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let backend = Backend::start(move |connection| {
            connection.request().expect("a request");
            at_backend.wait();
            // Its first words come with the head.
            connection.send(format!("{SWITCH}welcome"));
            assert_eq!(connection.exactly(5), b"early");
            connection.send("heard");
            connection.rest();
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send(format!("{ASK}early"));
        backend.await_requests(1);
        gate.open();
        assert_eq!(client.response().status, 101);
        assert_eq!(client.exactly(12), b"welcomeheard");
    });
}

#[test]
fn what_was_sent_early_is_a_request_when_the_backend_does_not_switch() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(match request.target.as_str() {
                    "/chat" => answer(426, "", "no"),
                    target => ok(target),
                });
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send(format!("{ASK}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.status, response.text()), (426, "no"));
        assert_eq!(client.response().text(), "/next");
    });
}

#[test]
fn a_switch_that_nobody_asked_for_is_none() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.request().expect("a request");
            let other = request.target == "/other";
            connection.send(match other {
                true => SWITCH.replace("websocket", "irc"),
                false => SWITCH.to_owned(),
            });
            assert_eq!(connection.rest(), b"", "no byte of a tunnel");
        });
        let server = plain(engine, &backend);
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            // Without Connection it isn't for the next hop.
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".to_owned(),
            // Another protocol than was asked for.
            ASK.replace("/chat", "/other"),
            "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned(),
        ] {
            let mut client = server.connect();
            client.send(&request);
            assert_eq!(client.response().status, 502, "{request:?}");
        }
        assert_eq!(backend.requests().len(), 4, "each of them was answered");
    });
}

#[test]
fn where_it_is_forbidden_nothing_is_switched() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                assert!(!request.has("Upgrade"), "{request:?}");
                connection.send(ok("plain"));
            }
        });
        let server = proxy(engine, &[backend.name()], "upgrade = false");
        let mut client = server.connect();
        client.send(ASK);
        assert_eq!(client.response().text(), "plain");
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send(ASK.replace("websocket", "h2c"));
        assert_eq!(client.response().text(), "plain");
    });
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends_after_its_time() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let lines = "timeouts = { tunnel = \"2s\", read = \"100ms\", head = \"5s\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = switched(&server);
        for _ in 0..4 {
            // Longer than the timeout of answers, shorter than that of tunnels; together longer.
            assert!(client.is_silent_for(Duration::from_millis(600)));
            client.send("ping");
            assert_eq!(client.exactly(4), b"ping");
        }
        client.end();
    });
}

#[test]
fn a_side_that_is_gone_takes_the_other_one_along() {
    on_both(|engine| {
        let gone = Gate::default();
        let at_backend = gone.clone();
        let backend = Backend::start(move |connection| {
            let request = connection.request().expect("a request");
            connection.send(SWITCH);
            match request.target.as_str() {
                "/reset" => {
                    connection.exactly(2);
                    connection.reset();
                }
                _ => {
                    connection.rest();
                    at_backend.open();
                }
            }
        });
        let server = plain(engine, &backend);
        switched(&server).abort();
        gone.wait();
        let mut client = server.connect();
        client.send(ASK.replace("/chat", "/reset"));
        assert_eq!(client.response().status, 101);
        client.send("go");
        // In order or by a reset: it ends.
        client.end();
    });
}

#[test]
fn much_passes_through_a_tunnel_in_both_directions_at_once() {
    const SIZE: usize = 8 << 20;
    on_both(|engine| {
        let backend = Backend::start(echo);
        let server = plain(engine, &backend);
        let mut client = switched(&server);
        let bytes = noise(SIZE);
        let mut socket = client.socket().try_clone().expect("a descriptor");
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || {
            use std::io::Write as _;
            socket.write_all(&sent).expect("it goes out");
        });
        assert!(client.exactly(SIZE) == bytes);
        sender.join().expect("it was sent");
    });
}

#[test]
fn a_reload_cuts_no_tunnel() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let config = upstream_config(&[backend.name()], "", "");
        let server = Setup::run(engine, &config).start();
        let mut client = switched(&server);
        client.send("before");
        assert_eq!(client.exactly(6), b"before");
        // In place: another upstream, the tunnel stays where it is.
        let other = Backend::naming("other");
        server.write_config(&upstream_config(&[other.name()], "", ""));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/").text(), "other");
        client.send("after");
        assert_eq!(client.exactly(5), b"after");
        // A new generation: the old worker keeps it.
        let old = server.worker();
        server.write_config(&format!(
            "[server]\nmax_conns = 100\n{}",
            upstream_config(&[other.name()], "", "")
        ));
        server.must(&["reload"]);
        assert_ne!(server.worker(), old);
        client.send("still");
        assert_eq!(client.exactly(5), b"still");
        client.end_input();
        assert_eq!(client.end(), End::Closed);
        wait_until("the old worker ends", PATIENCE, || {
            server.workers("draining").is_empty()
        });
    });
}

#[test]
fn a_worker_that_dies_takes_its_own_tunnels_and_no_others() {
    const TUNNELS: u64 = 12;
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.request().expect("a request");
            if request.has("Upgrade") {
                connection.send(SWITCH);
                return give_back(connection);
            }
            connection.send(ok("plain"));
        });
        let config = upstream_config(&[backend.name()], "", "");
        let server = Setup::run(engine, &format!("[server]\nprocesses = 2\n{config}")).start();
        let mut tunnels: Vec<Client> = (0..TUNNELS).map(|_| switched(&server)).collect();
        let status = server.status();
        let workers = status["generations"][0]["workers"].as_array();
        // Of each worker its process, and the tunnels that it holds.
        let held = |worker: &serde_json::Value| {
            let cores = worker["cores"].as_array().expect("cores");
            let connections = cores.iter().map(|core| core["connections"].as_u64());
            let pid = worker["pid"].as_u64().expect("a process");
            (pid, connections.map(Option::unwrap_or_default).sum())
        };
        let held: Vec<(u64, u64)> = workers.expect("two").iter().map(held).collect();
        assert_eq!(
            held.iter().map(|(_, tunnels)| tunnels).sum::<u64>(),
            TUNNELS
        );
        let (pid, lost) = *held
            .iter()
            .max_by_key(|(_, tunnels)| *tunnels)
            .expect("two");
        crate::supervise::respawn::kill(u32::try_from(pid).expect("a process id"));
        let mut cut = 0;
        for client in &mut tunnels {
            let mut room = [0; 4];
            let echoes =
                client.try_send("ping").is_ok() && matches!(client.socket().read(&mut room), Ok(4));
            match echoes {
                true => assert_eq!(room, *b"ping"),
                false => cut += 1,
            }
        }
        assert_eq!(cut, lost, "of {held:?}");
        wait_until("there is another worker", PATIENCE, || {
            server.workers("serving").len() == 2
        });
        let status = server.status();
        assert_eq!(status["restarts"], 1, "{status}");
        switched(&server).send("new ones can be made");
        assert_eq!(server.connect().get("/").text(), "plain");
    });
}

#[test]
fn the_deadline_of_a_drain_ends_a_tunnel() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let config = upstream_config(&[backend.name()], "", "");
        let config = format!("[server]\ndrain_timeout = \"300ms\"\n{config}");
        let mut server = Setup::run(engine, &config).start();
        let mut client = switched(&server);
        server.signal(rustix::process::Signal::TERM);
        client.end();
        assert_eq!(server.exit_code(), Some(0));
    });
}
