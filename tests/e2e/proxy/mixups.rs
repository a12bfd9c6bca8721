//! Many clients, kept connections, and backends and clients of all tempers at once: whoever gets an
//! answer gets his own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::backend::{Backend, Connection, answer};
use super::upstream_config;
use crate::support::{Client, PATIENCE, Server, Setup, on_both, wait_until};

const THREADS: usize = 6;
const REQUESTS: usize = 150;

/// The temper of a request, from its number.
fn temper(target: &str) -> usize {
    let number: usize = target[1..].parse().expect("a number");
    number.wrapping_mul(2_654_435_761) >> 7
}

/// Answers each request with its own target, in one of many ways.
fn moody(connection: &mut Connection) {
    while let Some(request) = connection.request() {
        let text = format!("{} {}", request.target, request.text());
        let whole = answer(200, "", &text);
        let (half, rest) = whole.split_at(whole.len() / 2);
        match temper(&request.target) % 12 {
            0 => {
                let length = text.len();
                connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                connection.send(format!("{length:x}\r\n{text}\r\n0\r\nX-T: 1\r\n\r\n"));
            }
            1 => connection.send_bytewise(whole),
            2 => {
                connection.send(half);
                thread::yield_now();
                connection.send(rest);
            }
            // More than was asked for: the next request must not get it.
            3 => {
                connection.send(format!(
                    "{whole}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
                ));
            }
            4 => {
                connection.send(whole);
                return;
            }
            5 => {
                connection.send(half);
                return connection.close();
            }
            6 => return connection.reset(),
            7 => {
                connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
                connection.send(whole);
            }
            8 => {
                connection.send("HTTP/1.0 200 OK\r\n\r\n");
                connection.send(text);
                return connection.close();
            }
            _ => {
                connection.send(whole);
            }
        }
    }
}

/// Asks, and sometimes leaves before it is answered. Says whether an answer came.
fn ask(server: &Server, kept: &mut Option<Client>, number: usize) -> bool {
    let client = kept.get_or_insert_with(|| server.connect());
    let (fields, body) = match number % 3 {
        0 => ("Content-Length: 4\r\n", "body"),
        1 => ("Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
        _ => ("", ""),
    };
    let method = if body.is_empty() { "GET" } else { "PUT" };
    client.send(format!(
        "{method} /{number} HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}"
    ));
    if number.is_multiple_of(17) {
        kept.take().expect("it is there").abort();
        return false;
    }
    let response = loop {
        match client.try_response() {
            Ok(response) if response.status < 200 => {}
            Ok(response) => break response,
            Err(_) => {
                // It was cut, and shown so.
                *kept = None;
                return false;
            }
        }
    };
    if response.closes() {
        *kept = None;
    }
    let content = if body.is_empty() { "" } else { "body" };
    match response.status {
        200 => assert_eq!(response.text(), format!("/{number} {content}"), "another's"),
        status => assert!([502, 503].contains(&status), "{response:?}"),
    }
    response.status == 200
}

/// All of the requests; how many were answered.
fn storm(server: &Server) -> usize {
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let answered = &answered;
            scope.spawn(move || {
                let mut kept = None;
                for number in 0..REQUESTS {
                    if ask(server, &mut kept, number * THREADS + thread) {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    answered.load(Ordering::Relaxed)
}

#[test]
fn nobody_gets_the_answer_of_another() {
    on_both(|engine| {
        let backends = [Backend::start(moody), Backend::start(moody)];
        let names: Vec<&str> = backends.iter().map(Backend::name).collect();
        const FULL: &str = "max_conns = 2\nqueue = { size = 3, timeout = \"5s\" }";
        for (threads, table) in [(1, ""), (1, FULL), (2, FULL)] {
            let table = format!("passive_health = false\n{table}");
            let server = Setup::run(engine, &upstream_config(&names, &table, ""))
                .workers(threads)
                .start();
            let worker = server.worker();
            let answered = storm(&server);
            assert_eq!(server.worker(), worker, "it stood all of that");
            assert!(answered > THREADS * REQUESTS / 2, "{answered}: {table}");
            // Nothing is held for those that left: all places are free.
            wait_until("it is quiet", PATIENCE, || {
                server.connect().get("/9999").status == 200
            });
        }
    });
}

#[test]
fn reloads_in_the_midst_of_it_mix_nothing_up() {
    on_both(|engine| {
        let backends = [Backend::start(moody), Backend::start(moody)];
        let names: Vec<&str> = backends.iter().map(Backend::name).collect();
        let config = |n: usize| {
            let table = format!("passive_health = false\nmax_conns = {}", 3 + n % 2);
            upstream_config(&names[..1 + n % 2], &table, "")
        };
        let server = Setup::run(engine, &config(1)).start();
        let worker = server.worker();
        thread::scope(|scope| {
            let storm = scope.spawn(|| storm(&server));
            let mut reloads = 0;
            while !storm.is_finished() {
                reloads += 1;
                server.write_config(&config(reloads));
                server.ask_must("reload");
            }
            let answered = storm.join().expect("no client was told another's");
            assert!(answered > THREADS * REQUESTS / 2, "{answered}");
            assert!(reloads > 3, "{reloads}");
        });
        assert_eq!(server.worker(), worker, "it stood all of that");
    });
}
