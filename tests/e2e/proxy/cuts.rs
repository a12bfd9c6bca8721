//! Messages that end too early: never taken for whole, wherever the cut is.

use super::backend::{Backend, Connection, Gate, ok};
use super::{Server, plain};
use crate::support::{Client, PATIENCE, descriptors, noise, on_both, wait_until};

/// A response whose end is found by its length.
const LENGTH: &str = "HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello";

/// One whose end is found by its last chunk.
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\nX-T: 1\r\n\r\n";

/// Sends the first bytes of a response, as the request says: `/length/17/reset`.
fn cut(connection: &mut Connection) {
    let request = connection.request().expect("a request");
    let words: Vec<&str> = request.target.split('/').collect();
    let text = match words[1] {
        "length" => LENGTH,
        _ => CHUNKED,
    };
    let count: usize = words[2].parse().expect("a count");
    connection.send(&text[..count]);
    match words[3] {
        "reset" => connection.reset(),
        _ => connection.close(),
    }
}

/// Asserts that a client sees that the answer is not whole: an error, or a cut.
fn seen_as_cut(server: &Server, method: &str, target: &str, head: usize, count: usize) {
    let mut client = server.connect();
    let fields = match method {
        "POST" => "Content-Length: 2\r\n\r\nab",
        _ => "\r\n",
    };
    let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}");
    match client.try_response_to(&request) {
        Ok(response) => {
            assert_eq!(response.status, 502, "{method} {target}: {response:?}");
            assert!(!response.text().contains("hel"), "{response:?}");
        }
        Err(error) => assert!(count >= head, "{method} {target}: {error}"),
    }
}

#[test]
fn a_response_that_ends_at_any_byte_is_never_whole() {
    on_both(|engine| {
        let backend = Backend::start(cut);
        let server = plain(engine, &backend);
        for (name, text) in [("length", LENGTH), ("chunked", CHUNKED)] {
            let head = text.find("\r\n\r\n").expect("a head") + 4;
            for end in ["close", "reset"] {
                for count in 0..text.len() {
                    let target = format!("/{name}/{count}/{end}");
                    for method in ["GET", "POST"] {
                        seen_as_cut(&server, method, &target, head, count);
                    }
                }
            }
            let response = server
                .connect()
                .get(&format!("/{name}/{}/close", text.len()));
            assert_eq!((response.status, response.text()), (200, "hello"));
        }
    });
}

#[test]
fn a_body_up_to_the_end_of_the_connection_is_cut_by_a_reset_alone() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let backend = Backend::start(move |connection| {
            let request = connection.request().expect("a request");
            connection.send("HTTP/1.0 200 OK\r\n\r\nhello");
            // The reset must not overtake what was sent.
            at_backend.wait();
            match request.target.as_str() {
                "/reset" => connection.reset(),
                _ => connection.close(),
            }
        });
        let server = plain(engine, &backend);
        for (target, whole) in [("/close", true), ("/reset", false)] {
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client.await_text("hello");
            gate.open();
            assert_eq!(client.try_response().is_ok(), whole, "{target}");
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/1.0\r\nHost: a\r\n\r\n"));
            client.await_text("hello");
            gate.open();
            assert_eq!(client.try_response().is_ok(), whole, "{target} as 1.0");
        }
    });
}

#[test]
fn a_long_response_that_is_cut_is_seen_as_cut_after_all_that_came() {
    on_both(|engine| {
        let body = noise(3 << 20);
        let content = body.clone();
        let backend = Backend::start(move |connection| {
            let request = connection.request().expect("a request");
            let chunked = request.target == "/chunked";
            if chunked {
                connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400000\r\n");
            } else {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4194304\r\n\r\n");
            }
            connection.send(&content);
            connection.close();
        });
        let server = plain(engine, &backend);
        for target in ["/length", "/chunked"] {
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client
                .try_response()
                .expect_err("it is not whole, and shown so");
        }
    });
}

/// Sends the start of an upload and leaves.
fn leave(server: &Server, request: &[u8], abort: bool) {
    let mut client = server.connect();
    client.send(request);
    if abort {
        client.abort();
    } else {
        client.end_input();
        // An answer tells of an error, if one comes.
        if let Ok(response) = client.try_response() {
            assert!(response.status >= 400, "{response:?}");
        }
    }
}

#[test]
fn an_upload_that_is_cut_is_never_whole_to_the_backend() {
    on_both(|engine| {
        // Whoever gets a whole request has been told something that no client said.
        let backend = Backend::start(|connection| {
            if let Some(request) = connection.request() {
                connection.send(ok("taken"));
                assert_eq!(request.target, "/whole", "{request:?}");
            }
        });
        let server = plain(engine, &backend);
        let head = "POST /cut HTTP/1.1\r\nHost: a\r\n";
        let length = format!("{head}Content-Length: 5\r\n\r\nhello");
        let chunked = format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nX-T: 1\r\n\r\n"
        );
        for request in [&length, &chunked] {
            let body = request.find("\r\n\r\n").expect("a head") + 4;
            for count in body..request.len() {
                leave(&server, &request.as_bytes()[..count], count % 2 == 0);
            }
        }
        let mut client = server.connect();
        client.send("POST /whole HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
        assert_eq!(client.response().text(), "taken");
        assert_eq!(backend.requests().len(), 1);
    });
}

#[test]
fn a_client_that_leaves_ends_what_was_asked_for_it() {
    on_both(|engine| {
        let (ended, at_backend) = (Gate::default(), Gate::default());
        let (of_script, begun) = (ended.clone(), at_backend.clone());
        let backend = Backend::start(move |connection| {
            let request = connection.request().expect("a request");
            match request.target.as_str() {
                // Its head is never sent.
                "/head" => {}
                _ => {
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nabc");
                }
            }
            begun.open();
            connection.rest();
            of_script.open();
        });
        let server = plain(engine, &backend);
        for target in ["/head", "/body"] {
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            at_backend.wait();
            client.abort();
            ended.wait();
        }
    });
}

#[test]
fn a_client_that_ends_its_own_direction_alone_still_gets_its_answer() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let backend = Backend::start(move |connection| {
            connection.request().expect("a request");
            at_backend.wait();
            connection.send(ok("late"));
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.end_input();
        backend.await_requests(1);
        gate.open();
        assert_eq!(client.response().text(), "late");
    });
}

#[test]
fn cuts_leave_nothing_behind() {
    on_both(|engine| {
        let backend = Backend::start(cut);
        let server = plain(engine, &backend);
        let ask = || {
            let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
            for (n, client) in clients.iter_mut().enumerate() {
                client.send(format!(
                    "GET /length/{}/reset HTTP/1.1\r\nHost: a\r\n\r\n",
                    n * 2
                ));
                let _ = client.try_response();
            }
        };
        let worker = server.worker();
        ask();
        assert!(!backend.requests().is_empty());
        let mut before = 0;
        wait_until("the connections are gone", PATIENCE, || {
            let now = descriptors(worker);
            std::mem::replace(&mut before, now) == now
        });
        for _ in 0..5 {
            ask();
        }
        wait_until("no descriptor is left over", PATIENCE, || {
            descriptors(worker) <= before
        });
    });
}
