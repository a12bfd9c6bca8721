//! Bodies that are read whole before they go on, where a route asks for that.

use std::time::Duration;

use super::backend::{Backend, Gate, ok};
use super::proxy;
use crate::support::{Client, noise, on_both};

/// Answers with the length of each request's body, and how it was framed.
fn measuring() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request() {
            let framing = match request.is_chunked() {
                true => "chunked",
                false => "length",
            };
            connection.send(ok(&format!("{} {framing}", request.body.len())));
        }
    })
}

#[test]
fn a_backend_is_not_asked_before_a_slow_client_has_sent_its_form() {
    on_both(|engine| {
        let backend = measuring();
        let lines = "buffer = { request = \"64KiB\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
        client.send(noise(59_000));
        assert!(client.is_silent_for(Duration::from_millis(300)));
        assert_eq!(backend.connections(), 0, "it isn't held by a slow client");
        client.send(noise(1000));
        assert_eq!(client.response().text(), "60000 length");
        // In chunks: its length is known now.
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n");
        client.send(noise(1000));
        assert!(client.is_silent_for(Duration::from_millis(100)));
        assert_eq!(backend.requests().len(), 1);
        client.send("\r\n0\r\n\r\n");
        assert_eq!(client.response().text(), "1000 length");
        // One that waits to be asked is asked for it.
        client.send(
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(client.response().status, 100);
        client.send("hello");
        assert_eq!(client.response().text(), "5 length");
    });
}

#[test]
fn what_is_longer_than_the_buffer_goes_on_as_it_comes() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.head().expect("a head");
            assert_eq!(request.must("Content-Length"), "300000");
            assert!(connection.exactly(250_000) == noise(250_000));
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
            connection.exactly(50_000);
            connection.send(ok("all of it"));
            connection.rest();
        });
        let lines = "buffer = { request = \"64KiB\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n");
        client.send(noise(250_000));
        assert_eq!(client.response().status, 103, "the backend has it already");
        client.send(noise(50_000));
        assert_eq!(client.response().text(), "all of it");
    });
}

#[test]
fn a_backend_is_done_sooner_than_a_slow_client() {
    const SIZE: usize = 24 << 20;
    on_both(|engine| {
        let done = Gate::default();
        let of_script = done.clone();
        let backend = Backend::start(move |connection| {
            connection.request().expect("a request");
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
            connection.send(noise(SIZE));
            of_script.open();
            connection.rest();
        });
        let lines = "buffer = { response = \"32MiB\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = Client::connect_with(server.address(), |socket| {
            socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        });
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.await_bytes(1);
        // Without a buffer it would wait for the client, which reads nothing.
        done.wait();
        assert!(client.response().body == noise(SIZE));
    });
}
