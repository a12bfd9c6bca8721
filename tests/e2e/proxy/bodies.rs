//! Messages that are as they should be: they pass both ways, whole, whatever frames them.

use super::backend::{Backend, Connection, Gate, answer, ok};
use super::{plain, proxy};
use crate::support::{End, noise, on_both};

/// Answers with the content of each request, framed as its query says.
fn echo(connection: &mut Connection) {
    while let Some(request) = connection.request() {
        let body = &request.body;
        let (fields, content) = match request.target.split_once('?') {
            Some((_, "chunked")) => {
                let mut content = Vec::new();
                for piece in body.chunks(7000) {
                    content.extend(format!("{:X}\r\n", piece.len()).as_bytes());
                    content.extend(piece);
                    content.extend(b"\r\n");
                }
                content.extend(b"0\r\n\r\n");
                ("Transfer-Encoding: chunked".to_owned(), content)
            }
            _ => (format!("Content-Length: {}", body.len()), body.clone()),
        };
        connection.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"));
        connection.send(content);
    }
}

/// A request with this content, framed by its length or in chunks.
fn post(target: &str, body: &[u8], chunked: bool) -> Vec<u8> {
    let fields = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", body.len()),
    };
    let mut bytes = format!("POST {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").into_bytes();
    if chunked {
        for piece in body.chunks(5000) {
            bytes.extend(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend(piece);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
    } else {
        bytes.extend(body);
    }
    bytes
}

#[test]
fn methods_and_statuses_pass_and_one_connection_is_enough() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                let answer = match request.target.as_str() {
                    "/204" => "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n".to_owned(),
                    // The length is that of the answer that was not sent.
                    "/304" => {
                        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n"
                            .to_owned()
                    }
                    "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n".to_owned(),
                    "/head-chunked" => {
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
                    }
                    "/empty" => answer(200, "", ""),
                    "/404" => answer(404, "", "not here"),
                    "/503" => answer(503, "Retry-After: 7\r\n", "later"),
                    "/599" => answer(599, "", "odd"),
                    _ => ok(&format!("{} {}", request.method, request.text())),
                };
                connection.send(answer);
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for method in ["GET", "DELETE", "OPTIONS", "PURGE", "PROPFIND"] {
            let response = client.request(method, "/a", "");
            assert_eq!(response.text(), format!("{method} "));
        }
        for method in ["POST", "PUT", "PATCH", "GET", "DELETE"] {
            let response = client.request(method, "/a", "Content-Length: 0\r\n");
            assert_eq!(response.text(), format!("{method} "));
            client.send(format!(
                "{method} /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
            ));
            assert_eq!(client.response().text(), format!("{method} abc"));
        }
        let response = client.request("HEAD", "/head", "");
        assert_eq!(response.must("Content-Length"), "99");
        assert_eq!(client.request("HEAD", "/head-chunked", "").status, 200);
        let response = client.get("/204");
        assert_eq!((response.status, response.must("X-A")), (204, "b"));
        let response = client.get("/304");
        assert_eq!((response.status, response.must("ETag")), (304, "\"x\""));
        assert_eq!(client.get("/empty").text(), "");
        for (status, text) in [(404, "not here"), (503, "later"), (599, "odd")] {
            let response = client.get(&format!("/{status}"));
            assert_eq!((response.status, response.text()), (status, text));
        }
        client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(
            client.response().status,
            204,
            "that is asked of the server itself"
        );
        assert_eq!(backend.connections(), 1, "it is kept and used again");
    });
}

#[test]
fn bodies_of_all_lengths_pass_in_both_framings() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for length in [0, 1, 4096, 16_383, 16_384, 65_536, 70_001, 300_000, 2 << 20] {
            let body = noise(length);
            for (chunked, target) in [
                (false, "/?length"),
                (false, "/?chunked"),
                (true, "/?length"),
                (true, "/?chunked"),
            ] {
                let request = post(target, &body, chunked);
                let mut socket = client.socket().try_clone().expect("a descriptor");
                let sender = std::thread::spawn(move || {
                    use std::io::Write as _;
                    socket.write_all(&request).expect("the request goes out");
                });
                let response = client.response();
                sender.join().expect("it was sent");
                assert!(response.body == body, "{length} {chunked} {target}");
                assert_eq!(response.chunked, target.ends_with("chunked"), "{target}");
                let request = backend.last();
                assert!(request.body == body, "{length} {chunked} {target}");
            }
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_byte_at_a_time_is_as_good_as_all_at_once() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send_bytewise(format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                     {:x};ext=1\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
                    request.body.len(),
                    request.text()
                ));
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.socket().set_tcp_nodelay(true).expect("TCP");
        for chunked in [false, true] {
            for byte in post("/a", b"hello", chunked) {
                client.send([byte]);
                std::thread::yield_now();
            }
            let response = client.response();
            assert_eq!((response.text(), response.chunked), ("hello", true));
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn trailers_pass_both_ways_and_those_that_may_not_stand_there_do_not() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while connection.request().is_some() {
                connection.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                     3\r\nabc\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\nX-More: 8\r\n\r\n",
                );
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send(
            "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n",
        );
        let answered = client.try_response();
        let request = backend.last();
        assert_eq!(request.text(), "hello");
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(request.trailers, [of("X-Sum", "1"), of("X-B", "2")]);
        assert_eq!(request.must("Trailer"), "X-Sum");
        // A field of framing in a trailer section is refused or left out, and never passed on.
        if let Ok(response) = answered {
            assert_eq!(response.trailers, [of("X-Sum", "7"), of("X-More", "8")]);
        }
    });
}

#[test]
fn trailers_of_a_response_reach_the_client() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while connection.request().is_some() {
                connection.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                     3\r\nabc\r\n0\r\nX-Sum: 7\r\nX-More: 8\r\n\r\n",
                );
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for _ in 0..2 {
            let response = client.get_with("/", "TE: trailers\r\nConnection: TE\r\n");
            assert_eq!(response.text(), "abc");
            let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            assert_eq!(response.trailers, [of("X-Sum", "7"), of("X-More", "8")]);
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn old_backends_end_a_body_with_the_connection() {
    on_both(|engine| {
        let body = noise(200_000);
        let content = body.clone();
        let backend = Backend::start(move |connection| {
            let request = connection.request().expect("a request");
            let version = &request.target[1..];
            connection.send(format!("HTTP/{version} 200 OK\r\nX-A: b\r\n\r\n"));
            connection.send(&content);
            connection.close();
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        for version in ["1.0", "1.1"] {
            let response = client.get(&format!("/{version}"));
            assert!(response.body == body, "{version}");
            assert!(response.chunked, "the client's connection stays");
        }
        client.send("GET /1.0 HTTP/1.0\r\n\r\n");
        let response = client.response();
        assert!(response.closes() && !response.chunked && response.body == body);
        assert_eq!(backend.connections(), 3, "none can be used again");
    });
}

#[test]
fn clients_of_the_old_protocol_get_no_chunks() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("POST /?chunked HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello");
        let response = client.response();
        assert!(!response.chunked && response.closes());
        assert_eq!(response.text(), "hello");
        assert_eq!(client.end(), End::Closed);
        // A length is known: it may stay.
        let mut client = server.connect();
        for _ in 0..2 {
            client.send(
                "POST /?length HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
            );
            let response = client.response();
            assert_eq!((response.text(), response.closes()), ("hello", false));
        }
    });
}

#[test]
fn backends_on_unix_sockets_are_as_good() {
    on_both(|engine| {
        let backend = Backend::unix(echo);
        let server = plain(engine, &backend);
        let mut client = server.connect();
        let body = noise(1 << 20);
        for _ in 0..2 {
            client.send(post("/?chunked", &body[..100_000], true));
            assert!(client.response().body == body[..100_000]);
        }
        assert_eq!(backend.connections(), 1);
        assert_eq!(
            backend.last().must("Host"),
            "a",
            "the client's, not the path"
        );
        let server = proxy(engine, &[backend.name()], "upstream_host = \"upstream\"");
        server.connect().get("/?length");
        assert_eq!(backend.last().must("Host"), "localhost");
    });
}

#[test]
fn requests_that_came_together_are_answered_in_their_order() {
    on_both(|engine| {
        let backend = Backend::start(echo);
        let server = plain(engine, &backend);
        let mut client = server.connect();
        let mut requests = Vec::new();
        for n in 0..50 {
            requests.extend(post("/?length", format!("{n}").as_bytes(), n % 2 == 0));
        }
        client.send(requests);
        for n in 0..50 {
            assert_eq!(client.response().text(), format!("{n}"));
        }
    });
}

#[test]
fn an_early_answer_reaches_a_client_that_still_uploads() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            connection.head().expect("a head");
            connection.send(answer(413, "Connection: close\r\n", "too large"));
            connection.close();
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
        client.send(noise(10_000));
        let response = client.response();
        assert_eq!((response.status, response.text()), (413, "too large"));
        // What it sends now is no request, and the connection can't go on for ever with it.
        for _ in 0..2000 {
            if client.try_send(noise(50_000)).is_err() {
                return;
            }
        }
        panic!("the whole body was taken after it was refused");
    });
}

#[test]
fn both_bodies_move_at_once() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.head().expect("a head");
            assert_eq!(request.must("Content-Length"), "15");
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for _ in 0..3 {
                let piece = connection.exactly(5);
                connection.send("5\r\n");
                connection.send(piece);
                connection.send("\r\n");
            }
            connection.send("0\r\n\r\n");
            connection.rest();
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n");
        // The head of the answer comes before any of the body has left.
        client.await_bytes(17);
        client.send("first");
        client.await_text("first");
        client.send("again");
        client.await_text("again");
        client.send("third");
        assert_eq!(client.response().text(), "firstagainthird");
    });
}

#[test]
fn events_come_as_they_are_sent() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let backend = Backend::start(move |connection| {
            connection.request().expect("a request");
            connection.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
            );
            for n in 0..3 {
                at_backend.wait();
                connection.send(format!("9\r\ndata: {n}\n\n\r\n"));
            }
            connection.send("0\r\n\r\n");
            connection.rest();
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
        client.await_text("text/event-stream");
        for n in 0..3 {
            gate.open();
            client.await_text(&format!("data: {n}"));
        }
        assert_eq!(client.response().text().matches("data").count(), 3);
    });
}
