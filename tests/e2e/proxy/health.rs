//! Servers that are not well: left out, asked how they are, and taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::{Backend, answer, ok};
use super::upstream;
use crate::support::{PATIENCE, on_both, wait_until};

/// Takes requests and closes without an answer.
fn closing() -> Backend {
    Backend::start(|connection| {
        connection.request();
        connection.close();
    })
}

#[test]
fn a_server_that_fails_is_left_out() {
    on_both(|engine| {
        let (bad, good) = (closing(), Backend::naming("good"));
        let table = "passive_health = { failures = 3, eject = \"60s\", share = 50 }";
        let server = upstream(engine, &[bad.name(), good.name()], table, "");
        let mut client = server.connect();
        for _ in 0..30 {
            assert_eq!(client.get("/").text(), "good", "nobody notices");
        }
        assert_eq!(bad.requests().len(), 3, "three failures are enough");
    });
}

#[test]
fn statuses_count_as_failures_where_that_is_said() {
    on_both(|engine| {
        let bad = Backend::start(|connection| {
            while connection.request().is_some() {
                connection.send(answer(500, "", "bad"));
            }
        });
        let good = Backend::naming("good");
        let table = "passive_health = { failures = 2, eject = \"60s\", statuses = [500] }";
        let server = upstream(engine, &[bad.name(), good.name()], table, "");
        let mut client = server.connect();
        let mut statuses: Vec<u16> = (0..20).map(|_| client.get("/").status).collect();
        assert_eq!(statuses.iter().filter(|s| **s == 500).count(), 2);
        statuses.retain(|status| *status != 500);
        assert!(statuses.iter().all(|status| *status == 200));
        let table = "passive_health = { failures = 2, eject = \"60s\" }";
        let server = upstream(engine, &[bad.name(), good.name()], table, "");
        let mut client = server.connect();
        let statuses = (0..20).map(|_| client.get("/").status);
        assert_eq!(
            statuses.filter(|s| *s == 500).count(),
            10,
            "an answer is one"
        );
    });
}

#[test]
fn an_ejected_server_comes_back_after_its_time() {
    on_both(|engine| {
        let well = Arc::new(AtomicBool::new(false));
        let of_script = Arc::clone(&well);
        let once_bad = Backend::start(move |connection| {
            while connection.request().is_some() {
                if !of_script.load(Ordering::SeqCst) {
                    return connection.close();
                }
                connection.send(ok("again"));
            }
        });
        let good = Backend::naming("good");
        let table = "passive_health = { failures = 1, eject = \"300ms\" }";
        let server = upstream(engine, &[once_bad.name(), good.name()], table, "");
        let mut client = server.connect();
        for _ in 0..4 {
            assert_eq!(client.get("/").text(), "good");
        }
        well.store(true, Ordering::SeqCst);
        wait_until("it is asked again", PATIENCE, || {
            client.get("/").text() == "again"
        });
    });
}

#[test]
fn never_all_are_left_out() {
    on_both(|engine| {
        let bad = [closing(), closing()];
        let names: Vec<&str> = bad.iter().map(Backend::name).collect();
        let table = "passive_health = { failures = 1, eject = \"60s\", share = 100 }";
        let server = upstream(engine, &names, table, "retries = false");
        let mut client = server.connect();
        let asked = || bad.iter().map(|b| b.requests().len()).sum::<usize>();
        for n in 1..=10 {
            assert_eq!(client.get("/").status, 502);
            assert_eq!(asked(), n, "somebody is still asked");
        }
    });
}

#[test]
fn a_breaker_leaves_an_upstream_alone() {
    on_both(|engine| {
        let bad = closing();
        let table = "passive_health = false\n\
                     breaker = { error_rate = 50, min_requests = 5, open = \"60s\" }";
        let server = upstream(engine, &[bad.name()], table, "");
        let mut client = server.connect();
        let statuses: Vec<u16> = (0..30).map(|_| client.get("/").status).collect();
        let asked = bad.requests().len();
        assert!((5..10).contains(&asked), "{asked}: {statuses:?}");
        assert_eq!(statuses[0], 502);
        assert_eq!(statuses[29], 503, "nobody is asked, and that is said");
    });
}

/// A backend whose health is this flag; it answers all else with its name.
fn asked_for_health(name: &'static str, well: &Arc<AtomicBool>) -> Backend {
    let well = Arc::clone(well);
    Backend::start(move |connection| {
        while let Some(request) = connection.request() {
            connection.send(match request.target.as_str() {
                "/healthz" if well.load(Ordering::SeqCst) => ok("all is well"),
                "/healthz" => answer(503, "", "all is well"),
                _ => ok(name),
            });
        }
    })
}

#[test]
fn servers_are_asked_how_they_are() {
    on_both(|engine| {
        let flags = [true, true].map(|well| Arc::new(AtomicBool::new(well)));
        let a = asked_for_health("a", &flags[0]);
        let b = asked_for_health("b", &flags[1]);
        let table = "health = { path = \"/healthz\", interval = \"100ms\", timeout = \"100ms\", \
                     rise = 2, fall = 3, body = \"well\", host = \"health.example\" }";
        let server = upstream(engine, &[a.name(), b.name()], table, "");
        let mut client = server.connect();
        let mut answers = move || -> String {
            let answer = |_| client.get("/").text().to_owned();
            (0..6).map(answer).collect()
        };
        wait_until("both answer", PATIENCE, || {
            let answers = answers();
            answers.contains('a') && answers.contains('b')
        });
        flags[0].store(false, Ordering::SeqCst);
        wait_until("it is out", PATIENCE, || answers() == "bbbbbb");
        flags[0].store(true, Ordering::SeqCst);
        wait_until("it is back", PATIENCE, || answers().contains('a'));
        let requests = a.requests();
        let probe = requests.iter().find(|r| r.target == "/healthz");
        let probe = probe.expect("it was asked");
        assert_eq!(
            (probe.method.as_str(), probe.must("Host")),
            ("GET", "health.example")
        );
        // With nobody well the whole has no one to ask.
        for flag in &flags {
            flag.store(false, Ordering::SeqCst);
        }
        wait_until("nobody is left", PATIENCE, || {
            let response = server.connect().get("/");
            response.status == 503
        });
    });
}

#[test]
fn a_server_that_comes_back_is_asked_for_little_at_first() {
    on_both(|engine| {
        for (slow_start, shares) in [("60s", 0..=8), ("0s", 19..=21)] {
            let flags = [true, true].map(|well| Arc::new(AtomicBool::new(well)));
            let a = asked_for_health("a", &flags[0]);
            let b = asked_for_health("b", &flags[1]);
            let table = format!(
                "slow_start = {slow_start:?}\n\
                 health = {{ path = \"/healthz\", interval = \"200ms\", timeout = \"200ms\", \
                 rise = 1, fall = 3 }}"
            );
            let server = upstream(engine, &[a.name(), b.name()], &table, "");
            let mut client = server.connect();
            let mut of_b = |count: usize| {
                let answers = (0..count).map(|_| client.get("/").text() == "b");
                answers.filter(|is_b| *is_b).count()
            };
            flags[1].store(false, Ordering::SeqCst);
            wait_until("it is out", PATIENCE, || of_b(4) == 0);
            flags[1].store(true, Ordering::SeqCst);
            wait_until("it is back", PATIENCE, || {
                let back = "answers its health check again";
                let log = server.stderr();
                (log.lines()).any(|line| line.contains(back) && line.contains(b.name()))
            });
            let share = of_b(40);
            assert!(shares.contains(&share), "{slow_start}: {share} of 40");
        }
    });
}

#[test]
fn a_client_that_leaves_is_no_fault_of_its_server() {
    on_both(|engine| {
        let backend = || {
            Backend::start(|connection| {
                while let Some(request) = connection.request() {
                    if request.target == "/silent" {
                        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun");
                        connection.rest();
                        return;
                    }
                    connection.send(ok("well"));
                }
            })
        };
        let backends = [backend(), backend()];
        let names: Vec<&str> = backends.iter().map(Backend::name).collect();
        let table = "passive_health = { failures = 1, eject = \"60s\" }";
        let server = upstream(engine, &names, table, "");
        for _ in 0..4 {
            let mut client = server.connect();
            client.send("GET /silent HTTP/1.1\r\nHost: a\r\n\r\n");
            client.await_text("begun");
            client.abort();
        }
        let mut client = server.connect();
        let before = backends.each_ref().map(|backend| backend.requests().len());
        for _ in 0..6 {
            assert_eq!(client.get("/").text(), "well");
        }
        for (backend, before) in backends.iter().zip(before) {
            assert_eq!(backend.requests().len(), before + 3, "both are asked");
        }
    });
}
