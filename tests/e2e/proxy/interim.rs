//! Interim responses, and requests that wait for one before they send their body.

use super::backend::{Backend, Gate, answer, ok};
use super::plain;
use crate::support::on_both;

#[test]
fn early_hints_and_other_interim_responses_pass_at_once() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let backend = Backend::start(move |connection| {
            while connection.request().is_some() {
                connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
                at_backend.wait();
                connection
                    .send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Odd\r\nX-A: b\r\n\r\n");
                connection.send(ok("done"));
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for _ in 0..2 {
            let hints = client.get("/");
            assert_eq!(hints.status, 103);
            assert_eq!(hints.must("Link"), "</a.css>; rel=preload");
            gate.open();
            assert_eq!(client.response().status, 102);
            let odd = client.response();
            assert_eq!((odd.status, odd.must("X-A")), (199, "b"));
            assert_eq!(client.response().text(), "done");
        }
        // To a client that can't know them they are not sent.
        gate.open();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.response().text(), "done");
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn the_backend_decides_whether_a_body_is_asked_for() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(mut request) = connection.head() {
                assert_eq!(request.must("Expect"), "100-continue");
                if request.target == "/refuse" {
                    connection.send(answer(403, "Connection: close\r\n", "no"));
                    assert_eq!(connection.rest(), b"", "nothing was asked for");
                    return;
                }
                connection.send("HTTP/1.1 100 Continue\r\n\r\n");
                connection.body(&mut request).expect("the body");
                connection.send(ok(request.text()));
            }
        });
        let server = plain(engine, &backend);
        for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let mut client = server.connect();
            for _ in 0..2 {
                client.send(format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"
                ));
                assert_eq!(client.response().status, 100);
                client.send(match framing.starts_with('C') {
                    true => "hello",
                    false => "5\r\nhello\r\n0\r\n\r\n",
                });
                assert_eq!(client.response().text(), "hello");
            }
            client.send(format!(
                "POST /refuse HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"
            ));
            let response = client.response();
            assert_eq!((response.status, response.text()), (403, "no"));
            assert!(response.closes(), "whether a body follows can't be known");
        }
    });
}

/// Answers with what it got. Such a backend doesn't know of expectations.
fn echoing() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request() {
            connection.send(ok(request.text()));
        }
    })
}

#[test]
fn a_body_that_does_not_wait_is_taken_all_the_same() {
    on_both(|engine| {
        let backend = echoing();
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send(
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        );
        let mut response = client.response();
        if response.status == 100 {
            response = client.response();
        }
        assert_eq!(response.text(), "hello");
    });
}

#[test]
fn a_client_that_waits_for_a_backend_that_says_nothing_is_not_left_alone() {
    on_both(|engine| {
        let backend = echoing();
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send(
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(client.response().status, 100, "somebody has to ask for it");
        client.send("hello");
        assert_eq!(client.response().text(), "hello");
    });
}

#[test]
fn nobody_gets_a_continue_that_was_not_waited_for() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
                connection.send(ok(request.text()));
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for _ in 0..3 {
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
            let response = client.response();
            assert_eq!((response.status, response.text()), (200, "hello"));
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_flood_of_interim_responses_is_an_error_of_the_backend() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            connection.request().expect("a request");
            while connection.send("HTTP/1.1 102 Processing\r\n\r\n".repeat(100)) {}
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut interim = 0;
        let response = loop {
            let response = client.response();
            if response.status >= 200 {
                break response;
            }
            interim += 1;
        };
        assert_eq!(response.status, 502);
        assert!((1..=16).contains(&interim), "{interim}");
    });
}
