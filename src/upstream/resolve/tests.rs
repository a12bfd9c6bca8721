//! The resolver as a whole, against rosters.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;

use super::*;
use crate::config::model::{Family, Resolve, ServerAddr, Upstream, UpstreamServer};
use crate::upstream::balance::Standing;
use crate::upstream::resolve::testing::{NameServer, servers, settings};

const PATIENCE: Duration = Duration::from_secs(20);

fn upstream(name: &str, servers: &[ServerAddr], resolve: Resolve) -> Arc<Upstream> {
    let servers = servers.iter().cloned().map(UpstreamServer::new).collect();
    let mut upstream = Upstream::new(name, servers);
    upstream.resolve = resolve;
    Arc::new(upstream)
}

fn name(host: &str) -> ServerAddr {
    ServerAddr::Name(host.into(), 80)
}

/// As often as may be.
fn often() -> Resolve {
    Resolve {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
        family: Family::Any,
    }
}

fn rosters(upstreams: &[Arc<Upstream>]) -> Arc<Rosters> {
    Rosters::new(upstreams, Instant::now())
}

fn answer(addresses: &[&str]) -> Result<Answer, LookupError> {
    let addresses = addresses.iter().map(|address| Resolved {
        address: address.parse().unwrap(),
        weight: 1,
        is_backup: false,
    });
    Ok(Answer {
        addresses: addresses.collect(),
        ttl: None,
    })
}

fn failure() -> Result<Answer, LookupError> {
    Err(LookupError::Ours("a test".to_owned()))
}

/// Labels of the servers that take requests.
fn up(rosters: &Rosters, upstream: usize) -> Vec<String> {
    let members = rosters.list()[upstream].members();
    let list = members.list.iter().enumerate();
    let now = Instant::now();
    list.filter(|(at, _)| members.board.standing(*at, now).0 == Standing::Up)
        .map(|(_, member)| member.label.to_string())
        .collect()
}

/// Waits until it is so; lookups come once a second.
fn until(what: impl Fn() -> bool) {
    let (_never, told) = sync_channel::<()>(1);
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < PATIENCE, "it did not come");
        let pause = told.recv_timeout(Duration::from_millis(5));
        assert_eq!(pause, Err(RecvTimeoutError::Timeout));
    }
}

#[test]
fn without_names_there_is_no_thread() {
    let ip = ServerAddr::Ip("10.0.0.1:80".parse().unwrap());
    let rosters = rosters(&[upstream("app", &[ip], often())]);
    let resolver = Resolver::start_with(&rosters, Arc::new(|_, _| failure())).unwrap();
    assert!(resolver.thread.get().is_none());
    assert!(resolver.first_answers(Duration::ZERO));
    assert!(format!("{resolver:?}").contains("false"));
}

#[test]
fn this_machine_is_resolved_before_the_first_request() {
    let local = ServerAddr::Name("localhost".into(), 8080);
    let v4 = Resolve {
        family: Family::V4,
        ..often()
    };
    let rosters = rosters(&[upstream("app", &[local], v4)]);
    let resolver = Resolver::start(&rosters).unwrap();
    assert!(resolver.first_answers(PATIENCE));
    assert_eq!(up(&rosters, 0), ["localhost:8080 (127.0.0.1:8080)"]);
}

#[test]
fn addresses_follow_and_the_last_good_ones_stay() {
    let rosters = rosters(&[upstream("app", &[name("a")], often())]);
    let script = Mutex::new(VecDeque::from([
        failure(),
        answer(&["10.0.0.1:80"]),
        answer(&["10.0.0.2:80", "10.0.0.3:80"]),
    ]));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (seen, was_seen) = sync_channel(1);
    let was_seen = Mutex::new(was_seen);
    let look_up: LookUp = Arc::new(move |_, _| {
        if count.fetch_add(1, Ordering::SeqCst) == 2 {
            // Not before the test has seen the answer before.
            let _ = was_seen.lock().unwrap().recv_timeout(PATIENCE);
        }
        script.lock().unwrap().pop_front().unwrap_or_else(failure)
    });
    let resolver = Resolver::start_with(&rosters, look_up).unwrap();
    assert!(resolver.first_answers(PATIENCE), "a failure is an answer");
    assert_eq!(up(&rosters, 0), Vec::<String>::new());
    until(|| up(&rosters, 0) == ["a:80 (10.0.0.1:80)"]);
    seen.send(()).unwrap();
    let both = ["a:80 (10.0.0.2:80)", "a:80 (10.0.0.3:80)"];
    until(|| up(&rosters, 0) == both);
    until(|| asked.load(Ordering::SeqCst) >= 4);
    assert_eq!(up(&rosters, 0), both);
}

#[test]
fn a_name_that_hangs_holds_up_nobody_and_not_the_end() {
    let short = Resolve {
        timeout: Duration::from_millis(50),
        ..often()
    };
    let hanging = (0..6).map(|number| name(&format!("hangs{number}")));
    let names: Vec<ServerAddr> = hanging.chain([name("good")]).collect();
    let rosters = rosters(&[upstream("app", &names, short)]);
    let (end, ended) = sync_channel::<()>(0);
    let ended = Mutex::new(ended);
    let look_up: LookUp = Arc::new(move |query, _| {
        if query.address == name("good") {
            return answer(&["10.0.0.1:80"]);
        }
        // Until the test is over, one after the other.
        let _ = ended.lock().map(|ended| ended.recv());
        failure()
    });
    let resolver = Resolver::start_with(&rosters, look_up).unwrap();
    assert!(resolver.first_answers(PATIENCE), "late ones have failed");
    until(|| up(&rosters, 0) == ["good:80 (10.0.0.1:80)"]);
    drop(resolver);
    drop(end);
}

#[test]
fn a_lookup_that_panics_has_failed() {
    let rosters = rosters(&[upstream("app", &[name("a")], often())]);
    let first = AtomicUsize::new(0);
    let look_up: LookUp = Arc::new(move |_, _| {
        assert!(first.fetch_add(1, Ordering::SeqCst) > 0, "a test");
        answer(&["10.0.0.1:80"])
    });
    let resolver = Resolver::start_with(&rosters, look_up).unwrap();
    assert!(resolver.first_answers(PATIENCE));
    until(|| up(&rosters, 0) == ["a:80 (10.0.0.1:80)"]);
}

#[test]
fn a_reload_asks_for_new_names_and_not_again_for_known_ones() {
    let seldom = Resolve {
        interval: Duration::from_secs(3600),
        ..often()
    };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&asked);
    let look_up: LookUp = Arc::new(move |query, _| {
        told.lock().unwrap().push(query.address.to_string());
        answer(&["10.0.0.1:80"])
    });
    let first = upstream("app", &[name("a"), name("b")], seldom);
    let before = rosters(std::slice::from_ref(&first));
    let resolver = Resolver::start_with(&before, look_up).unwrap();
    assert!(resolver.first_answers(PATIENCE));
    // Another upstream has a name that is known, and one that isn't; `b` is gone.
    let (changed, added) = (
        upstream("app", &[name("a")], seldom),
        upstream("more", &[name("c"), name("a")], seldom),
    );
    let after = Rosters::succeeding(&[changed, added], &before, Instant::now());
    resolver.update(&after).unwrap();
    assert!(resolver.first_answers(PATIENCE));
    assert_eq!(up(&after, 0), ["a:80 (10.0.0.1:80)"]);
    assert_eq!(up(&after, 1), ["c:80 (10.0.0.1:80)", "a:80 (10.0.0.1:80)"]);
    let mut asked = asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked, ["a:80", "b:80", "c:80"]);
    drop(before);
    assert_eq!(Arc::strong_count(&first), 1, "what is gone is let go");
}

#[test]
fn names_that_come_with_a_reload_are_resolved() {
    let before = rosters(&[]);
    let look_up: LookUp = Arc::new(|_, _| answer(&["10.0.0.1:80"]));
    let resolver = Resolver::start_with(&before, look_up).unwrap();
    let after = rosters(&[upstream("app", &[name("a")], often())]);
    resolver.update(&after).unwrap();
    assert!(resolver.first_answers(PATIENCE));
    assert_eq!(up(&after, 0), ["a:80 (10.0.0.1:80)"]);
}

#[test]
fn a_service_is_asked_for_again_by_its_ttl() {
    const SERVICE: &str = "_http._tcp.app.example";
    let times = AtomicUsize::new(0);
    let server = NameServer::start(move |query, _| match times.fetch_add(1, Ordering::SeqCst) {
        0 => vec![servers(
            query,
            &[(1, 3, 80, "n1.example", 1), (2, 1, 80, "n2.example", 1)],
        )],
        _ => vec![servers(query, &[(1, 1, 81, "n3.example", 600)])],
    });
    let settings = settings(&[&server]);
    let (seen, was_seen) = sync_channel(1);
    let (first, was_seen) = (AtomicUsize::new(0), Mutex::new(was_seen));
    let look_up: LookUp = Arc::new(move |query, deadline| {
        if first.fetch_add(1, Ordering::SeqCst) == 1 {
            // Not before the test has seen the answer before.
            let _ = was_seen.lock().unwrap().recv_timeout(PATIENCE);
        }
        let ServerAddr::Service(name) = &query.address else {
            return failure();
        };
        let services = client::ask(&settings, name, deadline)?;
        lookup::servers(&services, query.resolve.family, deadline, |_, _| {
            Err(LookupError::NoService)
        })
    });
    let seldom = Resolve {
        interval: Duration::from_secs(3600),
        ..often()
    };
    let service = ServerAddr::Service(SERVICE.into());
    let rosters = rosters(&[upstream("app", &[service], seldom)]);
    let resolver = Resolver::start_with(&rosters, look_up).unwrap();
    assert!(resolver.first_answers(PATIENCE));
    let members = rosters.list()[0].members();
    let list: Vec<_> = members
        .list
        .iter()
        .map(|it| (&*it.label, it.weight, it.is_backup))
        .collect();
    let expected = [
        ("srv:_http._tcp.app.example (10.0.0.1:80)", 3, false),
        ("srv:_http._tcp.app.example (10.0.0.2:80)", 1, true),
    ];
    assert_eq!(list, expected);
    seen.send(()).unwrap();
    until(|| up(&rosters, 0) == ["srv:_http._tcp.app.example (10.0.0.3:81)"]);
}
