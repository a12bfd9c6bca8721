//! Requests that are tried again, and those that must not be.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::backend::{Backend, Refusing, answer, ok};
use super::{Engine, Server, proxy, upstream};
use crate::support::on_both;

/// A backend that takes requests and closes without an answer.
fn closing() -> Backend {
    Backend::start(|connection| {
        connection.request();
        connection.close();
    })
}

/// One that has this status for everything.
fn failing(status: u16) -> Backend {
    Backend::start(move |connection| {
        while connection.request().is_some() {
            connection.send(answer(status, "", "sorry"));
        }
    })
}

/// A server in front of these, none of which is put aside for its failures.
fn patient(engine: Engine, backends: &[&Backend], lines: &str) -> Server {
    let names: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    upstream(engine, &names, "passive_health = false", lines)
}

const POST: &str = "POST /post HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab";
const PUT: &str = "PUT /put HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab";

#[test]
fn a_server_that_refuses_is_passed_over_whatever_the_method() {
    on_both(|engine| {
        let refusing = Refusing::new();
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(ok(request.text()));
            }
        });
        let server = proxy(engine, &[refusing.name(), backend.name()], "");
        let mut client = server.connect();
        for _ in 0..5 {
            assert_eq!(client.get("/").status, 200);
            client.send(POST);
            assert_eq!(client.response().text(), "ab");
        }
        let missing = "unix:/nonexistent/app.sock";
        let server = proxy(engine, &[missing, backend.name()], "");
        for _ in 0..3 {
            assert_eq!(server.connect().get("/").status, 200);
        }
    });
}

#[test]
fn nobody_to_ask_is_a_bad_gateway_whose_page_says_nothing_of_the_inside() {
    on_both(|engine| {
        let refusing = [Refusing::new(), Refusing::new(), Refusing::new()];
        let names: Vec<&str> = refusing.iter().map(Refusing::name).collect();
        let server = proxy(engine, &names, "");
        let mut client = server.connect();
        for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", POST, PUT] {
            client.send(request);
            let response = client.response();
            assert_eq!((response.status, response.closes()), (502, false));
            assert!(response.must("Content-Type").starts_with("text/html"));
            for name in &names {
                let port = name.rsplit(':').next().expect("a port");
                assert!(!response.text().contains(port), "{}", response.text());
            }
            assert!(!response.text().contains("refused"), "{}", response.text());
        }
        // It has recovered as soon as somebody listens.
        let [first, ..] = refusing;
        let _backend = Backend::take(first, |connection| {
            while connection.request().is_some() {
                connection.send(ok("back"));
            }
        });
        assert_eq!(client.get("/").text(), "back");
    });
}

#[test]
fn a_get_that_got_no_answer_is_asked_elsewhere_and_a_post_is_not() {
    on_both(|engine| {
        let (bad, good) = (closing(), Backend::naming("good"));
        let server = patient(engine, &[&bad, &good], "");
        let mut client = server.connect();
        for _ in 0..6 {
            assert_eq!(client.get("/").text(), "good");
        }
        assert!(!bad.requests().is_empty());
        let mut statuses = Vec::new();
        for _ in 0..6 {
            client.send(POST);
            statuses.push(client.response().status);
        }
        let failed = statuses.iter().filter(|status| **status == 502).count();
        let posts = |backend: &Backend| {
            let requests = backend.requests();
            requests.iter().filter(|r| r.method == "POST").count()
        };
        assert_eq!(posts(&bad) + posts(&good), 6, "each one once: {statuses:?}");
        assert_eq!(posts(&bad), failed, "{statuses:?}");
        assert!(failed > 0, "{statuses:?}");
    });
}

#[test]
fn a_route_may_say_that_its_posts_can_be_repeated() {
    on_both(|engine| {
        let (bad, good) = (closing(), Backend::naming("good"));
        let lines = "retries = { non_idempotent = true }\nbuffer = { request = \"1MiB\" }";
        let server = patient(engine, &[&bad, &good], lines);
        let mut client = server.connect();
        for _ in 0..4 {
            client.send(POST);
            assert_eq!(client.response().text(), "good");
            assert_eq!(good.last().text(), "ab", "with its whole body");
        }
        assert!(!bad.requests().is_empty());
    });
}

#[test]
fn a_buffered_body_can_be_sent_again() {
    on_both(|engine| {
        let (bad, good) = (closing(), Backend::naming("good"));
        let lines = "buffer = { request = \"1MiB\" }";
        let server = patient(engine, &[&bad, &good], lines);
        let mut client = server.connect();
        let body = "x".repeat(200_000);
        for _ in 0..4 {
            for framing in [
                format!("Content-Length: {}\r\n\r\n{body}", body.len()),
                format!(
                    "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                    body.len()
                ),
            ] {
                client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}"));
                assert_eq!(client.response().text(), "good");
                assert_eq!(good.last().text(), body);
            }
        }
        assert!(!bad.requests().is_empty());
    });
}

#[test]
fn chosen_statuses_are_answered_by_another_server() {
    on_both(|engine| {
        let (bad, good) = (failing(503), Backend::naming("good"));
        let server = patient(engine, &[&bad, &good], "retries = { statuses = [503] }");
        let mut client = server.connect();
        for _ in 0..6 {
            assert_eq!(client.get("/").text(), "good");
        }
        let mut posts = Vec::new();
        for _ in 0..6 {
            client.send(POST);
            posts.push(client.response().status);
        }
        assert!(posts.contains(&503), "it acted: {posts:?}");
        // Unless they are chosen they are answers like any other.
        let server = patient(engine, &[&bad, &good], "");
        let mut client = server.connect();
        let statuses: Vec<u16> = (0..4).map(|_| client.get("/").status).collect();
        assert!(statuses.contains(&503), "{statuses:?}");
        // The last one that was tried is the answer when none is better.
        let other = failing(503);
        let server = patient(engine, &[&bad, &other], "retries = { statuses = [503] }");
        let response = server.connect().get("/");
        assert_eq!((response.status, response.text()), (503, "sorry"));
    });
}

#[test]
fn tries_are_counted() {
    on_both(|engine| {
        for (lines, expected) in [
            ("", 3),
            ("retries = { tries = 2 }", 2),
            ("retries = 1", 2),
            ("retries = false", 1),
        ] {
            let bad: Vec<Backend> = (0..4).map(|_| closing()).collect();
            let server = patient(engine, &bad.iter().collect::<Vec<_>>(), lines);
            assert_eq!(server.connect().get("/").status, 502);
            let asked: Vec<usize> = bad.iter().map(|b| b.requests().len()).collect();
            assert_eq!(asked.iter().sum::<usize>(), expected, "{lines}: {asked:?}");
            assert!(asked.iter().all(|count| *count <= 1), "{lines}: {asked:?}");
        }
    });
}

#[test]
fn what_has_begun_is_not_begun_again() {
    on_both(|engine| {
        let bad = Backend::start(|connection| {
            connection.request().expect("a request");
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            connection.close();
        });
        let good = Backend::naming("good");
        let server = patient(engine, &[&bad, &good], "");
        let (mut cut, mut whole) = (0, 0);
        for _ in 0..6 {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            match client.try_response() {
                Ok(response) if response.status == 502 => cut += 1,
                Ok(response) => {
                    assert_eq!(response.text(), "good");
                    whole += 1;
                }
                Err(_) => cut += 1,
            }
        }
        assert_eq!((cut, whole), (3, 3));
        assert_eq!((bad.requests().len(), good.requests().len()), (3, 3));
    });
}

#[test]
fn a_fault_is_not_made_worse_by_repetition() {
    on_both(|engine| {
        let bad = [closing(), closing()];
        let names: Vec<&str> = bad.iter().map(Backend::name).collect();
        let table = "passive_health = false\nretry_budget = { share = 0, per_second = 0 }";
        let server = upstream(engine, &names, table, "");
        let mut client = server.connect();
        for _ in 0..40 {
            assert_eq!(client.get("/").status, 502);
        }
        let asked: usize = bad.iter().map(|backend| backend.requests().len()).sum();
        // What is saved at the start is ten.
        assert_eq!(asked, 50, "forty, and ten repetitions");
    });
}

/// A listening socket whose queue is full: who connects gets no answer.
fn full_queue() -> (String, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&address.into()).expect("bind");
    listener.listen(0).expect("listen");
    let address = listener.local_addr().expect("a name");
    let name = address.as_socket().expect("TCP").to_string();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("nonblocking");
        match socket.connect(&address) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => other.expect("a connection that is made or waits"),
        }
        sockets.push(socket);
    }
    (name, sockets)
}

#[test]
fn a_server_that_takes_no_connection_in_time_is_passed_over() {
    on_both(|engine| {
        let (full, _sockets) = full_queue();
        let good = Backend::naming("good");
        let lines = "timeouts = { connect = \"300ms\" }";
        let server = proxy(engine, &[&full, good.name()], lines);
        let mut client = server.connect();
        for _ in 0..2 {
            assert_eq!(client.get("/").text(), "good");
            client.send(POST);
            assert_eq!(client.response().text(), "good");
        }
        let server = proxy(engine, &[&full], lines);
        assert_eq!(server.connect().get("/").status, 504);
    });
}
