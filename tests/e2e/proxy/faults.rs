//! Backends that don't speak HTTP, or never end to, and what their clients get: an error of its own
//! kind, soon.

use std::time::Duration;

use super::backend::{Backend, Connection, Gate, ok};
use super::{plain, proxy};
use crate::support::{End, on_both};

/// Answers each request with the bytes of this function, and keeps the connection.
fn saying(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Backend {
    Backend::start(move |connection| {
        while let Some(request) = connection.request() {
            connection.send(answer(&request.target));
        }
    })
}

#[test]
fn what_is_no_response_is_a_bad_gateway() {
    let cases: &[(&str, &str)] = &[
        (
            "garbage",
            "\x16\x03\x01\x02\x00\x01\x00 nothing of HTTP\r\n\r\n",
        ),
        ("text", "hello\r\n\r\n"),
        ("empty lines", "\r\n\r\n\r\n\r\n"),
        ("old", "<html>HTTP/0.9</html>\r\n\r\n"),
        ("version", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (
            "version 1.2x",
            "HTTP/1.2x 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        ("status", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 099", "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 600", "HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n"),
        (
            "status 2000",
            "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "folded",
            "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        ),
        ("space", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
        ("no colon", "HTTP/1.1 200 OK\r\nContent-Length 0\r\n\r\n"),
        (
            "bare CR",
            "HTTP/1.1 200 OK\r\nX-A: b\rc\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "NUL",
            "HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ),
        ("sign", "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na"),
        ("hex", "HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\na"),
        (
            "huge",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\na",
        ),
        ("minus", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\na"),
        (
            "both",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "coding",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "twice",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "unasked",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        ),
        (
            "interim alone",
            "HTTP/1.1 103 Early Hints\r\n\r\nrubbish\r\n\r\n",
        ),
    ];
    on_both(|engine| {
        let backend = saying(|target| {
            let index: usize = target[1..].parse().expect("a number");
            cases[index].1.as_bytes().to_vec()
        });
        let server = plain(engine, &backend);
        for (index, (name, _)) in cases.iter().enumerate() {
            let mut client = server.connect();
            let mut response = client.get(&format!("/{index}"));
            if response.status == 103 {
                response = client.response();
            }
            assert_eq!(response.status, 502, "{name}: {response:?}");
            assert!(!response.closes(), "{name}: it isn't the client's fault");
            let page = response.text();
            for inside in ["127.0.0.1", "beltway", "ontent-Length", "rubbish"] {
                assert!(!page.contains(inside), "{name}: {page}");
            }
        }
        assert_eq!(
            backend.connections(),
            cases.len(),
            "each connection was closed, and nothing was asked twice"
        );
    });
}

#[test]
fn a_head_beyond_the_limit_is_refused_and_an_endless_one_is_not_read_to_its_end() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.request().expect("a request");
            let field = |n: usize| format!("X-{n}: {}\r\n", "v".repeat(2000));
            match request.target.as_str() {
                "/fits" => {
                    let fields: String = (0..10).map(field).collect();
                    connection.send(format!(
                        "HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"
                    ));
                }
                "/huge" => {
                    let fields: String = (0..100).map(field).collect();
                    connection.send(format!(
                        "HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"
                    ));
                }
                "/many" => {
                    let fields = "X: y\r\n".repeat(2000);
                    connection.send(format!(
                        "HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"
                    ));
                }
                "/line" => {
                    connection.send("HTTP/1.1 200 ");
                    while connection.send([b'O'; 4096]) {}
                }
                _ => {
                    connection.send("HTTP/1.1 200 OK\r\n");
                    while connection.send(field(1)) {}
                }
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        assert_eq!(client.get("/fits").values("X-9").count(), 1);
        for target in ["/huge", "/many", "/line", "/endless"] {
            assert_eq!(client.get(target).status, 502, "{target}");
        }
    });
}

#[test]
fn a_backend_that_never_answers_is_a_gateway_timeout() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.request().expect("a request");
            if request.target == "/part" {
                connection.send("HTTP/1.1 200 OK\r\nX-");
            }
            connection.rest();
        });
        let lines = "timeouts = { head = \"300ms\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        for target in ["/nothing", "/part"] {
            let response = client.get(target);
            assert_eq!(
                (response.status, response.closes()),
                (504, false),
                "{target}"
            );
            assert!(!response.text().contains("127.0.0.1"));
        }
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
        assert_eq!(client.response().status, 504);
        assert_eq!(
            backend.await_requests(3).len(),
            3,
            "it may be at work: once is enough"
        );
    });
}

/// Sends a body in three pieces, each when it is let.
fn in_pieces(gate: &Gate, connection: &mut Connection) {
    connection.request().expect("a request");
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
    for piece in ["a", "b", "c"] {
        gate.wait();
        connection.send(piece);
    }
}

/// A backend that sends two such bodies on a connection.
fn piecewise() -> (Gate, Backend) {
    let gate = Gate::default();
    let at_backend = gate.clone();
    let backend = Backend::start(move |connection| {
        in_pieces(&at_backend, connection);
        in_pieces(&at_backend, connection);
    });
    (gate, backend)
}

#[test]
fn pauses_within_the_read_timeout_are_no_fault_and_longer_ones_cut_the_answer() {
    on_both(|engine| {
        let (gate, backend) = piecewise();
        let lines = "timeouts = { read = \"3s\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.await_text("\r\n\r\n");
        for piece in ["\r\n\r\na", "ab", "abc"] {
            // Three times more than a third of the timeout is more than the timeout.
            assert!(client.stays_silent_for(Duration::from_millis(1100)));
            gate.open();
            client.await_text(piece);
        }
        assert_eq!(client.response().text(), "abc");
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.await_text("\r\n\r\n");
        gate.open();
        client.await_text("\r\n\r\na");
        client
            .try_response()
            .expect_err("nothing comes for more than three seconds");
        // Its script still waits twice.
        gate.open_for(2);
    });
}

#[test]
fn the_whole_may_have_a_bound_of_its_own() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let backend = Backend::start(move |connection| match connection.head() {
            Some(request) if request.target == "/head" => drop(connection.rest()),
            Some(_) => {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
                while connection.send("x") {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                at_backend.open();
            }
            None => {}
        });
        let lines = "timeouts = { total = \"400ms\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        assert_eq!(client.get("/head").status, 504);
        client.send("GET /body HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_response().expect_err("it took too long");
        gate.wait();
    });
}

#[test]
fn bytes_behind_a_response_are_nobodys_answer() {
    let extra = [
        (
            "more body",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more",
        ),
        (
            "two responses",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
             HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        ),
        (
            "chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        ),
        (
            "line end",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\r\n",
        ),
    ];
    on_both(|engine| {
        let backend = saying(move |target| match target {
            "/next" => ok("next").into_bytes(),
            target => {
                let index: usize = target[1..].parse().expect("a number");
                extra[index].1.as_bytes().to_vec()
            }
        });
        let server = plain(engine, &backend);
        for (index, (name, _)) in extra.iter().enumerate() {
            let mut client = server.connect();
            let before = backend.connections();
            assert_eq!(client.get(&format!("/{index}")).text(), "hello", "{name}");
            assert_eq!(client.get("/next").text(), "next", "{name}");
            assert!(backend.connections() > before, "{name}: a new connection");
        }
        // The same where no answer has a body: what follows the head is none.
        let backend = saying(|target| match target {
            "/next" => ok("next").into_bytes(),
            "/204" => b"HTTP/1.1 204 No Content\r\n\r\npoison".to_vec(),
            _ => ok("poison").into_bytes(),
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        assert_eq!(client.get("/204").status, 204);
        assert_eq!(client.get("/next").text(), "next");
        let response = client.request("HEAD", "/head", "");
        assert_eq!(response.must("Content-Length"), "6");
        assert_eq!(client.get("/next").text(), "next");
    });
}

#[test]
fn bytes_behind_a_response_that_was_relayed_are_nobodys_answer() {
    const LENGTH: usize = 300_000;
    on_both(|engine| {
        let backend = saying(|target| match target {
            "/large" => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                [
                    head.into_bytes(),
                    vec![b'x'; LENGTH],
                    ok("poison").into_bytes(),
                ]
                .concat()
            }
            _ => ok("next").into_bytes(),
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for _ in 0..20 {
            // The second one waits for the connection to be free.
            client.send(
                "GET /large HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n",
            );
            assert_eq!(client.response().body.len(), LENGTH);
            assert_eq!(client.response().text(), "next");
        }
    });
}

#[test]
fn an_answer_before_its_request_is_nobodys() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            connection.send(ok("poison"));
            while connection.request().is_some() {
                connection.send(ok("good"));
            }
        });
        let server = plain(engine, &backend);
        // Which of the two was first can't be told when both were quick; but no client waits for ever.
        for _ in 0..5 {
            let response = server.connect().get("/");
            assert!([200, 502].contains(&response.status), "{response:?}");
        }
        // On a connection that waits it is seen, and its connection is used no more.
        let gate = Gate::default();
        let (at_backend, sent) = (gate.clone(), Gate::default());
        let done = sent.clone();
        let backend = Backend::start(move |connection| {
            let number = connection.number;
            while connection.request().is_some() {
                connection.send(ok(&format!("answer {number}")));
                if number == 0 {
                    at_backend.wait();
                    connection.send(ok("poison"));
                    done.open();
                }
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        assert_eq!(client.get("/").text(), "answer 0");
        gate.open();
        sent.wait();
        assert_eq!(client.get("/").text(), "answer 1");
    });
}

#[test]
fn errors_within_chunks_cut_the_answer() {
    let cases = [
        "x\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\r\n-1\r\n\r\n",
        "5\r\nhello\r\n0x0\r\n\r\n",
        "5\nhello\n0\n\n",
        "10000000000000000\r\nhello",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
    ];
    on_both(|engine| {
        let backend = Backend::start(move |connection| {
            let request = connection.request().expect("a request");
            let index: usize = request.target[1..].parse().expect("a number");
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            connection.send(cases[index]);
            connection.rest();
        });
        let server = plain(engine, &backend);
        for (index, case) in cases.iter().enumerate() {
            let mut client = server.connect();
            client.send(format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n"));
            if let Ok(response) = client.try_response() {
                assert_eq!(response.status, 502, "{case:?}: {response:?}");
            }
        }
        assert_eq!(backend.requests().len(), cases.len());
        let endless = Backend::start(|connection| {
            connection.request().expect("a request");
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;");
            while connection.send([b'e'; 4096]) {}
        });
        let server = plain(engine, &endless);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        if let Ok(response) = client.try_response() {
            assert_eq!(response.status, 502);
        }
        assert_eq!(endless.requests().len(), 1);
    });
}

#[test]
fn an_upload_that_nobody_reads_ends_with_the_answer() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            connection.head().expect("a head");
            // Gone with unread bytes: a reset.
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n");
        let sent = client.try_send(vec![b'x'; 10_000_000]);
        match client.try_response() {
            Ok(response) => assert_eq!(response.status, 502),
            Err(_) => assert!(sent.is_err(), "the whole body was taken for no answer"),
        }
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
        let response = client.response();
        assert_eq!(response.status, 502);
        if response.closes() {
            assert_eq!(client.end(), End::Closed);
        }
        assert_eq!(backend.connections(), 2, "nothing was sent twice");
    });
}

#[test]
fn an_upload_takes_as_long_as_it_takes() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(ok(request.text()));
            }
        });
        let lines = "timeouts = { head = \"1s\", read = \"1s\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n");
        for _ in 0..8 {
            // It is the client that takes its time, in all more than the timeout.
            assert!(client.is_silent_for(Duration::from_millis(150)));
            client.send("x");
        }
        assert_eq!(client.response().text(), "xxxxxxxx");
    });
}

#[test]
fn events_may_be_silent_for_long_where_that_is_said() {
    on_both(|engine| {
        let (gate, backend) = piecewise();
        let lines = "timeouts = { read = \"200ms\" }\n[site.\"*\".routes]\n\
                     \"/events\" = { timeouts = { read = false } }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
        client.await_text("\r\n\r\n");
        assert!(client.stays_silent_for(Duration::from_millis(500)));
        gate.open_for(3);
        assert_eq!(client.response().text(), "abc");
        client.send("GET /else HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_response().expect_err("there it is too long");
        gate.open_for(3);
    });
}
