//! A worker that dies is replaced at once; what waits in the backlog is served by the next one.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{config, config_with};
use crate::support::{Client, PATIENCE, Setup, Tree, noise, on_both, wait_for, wait_until};

/// A hundred times what a release build needs, for one that isn't optimised on a machine that is busy.
const SERVING_AGAIN: Duration = Duration::from_secs(10);

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), signal).expect("it runs");
}

/// Whether no thread of a process runs any more.
fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// Stops a process: it accepts nothing until it goes on or ends.
pub(crate) fn stop(pid: u32) {
    send(pid, Signal::STOP);
    wait_until("it is stopped", PATIENCE, || is_stopped(pid));
}

/// Kills a process and waits for its end, so that nobody is accepted by it any more.
pub(crate) fn kill(pid: u32) {
    send(pid, Signal::KILL);
    wait_until("it is dead", PATIENCE, || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn a_killed_worker_is_replaced_at_once_and_the_backlog_is_served() {
    on_both(|engine| {
        for (signal, name) in [(Signal::KILL, "SIGKILL"), (Signal::SEGV, "SIGSEGV")] {
            let tree = Tree::new();
            tree.write("long.bin", noise(16 << 20));
            let server = Setup::run(engine, &config(&tree, "ok")).start();
            let worker = server.worker();
            let mut loading = server.download("/long.bin");
            // A worker that is stopped accepts nothing: these wait in the queue when it dies.
            stop(worker);
            let mut waiting: Vec<Client> = (0..50)
                .map(|_| {
                    let mut client = server.connect();
                    client.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n");
                    client
                })
                .collect();
            let begin = Instant::now();
            send(worker, signal);
            if signal != Signal::KILL {
                send(worker, Signal::CONT);
            }
            for client in &mut waiting {
                assert_eq!(client.response().text(), "ok", "it waited in the backlog");
            }
            let took = begin.elapsed();
            eprintln!("{engine:?}, {name}: serving again after {took:?}");
            assert!(took < SERVING_AGAIN, "{took:?}");
            loading
                .try_response()
                .expect_err("it was in flight in the worker that died");
            let new = server.worker();
            assert_ne!(new, worker);
            wait_until("the cause is told", PATIENCE, || {
                server.stderr().contains(name)
            });
            let status = server.status();
            assert_eq!(status["restarts"], 1, "{status}");
            let cause = status["last_exit"]["cause"].as_str().unwrap_or_default();
            assert!(cause.contains(name), "{status}");
        }
    });
}

#[test]
fn a_worker_that_dies_after_a_reload_is_replaced_by_one_of_the_new_configuration() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = Setup::run(engine, &config(&tree, "old")).start();
        server.write_config(&config(&tree, "new"));
        server.must(&["reload"]);
        // What stands in the file now was never loaded.
        server.write_config("[server\n");
        kill(server.worker());
        assert_eq!(server.connect().get("/ok").text(), "new");
    });
}

#[test]
fn a_worker_that_dies_again_and_again_is_respawned_with_longer_pauses() {
    on_both(|engine| {
        let tree = Tree::new();
        let mut server = Setup::run(engine, &config(&tree, "ok")).start();
        let mut last = 0;
        let begin = Instant::now();
        for _ in 0..5 {
            let worker = wait_for("another worker", PATIENCE, || {
                let workers = server.workers("serving");
                workers.first().copied().filter(|worker| *worker != last)
            });
            wait_until("it serves", PATIENCE, || {
                server.status()["generations"][0]["workers"][0]["cores"][0]["responding"] == true
            });
            kill(worker);
            last = worker;
        }
        // At once, then after 100, 200, 400 and 800 ms.
        assert_eq!(server.connect().get("/ok").text(), "ok");
        assert!(
            begin.elapsed() > Duration::from_millis(1400),
            "{:?}",
            begin.elapsed()
        );
        assert!(server.ended().is_none());
    });
}

#[test]
fn several_processes_serve_and_each_is_replaced_alone() {
    on_both(|engine| {
        let tree = Tree::new();
        let text = config_with(&tree, "ok", "processes = 2");
        let server = Setup::run(engine, &text).start();
        let workers = server.workers("serving");
        assert_eq!(workers.len(), 2, "{workers:?}");
        kill(workers[0]);
        for _ in 0..20 {
            assert_eq!(server.connect().get("/ok").text(), "ok");
        }
        wait_until("there are two again", PATIENCE, || {
            let now = server.workers("serving");
            now.len() == 2 && now.contains(&workers[1]) && !now.contains(&workers[0])
        });
        server.write_config(&text.replace("\"ok\"", "\"new\""));
        server.must(&["reload"]);
        for _ in 0..20 {
            assert_eq!(server.connect().get("/ok").text(), "new");
        }
    });
}

#[test]
fn when_the_master_dies_the_worker_lets_go_and_serves_its_clients_to_the_end() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("long.bin", noise(16 << 20));
        let server = Setup::run(engine, &config(&tree, "ok")).start();
        let worker = server.worker();
        let mut loading = server.download("/long.bin");
        server.signal(Signal::KILL);
        wait_until("nobody listens", PATIENCE, || {
            let (domain, address) = server.address().socket();
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            socket.connect_timeout(&address, PATIENCE).is_err()
        });
        assert!(
            loading.response().body == noise(16 << 20),
            "it is served to its end"
        );
        drop(loading);
        wait_until("the worker ends", PATIENCE, || {
            !std::path::Path::new(&format!("/proc/{worker}/exe")).exists()
        });
    });
}

#[test]
fn a_worker_that_stalls_as_a_whole_is_replaced_and_takes_no_clients_with_it() {
    on_both(|engine| {
        let tree = Tree::new();
        // As long is an answer waited for, and as long a worker may take to start.
        let text = config_with(&tree, "old", "start_timeout = \"5s\"");
        let server = Setup::run(engine, &text).start();
        let worker = server.worker();
        send(worker, Signal::STOP);
        wait_until("it is stopped", PATIENCE, || is_stopped(worker));
        server.write_config(&config_with(&tree, "new", "start_timeout = \"20s\""));
        server.ask_must("reload");
        // Its accepts are armed, and what they were woken for is left by it when it is killed.
        let mut fallen_to_it: Vec<Client> = (0..4)
            .map(|_| {
                let mut client = server.connect();
                client.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n");
                client
            })
            .collect();
        wait_until("it is gone", 3 * PATIENCE, || {
            !std::path::Path::new(&format!("/proc/{worker}")).exists()
        });
        for client in &mut fallen_to_it {
            assert_eq!(client.response().text(), "new");
        }
        for _ in 0..10 {
            assert_eq!(server.connect().get("/ok").text(), "new");
        }
    });
}
