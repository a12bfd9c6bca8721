//! Responders that answer, refuse, lie, stall and flood, and what becomes of it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::fetch::{Fetch, Place};
use super::*;
use crate::net::tls::ocsp::{Authority, DAY, Issued, Said, names_responder, now};

/// A responder that answers one question; gives its URL and what it was asked.
fn responder(
    answer: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
) -> (String, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/path", listener.local_addr().unwrap());
    let (tell, asked) = mpsc::channel();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        let mut part = [0; 4096];
        loop {
            let bytes = socket.read(&mut part).unwrap();
            got.extend_from_slice(&part[..bytes]);
            let text = String::from_utf8_lossy(&got).into_owned();
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                let length = head.split("Content-Length: ").nth(1).unwrap();
                let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                if got.len() >= head.len() + 4 + length {
                    break;
                }
            }
        }
        let _ = socket.write_all(&answer(&got));
        let _ = tell.send(got);
    });
    (url, asked)
}

fn waited(url: &str, request: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
    let mut fetch = Fetch::begin(url.to_owned(), request.to_vec(), patience).unwrap();
    loop {
        if let Poll::Ready(got) = fetch.poll() {
            return got;
        }
        poll(&mut [PollFd::new(&fetch, PollFlags::IN)], None).unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn ok(content: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        content.len()
    );
    [head.as_bytes(), content].concat()
}

fn known(authority: &Authority, url: &str) -> (Issued, Asked) {
    let own = authority.issue(|params| params.custom_extensions.push(names_responder(url)));
    let asked = Asked::of_chain(&[&own.der, &authority.der]).unwrap();
    (own, asked)
}

#[test]
fn an_authority_is_asked_and_its_answer_is_verified() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let (give, response) = mpsc::channel::<Vec<u8>>();
    let (url, asked) = responder(move |_| ok(&response.recv().unwrap()));
    let (own, certificate) = known(&authority, &url);
    give.send(Said::good(&own, &authority).response()).unwrap();
    let mut responders = Responders::new(vec![certificate], Responders::default());
    assert_eq!(responders.unstated(now()).count(), 1);
    let question = responders.question(now()).unwrap();
    assert_eq!(question.url, url);
    let answer = waited(&question.url, &question.request, PATIENCE);
    let got = asked.recv().unwrap();
    assert!(got.starts_with(b"POST /path HTTP/1.0\r\nHost: 127.0.0.1:"));
    assert!(got.ends_with(&question.request));
    let answer = answer.unwrap();
    let now = now();
    let statement = responders.answered(0, Ok(&answer), now).unwrap();
    assert_eq!(statement.next_update - statement.this_update, 2 * DAY);
    // Half of its life has passed: half of what is left.
    let due = responders.next_due().unwrap() - now;
    assert!((DAY / 2 - 5..=DAY / 2).contains(&due), "{due}");
    assert!(responders.question(now).is_none());
    assert_eq!(responders.unstated(now).count(), 0);
    assert_eq!(responders.unstated(now + 2 * DAY).count(), 1);
}

#[test]
fn what_is_no_answer_says_what_it_is_instead() {
    for (answer, expected) in [
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "answered 404",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "answered 302",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), "answered 100"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_vec(),
            "broke off",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(), "broke off"),
        (Vec::new(), "broke off"),
        (b"SSH-2.0-x\r\n\r\n".to_vec(), "doesn't speak HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n".to_vec(),
            "with 99999999 bytes",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            "in a form",
        ),
        (
            [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 100_000]].concat(),
            "more than",
        ),
    ] {
        let (url, _asked) = responder(move |_| answer);
        let error = waited(&url, b"question", PATIENCE).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Up to the end of the connection.
    let (url, _asked) = responder(|_| b"HTTP/1.0 200 OK\r\n\r\ncontent".to_vec());
    assert_eq!(waited(&url, b"question", PATIENCE).unwrap(), b"content");
}

#[test]
fn nobody_waits_for_a_responder_that_stalls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let error = waited(&url, b"question", Duration::from_millis(50)).unwrap_err();
    assert_eq!(error, "took too long");
    drop(listener);
    let error = waited(&url, b"question", PATIENCE).unwrap_err();
    assert!(error.contains("can't be reached"), "{error}");
    assert!(waited("ftp://a", b"", PATIENCE).is_err());
}

#[test]
fn places_are_those_of_http() {
    for (url, authority, host, port, target) in [
        ("http://a.example", "a.example", "a.example", 80, ""),
        (
            "HTTP://a.example:81/x?y#z",
            "a.example:81",
            "a.example",
            81,
            "/x?y",
        ),
        ("http://[::1]:82/", "[::1]:82", "::1", 82, "/"),
        ("http://[::1]/", "[::1]", "::1", 80, "/"),
    ] {
        let place = Place::read(url).unwrap();
        assert_eq!(
            format!("{place:?}"),
            format!(
                "Place {{ authority: {authority:?}, host: {host:?}, port: {port}, target: {target:?} }}"
            )
        );
    }
    for url in [
        "",
        "http://",
        "https://a",
        "http:///x",
        "http://u@a/",
        "http://a b/",
        "http://a/\r\nX: y",
        "http://a:0/",
        "http://a:x/",
        "http://a?x",
        "http://\u{e9}/",
        "ldap://a",
    ] {
        assert_eq!(Place::read(url), None, "{url}");
    }
}

#[test]
fn failures_are_followed_by_longer_and_longer_pauses() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let (own, asked) = known(&authority, "http://a.example");
    let mut responders = Responders::new(vec![asked.clone()], Responders::default());
    let mut now = now();
    let mut pauses = Vec::new();
    for failures in 1..9 {
        let failed = responders.answered(0, Err("took too long".to_owned()), now);
        assert_eq!(failed.unwrap_err(), "took too long");
        let due = responders.next_due().unwrap();
        pauses.push(due - now);
        assert!(responders.question(due - 1).is_none() && responders.question(due).is_some());
        assert_eq!(responders.unstated(now).next(), Some((&asked, failures)));
        now = due;
    }
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
    // What can't be verified is a failure, too, and what was known goes on.
    let good = Said::good(&own, &authority).response();
    let now = now.max(self::now());
    responders.answered(0, Ok(&good), now).unwrap();
    let forged = Said::good(&own, &Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256)).response();
    let refused = responders.answered(0, Ok(&forged), now).unwrap_err();
    assert!(refused.contains("isn't signed"), "{refused}");
    assert_eq!(responders.next_due(), Some(now + 60));
    assert_eq!(responders.unstated(now).count(), 0);
    assert!(responders.answered(7, Ok(&good), now).is_err());
}

#[test]
fn a_reload_keeps_what_is_known_of_the_same_certificates() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let (own, first) = known(&authority, "http://a.example");
    let (_, second) = known(&authority, "http://b.example");
    let mut responders = Responders::new(vec![first.clone()], Responders::default());
    let good = Said::good(&own, &authority).response();
    let now = now();
    responders.answered(0, Ok(&good), now).unwrap();
    let responders = Responders::new(vec![second, first], responders);
    let question = responders.question(now).unwrap();
    assert_eq!((question.index, &*question.url), (0, "http://b.example"));
    assert_eq!(responders.unstated(now).count(), 1);
    let (silent, der) = (authority.issue(|_| {}), &authority.der);
    assert_eq!(
        Asked::of_chain(&[&silent.der, der]),
        Err(Unasked::NoResponder)
    );
    assert_eq!(Asked::of_chain(&[&silent.der]), Err(Unasked::NoIssuer));
    assert_eq!(Responders::default().next_due(), None);
}
