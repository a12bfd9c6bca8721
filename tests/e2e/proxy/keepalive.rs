//! Connections to backends that are kept and used again, and those that turn out to be closed.

use super::backend::{Backend, Connection, Gate, answer, ok};
use super::{plain, upstream};
use crate::support::{Client, PATIENCE, on_both, wait_until};

#[test]
fn one_connection_serves_all_clients_that_come_after_each_other() {
    on_both(|engine| {
        let backend = Backend::echo();
        let server = plain(engine, &backend);
        for n in 0..20 {
            let mut client = server.connect();
            let target = format!("/{n}");
            assert_eq!(client.get(&target).text(), target);
            assert_eq!(client.get(&target).text(), target);
        }
        assert_eq!(backend.connections(), 1);
    });
}

/// Answers when the gate lets it.
fn at_gate(gate: &Gate) -> impl Fn(&mut Connection) + Send + Sync + 'static {
    let gate = gate.clone();
    move |connection| {
        while connection.request().is_some() {
            gate.wait();
            connection.send(ok("done"));
        }
    }
}

/// Has this many requests in flight at once, and lets them end.
fn at_once(clients: &mut [Client], backend: &Backend, gate: &Gate) {
    let before = backend.requests().len();
    for client in clients.iter_mut() {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    backend.await_requests(before + clients.len());
    gate.open_for(clients.len());
    for client in clients {
        assert_eq!(client.response().text(), "done");
    }
}

#[test]
fn requests_at_once_have_connections_of_their_own_which_are_kept() {
    on_both(|engine| {
        let gate = Gate::default();
        let backend = Backend::start(at_gate(&gate));
        let server = plain(engine, &backend);
        let mut clients: Vec<Client> = (0..10).map(|_| server.connect()).collect();
        at_once(&mut clients, &backend, &gate);
        assert_eq!(backend.connections(), 10);
        at_once(&mut clients, &backend, &gate);
        assert_eq!(backend.connections(), 10);
    });
}

#[test]
fn no_more_connections_wait_than_the_configuration_allows_nor_longer() {
    on_both(|engine| {
        let (gate, ended) = (Gate::default(), Gate::default());
        let script = at_gate(&gate);
        let of_script = ended.clone();
        let backend = Backend::start(move |connection| {
            script(connection);
            of_script.open();
        });
        let table = "keepalive = { idle = 2, timeout = \"3s\" }";
        let server = upstream(engine, &[backend.name()], table, "");
        let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
        at_once(&mut clients, &backend, &gate);
        for _ in 0..3 {
            ended.wait();
        }
        at_once(&mut clients[..2], &backend, &gate);
        assert_eq!(backend.connections(), 5, "two were kept");
        // Their clients are still there; it is the time that ends them.
        for _ in 0..2 {
            ended.wait();
        }
    });
}

#[test]
fn without_keepalive_each_request_has_its_connection_and_says_so() {
    on_both(|engine| {
        let backend = Backend::echo();
        let server = upstream(engine, &[backend.name()], "keepalive = false", "");
        let mut client = server.connect();
        for n in 1..=3 {
            assert_eq!(client.get("/a").text(), "/a");
            assert_eq!(backend.connections(), n);
            assert_eq!(backend.last().must("Connection"), "close");
        }
    });
}

#[test]
fn a_backend_that_says_close_is_not_asked_again_on_that_connection() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            // It doesn't close by itself: what it said has to be enough.
            while let Some(request) = connection.request() {
                connection.send(match request.target.as_str() {
                    "/close" => answer(200, "Connection: close\r\n", "x"),
                    "/close-list" => answer(200, "Connection: x, Close\r\n", "x"),
                    "/old" => answer(200, "", "x").replace("HTTP/1.1", "HTTP/1.0"),
                    _ => ok("x"),
                });
            }
        });
        let server = plain(engine, &backend);
        for target in ["/close", "/close-list", "/old"] {
            let mut client = server.connect();
            let before = backend.connections();
            let response = client.get(target);
            assert_eq!((response.text(), response.closes()), ("x", false));
            assert_eq!(client.get(target).text(), "x");
            assert!(backend.connections() > before, "{target}");
        }
    });
}

#[test]
fn a_connection_that_the_backend_closed_meanwhile_costs_nobody_an_error() {
    on_both(|engine| {
        // It closes behind each answer and doesn't say so before: at every moment a request may meet it.
        let backend = Backend::start(|connection| {
            if let Some(request) = connection.request() {
                connection.send(ok(&request.target));
                if connection.number % 3 == 0 {
                    connection.reset();
                }
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for n in 0..100 {
            let target = format!("/{n}");
            let response = client.get(&target);
            assert_eq!((response.status, response.text()), (200, target.as_str()));
        }
        assert_eq!(backend.requests().len(), 100, "each one was seen once");
    });
}

/// Answers the first request of a connection, and takes the second one without an answer.
fn stale(connection: &mut Connection) {
    let Some(request) = connection.request() else {
        return;
    };
    connection.send(ok(&request.target));
    connection.request();
}

#[test]
fn a_kept_connection_that_ends_under_a_request_is_no_matter_to_a_get() {
    on_both(|engine| {
        let backend = Backend::start(stale);
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for n in 0..10 {
            let target = format!("/{n}");
            let response = client.get(&target);
            assert_eq!((response.status, response.text()), (200, target.as_str()));
        }
    });
}

#[test]
fn a_post_is_never_sent_twice() {
    on_both(|engine| {
        let backend = Backend::start(stale);
        let server = plain(engine, &backend);
        let mut failed = 0;
        for n in 0..10 {
            let mut client = server.connect();
            assert_eq!(client.get(&format!("/warm{n}")).status, 200);
            client.send(format!(
                "POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
            ));
            let response = client.response();
            match response.status {
                200 => {}
                502 => failed += 1,
                _ => panic!("{response:?}"),
            }
        }
        assert!(failed > 0, "the connection was never used again");
        let requests = backend.requests();
        let posts = || requests.iter().filter(|request| request.method == "POST");
        for post in posts() {
            let same = posts().filter(|other| other.target == post.target).count();
            assert_eq!(same, 1, "{post:?}");
        }
    });
}

#[test]
fn a_client_of_a_kept_connection_that_leaves_is_no_matter_to_the_backend() {
    on_both(|engine| {
        let backend = Backend::echo();
        let server = plain(engine, &backend);
        for _ in 0..5 {
            let mut client = server.connect();
            assert_eq!(client.get("/").status, 200);
            client.abort();
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_reload_that_changes_nothing_of_an_upstream_keeps_its_connections() {
    on_both(|engine| {
        let backend = Backend::echo();
        let config = super::upstream_config(&[backend.name()], "", "");
        let server = crate::support::Setup::run(engine, &config).start();
        let mut client = server.connect();
        assert_eq!(client.get("/").status, 200);
        server.write_config(&config.replace("proxy =", "headers = { X-New = \"1\" }\nproxy ="));
        server.must(&["reload"]);
        wait_until("it is in force", PATIENCE, || {
            client.get("/").field("X-New") == Some("1")
        });
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_stop_waits_for_answers_under_way_and_for_no_idle_backend() {
    on_both(|engine| {
        let gate = Gate::default();
        let backend = Backend::start(at_gate(&gate));
        let mut server = plain(engine, &backend);
        let mut clients: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        at_once(&mut clients, &backend, &gate);
        let mut last = clients.pop().expect("four");
        last.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        backend.await_requests(5);
        server.signal(rustix::process::Signal::TERM);
        for mut client in clients {
            client.end();
        }
        gate.open();
        let response = last.response();
        assert_eq!((response.text(), response.closes()), ("done", true));
        assert_eq!(server.exit_code(), Some(0));
    });
}
