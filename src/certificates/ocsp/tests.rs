//! Responders that answer, refuse, lie, stall and flood, and what becomes of it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

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

/// One certificate whose authority is asked, and what is said of it.
struct World {
    authority: Authority,
    own: Issued,
    responders: Responders<&'static str>,
    now: i64,
}

impl World {
    fn new() -> Self {
        let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
        let (own, asked) = known(&authority, "http://a.example");
        let mut responders = Responders::default();
        let now = now();
        responders.watch("a", asked, None, now);
        Self {
            authority,
            own,
            responders,
            now,
        }
    }

    fn says(&self, from: i64, to: i64) -> Said<'_> {
        Said {
            from: self.now + from,
            to: Some(self.now + to),
            ..Said::good(&self.own, &self.authority)
        }
    }

    /// Asks, which is due, and gets this.
    fn hear(&mut self, answer: Result<Vec<u8>, String>) -> News {
        let question = self.responders.question(self.now).unwrap();
        assert!(self.responders.question(i64::MAX).is_none(), "asked once");
        let told = self.responders.answered(question.number, answer, self.now);
        let (of, news) = told.unwrap();
        assert_eq!(of, "a");
        news
    }

    /// The next question is due.
    fn wait(&mut self) -> i64 {
        let pause = self.responders.next_due().unwrap() - self.now;
        assert!(self.responders.question(self.now + pause - 1).is_none());
        self.now += pause;
        pause
    }

    fn standing(&self) -> Standing<'_> {
        self.responders.standing(&"a").unwrap()
    }
}

#[test]
fn an_authority_is_asked_and_its_answer_is_verified() {
    let mut world = World::new();
    let (give, response) = mpsc::channel::<Vec<u8>>();
    let (url, asked) = responder(move |_| ok(&response.recv().unwrap()));
    let (own, certificate) = known(&world.authority, &url);
    let now_s = world.now;
    // By the same clock as everything else: half of its life has passed at this very second.
    let good = Said {
        from: now_s - DAY,
        to: Some(now_s + DAY),
        ..Said::good(&own, &world.authority)
    };
    let good = good.response();
    give.send(good.clone()).unwrap();
    let mut asker = asker::Asker::default();
    asker.responders.watch(7, certificate, None, now_s);
    let start = Instant::now();
    assert_eq!(asker.deadline(start, now_s), Some(start));
    assert_eq!(asker.turn(start, now_s), []);
    let news = loop {
        let fds: Vec<_> = asker.fds().collect();
        let mut fds: Vec<_> = (fds.iter())
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        assert_eq!(fds.len(), 1);
        poll(&mut fds, None).unwrap();
        let news = asker.turn(start, now_s);
        if !news.is_empty() {
            break news;
        }
    };
    assert_eq!(news, [(7, News::Staple(good.clone()))]);
    let got = asked.recv().unwrap();
    assert!(got.starts_with(b"POST /path HTTP/1.0\r\nHost: 127.0.0.1:"));
    assert!(got.ends_with(&ocsp::request(&own.der, &world.authority.der).unwrap()));
    assert!(!asker.is_asking());
    assert_eq!(asker.responders.known(&7), Some((&*good, now_s)));
    let standing = asker.responders.standing(&7).unwrap();
    assert_eq!((standing.url, standing.trouble), (&*url, None));
    let (statement, at) = standing.good.unwrap();
    assert_eq!(
        (statement.next_update - statement.this_update, at),
        (2 * DAY, now_s)
    );
    // Half of its life has passed: half of what is left.
    let left = standing.due - now_s;
    assert_eq!(left, DAY / 2);
    let due = start + Duration::from_secs(left.unsigned_abs());
    assert_eq!(asker.deadline(start, now_s), Some(due));
    // A fresh one is good for half of its life.
    world.hear(Ok(world.says(-60, 8 * 3600).response()));
    assert_eq!(world.wait(), 4 * 3600 - 30);
}

#[test]
fn few_are_asked_at_once_and_nobody_waits_for_ever() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    // Who connects is never answered.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut asker = asker::Asker::default();
    let (start, now) = (Instant::now(), now());
    let count = asker::ASKED_MAX + 3;
    for of in 0..count {
        asker
            .responders
            .watch(of, known(&authority, &url).1, None, now);
    }
    assert_eq!(asker.turn(start, now), []);
    assert_eq!(asker.fds().count(), asker::ASKED_MAX);
    // The others wait for a thread, and wake nobody.
    let give_up = asker.deadline(start, now).unwrap();
    assert!(give_up > start + Duration::from_secs(10));
    assert_eq!(asker.turn(give_up - Duration::from_secs(1), now), []);
    let late = asker.turn(give_up, now + 20);
    assert_eq!(late.len(), asker::ASKED_MAX);
    let troubled = late.iter().map(|(of, news)| {
        assert_eq!(*news, News::Nothing);
        asker.responders.standing(of).unwrap().trouble.unwrap()
    });
    assert!(
        troubled
            .into_iter()
            .all(|why| why.contains("took too long"))
    );
    // Their threads are still there, so there are no more of them.
    assert_eq!(asker.fds().count(), asker::ASKED_MAX);
    assert_eq!(asker.deadline(give_up, now + 20), None);
    // What is gone from the configuration is heard by nobody.
    asker.responders.retain(|_| false);
    assert_eq!(asker.turn(give_up + Duration::from_secs(60), now + 80), []);
    assert_eq!(asker::Asker::<u8>::default().deadline(start, now), None);
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
    let mut world = World::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let news = world.hear(Err("took too long".to_owned()));
        assert_eq!(news, News::Nothing);
        assert_eq!(world.standing().trouble, Some("took too long"));
        pauses.push(world.wait());
    }
    assert_eq!(pauses, [5, 20, 80, 320, 1280, 3600, 3600, 3600]);
    // What can't be verified is a failure, too, and what was known goes on.
    let good = world.says(-60, 5 * 3600).response();
    assert_eq!(world.hear(Ok(good.clone())), News::Staple(good.clone()));
    assert_eq!(world.standing().trouble, None);
    world.wait();
    let impostor = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let other = world.authority.issue(|_| {});
    let forged = Said::good(&world.own, &impostor).response();
    let of_another = Said::good(&other, &world.authority).response();
    let ended = world.says(-600, -1).response();
    for (answer, why) in [
        (forged, "isn't signed"),
        (of_another, "is about another certificate"),
        (ended, "doesn't hold any more"),
        (b"<html>".to_vec(), "holds no OCSP response"),
    ] {
        assert_eq!(world.hear(Ok(answer)), News::Nothing);
        let standing = world.standing();
        assert!(standing.trouble.unwrap().contains(why), "{standing:?}");
        assert!(standing.good.is_some() && !standing.is_revoked);
        world.wait();
    }
    assert_eq!(world.responders.known(&"a").unwrap().0, good);
}

#[test]
fn a_certificate_that_is_revoked_is_not_called_good_any_more() {
    let mut world = World::new();
    let good = world.says(-7200, 5 * 3600).response();
    assert!(matches!(world.hear(Ok(good.clone())), News::Staple(_)));
    world.wait();
    let revoked = |world: &World, to: i64| {
        let said = Said {
            status: 0xa1,
            ..world.says(-60, to)
        };
        said.response()
    };
    // One that has ended may be anybody's repetition.
    let ended = revoked(&world, -1);
    assert_eq!(world.hear(Ok(ended)), News::Nothing);
    assert!(!world.standing().is_revoked);
    world.wait();
    let said = revoked(&world, 3600);
    assert_eq!(world.hear(Ok(said.clone())), News::Withdraw);
    let standing = world.standing();
    assert!(standing.is_revoked && standing.good.is_none() && standing.trouble.is_none());
    assert_eq!(world.responders.known(&"a"), None);
    assert_eq!(world.wait(), 3600);
    // So may one from before that.
    let news = world.hear(Ok(good));
    assert_eq!(news, News::Nothing);
    assert!(world.standing().trouble.unwrap().contains("is older than"));
    world.wait();
    assert!(world.standing().is_revoked);
    // A hold can be lifted.
    let again = world.says(-60, 5 * 3600).response();
    assert!(matches!(world.hear(Ok(again)), News::Staple(_)));
    assert!(!world.standing().is_revoked);
}

#[test]
fn what_was_said_before_is_no_news() {
    let mut world = World::new();
    let [old, new] = [-7200, -60].map(|from| world.says(from, 5 * 3600).response());
    assert!(matches!(world.hear(Ok(new.clone())), News::Staple(_)));
    world.wait();
    assert_eq!(world.hear(Ok(old)), News::Nothing);
    assert_eq!(world.standing().trouble, None);
    assert_eq!(world.responders.known(&"a").unwrap().0, new);
    world.wait();
    assert_eq!(world.hear(Ok(new)), News::Nothing);
    // Nor is an answer to who has asked before it was about something else.
    world.wait();
    let question = world.responders.question(world.now).unwrap();
    let (_, other) = known(&world.authority, "http://b.example");
    world.responders.watch("a", other, None, world.now);
    let late = Ok(world.says(-60, 3600).response());
    assert_eq!(
        world.responders.answered(question.number, late, world.now),
        None
    );
}

#[test]
fn what_is_known_of_the_same_certificate_goes_on() {
    let mut world = World::new();
    let good = world.says(-60, 5 * 3600).response();
    world.hear(Ok(good.clone()));
    let asked = Asked::of_chain(&[&world.own.der, &world.authority.der]).unwrap();
    let now = world.now;
    // A reload.
    world.responders.watch("a", asked.clone(), None, now);
    assert!(world.responders.question(now).is_none());
    // An upgrade.
    let mut next = Responders::default();
    next.watch("a", asked.clone(), Some((good.clone(), now - 9)), now);
    assert!(next.question(now + 60).is_none());
    assert_eq!(next.known(&"a"), Some((&*good, now - 9)));
    // What has ended meanwhile is worth nothing, and so is what was said of another one.
    let mut late = Responders::default();
    late.watch("a", asked, Some((good.clone(), now)), now + 6 * 3600);
    assert!(late.known(&"a").is_none() && late.question(now + 6 * 3600).is_some());
    let (_, other) = known(&world.authority, "http://b.example");
    next.watch("a", other, Some((good, now)), now);
    assert!(next.known(&"a").is_none());
    assert_eq!(next.question(now).unwrap().url, "http://b.example");
    next.retain(|of| *of == "b");
    assert_eq!(next.next_due(), None);
    let (silent, der) = (world.authority.issue(|_| {}), &world.authority.der);
    let unasked = |chain: &[&Vec<u8>]| Asked::of_chain(chain).unwrap_err();
    assert_eq!(unasked(&[&silent.der, der]), Unasked::NoResponder);
    assert_eq!(unasked(&[&silent.der]), Unasked::NoIssuer);
}
